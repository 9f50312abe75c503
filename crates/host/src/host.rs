//! The host: its models, and what is asked of all of them.

use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};
use std::time::{Duration, Instant};

use drivetrain_config::{Environment, ModelSpec, ServerConfig};

use crate::activity::Activity;
use crate::model::{LoadInputs, ModelHandle, Planned, plan, spawn};
use crate::registry::EngineRegistry;
use crate::{HostError, TaskReply, TaskRequest, Watch};

/// Longest a load may take before the model's own limit is read.
const FIRST_LOAD_LIMIT: Duration = Duration::from_secs(3600);

/// How long the work in hand of a model that is unloaded may take.
const UNLOAD_LIMIT: Duration = Duration::from_secs(30);

/// Owns the engines and the models. Cheap to clone; all clones are one host.
#[derive(Clone)]
pub struct Host(Arc<Inner>);

struct Inner {
    server: Arc<ServerConfig>,
    env: Arc<Environment>,
    engines: Arc<EngineRegistry>,
    activity: Arc<Activity>,
    models: RwLock<Vec<ModelHandle>>,
    /// Turns over the versions of a model.
    turn: AtomicUsize,
}

impl Host {
    /// A host without models.
    pub fn new(server: Arc<ServerConfig>, env: Environment, engines: EngineRegistry) -> Self {
        Self(Arc::new(Inner {
            server,
            env: Arc::new(env),
            engines: Arc::new(engines),
            activity: Activity::new(),
            models: RwLock::new(Vec::new()),
            turn: AtomicUsize::new(0),
        }))
    }

    /// The server's settings.
    pub fn server(&self) -> &Arc<ServerConfig> {
        &self.0.server
    }

    /// The engines.
    pub fn engines(&self) -> &EngineRegistry {
        &self.0.engines
    }

    /// Registers a model at once and loads it on its own thread; wait for it with
    /// [`ModelHandle::wait_ready`]. A model that can't be loaded stays registered as failed.
    ///
    /// # Errors
    /// `Duplicate` if there is one of this name and version, `ShuttingDown`, or `Io` if there can
    /// be no thread for it.
    pub fn load(&self, spec: &ModelSpec) -> Result<ModelHandle, HostError> {
        self.load_with(spec, Vec::new())
    }

    /// [`Self::load`] with settings that go before those of the model's files: keys without `option.`
    /// and values.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn load_with(
        &self,
        spec: &ModelSpec,
        settings: Vec<(String, String)>,
    ) -> Result<ModelHandle, HostError> {
        let name = spec.name_or_default();
        let mut models = self.0.models.write().unwrap_or_else(PoisonError::into_inner);
        if self.0.activity.is_draining() {
            return Err(HostError::ShuttingDown);
        }
        if models.iter().any(|m| m.name() == name && m.version() == spec.version.as_deref()) {
            let version = spec.version.as_deref().map(|v| format!(":{v}")).unwrap_or_default();
            return Err(HostError::Duplicate { name: format!("{name}{version}") });
        }
        let (handle, inputs) = self.start(spec, settings);
        spawn(&handle, inputs)?;
        models.push(handle.clone());
        Ok(handle)
    }

    /// Says what loading a model would do, by the engine that would load it. Registers nothing, and
    /// blocks while the model's files are brought to this machine, of which `watch` is told.
    ///
    /// `settings` are keys without `option.` and values; they go before those of `spec` and of the
    /// model's own files, as the parameters of a management request do.
    ///
    /// # Errors
    /// Whatever would fail the model after [`Self::load`] up to and in the engine, and
    /// [`HostError::Engine`] if that engine states no plan.
    pub fn plan(
        &self,
        spec: &ModelSpec,
        settings: &[(String, String)],
        watch: &dyn Watch,
    ) -> Result<Planned, HostError> {
        let (handle, inputs) = self.start(spec, settings.to_vec());
        plan(&handle, &inputs, watch)
    }

    /// A model's handle, not yet registered, and what it is loaded from.
    fn start(
        &self,
        spec: &ModelSpec,
        settings: Vec<(String, String)>,
    ) -> (ModelHandle, LoadInputs) {
        let (name, activity) = (spec.name_or_default(), Arc::clone(&self.0.activity));
        let handle = ModelHandle::new(name, spec.version.clone(), activity, FIRST_LOAD_LIMIT);
        let inputs = LoadInputs {
            server: Arc::clone(&self.0.server),
            env: Arc::clone(&self.0.env),
            engines: Arc::clone(&self.0.engines),
            spec: spec.clone(),
            settings,
        };
        (handle, inputs)
    }

    /// The model of this name, and of this version if one is given; without one the versions take
    /// turns.
    ///
    /// # Errors
    /// `ModelNotFound`.
    pub fn model(&self, name: &str, version: Option<&str>) -> Result<ModelHandle, HostError> {
        let models = self.read();
        let named = |model: &&ModelHandle| {
            model.name() == name && version.is_none_or(|version| model.version() == Some(version))
        };
        let n_versions = models.iter().filter(named).count();
        let turn = if n_versions > 1 { self.0.turn.fetch_add(1, Ordering::Relaxed) } else { 0 };
        models.iter().filter(named).nth(turn % n_versions.max(1)).cloned().ok_or_else(|| {
            HostError::ModelNotFound { name: name.to_owned(), version: version.map(str::to_owned) }
        })
    }

    /// The only start-up model, or the only model where none was given at the start.
    ///
    /// # Errors
    /// `NoDefaultModel` if there is none, or several.
    pub fn default_model(&self) -> Result<ModelHandle, HostError> {
        let mut names: Vec<String> = if self.0.server.models.is_empty() {
            self.read().iter().map(|model| model.name().to_owned()).collect()
        } else {
            self.0.server.models.iter().map(ModelSpec::name_or_default).collect()
        };
        names.sort();
        names.dedup();
        match names.as_slice() {
            [name] => self.model(name, None),
            _ => Err(HostError::NoDefaultModel { n_models: names.len() }),
        }
    }

    /// All models, in the order they were registered.
    pub fn models(&self) -> Vec<ModelHandle> {
        self.read().clone()
    }

    /// Takes a model out, one version or all of them. What it is doing ends within 30 seconds,
    /// then its memory is given back: [`ModelHandle::wait_unloaded`] of what comes back waits for that.
    ///
    /// # Errors
    /// `ModelNotFound`.
    pub fn unload(&self, name: &str, version: Option<&str>) -> Result<Vec<ModelHandle>, HostError> {
        let mut models = self.0.models.write().unwrap_or_else(PoisonError::into_inner);
        let (gone, kept): (Vec<_>, Vec<_>) = models.drain(..).partition(|model| {
            model.name() == name && version.is_none_or(|version| model.version() == Some(version))
        });
        *models = kept;
        drop(models);
        if gone.is_empty() {
            let version = version.map(str::to_owned);
            return Err(HostError::ModelNotFound { name: name.to_owned(), version });
        }
        gone.iter().for_each(|model| model.unload(Instant::now() + UNLOAD_LIMIT));
        Ok(gone)
    }

    /// [`ModelHandle::submit`] to the model of this name.
    ///
    /// # Errors
    /// As [`Self::model`] and [`ModelHandle::submit`].
    pub async fn submit(
        &self,
        name: &str,
        version: Option<&str>,
        request: TaskRequest,
    ) -> Result<TaskReply, HostError> {
        self.model(name, version)?.submit(request).await
    }

    /// Takes no new requests. Those in hand end by `deadline`: a generation that is not done by
    /// then is answered with what it has, anything else with `ShuttingDown`.
    pub fn begin_drain(&self, deadline: Instant) {
        self.0.activity.drain(deadline);
        self.read().iter().for_each(|model| model.drain(deadline));
        tracing::info!(n_requests = self.n_requests(), "draining");
    }

    /// Whether a drain has begun.
    pub fn is_draining(&self) -> bool {
        self.0.activity.is_draining()
    }

    /// Requests in hand.
    pub fn n_requests(&self) -> usize {
        self.0.activity.n_requests()
    }

    /// Ends when no request is in hand; after [`Self::begin_drain`] that is when all are answered.
    pub async fn drained(&self) {
        self.0.activity.idle().await;
    }

    fn read(&self) -> RwLockReadGuard<'_, Vec<ModelHandle>> {
        self.0.models.read().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Host").field("models", &*self.read()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
