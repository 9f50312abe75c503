//! What makes logits of hidden states: a language model's head, or a task's.

use candle_core::{Result, Tensor};
use drivetrain_engine::EngineError;
use drivetrain_execution::{HeadPlan, Runs};

use crate::linear::Linear;
use crate::load::Loader;
use crate::norm::NormLayer;

/// A head with its weights.
#[derive(Debug)]
pub(crate) struct Head {
    pub(crate) plan: HeadPlan,
    dense: Option<Linear>,
    norm: Option<NormLayer>,
    linear: Linear,
}

impl Head {
    pub(crate) fn load(
        plan: HeadPlan,
        loader: &Loader<'_>,
    ) -> std::result::Result<Self, EngineError> {
        let dense = plan.dense.map(|_| loader.linear("head.dense")).transpose()?;
        let norm = loader.norm("head.norm", plan.norm)?;
        Ok(Self { plan, dense, norm, linear: loader.linear("head")? })
    }

    /// Its matrices.
    pub(crate) fn linears_mut(&mut self) -> impl Iterator<Item = &mut Linear> {
        self.dense.iter_mut().chain([&mut self.linear])
    }

    /// `[rows, dim]` to `[rows, width]`.
    pub(crate) fn forward(&self, hidden: &Tensor, runs: &Runs) -> Result<Tensor> {
        let mut x = hidden.clone();
        if let (Some(dense), Some(activation)) = (&self.dense, self.plan.dense) {
            x = dense.forward_activated(&x, activation, runs)?;
        }
        if let Some(norm) = &self.norm {
            x = norm.forward(&x)?;
        }
        if let Some(scale) = self.plan.scale {
            x = (x * f64::from(scale))?;
        }
        let logits = self.linear.forward(&x, runs)?;
        match self.plan.soft_cap.map(f64::from) {
            Some(cap) => (logits / cap)?.tanh()? * cap,
            None => Ok(logits),
        }
    }
}
