//! The feed-forward branch of a layer: one network, or experts that a router picks from.

use candle_core::{Result, Tensor};
use drivetrain_transformer::Activation;

use crate::adapters::Runs;
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
        let picks = with_values(&self.router.forward(x, runs)?, |logits| self.pick(logits))?;
        let mut out = x.zeros_like()?;
        for (network, (rows, weights)) in self.networks.iter().zip(picks) {
            if rows.is_empty() {
                continue;
            }
            let n = rows.len();
            let y = network.forward(&rows::select(x, &rows)?, &runs.select(&rows))?;
            let weights = Tensor::from_vec(weights, (n, 1), x.device())?;
            let rows = Tensor::from_vec(rows, n, x.device())?;
            out = out.index_add(&rows, &y.broadcast_mul(&weights)?, 0)?;
        }
        Ok(out)
    }

    /// For each expert the rows that take it and the weights they give it, of the router's logits
    /// `[n_rows, n_experts]`.
    fn pick(&self, logits: &[f32]) -> Vec<(Vec<u32>, Vec<f32>)> {
        let n_experts = self.networks.len();
        let mut picks = vec![(Vec::new(), Vec::new()); n_experts];
        let mut order: Vec<usize> = Vec::with_capacity(n_experts);
        for (row, logits) in logits.chunks_exact(n_experts).enumerate() {
            order.clear();
            order.extend(0..n_experts);
            // Equal ones stay in order, so that the first is taken.
            order.sort_by(|a, b| logits[*b].total_cmp(&logits[*a]));
            order.truncate(self.n_active);
            // The softmax over all experts, divided by the sum over those taken, is the softmax
            // over those taken.
            let max = order.first().map_or(0.0, |first| logits[*first]);
            let sum: f32 = order.iter().map(|expert| (logits[*expert] - max).exp()).sum();
            for expert in &order {
                picks[*expert].0.push(row as u32);
                picks[*expert].1.push((logits[*expert] - max).exp() / sum);
            }
        }
        picks
    }
}
