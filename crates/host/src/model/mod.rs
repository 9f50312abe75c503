//! A model: its life, its thread, and the door through which requests reach it.

mod faults;
mod gauges;
mod inbox;
mod lifecycle;
mod load;
mod request_pool;
mod services;
mod sink;
mod token_worker;

use std::fmt;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use drivetrain_config::ModelConfig;
use drivetrain_engine::{EngineError, EngineInfo, TokenModelInfo};
use tokio::sync::{mpsc, oneshot};

use crate::activity::Activity;
use crate::generate::{Answers, GenerateRequest, Generation, Pipe, Term};
use crate::scheduler::{Job, Outcome};
use crate::tasks::{PreparedGeneration, TaskContext, is_quick};
use crate::{HostError, Input, RawFrames, RawReply, RawRequest, Task, TaskReply, TaskRequest};
use inbox::{Inbox, Refusal};
use request_pool::{FRAMES_AHEAD, RawJob, panic_text};
use sink::WholeSink;

pub(crate) use inbox::Place;
pub(crate) use lifecycle::Lifecycle;
pub use lifecycle::ModelStatus;
pub(crate) use load::{LoadInputs, spawn};

/// Text above this many bytes is read on a thread where waiting is allowed.
const INLINE_BYTES: usize = 4096;

/// Tokens above this many are put into words on a thread where waiting is allowed.
const INLINE_TOKENS: usize = 512;

/// How long past the drain's deadline an engine in the middle of a call is waited for.
pub(crate) const DRAIN_GRACE: Duration = Duration::from_millis(900);

/// A model of the host's. Cheap to clone; the model itself lives until it is unloaded.
#[derive(Clone)]
pub struct ModelHandle(Arc<Shared>);

/// What the handles of a model and its thread share.
pub(crate) struct Shared {
    name: String,
    version: Option<String>,
    lifecycle: Arc<Lifecycle>,
    activity: Arc<Activity>,
    /// Whether loading should stop.
    stop: Arc<AtomicBool>,
    config: OnceLock<Arc<ModelConfig>>,
    engine: OnceLock<EngineInfo>,
    door: OnceLock<Door>,
}

/// Where requests go, once the model is loaded.
enum Door {
    Token { inbox: Arc<Inbox<Job>>, tasks: Arc<TaskContext> },
    Request { inbox: Arc<Inbox<RawJob>> },
}

impl ModelHandle {
    pub(crate) fn new(
        name: String,
        version: Option<String>,
        activity: Arc<Activity>,
        load_limit: Duration,
    ) -> Self {
        let lifecycle = Arc::new(Lifecycle::new(&name, load_limit));
        Self(Arc::new(Shared {
            name,
            version,
            lifecycle,
            activity,
            stop: Arc::default(),
            config: OnceLock::new(),
            engine: OnceLock::new(),
            door: OnceLock::new(),
        }))
    }

    /// The name it is served under.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Its version, if it was given one.
    pub fn version(&self) -> Option<&str> {
        self.0.version.as_deref()
    }

    /// Where it is in its life. True at the moment of asking: a model whose engine shows no life
    /// is unhealthy, one whose thread has ended has failed.
    pub fn status(&self) -> ModelStatus {
        self.0.lifecycle.status()
    }

    /// What it is asked for; `None` until it is loaded, and for a model that answers itself.
    pub fn task(&self) -> Option<Task> {
        self.0.task()
    }

    /// Its settings; `None` until they are read.
    pub fn config(&self) -> Option<Arc<ModelConfig>> {
        self.0.config.get().cloned()
    }

    /// The engine it runs on; `None` until that is chosen.
    pub fn engine_name(&self) -> Option<&str> {
        self.0.engine.get().map(|info| info.name.as_str())
    }

    /// What its engine says of itself; `None` until that is chosen.
    pub fn engine_info(&self) -> Option<&EngineInfo> {
        self.0.engine.get()
    }

    /// The model's figures; `None` until it is loaded, and for a model that answers itself.
    pub fn token_info(&self) -> Option<TokenModelInfo> {
        match self.0.door.get()? {
            Door::Token { tasks, .. } => Some(tasks.limits().info),
            Door::Request { .. } => None,
        }
    }

    /// Whether it answers whole requests itself, through [`Self::submit_raw`].
    pub fn is_request_model(&self) -> bool {
        matches!(self.0.door.get(), Some(Door::Request { .. }))
    }

    /// Waits until it is ready. To be awaited in a tokio runtime with its timer.
    ///
    /// # Errors
    /// Why it is not, and will not be.
    pub async fn wait_ready(&self) -> Result<(), HostError> {
        self.0.lifecycle.wait_ready().await
    }

    /// [`Self::wait_ready`] for a thread that may wait.
    ///
    /// # Errors
    /// Why it is not ready, and will not be.
    pub fn wait_ready_blocking(&self) -> Result<(), HostError> {
        self.0.lifecycle.wait_ready_blocking()
    }

    /// Does the model's task on the request's inputs. Dropping the future cancels the work at the
    /// next step. To be awaited in a tokio runtime with its timer.
    ///
    /// # Errors
    /// Any of the request's, the moment's or the engine's; see [`HostError`].
    pub async fn submit(&self, request: TaskRequest) -> Result<TaskReply, HostError> {
        let _guard = self.0.activity.enter()?;
        self.0.lifecycle.check_ready()?;
        let Some(Door::Token { inbox, tasks }) = self.0.door.get() else {
            return Err(self.wrong_kind("answers whole requests itself and has no task"));
        };
        let submitted = Instant::now();
        let place = self.reserve(inbox)?;
        let deadline = self.deadline(submitted, request.deadline);
        let term = Term { submitted, deadline };
        let n_bytes = request.inputs.iter().map(Input::n_bytes).sum::<usize>();
        let reader = Arc::clone(tasks);
        // The place goes along: a thread that reads a text goes on when nobody waits any more.
        let prepare = move || Ok((reader.prepare(&request)?, place));
        let ((works, prepared), mut place) = if n_bytes > INLINE_BYTES {
            self.in_time(term, run_apart(prepare)).await?
        } else {
            guarded(prepare)?
        };
        place.widen(works.len()).map_err(|refusal| self.refused(refusal, inbox))?;
        let (sender, receiver) = oneshot::channel();
        let sink = Box::new(WholeSink::new(works.len(), place, sender));
        let job = Job { works, sink, priority: 0, submitted, deadline };
        inbox.push(job).map_err(|_| self.0.lifecycle.lost())?;
        let outcomes = self.in_time(term, self.answer(receiver)).await?;
        let n_tokens = outcomes.iter().map(Outcome::n_new_tokens).sum::<usize>();
        let tasks = Arc::clone(tasks);
        let reply = move || tasks.reply(prepared, outcomes);
        if n_tokens > INLINE_TOKENS {
            self.in_time(term, run_apart(reply)).await
        } else {
            guarded(reply)
        }
    }

    /// Generates text for the request's prompts. Dropping the generation cancels the work at the
    /// next step. To be awaited in a tokio runtime with its timer.
    ///
    /// # Errors
    /// Any of the request's, the moment's or the engine's; see [`HostError`].
    pub async fn generate(&self, request: GenerateRequest) -> Result<Generation, HostError> {
        let guard = self.0.activity.enter()?;
        self.0.lifecycle.check_ready()?;
        let Some(Door::Token { inbox, tasks }) = self.0.door.get() else {
            return Err(self.wrong_kind("answers whole requests itself and has no task"));
        };
        let submitted = Instant::now();
        let place = self.reserve(inbox)?;
        let deadline = self.deadline(submitted, request.deadline);
        let term = Term { submitted, deadline };
        let (id, priority) = (request.id.clone(), request.priority);
        let is_quick = is_quick(&request, INLINE_BYTES);
        let reader = Arc::clone(tasks);
        let prepare = move || Ok((reader.prepare_generation(&request)?, place));
        let (prepared, mut place) = if is_quick {
            guarded(prepare)?
        } else {
            self.in_time(term, run_apart(prepare)).await?
        };
        let PreparedGeneration { works, plans, how } = prepared;
        place.widen(works.len()).map_err(|refusal| self.refused(refusal, inbox))?;
        let (pipe, sink) = Pipe::new(place);
        let job = Job { works, sink: Box::new(sink), priority, submitted, deadline };
        inbox.push(job).map_err(|_| self.0.lifecycle.lost())?;
        let answers = Answers::new(how, plans, Arc::clone(tasks));
        let lifecycle = Arc::clone(&self.0.lifecycle);
        Ok(Generation::new(&id, pipe, answers, term, (guard, lifecycle)))
    }

    /// Hands the request to a model that answers itself. The reply comes as soon as its head is
    /// there; its frames come with back-pressure, and dropping them stops the model. To be awaited
    /// in a tokio runtime with its timer.
    ///
    /// # Errors
    /// Any of the request's, the moment's or the engine's before the first frame.
    pub async fn submit_raw(&self, request: RawRequest) -> Result<RawReply, HostError> {
        let guard = self.0.activity.enter()?;
        self.0.lifecycle.check_ready()?;
        let Some(Door::Request { inbox }) = self.0.door.get() else {
            return Err(self.wrong_kind("has a task and takes no raw requests"));
        };
        let submitted = Instant::now();
        let place = self.reserve(inbox)?;
        let deadline = self.deadline(submitted, request.deadline);
        let (head, head_receiver) = oneshot::channel();
        let (frames, receiver) = mpsc::channel(FRAMES_AHEAD);
        let job = RawJob { request, submitted, deadline, place, head, frames };
        inbox.push(job).map_err(|_| self.0.lifecycle.lost())?;
        let term = Term { submitted, deadline };
        let head = self.in_time(term, self.answer(head_receiver)).await?;
        Ok(RawReply { head, frames: RawFrames { receiver, guard } })
    }

    /// Waits for the model's answer.
    async fn answer<T>(
        &self,
        receiver: oneshot::Receiver<Result<T, HostError>>,
    ) -> Result<T, HostError> {
        receiver.await.unwrap_or_else(|_| Err(self.0.lifecycle.lost()))
    }

    /// Waits for `work` until the deadline, or shortly past the drain's.
    async fn in_time<T>(
        &self,
        term: Term,
        work: impl Future<Output = Result<T, HostError>>,
    ) -> Result<T, HostError> {
        tokio::select! {
            biased;
            end = work => end,
            () = tokio::time::sleep_until(term.deadline.into()) => Err(HostError::Timeout {
                model: self.0.name.clone(),
                waited: term.deadline.saturating_duration_since(term.submitted),
            }),
            () = self.0.activity.past_drain(DRAIN_GRACE) => Err(HostError::ShuttingDown),
        }
    }

    fn deadline(&self, submitted: Instant, wanted: Option<Instant>) -> Instant {
        let limit = self.0.config.get().map(|config| config.predict_timeout.value);
        let own = limit.filter(|limit| !limit.is_zero()).and_then(|l| submitted.checked_add(l));
        // Without any limit, which 0 stands for too, a day stands for one: no request is kept for ever.
        let own = own.unwrap_or_else(|| submitted + Duration::from_secs(86_400));
        wanted.map_or(own, |wanted| wanted.min(own))
    }

    fn reserve<J>(&self, inbox: &Inbox<J>) -> Result<Place, HostError> {
        inbox.reserve().map_err(|refusal| self.refused(refusal, inbox))
    }

    fn refused<J>(&self, Refusal::Full: Refusal, inbox: &Inbox<J>) -> HostError {
        HostError::QueueFull { model: self.0.name.clone(), capacity: inbox.capacity() }
    }

    fn wrong_kind(&self, what: &str) -> HostError {
        HostError::bad_request(format!("model {} {what}", self.0.name))
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.0
    }

    /// Ends all work by `deadline`; a load is told to stop at once.
    pub(crate) fn drain(&self, deadline: Instant) {
        match self.0.door.get() {
            Some(Door::Token { inbox, .. }) => inbox.drain(deadline),
            Some(Door::Request { inbox }) => inbox.drain(deadline),
            None => self.0.stop.store(true, Ordering::Relaxed),
        }
    }

    /// Takes nothing more, and lets go of the model when the work in hand is done.
    pub(crate) fn unload(&self, deadline: Instant) {
        self.0.lifecycle.unload();
        self.drain(deadline);
        if let Some(door) = self.0.door.get() {
            door.close();
        }
    }
}

impl Shared {
    fn task(&self) -> Option<Task> {
        match self.door.get()? {
            Door::Token { tasks, .. } => Some(tasks.task()),
            Door::Request { .. } => None,
        }
    }
}

impl Door {
    fn close(&self) {
        match self {
            Self::Token { inbox, .. } => inbox.close(),
            Self::Request { inbox } => inbox.close(),
        }
    }
}

/// When the last handle is gone nobody can ask any more, so the model's thread may end.
impl Drop for Shared {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(door) = self.door.get() {
            door.close();
        }
    }
}

impl fmt::Debug for ModelHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ModelHandle")
            .field("name", &self.0.name)
            .field("version", &self.0.version)
            .field("status", &self.status())
            .finish_non_exhaustive()
    }
}

/// Runs `work`; a panic becomes an error.
fn guarded<T>(work: impl FnOnce() -> Result<T, HostError>) -> Result<T, HostError> {
    catch_unwind(AssertUnwindSafe(work))
        .unwrap_or_else(|panic| Err(HostError::Engine(EngineError::internal(panic_text(&*panic)))))
}

/// Runs `work` on a thread where waiting is allowed. Dropping the future takes it back, unless it
/// has begun.
async fn run_apart<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, HostError> + Send + 'static,
) -> Result<T, HostError> {
    let mut thread = Apart(tokio::task::spawn_blocking(move || guarded(work)));
    (&mut thread.0).await.unwrap_or_else(|error| {
        Err(HostError::Engine(EngineError::internal(format!("a thread ended: {error}"))))
    })
}

/// Work on a thread of its own, taken back when nobody waits for it.
struct Apart<T>(tokio::task::JoinHandle<T>);

impl<T> Drop for Apart<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}
