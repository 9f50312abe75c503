//! Layer norm and RMS norm with their weights.

use candle_core::{CpuStorage, CustomOp2, CustomOp3, Device, Layout, Result, Shape, Tensor};
use drivetrain_transformer::NormKind;

use crate::kernels;
use crate::rows::{contiguous, has_kernels};

/// A norm over rows.
#[derive(Clone, Debug)]
pub(crate) struct NormLayer {
    pub(crate) kind: NormKind,
    pub(crate) eps: f32,
    /// `[dim]`, any offset already added.
    pub(crate) weight: Tensor,
    /// `[dim]`; zero where the norm has none. RMS norms have none.
    pub(crate) bias: Tensor,
}

impl NormLayer {
    /// The same on `device`.
    pub(crate) fn on(&self, device: &Device) -> Result<Self> {
        let (weight, bias) = (self.weight.to_device(device)?, self.bias.to_device(device)?);
        Ok(Self { weight, bias, ..*self })
    }

    /// `[rows, dim]` to `[rows, dim]`.
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (x, eps) = (x.contiguous()?, self.eps);
        match (self.kind, has_kernels(&x)) {
            (NormKind::Layer, true) => {
                x.apply_op3_no_bwd(&self.weight, &self.bias, &LayerNorm { eps })
            }
            (NormKind::Rms, true) => x.apply_op2_no_bwd(&self.weight, &RmsNorm { eps }),
            (NormKind::Layer, false) => {
                candle_nn::ops::layer_norm(&x, &self.weight, &self.bias, eps)
            }
            (NormKind::Rms, false) => candle_nn::ops::rms_norm(&x, &self.weight, eps),
        }
    }
}

impl NormLayer {
    /// The same for each head of `x` `[rows, n_heads * head_dim]`.
    pub(crate) fn forward_heads(&self, x: &Tensor) -> Result<Tensor> {
        let (rows, width) = x.dims2()?;
        let head_dim = self.weight.dim(0)?;
        let heads = x.contiguous()?.reshape((rows * width / head_dim, head_dim))?;
        self.forward(&heads)?.reshape((rows, width))
    }
}

struct LayerNorm {
    eps: f32,
}

impl CustomOp3 for LayerNorm {
    fn name(&self) -> &'static str {
        "layer-norm"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        xl: &Layout,
        w: &CpuStorage,
        wl: &Layout,
        b: &CpuStorage,
        bl: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (x, w, b) = (contiguous(x, xl)?, contiguous(w, wl)?, contiguous(b, bl)?);
        let mut out = vec![0.0; x.len()];
        kernels::layer_norm(x, w, b, &mut out, self.eps);
        Ok((CpuStorage::F32(out), xl.shape().clone()))
    }
}

struct RmsNorm {
    eps: f32,
}

impl CustomOp2 for RmsNorm {
    fn name(&self) -> &'static str {
        "rms-norm"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        xl: &Layout,
        w: &CpuStorage,
        wl: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (x, w) = (contiguous(x, xl)?, contiguous(w, wl)?);
        let mut out = vec![0.0; x.len()];
        kernels::rms_norm(x, w, &mut out, self.eps);
        Ok((CpuStorage::F32(out), xl.shape().clone()))
    }
}
