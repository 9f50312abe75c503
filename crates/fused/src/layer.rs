//! One layer of a stack: its branches, and the norms and sums around them.

use drivetrain_kernels::{Cpu, KernelError, KvCache, Onto as Sum, Residual};
use drivetrain_transformer as transformer;

use crate::arena::Arena;
use crate::attention::{CrossAttention, SelfAttention};
use crate::collective::{Borrowed, Collective};
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
    /// Columns of the hidden states.
    pub(crate) dim: usize,
    /// Which of the stack's caches has its keys.
    pub(crate) cache_idx: usize,
    /// None on a rank without heads.
    pub(crate) self_attention: Option<SelfAttention<'a>>,
    pub(crate) self_attention_norms: BranchNorms,
    /// The same for the encoder's output, where the layer looks at it.
    pub(crate) cross_attention: Option<(Option<CrossAttention<'a>>, BranchNorms)>,
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

/// A branch's last matrix with what it reads; none on a rank that has no part of it.
type Last<'l, 'a> = Option<(&'l Linear<'a>, &'l [f32])>;

/// What a product works in, and what its rank exchanges with others.
struct Means<'m> {
    workspace: &'m mut Workspace,
    collective: Borrowed<'m>,
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
        last: Last<'_, '_>,
        rows: &mut Rows<'_>,
        means: Means<'_>,
    ) -> Result<(), KernelError> {
        let (with, workspace) = ((step.cpu, step.runs), means.workspace);
        if let Some(collective) = means.collective {
            let partial = collective.partial(rows.x.len())?;
            match last {
                Some((last, input)) => {
                    last.forward(with, input, partial, After::NOTHING, workspace)?;
                }
                None => partial.fill(0.0),
            }
            return self.close_partial((step, onto), rows, collective);
        }
        let Some((last, input)) = last else { return Ok(()) };
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
        self.finish(step, rows)
    }

    /// The same for a branch of whose output each rank has computed a part.
    fn close_partial(
        &self,
        (step, onto): (&Step<'_>, Onto),
        rows: &mut Rows<'_>,
        collective: &mut dyn Collective,
    ) -> Result<(), KernelError> {
        if self.branch_out.is_some() {
            collective.sum(step.cpu, rows.y, Sum::Nothing)?;
            return self.close_computed(step, rows);
        }
        if onto == Onto::Normed {
            rows.x.copy_from_slice(rows.normed);
        }
        collective.sum(step.cpu, rows.x, Sum::Output)?;
        self.finish(step, rows)
    }

    fn finish(&self, step: &Step<'_>, rows: &mut Rows<'_>) -> Result<(), KernelError> {
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
        let own = self
            .self_attention
            .iter()
            .flat_map(|attention| attention.projections.linears().iter().chain([&attention.out]));
        let cross = self.cross_attention.iter().filter_map(|(cross, _)| cross.as_ref());
        let cross = cross.flat_map(|c| [&c.q, &c.kv[0], &c.kv[1], &c.out]);
        own.chain(cross).chain(self.feed_forward.linears())
    }

    /// Its matrices, to be changed.
    pub(crate) fn linears_mut(&mut self) -> impl Iterator<Item = &mut Linear<'a>> {
        let own = self.self_attention.iter_mut().flat_map(|attention| {
            attention.projections.linears_mut().iter_mut().chain([&mut attention.out])
        });
        let cross = self.cross_attention.iter_mut().filter_map(|(cross, _)| cross.as_mut());
        let cross = cross.flat_map(|cross| {
            let [keys, values] = &mut cross.kv;
            [&mut cross.q, keys, values, &mut cross.out]
        });
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
                    cross(step, arena, (attention.as_ref(), norms), (self.dim, cache))?;
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
        let norms = &self.self_attention_norms;
        let Arena { x, y, normed, attention: own, workspace, collective, .. } = arena;
        let mut rows = rows(step, self.dim, (x, y, normed));
        let input = if norms.before(step.cpu, &mut rows)? { &*rows.normed } else { &*rows.x };
        if let Some(attention) = &self.self_attention {
            attention.forward(step, input, own, cache, workspace)?;
        }
        let last = self
            .self_attention
            .as_ref()
            .map(|attention| (&attention.out, &own.attended[..step.n_rows * attention.out.n_in()]));
        let means = Means { workspace, collective: collective.as_deref_mut() };
        norms.close((step, onto), last, &mut rows, means)
    }

    fn feed(&self, step: &Step<'_>, arena: &mut Arena, onto: Onto) -> Result<(), KernelError> {
        let norms = &self.feed_forward_norms;
        let Arena { x, y, normed, inner, beside, experts: own, workspace, collective, .. } = arena;
        let mut rows = rows(step, self.dim, (x, y, normed));
        let has_norm = norms.before(step.cpu, &mut rows)?;
        let mut between = InnerRows { inner, beside };
        let input = if has_norm { &*rows.normed } else { &*rows.x };
        match &self.feed_forward {
            FeedForwardLayer::Dense(network) => {
                network.forward(step, input, &mut between, workspace)?;
                let inner = &between.inner[..step.n_rows * network.width()];
                let means = Means { workspace, collective: collective.as_deref_mut() };
                norms.close((step, onto), Some((&network.down, inner)), &mut rows, means)
            }
            FeedForwardLayer::Experts(experts) => {
                if let Some(collective) = collective.as_deref_mut() {
                    let partial = collective.partial(input.len())?;
                    experts.forward(step, (input, partial), (own, &mut between), workspace)?;
                    return norms.close_partial((step, onto), &mut rows, collective);
                }
                experts.forward(step, (input, rows.y), (own, &mut between), workspace)?;
                if onto == Onto::Normed {
                    rows.x.copy_from_slice(rows.normed);
                }
                norms.close_computed(step, &mut rows)
            }
        }
    }

    /// `x + attention(normed x) + feed_forward(normed x)`: ranks add up both at once.
    fn parallel(
        &self,
        step: &Step<'_>,
        arena: &mut Arena,
        cache: &mut KvCache,
        shared_norm: bool,
    ) -> Result<(), KernelError> {
        let Arena {
            x,
            y,
            normed,
            attention: own,
            inner,
            beside,
            experts,
            workspace,
            collective,
            ..
        } = arena;
        let mut rows = rows(step, self.dim, (x, y, normed));
        if !self.self_attention_norms.before(step.cpu, &mut rows)? {
            rows.normed.copy_from_slice(rows.x);
        }
        if let Some(attention) = &self.self_attention {
            attention.forward(step, rows.normed, own, cache, workspace)?;
        }
        if !shared_norm && !self.feed_forward_norms.before(step.cpu, &mut rows)? {
            rows.normed.copy_from_slice(rows.x);
        }
        let with = (step.cpu, step.runs);
        let mut between = InnerRows { inner, beside };
        let normed = &*rows.normed;
        match &self.feed_forward {
            FeedForwardLayer::Dense(network) => {
                network.forward(step, normed, &mut between, workspace)?;
            }
            FeedForwardLayer::Experts(network) => {
                let io = (normed, &mut *rows.y);
                network.forward(step, io, (experts, &mut between), workspace)?;
            }
        }
        // On one of several ranks it is a part of what is added to the hidden states.
        let mut collective = collective.as_deref_mut();
        let (sum, mut residual) = match &mut collective {
            Some(collective) => (collective.partial(rows.x.len())?, Residual::None),
            None => (&mut *rows.x, Residual::Output),
        };
        if let Some(attention) = &self.self_attention {
            let attended = &own.attended[..step.n_rows * attention.out.n_in()];
            let after = After { residual, ..After::NOTHING };
            attention.out.forward(with, attended, sum, after, workspace)?;
            residual = Residual::Output;
        }
        match &self.feed_forward {
            FeedForwardLayer::Dense(network) => {
                let inner = &between.inner[..step.n_rows * network.width()];
                let after = After { residual, ..After::NOTHING };
                network.down.forward(with, inner, sum, after, workspace)?;
            }
            FeedForwardLayer::Experts(_) => {
                if matches!(residual, Residual::None) {
                    sum.fill(0.0);
                }
                sum.iter_mut().zip(&*rows.y).for_each(|(x, y)| *x += y);
            }
        }
        match collective {
            Some(collective) => collective.sum(step.cpu, rows.x, Sum::Output),
            None => Ok(()),
        }
    }
}

fn cross(
    step: &Step<'_>,
    arena: &mut Arena,
    (attention, norms): (Option<&CrossAttention<'_>>, &BranchNorms),
    (dim, cache): (usize, &KvCache),
) -> Result<(), KernelError> {
    let Arena { x, y, normed, attention: own, workspace, collective, .. } = arena;
    let mut rows = rows(step, dim, (x, y, normed));
    let input = if norms.before(step.cpu, &mut rows)? { &*rows.normed } else { &*rows.x };
    if let Some(attention) = attention {
        attention.forward(step, input, own, cache, workspace)?;
    }
    let last = attention
        .map(|attention| (&attention.out, &own.attended[..step.n_rows * attention.out.n_in()]));
    let means = Means { workspace, collective: collective.as_deref_mut() };
    norms.close((step, Onto::Hidden), last, &mut rows, means)
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
