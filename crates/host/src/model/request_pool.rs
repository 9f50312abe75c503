//! The threads of a model that answers whole requests itself.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use drivetrain_engine::{EngineError, ErrorKind, Reply, Request, RequestModel};
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
}

impl RequestPool {
    /// Works until the inbox is closed and empty, or the model is gone, which is then the error.
    pub(crate) fn run(&self, model: &dyn RequestModel) -> Result<(), HostError> {
        let n_threads = model.info().max_concurrency.clamp(1, MAX_THREADS);
        std::thread::scope(|scope| {
            let mut threads = Vec::new();
            for idx in 0..n_threads {
                let thread = std::thread::Builder::new().name(format!("{}-{idx}", self.name));
                match thread.spawn_scoped(scope, || self.answer_all(model)) {
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
            let end = self.watch(model, || threads.iter().all(|thread| thread.is_finished()));
            if let Err(error) = &end {
                // The threads may be stuck in calls: say what is the matter before waiting for them.
                self.lifecycle.fail(error.clone());
                self.inbox.abandon();
            }
            end
        })
    }

    fn watch(&self, model: &dyn RequestModel, is_over: impl Fn() -> bool) -> Result<(), HostError> {
        let mut next_check = Instant::now();
        while !is_over() {
            self.lifecycle.beat();
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

    fn answer_all(&self, model: &dyn RequestModel) {
        loop {
            let (job, orders) = self.inbox.take_one(TURN);
            match job {
                Some(job) => self.answer(model, job),
                None if orders.closed => return,
                None => {}
            }
        }
    }

    fn answer(&self, model: &dyn RequestModel, job: RawJob) {
        let RawJob { request, submitted, deadline, place, head, frames } = job;
        drop(place);
        if Instant::now() >= deadline {
            let waited = deadline.saturating_duration_since(submitted);
            let _ = head.send(Err(HostError::Timeout { model: self.name.clone(), waited }));
            return;
        }
        if head.is_closed() {
            return;
        }
        let properties: Vec<(&str, &str)> =
            request.properties.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        let content: Vec<(&str, &[u8])> =
            request.content.iter().map(|(k, v)| (k.as_str(), v.as_ref())).collect();
        let call = Request { id: &request.id, properties: &properties, content: &content };
        let mut reply = ChannelReply { head: RawHead::default(), waiting: Some(head), frames };
        let end = catch_unwind(AssertUnwindSafe(|| model.call(&call, &mut reply)))
            .unwrap_or_else(|panic| Err(EngineError::internal(panic_text(&*panic))));
        reply.end(end);
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
struct ChannelReply {
    head: RawHead,
    waiting: Option<oneshot::Sender<Result<RawHead, HostError>>>,
    frames: mpsc::Sender<Result<Bytes, HostError>>,
}

impl ChannelReply {
    fn send_head(&mut self) -> bool {
        match self.waiting.take() {
            Some(waiting) => waiting.send(Ok(std::mem::take(&mut self.head))).is_ok(),
            None => true,
        }
    }

    fn end(mut self, end: Result<(), EngineError>) {
        match (end, self.waiting.take()) {
            (Ok(()), Some(waiting)) => drop(waiting.send(Ok(std::mem::take(&mut self.head)))),
            (Err(error), Some(waiting)) => drop(waiting.send(Err(error.into()))),
            (Ok(()), None) => {}
            (Err(error), None) => drop(self.frames.blocking_send(Err(error.into()))),
        }
    }
}

impl Reply for ChannelReply {
    fn head(&mut self, status: u16, reason: &str, headers: &[(&str, &str)]) {
        let headers = headers.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        self.head = RawHead { status, reason: reason.to_owned(), headers };
    }

    fn frame(&mut self, bytes: &[u8]) -> bool {
        self.send_head() && self.frames.blocking_send(Ok(Bytes::copy_from_slice(bytes))).is_ok()
    }
}
