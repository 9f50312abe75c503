//! A production variant: a model's data, its container, and whoever keeps that running.

use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::MissedTickBehavior;
use uuid::Uuid;

use super::container::{Container, Launch};
use super::data::Bringer;
use super::many::Many;
use super::{DeployError, environment};
use crate::fault::{Fault, FaultKind};
use crate::records::{Mode, Model, ModelData, ProductionVariant};
use crate::service::Service;

/// Pings in a row that a container may miss.
const MAX_MISSED: u32 = 3;
/// Rest before a container that ended is started again: first, and at most.
const FIRST_REST: Duration = Duration::from_millis(200);
const LONGEST_REST: Duration = Duration::from_secs(30);
/// What says to a container that it is one of SageMaker's.
const MARKER: &str = ".sagemaker_infra/endpoint-metadata.json";

/// A production variant in service.
#[derive(Debug)]
pub(crate) struct Variant {
    pub(crate) endpoint: String,
    pub(crate) name: String,
    pub(crate) model: Arc<Model>,
    weight: Mutex<f64>,
    launch: Launch,
    /// The container; none while another takes its place.
    container: Mutex<Option<Arc<Container>>>,
    /// The models of a multi-model endpoint.
    many: Option<Many>,
    stop: Notify,
    _dir: Dir,
}

/// A directory that goes with whoever has it.
#[derive(Debug)]
struct Dir(PathBuf);

impl Drop for Dir {
    fn drop(&mut self) {
        // What can't be removed lies in the work directory and is nobody's.
        let _ = fs::remove_dir_all(&self.0);
    }
}

impl Variant {
    /// Brings the model's data, starts the container and waits until it is healthy.
    pub(super) async fn start(
        service: &Arc<Service>,
        endpoint: &str,
        config: &ProductionVariant,
        model: &Arc<Model>,
    ) -> Result<Arc<Self>, DeployError> {
        let options = &service.options;
        let dir = Dir(options.work_dir.join("endpoints").join(Uuid::new_v4().simple().to_string()));
        let ml = dir.0.join("ml");
        prepare(&ml, endpoint).map_err(|source| DeployError::Dir { path: ml.clone(), source })?;
        let bringer = Bringer {
            fetch: service.fetch_options(),
            unpack_into: options.work_dir.join("unpacked"),
            limit: config.download_limit().unwrap_or(options.limits.download),
        };
        let many = match (model.container.mode, model.container.data()) {
            (Mode::MultiModel, Some(data)) => {
                let keeps_nothing = model.container.keeps_nothing();
                Some(Many::new(&data.url, ml.join("models"), bringer, keeps_nothing))
            }
            (Mode::SingleModel, Some(data)) => {
                bring(bringer, data, ml.join("model")).await?;
                None
            }
            (_, None) => None,
        };
        let launch = Launch {
            endpoint: endpoint.to_owned(),
            variant: config.variant_name.clone(),
            binary: options.binary.clone(),
            plugins: options.plugins.clone(),
            variables: environment::of(options, model, &ml),
            ml,
            limits: options.limits.clone(),
            startup: config.startup_limit().unwrap_or(options.limits.startup),
        };
        let container = Arc::new(Container::start(&launch).await?);
        let variant = Arc::new(Self {
            endpoint: endpoint.to_owned(),
            name: config.variant_name.clone(),
            model: Arc::clone(model),
            weight: Mutex::new(config.weight()),
            launch,
            container: Mutex::new(Some(Arc::clone(&container))),
            many,
            stop: Notify::new(),
            _dir: dir,
        });
        let (endpoint, name) = (&variant.endpoint, &variant.name);
        tracing::info!(endpoint, variant = name, pid = container.pid(), "container is healthy");
        tokio::spawn(keep(Arc::downgrade(&variant), container));
        Ok(variant)
    }

    /// The container.
    ///
    /// # Errors
    /// There is none for the moment.
    pub(crate) fn container(&self) -> Result<Arc<Container>, Fault> {
        self.slot().clone().ok_or_else(|| {
            Fault::new(
                FaultKind::Unavailable,
                format!(
                    "the container of variant {} of endpoint {} starts again: try again later",
                    self.name, self.endpoint
                ),
            )
        })
    }

    /// The models of a multi-model endpoint; none for an endpoint of one model.
    pub(crate) fn many(&self) -> Option<&Many> {
        self.many.as_ref()
    }

    pub(crate) fn weight(&self) -> f64 {
        *self.weight.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn set_weight(&self, weight: f64) {
        *self.weight.lock().unwrap_or_else(PoisonError::into_inner) = weight;
    }

    /// Ends the container, after it has answered what it was asked.
    pub(super) async fn stop(&self) {
        self.stop.notify_one();
        let container = self.slot().take();
        if let Some(container) = container {
            container.stop().await;
        }
    }

    fn slot(&self) -> std::sync::MutexGuard<'_, Option<Arc<Container>>> {
        self.container.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Brings a model's data on a thread where waiting is allowed.
async fn bring(bringer: Bringer, data: ModelData, place: PathBuf) -> Result<(), DeployError> {
    let brought = tokio::task::spawn_blocking(move || bringer.bring(&data, &place)).await;
    match brought {
        Ok(brought) => brought.map_err(DeployError::Data),
        Err(_) => Err(DeployError::Stopped),
    }
}

fn prepare(ml: &Path, endpoint: &str) -> std::io::Result<()> {
    let marker = ml.join(MARKER);
    let infra = marker.parent().unwrap_or(ml);
    fs::DirBuilder::new().recursive(true).mode(0o700).create(infra)?;
    fs::write(marker, serde_json::json!({ "EndpointName": endpoint }).to_string())
}

/// Watches over the variant's container until the variant stops: one that ended is started again, one
/// that answers no ping is ended.
async fn keep(variant: Weak<Variant>, mut container: Arc<Container>) {
    loop {
        if watch(&variant, &container).await == Watched::Stopped {
            return;
        }
        let mut rest = FIRST_REST;
        container = loop {
            let Some(variant) = variant.upgrade() else { return };
            tokio::select! {
                () = variant.stop.notified() => return,
                () = tokio::time::sleep(rest) => {}
            }
            rest = (rest * 2).min(LONGEST_REST);
            let (endpoint, name) = (&variant.endpoint, &variant.name);
            let started = tokio::select! {
                () = variant.stop.notified() => return,
                started = Container::start(&variant.launch) => started,
            };
            match started {
                Ok(started) => {
                    tracing::info!(endpoint, variant = name, pid = started.pid(), "healthy again");
                    let started = Arc::new(started);
                    *variant.slot() = Some(Arc::clone(&started));
                    break started;
                }
                Err(error) => {
                    let reason = crate::fault::chain(&error);
                    tracing::error!(
                        endpoint,
                        variant = name,
                        reason,
                        "the container does not start"
                    );
                }
            }
        };
    }
}

/// Why a container is no longer watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Watched {
    /// It has ended, and is out of service.
    Ended,
    /// The variant stops.
    Stopped,
}

/// Watches a container in service until its end.
async fn watch(variant: &Weak<Variant>, container: &Arc<Container>) -> Watched {
    let Some(this) = variant.upgrade() else { return Watched::Stopped };
    let mut turns = tokio::time::interval(this.launch.limits.ping_interval);
    drop(this);
    turns.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut n_missed = 0;
    loop {
        let Some(this) = variant.upgrade() else { return Watched::Stopped };
        tokio::select! {
            () = this.stop.notified() => return Watched::Stopped,
            status = container.ended() => {
                let status = status.unwrap_or_default();
                let (endpoint, name) = (&this.endpoint, &this.name);
                tracing::error!(endpoint, variant = name, %status, "the container ended: it is started again");
                *this.slot() = None;
                if let Some(many) = &this.many {
                    many.forget_all();
                }
                return Watched::Ended;
            }
            _ = turns.tick() => {}
        }
        match container.ping().await {
            Ok(()) => n_missed = 0,
            Err(reason) => {
                n_missed += 1;
                let (endpoint, name) = (&this.endpoint, &this.name);
                tracing::warn!(endpoint, variant = name, n_missed, reason, "not healthy");
                if n_missed >= MAX_MISSED {
                    container.kill();
                }
            }
        }
    }
}
