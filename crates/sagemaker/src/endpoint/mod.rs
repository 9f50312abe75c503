//! Endpoints: how they come to serve, change what they serve, and end.

mod call;
mod container;
mod data;
mod deployment;
mod environment;
mod log;
mod many;
mod variant;

use std::io;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use crate::fault::{Fault, chain, shorten};
use crate::records::{EndpointConfig, Model};
use crate::service::Service;

pub(crate) use call::{Answer, Call, CallError};
pub(crate) use container::Container;
pub(crate) use deployment::Deployment;
pub(crate) use many::{Many, NO_MEMORY, invoke_path, no_answer, original};
pub(crate) use variant::Variant;

/// Longest `FailureReason`.
const MAX_REASON_CHARS: usize = 1024;

/// Why an endpoint does not come to serve.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DeployError {
    #[error("production variant {variant}")]
    Variant {
        variant: String,
        #[source]
        source: Box<DeployError>,
    },
    #[error(transparent)]
    Data(data::DataError),
    #[error("{}: can't be made", path.display())]
    Dir {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{}: can't be run", binary.display())]
    Spawn {
        binary: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the container ended before it was healthy ({status}): {reason}")]
    Ended { status: ExitStatus, reason: String },
    #[error(
        "the container was not healthy within {} s: {last}; it printed last: {printed}",
        limit.as_secs()
    )]
    Late { limit: Duration, last: String, printed: String },
    #[error("given up: the endpoint ends")]
    Stopped,
}

/// Where an endpoint is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Status {
    Creating,
    InService,
    Updating,
    Deleting,
    Failed,
}

impl Status {
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Creating => "Creating",
            Self::InService => "InService",
            Self::Updating => "Updating",
            Self::Deleting => "Deleting",
            Self::Failed => "Failed",
        }
    }

    /// Whether it is on its way to another.
    fn is_passing(self) -> bool {
        !matches!(self, Self::InService | Self::Failed)
    }
}

/// An endpoint.
#[derive(Debug)]
pub(crate) struct Endpoint {
    pub(crate) name: String,
    pub(crate) created: SystemTime,
    life: Mutex<Life>,
}

/// What changes of an endpoint.
#[derive(Clone, Debug)]
pub(crate) struct Life {
    pub(crate) status: Status,
    pub(crate) config: Arc<EndpointConfig>,
    pub(crate) failure: Option<String>,
    pub(crate) modified: SystemTime,
    pub(crate) deployment: Option<Arc<Deployment>>,
    /// What makes it what it is to become.
    work: Option<tokio::task::AbortHandle>,
}

impl Endpoint {
    /// An endpoint that comes to serve `config`, whose variants' models are `models`.
    pub(crate) fn create(
        service: &Arc<Service>,
        name: &str,
        config: Arc<EndpointConfig>,
        models: Vec<Arc<Model>>,
    ) -> Arc<Self> {
        let created = SystemTime::now();
        let life = Life {
            status: Status::Creating,
            config: Arc::clone(&config),
            failure: None,
            modified: created,
            deployment: None,
            work: None,
        };
        let endpoint = Arc::new(Self { name: name.to_owned(), created, life: Mutex::new(life) });
        let (this, service) = (Arc::clone(&endpoint), Arc::clone(service));
        let work = tokio::spawn(async move {
            match Deployment::start(&service, &this.name, &config, &models).await {
                Ok(deployment) => {
                    this.serve(deployment);
                }
                Err(error) => {
                    let reason = shorten(&chain(&error), MAX_REASON_CHARS);
                    tracing::error!(endpoint = this.name, reason, "Failed");
                    this.change(|life| {
                        life.status = Status::Failed;
                        life.failure = Some(reason);
                    });
                }
            }
        });
        endpoint.life().work = Some(work.abort_handle());
        endpoint
    }

    /// Makes it serve another configuration. What it serves now goes on until that is healthy, and
    /// stays if that does not come to be.
    ///
    /// # Errors
    /// It is on its way to another state.
    pub(crate) fn update(
        self: &Arc<Self>,
        service: &Arc<Service>,
        config: Arc<EndpointConfig>,
        models: Vec<Arc<Model>>,
    ) -> Result<(), Fault> {
        self.enter(service.region(), Status::Updating)?;
        let (this, service) = (Arc::clone(self), Arc::clone(service));
        let work = tokio::spawn(async move {
            match Deployment::start(&service, &this.name, &config, &models).await {
                Ok(deployment) => {
                    if let Some(old) = this.serve(deployment) {
                        old.stop().await;
                    }
                }
                Err(error) => {
                    let reason = shorten(&chain(&error), MAX_REASON_CHARS);
                    tracing::error!(
                        endpoint = this.name,
                        reason,
                        "not updated: it serves what it did"
                    );
                    this.change(|life| {
                        life.status = match life.deployment {
                            Some(_) => Status::InService,
                            None => Status::Failed,
                        };
                        life.failure = Some(reason);
                    });
                }
            }
        });
        self.life().work = Some(work.abort_handle());
        Ok(())
    }

    /// Ends it and takes it out of the service's list.
    ///
    /// # Errors
    /// It is on its way to another state.
    pub(crate) fn delete(self: &Arc<Self>, service: &Arc<Service>) -> Result<(), Fault> {
        self.enter(service.region(), Status::Deleting)?;
        let (this, service) = (Arc::clone(self), Arc::clone(service));
        tokio::spawn(async move {
            this.end().await;
            let mut state = service.state();
            if state.endpoints.get(&this.name).is_some_and(|known| Arc::ptr_eq(known, &this)) {
                state.endpoints.remove(&this.name);
            }
            tracing::info!(endpoint = this.name, "deleted");
        });
        Ok(())
    }

    /// Gives up what it is about to become, and ends its containers.
    pub(crate) async fn end(&self) {
        let (work, deployment) = {
            let mut life = self.life();
            life.status = Status::Deleting;
            (life.work.take(), life.deployment.take())
        };
        if let Some(work) = work {
            work.abort();
        }
        if let Some(deployment) = deployment {
            deployment.stop().await;
        }
    }

    /// How it is.
    pub(crate) fn now(&self) -> Life {
        self.life().clone()
    }

    /// What it serves.
    ///
    /// # Errors
    /// Nothing, for the moment or for good.
    pub(crate) fn deployment(&self) -> Result<Arc<Deployment>, Fault> {
        let life = self.life();
        life.deployment.clone().ok_or_else(|| {
            Fault::validation(format!(
                "Endpoint {} is {} and serves nothing",
                self.name,
                life.status.word()
            ))
        })
    }

    fn enter(&self, region: &str, status: Status) -> Result<(), Fault> {
        let mut life = self.life();
        if life.status.is_passing() {
            let arn = crate::names::arn(region, crate::names::Kind::Endpoint, &self.name);
            return Err(Fault::validation(format!(
                "Cannot update in-progress endpoint \"{arn}\": it is {}",
                life.status.word()
            )));
        }
        life.status = status;
        life.modified = SystemTime::now();
        Ok(())
    }

    /// Serves through `deployment`; what it served through until now comes back.
    fn serve(&self, deployment: Deployment) -> Option<Arc<Deployment>> {
        tracing::info!(endpoint = self.name, config = deployment.config.name, "InService");
        self.change(|life| {
            life.status = Status::InService;
            life.config = Arc::clone(&deployment.config);
            life.failure = None;
            life.deployment.replace(Arc::new(deployment))
        })
    }

    fn change<T>(&self, change: impl FnOnce(&mut Life) -> T) -> T {
        let mut life = self.life();
        life.modified = SystemTime::now();
        change(&mut life)
    }

    fn life(&self) -> MutexGuard<'_, Life> {
        self.life.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
