//! One layer of a stack: its branches, and the norms and sums around them.

use drivetrain_kernels::{Cpu, KernelError, KvCache, Residual};
use drivetrain_transformer as transformer;

use crate::arena::Arena;
use crate::attention::{CrossAttention, SelfAttention};
use crate::feed_forward::{FeedForwardLayer, InnerRows};
use crate::linear::{After, Linear, Workspace};
use crate::norm::NormLayer;
use crate::step::Step;

/// The norms around a branch, as [`transformer::Norms`] has them.
#[derive(Debug, Default)]
pub(crate) struct BranchNorms {
    pub(crate) before: Option<NormLayer>,
    pub(crate) branch_out: Option<NormLayer>,
    pub(crate) after: Option<NormLayer>,
}

/// A layer.
#[derive(Debug)]
pub(crate) struct LayerWeights<'a> {
    pub(crate) self_attention: SelfAttention<'a>,
    pub(crate) self_attention_norms: BranchNorms,
    pub(crate) cross_attention: Option<(CrossAttention<'a>, BranchNorms)>,
    pub(crate) feed_forward: FeedForwardLayer<'a>,
    pub(crate) feed_forward_norms: BranchNorms,
    pub(crate) residual: transformer::Residual,
}

/// The caches that a layer looks into.
pub(crate) struct LayerCaches<'a> {
    pub(crate) own: &'a mut KvCache,
    pub(crate) cross: Option<&'a KvCache>,
}

/// What a branch's output is added to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Onto {
    /// The layer's hidden states.
    Hidden,
    /// The branch's own normed input.
    Normed,
}

/// The matrices of rows that branches read and write, `[n_rows, dim]`.
struct Rows<'a> {
    x: &'a mut [f32],
    y: &'a mut [f32],
    normed: &'a mut [f32],
}

impl BranchNorms {
    /// Fills `rows.normed` with the branch's input; false where that is `rows.x` itself.
    fn before(&self, cpu: Cpu<'_>, rows: &mut Rows<'_>) -> Result<bool, KernelError> {
        match &self.before {
            Some(norm) => norm.apply(cpu, rows.x, rows.normed).map(|()| true),
            None => Ok(false),
        }
    }

    /// `x = after(x + branch_out(last(input)))`: the branch's last matrix and what follows.
    fn close(
        &self,
        (step, onto): (&Step<'_>, Onto),
        last: &Linear<'_>,
        input: &[f32],
        rows: &mut Rows<'_>,
        workspace: &mut Workspace,
    ) -> Result<(), KernelError> {
        let with = (step.cpu, step.runs);
        if self.branch_out.is_some() {
            last.forward(with, input, rows.y, After::NOTHING, workspace)?;
            return self.close_computed(step, rows);
        }
        let add = |residual| After { residual, ..After::NOTHING };
        match (&self.after, onto) {
            (None, Onto::Hidden) => {
                last.forward(with, input, rows.x, add(Residual::Output), workspace)
            }
            (None, Onto::Normed) => {
                last.forward(with, input, rows.x, add(Residual::Add(rows.normed)), workspace)
            }
            (Some(norm), _) => {
                last.forward(with, input, rows.y, add(Residual::Add(rows.x)), workspace)?;
                norm.apply(step.cpu, rows.y, rows.x)
            }
        }
    }

    /// The same for a branch whose output is in `rows.y`.
    fn close_computed(&self, step: &Step<'_>, rows: &mut Rows<'_>) -> Result<(), KernelError> {
        match &self.branch_out {
            Some(norm) => norm.add_to(step.cpu, rows.y, rows.x)?,
            None => rows.x.iter_mut().zip(&*rows.y).for_each(|(x, y)| *x += y),
        }
        if let Some(norm) = &self.after {
            rows.y.copy_from_slice(rows.x);
            norm.apply(step.cpu, rows.y, rows.x)?;
        }
        Ok(())
    }
}

impl<'a> LayerWeights<'a> {
    /// Its matrices.
    pub(crate) fn linears(&self) -> impl Iterator<Item = &Linear<'a>> {
        let own = self.self_attention.projections.linears().iter();
        let cross = self.cross_attention.iter();
        let cross = cross.flat_map(|(c, _)| [&c.q, &c.kv[0], &c.kv[1], &c.out]);
        own.chain([&self.self_attention.out]).chain(cross).chain(self.feed_forward.linears())
    }

    /// Its matrices, to be changed.
    pub(crate) fn linears_mut(&mut self) -> impl Iterator<Item = &mut Linear<'a>> {
        let SelfAttention { projections, out, .. } = &mut self.self_attention;
        let cross = self.cross_attention.iter_mut().flat_map(|(cross, _)| {
            let [keys, values] = &mut cross.kv;
            [&mut cross.q, keys, values, &mut cross.out]
        });
        let own = projections.linears_mut().iter_mut().chain([out]);
        own.chain(cross).chain(self.feed_forward.linears_mut())
    }

    /// The rows of `arena.x` through the layer.
    pub(crate) fn forward(
        &self,
        step: &Step<'_>,
        arena: &mut Arena,
        caches: LayerCaches<'_>,
    ) -> Result<(), KernelError> {
        use transformer::Residual as Form;
        match self.residual {
            Form::Sequential => {
                self.attend(step, arena, caches.own, Onto::Hidden)?;
                if let (Some((attention, norms)), Some(cache)) =
                    (&self.cross_attention, caches.cross)
                {
                    cross(step, arena, (attention, norms), cache)?;
                }
                self.feed(step, arena, Onto::Hidden)
            }
            Form::SequentialFromNorm => {
                self.attend(step, arena, caches.own, Onto::Normed)?;
                self.feed(step, arena, Onto::Normed)
            }
            Form::Parallel { shared_norm } => self.parallel(step, arena, caches.own, shared_norm),
        }
    }

    fn attend(
        &self,
        step: &Step<'_>,
        arena: &mut Arena,
        cache: &mut KvCache,
        onto: Onto,
    ) -> Result<(), KernelError> {
        let (attention, norms) = (&self.self_attention, &self.self_attention_norms);
        let Arena { x, y, normed, attention: own, workspace, .. } = arena;
        let mut rows = rows(step, attention.out.width(), (x, y, normed));
        let input = if norms.before(step.cpu, &mut rows)? { &*rows.normed } else { &*rows.x };
        attention.forward(step, input, own, cache, workspace)?;
        let attended = &own.attended[..step.n_rows * attention.out.n_in()];
        norms.close((step, onto), &attention.out, attended, &mut rows, workspace)
    }

    fn feed(&self, step: &Step<'_>, arena: &mut Arena, onto: Onto) -> Result<(), KernelError> {
        let norms = &self.feed_forward_norms;
        let dim = self.self_attention.out.width();
        let Arena { x, y, normed, inner, beside, experts: own, workspace, .. } = arena;
        let mut rows = rows(step, dim, (x, y, normed));
        let has_norm = norms.before(step.cpu, &mut rows)?;
        let mut between = InnerRows { inner, beside };
        let input = if has_norm { &*rows.normed } else { &*rows.x };
        match &self.feed_forward {
            FeedForwardLayer::Dense(network) => {
                network.forward(step, input, &mut between, workspace)?;
                let inner = &between.inner[..step.n_rows * network.width()];
                norms.close((step, onto), &network.down, inner, &mut rows, workspace)
            }
            FeedForwardLayer::Experts(experts) => {
                experts.forward(step, (input, rows.y), (own, &mut between), workspace)?;
                if onto == Onto::Normed {
                    rows.x.copy_from_slice(rows.normed);
                }
                norms.close_computed(step, &mut rows)
            }
        }
    }

    /// `x + attention(normed x) + feed_forward(normed x)`.
    fn parallel(
        &self,
        step: &Step<'_>,
        arena: &mut Arena,
        cache: &mut KvCache,
        shared_norm: bool,
    ) -> Result<(), KernelError> {
        let attention = &self.self_attention;
        let Arena { x, y, normed, attention: own, inner, beside, experts, workspace, .. } = arena;
        let mut rows = rows(step, attention.out.width(), (x, y, normed));
        if !self.self_attention_norms.before(step.cpu, &mut rows)? {
            rows.normed.copy_from_slice(rows.x);
        }
        attention.forward(step, rows.normed, own, cache, workspace)?;
        if !shared_norm && !self.feed_forward_norms.before(step.cpu, &mut rows)? {
            rows.normed.copy_from_slice(rows.x);
        }
        let with = (step.cpu, step.runs);
        let after = After { residual: Residual::Output, ..After::NOTHING };
        let mut between = InnerRows { inner, beside };
        match &self.feed_forward {
            FeedForwardLayer::Dense(network) => {
                network.forward(step, rows.normed, &mut between, workspace)?;
                let attended = &own.attended[..step.n_rows * attention.out.n_in()];
                attention.out.forward(with, attended, rows.x, after, workspace)?;
                let inner = &between.inner[..step.n_rows * network.width()];
                network.down.forward(with, inner, rows.x, after, workspace)
            }
            FeedForwardLayer::Experts(network) => {
                let io = (&*rows.normed, &mut *rows.y);
                network.forward(step, io, (experts, &mut between), workspace)?;
                let attended = &own.attended[..step.n_rows * attention.out.n_in()];
                attention.out.forward(with, attended, rows.x, after, workspace)?;
                rows.x.iter_mut().zip(&*rows.y).for_each(|(x, y)| *x += y);
                Ok(())
            }
        }
    }
}

fn cross(
    step: &Step<'_>,
    arena: &mut Arena,
    (attention, norms): (&CrossAttention<'_>, &BranchNorms),
    cache: &KvCache,
) -> Result<(), KernelError> {
    let Arena { x, y, normed, attention: own, workspace, .. } = arena;
    let mut rows = rows(step, attention.out.width(), (x, y, normed));
    let input = if norms.before(step.cpu, &mut rows)? { &*rows.normed } else { &*rows.x };
    attention.forward(step, input, own, cache, workspace)?;
    let attended = &own.attended[..step.n_rows * attention.out.n_in()];
    norms.close((step, Onto::Hidden), &attention.out, attended, &mut rows, workspace)
}

/// The batch's rows of `dim` columns.
fn rows<'a>(
    step: &Step<'_>,
    dim: usize,
    (x, y, normed): (&'a mut [f32], &'a mut [f32], &'a mut [f32]),
) -> Rows<'a> {
    let n = step.n_rows * dim;
    Rows { x: &mut x[..n], y: &mut y[..n], normed: &mut normed[..n] }
}
