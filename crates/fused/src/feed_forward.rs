//! The feed-forward branch of a layer: one network, or experts that a router picks from.

use drivetrain_execution::pick_experts;
use drivetrain_kernels::{Activation, KernelError};

use crate::arena::ExpertRows;
use crate::linear::{After, Linear, Workspace};
use crate::step::Step;

/// The feed-forward branch.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "there is one a layer, made at load")]
pub(crate) enum FeedForwardLayer<'a> {
    /// One network for all tokens.
    Dense(Network<'a>),
    /// Several, of which each token takes some.
    Experts(Experts<'a>),
}

/// What stands ahead of a network's last matrix.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "there is one a layer, made at load")]
pub(crate) enum Up<'a> {
    /// `act(up x)`.
    Plain(Linear<'a>),
    /// `act(gate x) * up x`, as one product.
    Gated(Linear<'a>),
    /// The same as two.
    Split {
        /// The gate.
        gate: Linear<'a>,
        /// The matrix beside it.
        up: Linear<'a>,
    },
}

/// `down(act(up x))`, or `down(act(gate x) * up x)`.
#[derive(Debug)]
pub(crate) struct Network<'a> {
    pub(crate) activation: Activation,
    pub(crate) up: Up<'a>,
    pub(crate) down: Linear<'a>,
}

/// A mixture of experts: the `n_active` of them that the router finds most probable, weighted by
/// their share of these probabilities.
#[derive(Debug)]
pub(crate) struct Experts<'a> {
    pub(crate) router: Linear<'a>,
    pub(crate) networks: Vec<Network<'a>>,
    pub(crate) n_active: usize,
}

/// What a network works in: `[n_rows, width]` each.
pub(crate) struct InnerRows<'a> {
    pub(crate) inner: &'a mut [f32],
    pub(crate) beside: &'a mut [f32],
}

impl<'a> Network<'a> {
    /// Columns between its matrices.
    pub(crate) fn width(&self) -> usize {
        self.down.n_in()
    }

    /// Fills `rows.inner` from `x`: all but the last matrix.
    pub(crate) fn forward(
        &self,
        step: &Step<'_>,
        x: &[f32],
        rows: &mut InnerRows<'_>,
        workspace: &mut Workspace,
    ) -> Result<(), KernelError> {
        let (with, n) = ((step.cpu, step.runs), step.n_rows * self.width());
        let after = After::activation(self.activation);
        let inner = &mut rows.inner[..n];
        match &self.up {
            Up::Plain(linear) | Up::Gated(linear) => {
                linear.forward(with, x, inner, after, workspace)
            }
            Up::Split { gate, up } => {
                let beside = &mut rows.beside[..n];
                gate.forward(with, x, beside, after, workspace)?;
                let after = After { factor: Some(beside), ..After::NOTHING };
                up.forward(with, x, inner, after, workspace)
            }
        }
    }

    pub(crate) fn linears(&self) -> impl Iterator<Item = &Linear<'a>> {
        let (first, second) = match &self.up {
            Up::Plain(linear) | Up::Gated(linear) => (linear, None),
            Up::Split { gate, up } => (gate, Some(up)),
        };
        [Some(first), second, Some(&self.down)].into_iter().flatten()
    }

    pub(crate) fn linears_mut(&mut self) -> impl Iterator<Item = &mut Linear<'a>> {
        let (first, second) = match &mut self.up {
            Up::Plain(linear) | Up::Gated(linear) => (linear, None),
            Up::Split { gate, up } => (gate, Some(up)),
        };
        [Some(first), second, Some(&mut self.down)].into_iter().flatten()
    }
}

impl<'a> FeedForwardLayer<'a> {
    /// Its matrices.
    pub(crate) fn linears(&self) -> Vec<&Linear<'a>> {
        match self {
            Self::Dense(network) => network.linears().collect(),
            Self::Experts(experts) => {
                let networks = experts.networks.iter().flat_map(Network::linears);
                std::iter::once(&experts.router).chain(networks).collect()
            }
        }
    }

    /// Its matrices, to be changed.
    pub(crate) fn linears_mut(&mut self) -> Vec<&mut Linear<'a>> {
        match self {
            Self::Dense(network) => network.linears_mut().collect(),
            Self::Experts(experts) => {
                let networks = experts.networks.iter_mut().flat_map(Network::linears_mut);
                std::iter::once(&mut experts.router).chain(networks).collect()
            }
        }
    }
}

impl Experts<'_> {
    /// `y = sum of the experts' outputs` for the rows of `x` `[n_rows, dim]`.
    pub(crate) fn forward(
        &self,
        step: &Step<'_>,
        (x, y): (&[f32], &mut [f32]),
        (rows, inner): (&mut ExpertRows, &mut InnerRows<'_>),
        workspace: &mut Workspace,
    ) -> Result<(), KernelError> {
        let (n_experts, dim) = (self.networks.len(), x.len() / step.n_rows);
        let logits = &mut rows.logits[..step.n_rows * n_experts];
        self.router.forward((step.cpu, step.runs), x, logits, After::NOTHING, workspace)?;
        pick_experts(logits, n_experts, self.n_active, &mut rows.picks);
        y.fill(0.0);
        let ExpertRows { picks, x: own_x, y: own_y, runs, .. } = rows;
        for taken in picks.chunk_by(|a, b| a.expert == b.expert) {
            let Some(network) = self.networks.get(taken[0].expert as usize) else { continue };
            for (pick, to) in taken.iter().zip(own_x.chunks_exact_mut(dim)) {
                let row = pick.row as usize;
                to.copy_from_slice(&x[row * dim..(row + 1) * dim]);
            }
            let n = taken.len();
            runs.set_selected(step.runs, taken.iter().map(|pick| pick.row as usize));
            let own = Step { runs, n_rows: n, ..*step };
            network.forward(&own, &own_x[..n * dim], inner, workspace)?;
            let (inner, own_y) = (&inner.inner[..n * network.width()], &mut own_y[..n * dim]);
            network.down.forward((own.cpu, own.runs), inner, own_y, After::NOTHING, workspace)?;
            for (pick, from) in taken.iter().zip(own_y.chunks_exact(dim)) {
                let row = pick.row as usize;
                let to = &mut y[row * dim..(row + 1) * dim];
                to.iter_mut().zip(from).for_each(|(y, x)| *y += pick.weight * x);
            }
        }
        Ok(())
    }
}
