//! One layer of a stack: attention, cross-attention, and the norms around its branches.

use candle_core::{CpuStorage, Device, InplaceOp3, Layout, Result, Tensor, bail};
use drivetrain_execution::Runs;
use drivetrain_transformer::{Residual, RotaryPairs};

use crate::attention::{Queries, Scoring, attend};
use crate::cache::by_heads;
use crate::feed_forward::FeedForwardLayer;
use crate::kernels;
use crate::linear::Linear;
use crate::norm::NormLayer;
use crate::rows::{self, contiguous, contiguous_mut, has_kernels};

/// The norms around a branch, as [`drivetrain_transformer::Norms`] has them.
#[derive(Clone, Debug, Default)]
pub(crate) struct BranchNorms {
    pub(crate) before: Option<NormLayer>,
    pub(crate) branch_out: Option<NormLayer>,
    pub(crate) after: Option<NormLayer>,
}

impl BranchNorms {
    /// The same on `device`.
    fn on(&self, device: &Device) -> Result<Self> {
        let on = |norm: &Option<NormLayer>| norm.as_ref().map(|norm| norm.on(device)).transpose();
        Ok(Self {
            before: on(&self.before)?,
            branch_out: on(&self.branch_out)?,
            after: on(&self.after)?,
        })
    }

    /// The branch's input.
    fn before(&self, x: &Tensor) -> Result<Tensor> {
        self.before.as_ref().map_or_else(|| Ok(x.clone()), |norm| norm.forward(x))
    }

    /// `n + branch(n)` for the normed input `n`.
    fn around_normed(
        &self,
        x: &Tensor,
        branch: impl FnOnce(&Tensor) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let x = self.before(x)?;
        let y = branch(&x)?;
        rows::add(&x, y)
    }

    /// `after(x + branch_out(branch(before(x))))`.
    fn around(&self, x: &Tensor, branch: impl FnOnce(&Tensor) -> Result<Tensor>) -> Result<Tensor> {
        let mut y = branch(&self.before(x)?)?;
        if let Some(norm) = &self.branch_out {
            y = norm.forward(&y)?;
        }
        let sum = rows::add(x, y)?;
        match &self.after {
            Some(norm) => norm.forward(&sum),
            None => Ok(sum),
        }
    }
}

/// Attention to the own sequence.
#[derive(Clone, Debug)]
pub(crate) struct SelfAttention {
    pub(crate) scoring: Scoring,
    /// Queries, keys and values in one matrix.
    pub(crate) qkv: Linear,
    pub(crate) out: Linear,
    /// Norms of each head of the queries and the keys.
    pub(crate) qk_norms: Option<(NormLayer, NormLayer)>,
    /// Which of the pass's angles rotate queries and keys, and how.
    pub(crate) rotary: Option<(usize, RotaryPairs)>,
}

/// Attention to the encoder's output.
#[derive(Clone, Debug)]
pub(crate) struct CrossAttention {
    pub(crate) scoring: Scoring,
    pub(crate) q: Linear,
    /// Keys and values in one matrix.
    pub(crate) kv: Linear,
    pub(crate) out: Linear,
}

/// A layer.
#[derive(Clone, Debug)]
pub(crate) struct LayerWeights {
    pub(crate) self_attention: SelfAttention,
    pub(crate) self_attention_norms: BranchNorms,
    pub(crate) cross_attention: Option<(CrossAttention, BranchNorms)>,
    pub(crate) feed_forward: FeedForwardLayer,
    pub(crate) feed_forward_norms: BranchNorms,
    pub(crate) residual: Residual,
}

/// Cosines and sines of each row's angles: `[n_rows, dim / 2]`.
#[derive(Clone, Debug)]
pub(crate) struct Angles {
    pub(crate) cos: Tensor,
    pub(crate) sin: Tensor,
}

impl Angles {
    /// The same on `device`.
    fn on(&self, device: &Device) -> Result<Self> {
        Ok(Self { cos: self.cos.to_device(device)?, sin: self.sin.to_device(device)? })
    }
}

/// What a layer asks of the pass it runs in.
pub(crate) trait Pass: Sync {
    /// Takes the keys and values of the rows, and says what each sequence looks at.
    fn self_queries(
        &self,
        layer_idx: usize,
        keys: &Tensor,
        values: &Tensor,
    ) -> Result<Vec<Queries>>;

    /// What each sequence looks at in its encoder's output.
    fn cross_queries(&self, layer_idx: usize) -> Result<Vec<Queries>>;

    /// Which rows go through which adapter.
    fn runs(&self) -> &Runs;

    /// The angles of this number.
    fn angles(&self, rotary_idx: usize) -> Option<&Angles>;
}

impl LayerWeights {
    /// Its matrices.
    pub(crate) fn linears_mut(&mut self) -> impl Iterator<Item = &mut Linear> {
        let cross = self.cross_attention.iter_mut();
        let cross = cross.flat_map(|(cross, _)| [&mut cross.q, &mut cross.kv, &mut cross.out]);
        [&mut self.self_attention.qkv, &mut self.self_attention.out]
            .into_iter()
            .chain(cross)
            .chain(self.feed_forward.linears_mut())
    }

    /// The same on `device`, without what adapters add.
    pub(crate) fn on(&self, device: &Device) -> Result<Self> {
        let cross = self.cross_attention.as_ref().map(|(attention, norms)| {
            Ok::<_, candle_core::Error>((attention.on(device)?, norms.on(device)?))
        });
        Ok(Self {
            self_attention: self.self_attention.on(device)?,
            self_attention_norms: self.self_attention_norms.on(device)?,
            cross_attention: cross.transpose()?,
            feed_forward: self.feed_forward.on(device)?,
            feed_forward_norms: self.feed_forward_norms.on(device)?,
            residual: self.residual,
        })
    }

    /// Takes over what adapters add to `form`, which is the same layer.
    pub(crate) fn add_as(&mut self, form: &Self) {
        let mut form = form.clone();
        for (own, other) in self.linears_mut().zip(form.linears_mut()) {
            own.add_as(other);
        }
    }

    /// Rows `[n_rows, dim]` through the layer.
    pub(crate) fn forward(&self, layer_idx: usize, x: &Tensor, pass: &dyn Pass) -> Result<Tensor> {
        let attention = |x: &Tensor| self.self_attention.forward(layer_idx, x, pass);
        let feed_forward = |x: &Tensor| self.feed_forward.forward(x, pass.runs());
        match self.residual {
            Residual::Sequential => {
                let x = self.self_attention_norms.around(x, attention)?;
                let x = match &self.cross_attention {
                    Some((attention, norms)) => {
                        norms.around(&x, |x| attention.forward(layer_idx, x, pass))?
                    }
                    None => x,
                };
                self.feed_forward_norms.around(&x, feed_forward)
            }
            Residual::SequentialFromNorm => {
                let x = self.self_attention_norms.around_normed(x, attention)?;
                self.feed_forward_norms.around_normed(&x, feed_forward)
            }
            Residual::Parallel { shared_norm } => {
                let normed = self.self_attention_norms.before(x)?;
                let sum = rows::add(x, attention(&normed)?)?;
                let input = if shared_norm { normed } else { self.feed_forward_norms.before(x)? };
                rows::add(&sum, feed_forward(&input)?)
            }
        }
    }
}

impl SelfAttention {
    /// The same on `device`, without what adapters add.
    fn on(&self, device: &Device) -> Result<Self> {
        let norms = self
            .qk_norms
            .as_ref()
            .map(|(q, k)| Ok::<_, candle_core::Error>((q.on(device)?, k.on(device)?)));
        Ok(Self {
            scoring: self.scoring.on(device)?,
            qkv: self.qkv.on(device)?,
            out: self.out.on(device)?,
            qk_norms: norms.transpose()?,
            rotary: self.rotary,
        })
    }

    fn forward(&self, layer_idx: usize, x: &Tensor, pass: &dyn Pass) -> Result<Tensor> {
        let spec = &self.scoring.spec;
        let (q_width, kv_width) = (spec.q_width(), spec.kv_width());
        let qkv = self.qkv.forward(x, pass.runs())?;
        let mut q = qkv.narrow(1, 0, q_width)?;
        let mut keys = qkv.narrow(1, q_width, kv_width)?;
        let values = qkv.narrow(1, q_width + kv_width, kv_width)?;
        let angles = match self.rotary {
            Some((idx, pairs)) => {
                pass.angles(idx).map(|a| a.on(x.device()).map(|a| (a, pairs))).transpose()?
            }
            None => None,
        };
        if let Some((q_norm, k_norm)) = &self.qk_norms {
            q = q_norm.forward_heads(&q)?;
            keys = k_norm.forward_heads(&keys)?;
        }
        if let Some((angles, pairs)) = &angles {
            let pairs = *pairs;
            let head_dim = spec.head_dim as usize;
            match (has_kernels(&qkv), self.qk_norms.is_some()) {
                (true, false) => rotate(&qkv, angles, q_width + kv_width, head_dim, pairs)?,
                (true, true) => {
                    rotate(&q, angles, q_width, head_dim, pairs)?;
                    rotate(&keys, angles, kv_width, head_dim, pairs)?;
                }
                (false, _) => {
                    q = rotated(&q, spec.n_heads as usize, angles, pairs)?;
                    keys = rotated(&keys, spec.n_kv_heads as usize, angles, pairs)?;
                }
            }
        }
        let queries = pass.self_queries(layer_idx, &keys, &values)?;
        self.out.forward(&attend(&q, &queries, &self.scoring)?, pass.runs())
    }
}

impl CrossAttention {
    /// The same on `device`, without what adapters add.
    fn on(&self, device: &Device) -> Result<Self> {
        Ok(Self {
            scoring: self.scoring.on(device)?,
            q: self.q.on(device)?,
            kv: self.kv.on(device)?,
            out: self.out.on(device)?,
        })
    }

    fn forward(&self, layer_idx: usize, x: &Tensor, pass: &dyn Pass) -> Result<Tensor> {
        let queries = pass.cross_queries(layer_idx)?;
        let q = self.q.forward(x, pass.runs())?;
        self.out.forward(&attend(&q, &queries, &self.scoring)?, pass.runs())
    }

    /// Keys and values of the encoder's output `[n_rows, dim]`: each `[n_rows, kv_width]`.
    pub(crate) fn keys_values(&self, encoded: &Tensor, runs: &Runs) -> Result<(Tensor, Tensor)> {
        self.split(&self.kv.forward(encoded, runs)?)
    }

    /// Keys and values of rows of both.
    pub(crate) fn split(&self, kv: &Tensor) -> Result<(Tensor, Tensor)> {
        let width = self.scoring.spec.kv_width();
        Ok((kv.narrow(1, 0, width)?, kv.narrow(1, width, width)?))
    }
}

/// Heads of `x` `[n_rows, n_heads * head_dim]` rotated by candle's operation.
fn rotated(x: &Tensor, n_heads: usize, angles: &Angles, pairs: RotaryPairs) -> Result<Tensor> {
    let (n_rows, width) = x.dims2()?;
    let (head_dim, dim) = (width / n_heads, 2 * angles.cos.dim(1)?);
    let x = x.reshape((1, n_rows, n_heads, head_dim))?;
    let turned = x.narrow(3, 0, dim)?.contiguous()?;
    let turned = match pairs {
        RotaryPairs::Halves => candle_nn::rotary_emb::rope_thd(&turned, &angles.cos, &angles.sin)?,
        // candle has interleaved pairs with heads ahead of rows only.
        RotaryPairs::Interleaved => {
            let turned = turned.transpose(1, 2)?.contiguous()?;
            let turned = candle_nn::rotary_emb::rope_i(&turned, &angles.cos, &angles.sin)?;
            turned.transpose(1, 2)?.contiguous()?
        }
    };
    let turned = if dim == head_dim {
        turned
    } else {
        Tensor::cat(&[&turned, &x.narrow(3, dim, head_dim - dim)?], 3)?
    };
    turned.reshape((n_rows, width))
}

/// Rotates the first `n` values of each row of `x` in place, which are heads of `head_dim`.
fn rotate(
    x: &Tensor,
    angles: &Angles,
    n: usize,
    head_dim: usize,
    pairs: RotaryPairs,
) -> Result<()> {
    x.inplace_op3(&angles.cos, &angles.sin, &Rotate { n, head_dim, pairs })
}

/// The operation of [`rotate`].
struct Rotate {
    n: usize,
    head_dim: usize,
    pairs: RotaryPairs,
}

impl InplaceOp3 for Rotate {
    fn name(&self) -> &'static str {
        "rotate"
    }

    fn cpu_fwd(
        &self,
        x: &mut CpuStorage,
        xl: &Layout,
        cos: &CpuStorage,
        cos_layout: &Layout,
        sin: &CpuStorage,
        sin_layout: &Layout,
    ) -> Result<()> {
        let ((_, width), (_, half)) = (xl.shape().dims2()?, cos_layout.shape().dims2()?);
        let angles = contiguous(cos, cos_layout)?.chunks_exact(half);
        let angles = angles.zip(contiguous(sin, sin_layout)?.chunks_exact(half));
        let rows = contiguous_mut(x, xl)?.chunks_exact_mut(width);
        for (row, (cos, sin)) in rows.zip(angles) {
            let Some(heads) = row.get_mut(..self.n) else { bail!("rows are too short") };
            match self.pairs {
                RotaryPairs::Halves => kernels::rotate_halves(heads, self.head_dim, cos, sin),
                RotaryPairs::Interleaved => kernels::rotate_pairs(heads, self.head_dim, cos, sin),
            }
        }
        Ok(())
    }
}

/// Rows `first..first + n` of `keys` and `values` as what a sequence looks at.
pub(crate) fn own_block(
    keys: &Tensor,
    values: &Tensor,
    first: usize,
    n: usize,
    n_kv_heads: usize,
) -> Result<crate::attention::KeyValues> {
    Ok(crate::attention::KeyValues {
        keys: by_heads(&keys.narrow(0, first, n)?, n_kv_heads)?,
        values: by_heads(&values.narrow(0, first, n)?, n_kv_heads)?,
        len: n,
    })
}
