//! What the service holds: its settings, and everything that was created.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use drivetrain_sources::{FetchOptions, Hidden, HubOptions, Limits as FetchLimits, S3Options};

use crate::endpoint::Endpoint;
use crate::options::Options;
use crate::records::{EndpointConfig, Model};

/// The service. One a process, shared by all connections.
#[derive(Debug)]
pub(crate) struct Service {
    pub(crate) options: Options,
    state: Mutex<State>,
}

/// What was created and not deleted.
#[derive(Debug, Default)]
pub(crate) struct State {
    pub(crate) models: BTreeMap<String, Arc<Model>>,
    pub(crate) configs: BTreeMap<String, Arc<EndpointConfig>>,
    pub(crate) endpoints: BTreeMap<String, Arc<Endpoint>>,
}

impl Service {
    pub(crate) fn new(options: Options) -> Arc<Self> {
        Arc::new(Self { options, state: Mutex::default() })
    }

    /// What was created. Held for a moment only.
    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn region(&self) -> &str {
        &self.options.region
    }

    /// How models' data and the inputs of asynchronous invocations are brought here.
    pub(crate) fn fetch_options(&self) -> FetchOptions {
        let env = &self.options.env;
        let mut variables: Vec<(String, Hidden)> = env
            .iter()
            .filter(|(name, _)| name.starts_with("AWS_"))
            .map(|(name, value)| (name.to_owned(), Hidden::new(value)))
            .collect();
        let is_set = |names: &[&str]| names.iter().any(|name| env.get(name).is_some());
        if !is_set(&["AWS_REGION", "AWS_DEFAULT_REGION"]) {
            variables.push(("AWS_REGION".to_owned(), Hidden::new(self.region())));
        }
        if let Some(endpoint) = &self.options.s3_endpoint {
            variables.retain(|(name, _)| !name.starts_with("AWS_ENDPOINT_URL"));
            variables.push(("AWS_ENDPOINT_URL_S3".to_owned(), Hidden::new(endpoint)));
        }
        let work_dir = &self.options.work_dir;
        FetchOptions {
            hub: HubOptions { endpoint: String::new(), cache: work_dir.join("hub"), token: None },
            s3: S3Options { variables, home: env.get("HOME").map(Into::into) },
            download_dir: work_dir.clone(),
            offline: false,
            limits: FetchLimits { place_setting: "--work-dir", ..FetchLimits::default() },
        }
    }
}
