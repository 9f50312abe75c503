//! The feed-forward branch of a layer: one network, or experts that a router picks from.

use candle_core::{Device, Result, Tensor};
use drivetrain_execution::{Runs, pick_experts};
use drivetrain_transformer::Activation;

use crate::linear::Linear;
use crate::rows::{self, with_values};

/// The feed-forward branch.
#[derive(Clone, Debug)]
pub(crate) enum FeedForwardLayer {
    /// One network for all tokens.
    Dense(Network),
    /// Several, of which each token takes some.
    Experts(Experts),
}

/// `down(act(up x))`, or `down(act(gate x) * up x)`.
#[derive(Clone, Debug)]
pub(crate) struct Network {
    pub(crate) activation: Activation,
    /// Whether `up` is `gate` and `up` in one matrix.
    pub(crate) gated: bool,
    pub(crate) up: Linear,
    pub(crate) down: Linear,
}

/// A mixture of experts: the `n_active` of them that the router finds most probable, weighted by
/// their share of these probabilities.
#[derive(Clone, Debug)]
pub(crate) struct Experts {
    pub(crate) router: Linear,
    pub(crate) networks: Vec<Network>,
    pub(crate) n_active: usize,
}

impl FeedForwardLayer {
    /// Rows `[n_rows, dim]` to `[n_rows, dim]`.
    pub(crate) fn forward(&self, x: &Tensor, runs: &Runs) -> Result<Tensor> {
        match self {
            Self::Dense(network) => network.forward(x, runs),
            Self::Experts(experts) => experts.forward(x, runs),
        }
    }

    /// The same on `device`, without what adapters add.
    pub(crate) fn on(&self, device: &Device) -> Result<Self> {
        Ok(match self {
            Self::Dense(network) => Self::Dense(network.on(device)?),
            Self::Experts(experts) => {
                let networks = experts.networks.iter().map(|network| network.on(device));
                Self::Experts(Experts {
                    router: experts.router.on(device)?,
                    networks: networks.collect::<Result<_>>()?,
                    n_active: experts.n_active,
                })
            }
        })
    }

    /// Its matrices.
    pub(crate) fn linears_mut(&mut self) -> Vec<&mut Linear> {
        match self {
            Self::Dense(network) => vec![&mut network.up, &mut network.down],
            Self::Experts(experts) => {
                let networks = experts.networks.iter_mut().flat_map(|n| [&mut n.up, &mut n.down]);
                std::iter::once(&mut experts.router).chain(networks).collect()
            }
        }
    }
}

impl Network {
    fn on(&self, device: &Device) -> Result<Self> {
        let (up, down) = (self.up.on(device)?, self.down.on(device)?);
        Ok(Self { up, down, ..*self })
    }

    fn forward(&self, x: &Tensor, runs: &Runs) -> Result<Tensor> {
        let inner = if self.gated {
            rows::gate(&self.up.forward(x, runs)?, self.activation)?
        } else {
            self.up.forward_activated(x, self.activation, runs)?
        };
        self.down.forward(&inner, runs)
    }
}

impl Experts {
    fn forward(&self, x: &Tensor, runs: &Runs) -> Result<Tensor> {
        let (mut picks, n_experts) = (Vec::new(), self.networks.len());
        with_values(&self.router.forward(x, runs)?, |logits| {
            pick_experts(logits, n_experts, self.n_active, &mut picks);
        })?;
        let mut out = x.zeros_like()?;
        for taken in picks.chunk_by(|a, b| a.expert == b.expert) {
            let Some(network) = self.networks.get(taken[0].expert as usize) else { continue };
            let rows: Vec<u32> = taken.iter().map(|pick| pick.row).collect();
            let weights: Vec<f32> = taken.iter().map(|pick| pick.weight).collect();
            let n = rows.len();
            let y = network.forward(&rows::select(x, &rows)?, &runs.select(&rows))?;
            let weights = Tensor::from_vec(weights, (n, 1), x.device())?;
            let rows = Tensor::from_vec(rows, n, x.device())?;
            out = out.index_add(&rows, &y.broadcast_mul(&weights)?, 0)?;
        }
        Ok(out)
    }
}
