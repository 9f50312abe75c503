//! What makes logits of hidden states: a language model's head, or a task's.

use std::sync::Arc;

use candle_core::{Result, Tensor, bail};
use drivetrain_engine::EngineError;
use drivetrain_execution::{HeadPlan, Runs};

use crate::executor::Executor;
use crate::linear::Linear;
use crate::load::Loader;
use crate::norm::NormLayer;
use crate::placing::Home;
use crate::streaming::{Streamer, Unit};

/// A head with its weights.
#[derive(Debug)]
pub(crate) struct Head {
    pub(crate) plan: HeadPlan,
    dense: Option<Linear>,
    norm: Option<NormLayer>,
    linear: Linear,
    /// Where it runs.
    executor: Arc<Executor>,
    /// What the last matrix is read in, where it stays in its file: `linear` is its form then.
    pieces: Vec<Unit>,
}

impl Head {
    /// Loads the head; the last matrix stays in its file, or is read in `pieces` when it is needed if there
    /// are any.
    pub(crate) fn load(
        plan: HeadPlan,
        loader: &Loader<'_, '_>,
        executor: Arc<Executor>,
        (home, pieces): (Home, Vec<Unit>),
    ) -> std::result::Result<Self, EngineError> {
        let dense = plan.dense.map(|_| loader.linear("head.dense")).transpose()?;
        let norm = loader.norm("head.norm", plan.norm)?;
        let linear = match home {
            Home::On(_) | Home::Lent => loader.linear("head")?,
            Home::File => loader.in_file().linear("head")?,
            Home::Disk => loader.hollow_linear("head")?,
        };
        Ok(Self { plan, dense, norm, linear, executor, pieces })
    }

    /// What the last matrix is read in.
    pub(crate) fn pieces(&self) -> &[Unit] {
        &self.pieces
    }

    /// Its matrices.
    pub(crate) fn linears_mut(&mut self) -> impl Iterator<Item = &mut Linear> {
        self.dense.iter_mut().chain([&mut self.linear])
    }

    /// `[rows, dim]` to `[rows, width]`.
    pub(crate) fn forward(
        &self,
        hidden: &Tensor,
        runs: &Runs,
        streamer: Option<&Streamer>,
    ) -> Result<Tensor> {
        let hidden = hidden.to_device(&self.executor.device)?;
        self.executor.run(|| self.compute(hidden, runs, streamer))
    }

    fn compute(&self, hidden: Tensor, runs: &Runs, streamer: Option<&Streamer>) -> Result<Tensor> {
        let mut x = hidden;
        if let (Some(dense), Some(activation)) = (&self.dense, self.plan.dense) {
            x = dense.forward_activated(&x, activation, runs)?;
        }
        if let Some(norm) = &self.norm {
            x = norm.forward(&x)?;
        }
        if let Some(scale) = self.plan.scale {
            x = (x * f64::from(scale))?;
        }
        let logits = match streamer {
            Some(streamer) if !self.pieces.is_empty() => {
                let pieces: Result<Vec<Tensor>> =
                    self.pieces.iter().map(|piece| piece_of(&x, *piece, streamer)).collect();
                self.linear.finish(Tensor::cat(&pieces?, 1)?, &x, runs)?
            }
            _ => self.linear.forward(&x, runs)?,
        };
        match self.plan.soft_cap.map(f64::from) {
            Some(cap) => (logits / cap)?.tanh()? * cap,
            None => Ok(logits),
        }
    }
}

/// The columns of the logits that come of one piece of the matrix.
fn piece_of(x: &Tensor, piece: Unit, streamer: &Streamer) -> Result<Tensor> {
    let held = streamer.take(piece)?;
    match held.rows() {
        Some(rows) => rows.product(x),
        None => bail!("no rows of the head were read"),
    }
}
