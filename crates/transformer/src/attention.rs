//! Attention: heads, scale, biases, positions, windows.

use crate::norm::Norm;
use crate::positions::{Alibi, Disentangled, RelativeBuckets};
use crate::rotary::Rotary;

/// One attention of a layer. `q` is `[n_heads * head_dim, dim]`, `k` and `v` are
/// `[n_kv_heads * head_dim, dim]`, `o` is `[dim, n_heads * head_dim]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Attention {
    /// Query heads.
    pub n_heads: u32,
    /// Key and value heads; divides `n_heads`. Query head `i` reads head `i * n_kv_heads / n_heads`.
    pub n_kv_heads: u32,
    /// Size of a head.
    pub head_dim: u32,
    /// Factor on `q · k`.
    pub scale: f64,
    /// Whether a query sees only keys up to its own position.
    pub causal: bool,
    /// With a window `w`, a query at `p` sees keys at `k` with `p - k < w`.
    pub window: Option<u32>,
    /// With a cap `c`, scores become `c * tanh(score / c)` ahead of the mask.
    pub soft_cap: Option<f32>,
    /// How positions enter the scores.
    pub positions: AttentionPositions,
    /// Which projections have a bias.
    pub bias: AttentionBias,
    /// Norm over each head of q and k, ahead of the rotation.
    pub qk_norm: Option<Norm>,
}

/// How many heads an attention has, and of what size.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Heads {
    pub(crate) n: u32,
    pub(crate) n_kv: u32,
    pub(crate) dim: u32,
}

impl Attention {
    /// Without biases, positions, windows, caps and norms, scaled by the root of the head's size.
    pub(crate) fn new(heads: Heads, causal: bool) -> Self {
        Self {
            n_heads: heads.n,
            n_kv_heads: heads.n_kv,
            head_dim: heads.dim,
            scale: f64::from(heads.dim).powf(-0.5),
            causal,
            window: None,
            soft_cap: None,
            positions: AttentionPositions::None,
            bias: AttentionBias::default(),
            qk_norm: None,
        }
    }

    /// Width of the query projection: `n_heads * head_dim`.
    pub fn q_width(&self) -> usize {
        self.n_heads as usize * self.head_dim as usize
    }

    /// Width of the key (and of the value) projection: `n_kv_heads * head_dim`.
    pub fn kv_width(&self) -> usize {
        self.n_kv_heads as usize * self.head_dim as usize
    }
}

/// Which of the four projections have a bias.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AttentionBias {
    /// Query.
    pub q: bool,
    /// Key.
    pub k: bool,
    /// Value.
    pub v: bool,
    /// Output.
    pub o: bool,
}

impl AttentionBias {
    /// The same for all four.
    pub fn all(bias: bool) -> Self {
        Self { q: bias, k: bias, v: bias, o: bias }
    }
}

/// How positions enter the scores of an attention.
#[derive(Clone, Debug, PartialEq)]
pub enum AttentionPositions {
    /// Not at all: they are in the embedding, or nowhere.
    None,
    /// q and k are rotated.
    Rotary(Rotary),
    /// A bias that grows with the key's position.
    Alibi(Alibi),
    /// A learned bias by distance bucket and head.
    RelativeBuckets(RelativeBuckets),
    /// Scores of contents with distances beside those of contents with contents.
    Disentangled(Disentangled),
}
