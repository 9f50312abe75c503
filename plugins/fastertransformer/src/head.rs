//! What makes logits of hidden states: a language model's head, or a task's.

use drivetrain_execution::{HeadPlan, Runs};
use drivetrain_kernels::{Activation, Cpu, KernelError};

use crate::linear::{After, Linear, Workspace, activation};
use crate::norm::NormLayer;

/// A head with its weights.
#[derive(Debug)]
pub(crate) struct Head<'a> {
    pub(crate) plan: HeadPlan,
    pub(crate) dense: Option<Linear<'a>>,
    pub(crate) norm: Option<NormLayer>,
    /// Its bias is divided by the cap, where there is one.
    pub(crate) linear: Linear<'a>,
}

impl<'a> Head<'a> {
    /// Its matrices.
    pub(crate) fn linears(&self) -> impl Iterator<Item = &Linear<'a>> {
        self.dense.iter().chain([&self.linear])
    }

    /// Its matrices, to be changed.
    pub(crate) fn linears_mut(&mut self) -> impl Iterator<Item = &mut Linear<'a>> {
        self.dense.iter_mut().chain([&mut self.linear])
    }

    /// Rows `x` `[n_rows, dim]`, which are changed on the way, to `logits` `[n_rows, width]`; `y` is as
    /// large as `x`.
    pub(crate) fn forward(
        &self,
        (cpu, runs): (Cpu<'_>, &Runs),
        (mut x, mut y): (&mut [f32], &mut [f32]),
        logits: &mut [f32],
        workspace: &mut Workspace,
    ) -> Result<(), KernelError> {
        let with = (cpu, runs);
        if let (Some(dense), Some(function)) = (&self.dense, self.plan.dense) {
            let after = After::activation(activation(function));
            dense.forward(with, x, y, after, workspace)?;
            std::mem::swap(&mut x, &mut y);
        }
        if let Some(norm) = &self.norm {
            norm.apply(cpu, x, y)?;
            std::mem::swap(&mut x, &mut y);
        }
        let scale = self.plan.scale.unwrap_or(1.0) / self.plan.soft_cap.unwrap_or(1.0);
        if scale != 1.0 {
            x.iter_mut().for_each(|x| *x *= scale);
        }
        let Some(cap) = self.plan.soft_cap else {
            return self.linear.forward(with, x, logits, After::NOTHING, workspace);
        };
        let after = After::activation(Activation::Tanh);
        self.linear.forward(with, x, logits, after, workspace)?;
        logits.iter_mut().for_each(|logit| *logit *= cap);
        Ok(())
    }
}
