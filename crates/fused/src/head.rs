//! What makes logits of hidden states: a language model's head, or a task's.

use drivetrain_execution::{HeadPlan, Runs};
use drivetrain_kernels::{Activation, Cpu, KernelError};

use crate::collective::{Borrowed, Collective};
use crate::linear::{After, Linear, Workspace, activation};
use crate::norm::NormLayer;

/// A head with its weights.
#[derive(Debug)]
pub(crate) struct Head<'a> {
    pub(crate) plan: HeadPlan,
    pub(crate) dense: Option<Linear<'a>>,
    pub(crate) norm: Option<NormLayer>,
    /// Its bias is divided by the cap, where there is one. None on a rank that leaves the head to the
    /// first.
    pub(crate) linear: Option<Linear<'a>>,
    /// Most columns that any rank computes, if each computes some.
    pub(crate) split: Option<usize>,
}

impl<'a> Head<'a> {
    /// Its matrices.
    pub(crate) fn linears(&self) -> impl Iterator<Item = &Linear<'a>> {
        self.dense.iter().chain(&self.linear)
    }

    /// Its matrices, to be changed.
    pub(crate) fn linears_mut(&mut self) -> impl Iterator<Item = &mut Linear<'a>> {
        self.dense.iter_mut().chain(&mut self.linear)
    }

    /// Rows `x` `[n_rows, dim]`, which are changed on the way, to `logits` `[n_rows, width]`, on the rank
    /// that gives room for them; `y` is as large as `x`.
    pub(crate) fn forward(
        &self,
        (cpu, runs): (Cpu<'_>, &Runs),
        (mut x, mut y): (&mut [f32], &mut [f32]),
        logits: Option<&mut [f32]>,
        workspace: &mut Workspace,
        collective: Borrowed<'_>,
    ) -> Result<(), KernelError> {
        let Some(linear) = &self.linear else { return Ok(()) };
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
        match (self.split, collective, logits) {
            (Some(widest), Some(collective), logits) => {
                let rows = Shared { head: self, linear, widest };
                rows.forward(with, x, logits, workspace, collective)
            }
            (_, _, Some(logits)) => self.project(linear, with, x, logits, workspace),
            (_, _, None) => Ok(()),
        }
    }

    /// The last matrix, and the cap.
    fn project(
        &self,
        linear: &Linear<'_>,
        with: (Cpu<'_>, &Runs),
        x: &[f32],
        logits: &mut [f32],
        workspace: &mut Workspace,
    ) -> Result<(), KernelError> {
        let Some(cap) = self.plan.soft_cap else {
            return linear.forward(with, x, logits, After::NOTHING, workspace);
        };
        let after = After::activation(Activation::Tanh);
        linear.forward(with, x, logits, after, workspace)?;
        logits.iter_mut().for_each(|logit| *logit *= cap);
        Ok(())
    }
}

/// A head of which each rank computes some columns.
struct Shared<'h, 'a> {
    head: &'h Head<'a>,
    linear: &'h Linear<'a>,
    widest: usize,
}

impl Shared<'_, '_> {
    /// Some rows at a time, as many as the ranks have memory for.
    fn forward(
        &self,
        (cpu, runs): (Cpu<'_>, &Runs),
        x: &[f32],
        mut logits: Option<&mut [f32]>,
        workspace: &mut Workspace,
        collective: &mut dyn Collective,
    ) -> Result<(), KernelError> {
        let total = self.head.plan.width as usize;
        let n_in = self.linear.n_in();
        let n_rows = x.len() / n_in;
        let most = (collective.capacity() / self.widest).max(1);
        for first in (0..n_rows).step_by(most) {
            let n = most.min(n_rows - first);
            // Its memory is for the next piece, or the next pass, whatever comes of this one.
            let mut own = std::mem::take(&mut workspace.runs);
            own.set_selected(runs, first..first + n);
            let x = &x[first * n_in..(first + n) * n_in];
            let to = logits.as_deref_mut();
            let to = to.map(|to| &mut to[first * total..(first + n) * total]);
            let done = self.piece((cpu, &own), x, to, workspace, collective);
            workspace.runs = own;
            done?;
        }
        Ok(())
    }

    /// So many rows at once.
    fn piece(
        &self,
        (cpu, runs): (Cpu<'_>, &Runs),
        x: &[f32],
        to: Option<&mut [f32]>,
        workspace: &mut Workspace,
        collective: &mut dyn Collective,
    ) -> Result<(), KernelError> {
        let (n, width) = (x.len() / self.linear.n_in(), self.linear.width());
        let partial = collective.partial(n * width)?;
        self.head.project(self.linear, (cpu, runs), x, partial, workspace)?;
        collective.gather(cpu, (n, width), to)
    }
}
