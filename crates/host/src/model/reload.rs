//! Loading a model again that was lost with what computed it: ranks in processes of their own, say.
//!
//! Requests that it had get the error, and so does who comes until it is there again. A model that is lost
//! again and again soon after it was there is given up; one that can't be loaded is tried for as long as
//! it is wanted, with growing pauses, since what it needs may come back.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use drivetrain_engine::{
    EngineError, ErrorKind, LoadedModel, RELOADS_LOST_MODELS, Services, TokenModel, TokenModelInfo,
};

use super::Shared;
use super::lifecycle::Lifecycle;
use super::load::{LoadInputs, check_info, with_request};
use super::open::Opened;
use super::services::{ModelServices, Published};
use super::token_worker::TokenWorker;
use crate::HostError;
use crate::adapters::Adapters;
use crate::registry::FoundEngine;

/// A model that was there for longer is not lost for the same reason as before.
const STEADY: Duration = Duration::from_secs(60);
/// Between two attempts, first and longest.
const PAUSES: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(5));
/// How often one who pauses looks whether the model is wanted.
const TURN: Duration = Duration::from_millis(20);

/// What a model is loaded again from.
pub(super) struct Reload {
    engine: FoundEngine,
    n_threads: NonZeroUsize,
    name: String,
    lifecycle: Arc<Lifecycle>,
    stop: Arc<AtomicBool>,
    adapters: Option<Arc<Adapters>>,
    opened: Opened,
    ready_since: Instant,
    /// Losses, each soon after the model was there.
    n_losses: u32,
}

impl Reload {
    /// Of a model that one of `candidates` has just loaded, if that can load it again.
    pub(super) fn of(
        shared: &Shared,
        inputs: &LoadInputs,
        candidates: &[&FoundEngine],
        (opened, adapters): (Opened, Option<Arc<Adapters>>),
    ) -> Option<Self> {
        let info = shared.engine.get()?;
        let engine = candidates.iter().find(|found| found.info.name == info.name)?;
        let may = info.capabilities.iter().any(|power| power == RELOADS_LOST_MODELS);
        may.then(|| Self {
            engine: (*engine).clone(),
            n_threads: inputs.env.n_threads(),
            name: shared.name.clone(),
            lifecycle: Arc::clone(&shared.lifecycle),
            stop: Arc::clone(&shared.stop),
            adapters,
            opened,
            ready_since: Instant::now(),
            n_losses: 0,
        })
    }

    /// The model, loaded again; none if it is not wanted any more.
    ///
    /// # Errors
    /// It was lost too often, or is another model than it was.
    pub(super) fn again(
        &mut self,
        worker: &mut TokenWorker,
        loss: HostError,
    ) -> Result<Option<Box<dyn TokenModel>>, HostError> {
        let is_steady = self.ready_since.elapsed() >= STEADY;
        self.n_losses = if is_steady { 1 } else { self.n_losses.saturating_add(1) };
        // One request may be the cause of a single loss.
        if self.n_losses > worker.retry_threshold.max(1) {
            return Err(loss);
        }
        if let Some(adapters) = &self.adapters {
            adapters.lose();
        }
        tracing::warn!(
            model = self.name,
            error = loss.chain(),
            "the model is lost, and loaded again"
        );
        let (mut pause, longest) = PAUSES;
        loop {
            if self.is_unwanted(worker) {
                return Ok(None);
            }
            match self.load() {
                Ok(model) => return self.back(worker, model),
                Err(error) => {
                    let error = error.chain();
                    tracing::warn!(model = self.name, error, "the model can't be loaded again yet");
                    let reason = format!("{}; loading it again: {error}", loss.chain());
                    let source = Some(Arc::new(loss.clone()));
                    let model = self.name.clone();
                    self.lifecycle.lose(HostError::Failed { model, reason, source });
                }
            }
            let next = Instant::now() + pause;
            while Instant::now() < next && !self.is_unwanted(worker) {
                thread::sleep(TURN);
            }
            pause = (pause * 2).min(longest);
        }
    }

    fn is_unwanted(&self, worker: &TokenWorker) -> bool {
        let orders = worker.inbox.orders();
        orders.closed || orders.drain.is_some() || self.stop.load(Ordering::Relaxed)
    }

    fn load(&self) -> Result<Box<dyn TokenModel>, HostError> {
        let services = Services::new(Arc::new(ModelServices {
            model: self.name.clone(),
            engine: self.engine.info.name.clone(),
            lifecycle: Arc::clone(&self.lifecycle),
            stop: Arc::clone(&self.stop),
            published: Published::default(),
            limit: Instant::now().checked_add(self.lifecycle.load_limit()),
        }));
        let asked = (self.name.as_str(), self.n_threads, services);
        match with_request(&self.opened, asked, |request| self.engine.engine.load(request))? {
            LoadedModel::Token(model) => Ok(model),
            LoadedModel::Request(_) => {
                Err(EngineError::internal("it answers whole requests now").into())
            }
        }
    }

    /// Takes the model that has come, if it is what it was.
    fn back(
        &mut self,
        worker: &mut TokenWorker,
        model: Box<dyn TokenModel>,
    ) -> Result<Option<Box<dyn TokenModel>>, HostError> {
        let (info, old) = (model.info(), worker.limits.info);
        check_info(&info)?;
        let same = TokenModelInfo {
            kv_capacity_tokens: old.kv_capacity_tokens,
            cross_capacity_tokens: old.cross_capacity_tokens,
            ..info
        };
        if same != old {
            let message = format!("the model's files have changed: it was {old:?} and is {info:?}");
            return Err(EngineError::new(ErrorKind::BadInput, message).into());
        }
        worker.limits.info = info;
        if !self.lifecycle.regain() {
            return Ok(None);
        }
        self.ready_since = Instant::now();
        tracing::info!(model = self.name, "the model is ready again");
        Ok(Some(model))
    }
}
