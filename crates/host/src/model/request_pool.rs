//! The threads of a model that answers whole requests itself.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use drivetrain_engine::{Call, EngineError, ErrorKind, Reply, Request, RequestModel};
use tokio::sync::{mpsc, oneshot};

use crate::model::inbox::{Inbox, Place};
use crate::model::lifecycle::Lifecycle;
use crate::{HostError, RawHead, RawRequest};

/// Frames that may wait for the client before the model has to.
pub(crate) const FRAMES_AHEAD: usize = 16;

/// Most threads of a model, whatever it says of its concurrency.
const MAX_THREADS: u32 = 256;

/// How often threads look around, and the model is asked for its health.
const TURN: Duration = Duration::from_secs(1);

/// How long a thread rests whose client has no room for a frame.
const PAUSE: Duration = Duration::from_millis(2);

/// A request on its way to a thread.
pub(crate) struct RawJob {
    pub(crate) request: RawRequest,
    pub(crate) submitted: Instant,
    pub(crate) deadline: Instant,
    pub(crate) place: Place,
    pub(crate) head: oneshot::Sender<Result<RawHead, HostError>>,
    pub(crate) frames: mpsc::Sender<Result<Bytes, HostError>>,
}

/// What the threads of a model that answers itself work with.
pub(crate) struct RequestPool {
    pub(crate) name: String,
    pub(crate) inbox: Arc<Inbox<RawJob>>,
    pub(crate) lifecycle: Arc<Lifecycle>,
    /// The order to stop, which the engine sees as well.
    pub(crate) stop: Arc<AtomicBool>,
    /// Most requests of a batch, as far as the model takes batches.
    pub(crate) batch_size: usize,
    /// How long the first request of a batch waits for company.
    pub(crate) batch_delay: Duration,
}

/// What a thread shows of its call: when it last did something; `None` between calls.
#[derive(Debug, Default)]
struct Desk(Mutex<Option<Instant>>);

impl Desk {
    fn set(&self, sign: Option<Instant>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = sign;
    }

    fn sign(&self) -> Option<Instant> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl RequestPool {
    /// Works until the inbox is closed and empty, or the model is gone, which is then the error.
    pub(crate) fn run(&self, model: &dyn RequestModel) -> Result<(), HostError> {
        let n_threads = model.info().max_concurrency.clamp(1, MAX_THREADS);
        let desks: Vec<Desk> = (0..n_threads).map(|_| Desk::default()).collect();
        std::thread::scope(|scope| {
            let mut threads = Vec::new();
            for (idx, desk) in desks.iter().enumerate() {
                let thread = std::thread::Builder::new().name(format!("{}-{idx}", self.name));
                match thread.spawn_scoped(scope, || self.answer_all(model, desk)) {
                    Ok(thread) => threads.push(thread),
                    Err(error) if idx == 0 => {
                        self.inbox.abandon();
                        let what = format!("starting a thread for model {}", self.name);
                        return Err(HostError::Io { what, source: Arc::new(error) });
                    }
                    Err(error) => {
                        tracing::warn!(model = self.name, n_threads = idx, %error, "fewer threads");
                        break;
                    }
                }
            }
            let desks = desks.get(..threads.len()).unwrap_or_default();
            let is_over = || threads.iter().all(|thread| thread.is_finished());
            let end = self.watch(model, desks, is_over);
            if let Err(error) = &end {
                // The threads may be stuck in calls: say what is the matter before waiting for them.
                self.lifecycle.fail(error.clone());
                self.inbox.abandon();
            }
            end
        })
    }

    fn watch(
        &self,
        model: &dyn RequestModel,
        desks: &[Desk],
        is_over: impl Fn() -> bool,
    ) -> Result<(), HostError> {
        let mut next_check = Instant::now();
        while !is_over() {
            // A model is silent when all its threads are: one that rests could answer.
            match desks.iter().map(Desk::sign).collect::<Option<Vec<_>>>() {
                Some(signs) => {
                    signs.into_iter().max().into_iter().for_each(|s| self.lifecycle.beat_at(s));
                }
                None => self.lifecycle.beat(),
            }
            if self.inbox.orders().is_cut_off() {
                self.cut_off();
            }
            if Instant::now() >= next_check {
                match model.health() {
                    Ok(()) => self.lifecycle.set_illness(None),
                    Err(error) if error.kind() == ErrorKind::DeviceLost => {
                        return Err(error.into());
                    }
                    Err(error) => self.lifecycle.set_illness(Some(HostError::from(error).chain())),
                }
                next_check = Instant::now() + TURN;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    /// Tells the calls to end, and those who wait that theirs never begins.
    fn cut_off(&self) {
        self.stop.store(true, Ordering::Relaxed);
        let mut jobs = Vec::new();
        self.inbox.take_all(&mut jobs);
        for job in jobs {
            // Whoever waited may have gone.
            let _ = job.head.send(Err(HostError::ShuttingDown));
        }
    }

    fn answer_all(&self, model: &dyn RequestModel, desk: &Desk) {
        let most = self.batch_size.min(model.info().max_batch as usize);
        loop {
            let (job, orders) = self.inbox.take_one(TURN);
            match job {
                Some(job) if orders.is_cut_off() => {
                    let _ = job.head.send(Err(HostError::ShuttingDown));
                }
                Some(job) => {
                    let jobs = self.company(job, most);
                    self.answer(model, jobs, desk);
                }
                None if orders.closed => return,
                None => {}
            }
        }
    }

    /// `first` and those that come with it or within the delay, up to `most`.
    fn company(&self, first: RawJob, most: usize) -> Vec<RawJob> {
        // Who waited already has done so.
        let until = (first.submitted + self.batch_delay).min(first.deadline);
        let mut jobs = vec![first];
        while jobs.len() < most {
            let left = until.saturating_duration_since(Instant::now());
            let (job, orders) = self.inbox.take_one(left);
            match job {
                Some(job) if orders.is_cut_off() => {
                    let _ = job.head.send(Err(HostError::ShuttingDown));
                }
                Some(job) => jobs.push(job),
                None if left.is_zero() || orders.closed || orders.drain.is_some() => break,
                None => {}
            }
        }
        jobs
    }

    /// Whether a request is still to be answered; if its time is over it is told so.
    fn is_wanted(&self, job: &mut Option<RawJob>) -> bool {
        let Some(RawJob { submitted, deadline, .. }) = job else { return false };
        if Instant::now() >= *deadline {
            let waited = deadline.saturating_duration_since(*submitted);
            let timeout = HostError::Timeout { model: self.name.clone(), waited };
            let _ = job.take().map(|job| job.head.send(Err(timeout)));
            return false;
        }
        job.as_ref().is_some_and(|job| !job.head.is_closed())
    }

    fn answer(&self, model: &dyn RequestModel, jobs: Vec<RawJob>, desk: &Desk) {
        let mut requests = Vec::with_capacity(jobs.len());
        let mut replies = Vec::with_capacity(jobs.len());
        for job in jobs {
            let mut job = Some(job);
            if !self.is_wanted(&mut job) {
                continue;
            }
            let Some(RawJob { request, place, head, frames, .. }) = job else { continue };
            drop(place);
            requests.push(request);
            replies.push(ChannelReply {
                head: RawHead::default(),
                waiting: Some(head),
                frames,
                inbox: &self.inbox,
                desk,
                was_cut: false,
            });
        }
        let lists: Vec<Lists<'_>> = requests.iter().map(Lists::of).collect();
        let mut calls: Vec<Call<'_>> = replies
            .iter_mut()
            .zip(requests.iter().zip(&lists))
            .map(|(reply, (request, lists))| Call { request: lists.get(request), reply })
            .collect();
        desk.set(Some(Instant::now()));
        let n = calls.len();
        let ends = catch_unwind(AssertUnwindSafe(|| match calls.as_mut_slice() {
            [] => Vec::new(),
            [call] => vec![model.call(&call.request, call.reply)],
            calls => model.call_batch(calls),
        }));
        drop(calls);
        let ends =
            ends.unwrap_or_else(|panic| vec![Err(EngineError::internal(panic_text(&*panic))); n]);
        let mut ends = ends.into_iter();
        let missing = || Err(EngineError::internal("the engine gave a request of a batch no end"));
        for reply in replies {
            reply.end(ends.next().unwrap_or_else(missing));
        }
        desk.set(None);
    }
}

/// The lists of a request as the engine sees them.
struct Lists<'a> {
    properties: Vec<(&'a str, &'a str)>,
    content: Vec<(&'a str, &'a [u8])>,
}

impl<'a> Lists<'a> {
    fn of(request: &'a RawRequest) -> Self {
        Self {
            properties: request.properties.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect(),
            content: request.content.iter().map(|(k, v)| (k.as_str(), v.as_ref())).collect(),
        }
    }

    fn get(&'a self, request: &'a RawRequest) -> Request<'a> {
        Request { id: &request.id, properties: &self.properties, content: &self.content }
    }
}

/// What a panic said.
pub(crate) fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned());
    format!("panicked: {}", text.unwrap_or_else(|| "without a message".to_owned()))
}

/// A reply that goes out frame by frame; the head goes with the first one, so that an error before
/// it can still change the status.
struct ChannelReply<'a> {
    head: RawHead,
    waiting: Option<oneshot::Sender<Result<RawHead, HostError>>>,
    frames: mpsc::Sender<Result<Bytes, HostError>>,
    inbox: &'a Inbox<RawJob>,
    desk: &'a Desk,
    /// Whether the drain kept the model from its first frame.
    was_cut: bool,
}

impl ChannelReply<'_> {
    /// Waits until there is room; `false` if the client has gone or everything is to end.
    fn send(&self, frame: Result<Bytes, HostError>) -> bool {
        let mut frame = frame;
        loop {
            self.desk.set(Some(Instant::now()));
            if self.inbox.orders().is_cut_off() {
                return false;
            }
            match self.frames.try_send(frame) {
                Ok(()) => return true,
                Err(mpsc::error::TrySendError::Closed(_)) => return false,
                Err(mpsc::error::TrySendError::Full(back)) => frame = back,
            }
            std::thread::sleep(PAUSE);
        }
    }

    fn send_head(&mut self) -> bool {
        match self.waiting.take() {
            Some(waiting) => waiting.send(Ok(std::mem::take(&mut self.head))).is_ok(),
            None => true,
        }
    }

    fn end(mut self, end: Result<(), EngineError>) {
        let was_cut = self.was_cut || (end.is_err() && self.inbox.orders().is_cut_off());
        match (end, self.waiting.take()) {
            (_, Some(waiting)) if was_cut => drop(waiting.send(Err(HostError::ShuttingDown))),
            (Ok(()), Some(waiting)) => drop(waiting.send(Ok(std::mem::take(&mut self.head)))),
            (Err(error), Some(waiting)) => drop(waiting.send(Err(error.into()))),
            (Ok(()), None) => {}
            (Err(error), None) => drop(self.send(Err(error.into()))),
        }
    }
}

impl Reply for ChannelReply<'_> {
    fn head(&mut self, status: u16, reason: &str, headers: &[(&str, &str)]) {
        let headers = headers.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        self.head = RawHead { status, reason: reason.to_owned(), headers };
    }

    fn frame(&mut self, bytes: &[u8]) -> bool {
        if self.waiting.is_some() && self.inbox.orders().is_cut_off() {
            self.was_cut = true;
            return false;
        }
        self.send_head() && self.send(Ok(Bytes::copy_from_slice(bytes)))
    }
}
