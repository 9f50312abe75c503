//! A model: its life, its thread, and the door through which requests reach it.

mod faults;
mod gauges;
mod inbox;
mod lifecycle;
mod load;
mod open;
mod plan;
mod reload;
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
use crate::adapters::{AdapterChange, AdapterChoice, AdapterInfo, Adapters, Lease, Mail};
use crate::code_adapters::{CodeAdapters, CodeAnswer, CodeChange};
use crate::generate::{Answers, GenerateRequest, Generation, Pipe, Term};
use crate::scheduler::{Job, Outcome, Work};
use crate::tasks::{PreparedGeneration, TaskContext, is_quick};
use crate::{HostError, Input, RawFrames, RawReply, RawRequest, Task, TaskReply, TaskRequest};
use inbox::Refusal;
use request_pool::{FRAMES_AHEAD, RawJob, panic_text};
use sink::WholeSink;

pub(crate) use inbox::{Inbox, Place};
pub(crate) use lifecycle::Lifecycle;
pub use lifecycle::ModelStatus;
pub(crate) use load::{LoadInputs, spawn};
pub use plan::Planned;
pub(crate) use plan::plan;

/// Text above this many bytes is read on a thread where waiting is allowed.
const INLINE_BYTES: usize = 4096;

/// Tokens above this many are put into words on a thread where waiting is allowed.
const INLINE_TOKENS: usize = 512;

/// How long past the drain's deadline an engine in the middle of a call is waited for.
pub(crate) const DRAIN_GRACE: Duration = Duration::from_millis(900);

/// A model of the host's. Cheap to clone; the model itself lives until it is unloaded.
#[derive(Clone)]
pub struct ModelHandle {
    shared: Arc<Shared>,
    /// What requests through this handle go through.
    adapters: AdapterChoice,
}

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
    Token { inbox: Arc<Inbox<Mail>>, tasks: Arc<TaskContext>, adapters: Option<Arc<Adapters>> },
    Request { inbox: Arc<Inbox<RawJob>>, adapters: Option<CodeAdapters> },
}

impl ModelHandle {
    pub(crate) fn new(
        name: String,
        version: Option<String>,
        activity: Arc<Activity>,
        load_limit: Duration,
    ) -> Self {
        let lifecycle = Arc::new(Lifecycle::new(&name, load_limit));
        let shared = Arc::new(Shared {
            name,
            version,
            lifecycle,
            activity,
            stop: Arc::default(),
            config: OnceLock::new(),
            engine: OnceLock::new(),
            door: OnceLock::new(),
        });
        Self { shared, adapters: AdapterChoice::None }
    }

    /// The same model, whose requests through the handle that comes back go through `adapters`.
    pub fn through(&self, adapters: AdapterChoice) -> Self {
        Self { shared: Arc::clone(&self.shared), adapters }
    }

    /// The name it is served under.
    pub fn name(&self) -> &str {
        &self.shared.name
    }

    /// Its version, if it was given one.
    pub fn version(&self) -> Option<&str> {
        self.shared.version.as_deref()
    }

    /// Where it is in its life. True at the moment of asking: a model whose engine shows no life
    /// is unhealthy, one whose thread has ended has failed.
    pub fn status(&self) -> ModelStatus {
        self.shared.lifecycle.status()
    }

    /// What it is asked for; `None` until it is loaded, and for a model that answers itself.
    pub fn task(&self) -> Option<Task> {
        self.shared.task()
    }

    /// Its settings; `None` until they are read.
    pub fn config(&self) -> Option<Arc<ModelConfig>> {
        self.shared.config.get().cloned()
    }

    /// The engine it runs on; `None` until that is chosen.
    pub fn engine_name(&self) -> Option<&str> {
        self.shared.engine.get().map(|info| info.name.as_str())
    }

    /// What its engine says of itself; `None` until that is chosen.
    pub fn engine_info(&self) -> Option<&EngineInfo> {
        self.shared.engine.get()
    }

    /// The model's figures; `None` until it is loaded, and for a model that answers itself.
    pub fn token_info(&self) -> Option<TokenModelInfo> {
        match self.shared.door.get()? {
            Door::Token { tasks, .. } => Some(tasks.limits().info),
            Door::Request { .. } => None,
        }
    }

    /// Whether it answers whole requests itself, through [`Self::submit_raw`].
    pub fn is_request_model(&self) -> bool {
        matches!(self.shared.door.get(), Some(Door::Request { .. }))
    }

    /// Waits until it is ready. To be awaited in a tokio runtime with its timer.
    ///
    /// # Errors
    /// Why it is not, and will not be.
    pub async fn wait_ready(&self) -> Result<(), HostError> {
        self.shared.lifecycle.wait_ready().await
    }

    /// [`Self::wait_ready`] for a thread that may wait.
    ///
    /// # Errors
    /// Why it is not ready, and will not be.
    pub fn wait_ready_blocking(&self) -> Result<(), HostError> {
        self.shared.lifecycle.wait_ready_blocking()
    }

    /// Waits until it is unloaded, or has failed, and its memory is given back. To be awaited in a
    /// tokio runtime with its timer.
    pub async fn wait_unloaded(&self) {
        self.shared.lifecycle.wait_gone().await;
    }

    /// Does the model's task on the request's inputs. Dropping the future cancels the work at the
    /// next step. To be awaited in a tokio runtime with its timer.
    ///
    /// # Errors
    /// Any of the request's, the moment's or the engine's; see [`HostError`].
    pub async fn submit(&self, request: TaskRequest) -> Result<TaskReply, HostError> {
        let _guard = self.shared.activity.enter()?;
        self.shared.lifecycle.check_ready()?;
        let Some(Door::Token { inbox, tasks, .. }) = self.shared.door.get() else {
            return Err(self.wrong_kind("answers whole requests itself and has no task"));
        };
        let submitted = Instant::now();
        let place = self.reserve(inbox)?;
        let deadline = self.deadline(submitted, request.deadline);
        let term = Term { submitted, deadline };
        let n_inputs = request.inputs.len();
        let n_bytes = request.inputs.iter().map(Input::n_bytes).sum::<usize>();
        let reader = Arc::clone(tasks);
        // The place goes along: a thread that reads a text goes on when nobody waits any more.
        let prepare = move || Ok((reader.prepare(&request)?, place));
        let ((mut works, prepared), mut place) = if n_bytes > INLINE_BYTES {
            self.in_time(term, run_apart(prepare)).await?
        } else {
            guarded(prepare)?
        };
        place.widen(works.len()).map_err(|refusal| self.refused(refusal, inbox))?;
        let leases = self.in_time(term, self.lease(&mut works, n_inputs)).await?;
        let (sender, receiver) = oneshot::channel();
        let sink = Box::new(WholeSink::new(works.len(), place, sender));
        let job = Job { works, sink, leases, priority: 0, submitted, deadline };
        inbox.push(Mail::Job(job)).map_err(|_| self.shared.lifecycle.lost())?;
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
        let guard = self.shared.activity.enter()?;
        self.shared.lifecycle.check_ready()?;
        let Some(Door::Token { inbox, tasks, .. }) = self.shared.door.get() else {
            return Err(self.wrong_kind("answers whole requests itself and has no task"));
        };
        let submitted = Instant::now();
        let place = self.reserve(inbox)?;
        let deadline = self.deadline(submitted, request.deadline);
        let term = Term { submitted, deadline };
        let (id, priority) = (request.id.clone(), request.priority);
        let n_inputs = request.prompts.len();
        let is_quick = is_quick(&request, INLINE_BYTES);
        let reader = Arc::clone(tasks);
        let prepare = move || Ok((reader.prepare_generation(&request)?, place));
        let (prepared, mut place) = if is_quick {
            guarded(prepare)?
        } else {
            self.in_time(term, run_apart(prepare)).await?
        };
        let PreparedGeneration { mut works, plans, how } = prepared;
        place.widen(works.len()).map_err(|refusal| self.refused(refusal, inbox))?;
        let leases = self.in_time(term, self.lease(&mut works, n_inputs)).await?;
        let (pipe, sink) = Pipe::new(place);
        let job = Job { works, sink: Box::new(sink), leases, priority, submitted, deadline };
        inbox.push(Mail::Job(job)).map_err(|_| self.shared.lifecycle.lost())?;
        let answers = Answers::new(how, plans, Arc::clone(tasks));
        let lifecycle = Arc::clone(&self.shared.lifecycle);
        Ok(Generation::new(&id, pipe, answers, term, (guard, lifecycle)))
    }

    /// Hands the request to a model that answers itself. The reply comes as soon as its head is
    /// there; its frames come with back-pressure, and dropping them stops the model. To be awaited
    /// in a tokio runtime with its timer.
    ///
    /// # Errors
    /// Any of the request's, the moment's or the engine's before the first frame.
    pub async fn submit_raw(&self, request: RawRequest) -> Result<RawReply, HostError> {
        let guard = self.shared.activity.enter()?;
        self.shared.lifecycle.check_ready()?;
        let Some(Door::Request { inbox, .. }) = self.shared.door.get() else {
            return Err(self.wrong_kind("has a task and takes no raw requests"));
        };
        let submitted = Instant::now();
        let place = self.reserve(inbox)?;
        let deadline = self.deadline(submitted, request.deadline);
        let (head, head_receiver) = oneshot::channel();
        let (frames, receiver) = mpsc::channel(FRAMES_AHEAD);
        let job = RawJob { request, submitted, deadline, place, head, frames };
        inbox.push(job).map_err(|_| self.shared.lifecycle.lost())?;
        let term = Term { submitted, deadline };
        let head = self.in_time(term, self.answer(head_receiver)).await?;
        Ok(RawReply { head, frames: RawFrames { receiver, guard } })
    }

    /// Gives the works of a request with `n_inputs` inputs their adapters, loaded.
    async fn lease(&self, works: &mut [Work], n_inputs: usize) -> Result<Vec<Lease>, HostError> {
        if self.adapters == AdapterChoice::None {
            return Ok(Vec::new());
        }
        if let AdapterChoice::Each(names) = &self.adapters {
            if names.len() != n_inputs {
                return Err(HostError::bad_request(format!(
                    "adapters lists {} names for {n_inputs} inputs: give one for each",
                    names.len()
                )));
            }
            if works.len() != n_inputs {
                return Err(HostError::bad_request(
                    "this task makes several texts of an input: name one adapter for all of them",
                ));
            }
        }
        let leases = self.adapters()?.lease(&self.adapters, works.len()).await?;
        for (work, lease) in works.iter_mut().zip(&leases) {
            work.adapter = lease.id();
        }
        Ok(leases)
    }

    fn adapters(&self) -> Result<&Adapters, HostError> {
        match self.shared.door.get() {
            Some(Door::Token { adapters: Some(adapters), .. }) => Ok(adapters),
            Some(_) => Err(HostError::NoAdapters),
            None => {
                self.shared.lifecycle.check_ready()?;
                Err(HostError::NotReady { model: self.shared.name.clone() })
            }
        }
    }

    /// Whether adapters can be registered and named in requests.
    pub fn has_adapters(&self) -> bool {
        self.adapters().is_ok()
    }

    /// The registered adapters, by name.
    ///
    /// # Errors
    /// The model has none, or is not loaded.
    pub fn list_adapters(&self) -> Result<Vec<AdapterInfo>, HostError> {
        match self.code_adapters() {
            Some(adapters) => Ok(adapters.list()),
            None => Ok(self.adapters()?.list()),
        }
    }

    /// The adapter with this name or alias.
    ///
    /// # Errors
    /// There is none, or as [`Self::list_adapters`].
    pub fn find_adapter(&self, name: &str) -> Result<AdapterInfo, HostError> {
        match self.code_adapters() {
            Some(adapters) => adapters.get(name),
            None => self.adapters()?.get(name),
        }
    }

    /// Has the code of a model that answers itself change an adapter; the list follows it. The code is
    /// given `parameters` beside what the change says.
    ///
    /// # Errors
    /// The model has no such adapters, the name is taken or unknown, there is no such directory, or
    /// the code refuses.
    pub async fn change_code_adapter(
        &self,
        change: CodeChange,
        parameters: Vec<(String, String)>,
    ) -> Result<CodeAnswer, HostError> {
        let adapters = self.code_adapters().ok_or(HostError::NoAdapters)?;
        let _turn = adapters.turn.lock().await;
        let planned = adapters.plan(change, parameters)?;
        let reply = self.submit_raw(planned.request.clone()).await?;
        adapters.settle(planned, reply).await
    }

    fn code_adapters(&self) -> Option<&CodeAdapters> {
        match self.shared.door.get() {
            Some(Door::Request { adapters, .. }) => adapters.as_ref(),
            _ => None,
        }
    }

    /// Registers an adapter whose directory is on this machine, and loads it if it is to be.
    ///
    /// # Errors
    /// The name is taken, there is no such directory, there is no slot, the engine can't use it, or
    /// as [`Self::list_adapters`].
    pub async fn register_adapter(&self, info: AdapterInfo) -> Result<(), HostError> {
        let _guard = self.shared.activity.enter()?;
        self.adapters()?.register(info).await
    }

    /// Changes an adapter; its files are read again. Requests that run go on with what they have.
    ///
    /// # Errors
    /// As [`Self::register_adapter`].
    pub async fn update_adapter(&self, name: &str, change: AdapterChange) -> Result<(), HostError> {
        let _guard = self.shared.activity.enter()?;
        self.adapters()?.update(name, change).await
    }

    /// Forgets an adapter. Requests that run go on with it.
    ///
    /// # Errors
    /// As [`Self::find_adapter`].
    pub fn unregister_adapter(&self, name: &str) -> Result<(), HostError> {
        self.adapters()?.unregister(name)
    }

    /// Waits for the model's answer.
    async fn answer<T>(
        &self,
        receiver: oneshot::Receiver<Result<T, HostError>>,
    ) -> Result<T, HostError> {
        receiver.await.unwrap_or_else(|_| Err(self.shared.lifecycle.lost()))
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
                model: self.shared.name.clone(),
                waited: term.deadline.saturating_duration_since(term.submitted),
            }),
            () = self.shared.activity.past_drain(DRAIN_GRACE) => Err(HostError::ShuttingDown),
        }
    }

    fn deadline(&self, submitted: Instant, wanted: Option<Instant>) -> Instant {
        let limit = self.shared.config.get().map(|config| config.predict_timeout.value);
        let own = limit.filter(|limit| !limit.is_zero()).and_then(|l| submitted.checked_add(l));
        // Without any limit, which 0 stands for too, a day stands for one: no request is kept for ever.
        let own = own.unwrap_or_else(|| submitted + Duration::from_secs(86_400));
        wanted.map_or(own, |wanted| wanted.min(own))
    }

    fn reserve<J>(&self, inbox: &Inbox<J>) -> Result<Place, HostError> {
        inbox.reserve().map_err(|refusal| self.refused(refusal, inbox))
    }

    fn refused<J>(&self, Refusal::Full: Refusal, inbox: &Inbox<J>) -> HostError {
        HostError::QueueFull { model: self.shared.name.clone(), capacity: inbox.capacity() }
    }

    fn wrong_kind(&self, what: &str) -> HostError {
        HostError::bad_request(format!("model {} {what}", self.shared.name))
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    fn stop_reload(&self) {
        if self.shared.lifecycle.is_lost() {
            self.shared.stop.store(true, Ordering::Relaxed);
        }
    }

    /// Ends all work by `deadline`; a load is told to stop at once.
    pub(crate) fn drain(&self, deadline: Instant) {
        self.stop_reload();
        match self.shared.door.get() {
            Some(Door::Token { inbox, .. }) => inbox.drain(deadline),
            Some(Door::Request { inbox, .. }) => inbox.drain(deadline),
            None => self.shared.stop.store(true, Ordering::Relaxed),
        }
    }

    /// Takes nothing more, and lets go of the model when the work in hand is done.
    pub(crate) fn unload(&self, deadline: Instant) {
        self.stop_reload();
        self.shared.lifecycle.unload();
        self.drain(deadline);
        if let Some(door) = self.shared.door.get() {
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
            Self::Request { inbox, .. } => inbox.close(),
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
            .field("name", &self.shared.name)
            .field("version", &self.shared.version)
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
