//! A matrix with an optional bias.

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor};
use drivetrain_transformer::Activation;

use crate::kernels;
use crate::rows::{self, contiguous, has_kernels};

/// Up to this many rows the kernel for few rows is faster than candle's matrix product, which
/// packs the matrix anew each time: 3 to 10 times up to 8 rows, twice at 64 (768 by 3072, AVX2).
const FEW_ROWS: usize = 64;

/// `x Wᵀ + b`.
#[derive(Clone, Debug)]
pub(crate) struct Linear {
    /// `[out, in]`.
    weight: Tensor,
    /// The same memory as `[in, out]`.
    transposed: Tensor,
    /// `[out]`.
    bias: Option<Tensor>,
}

impl Linear {
    pub(crate) fn new(weight: Tensor, bias: Option<Tensor>) -> Result<Self> {
        Ok(Self { transposed: weight.t()?, weight, bias })
    }

    /// `[rows, in]` to `[rows, out]`.
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let product = if has_kernels(x) && x.dim(0)? <= FEW_ROWS {
            x.contiguous()?.apply_op2_no_bwd(&self.weight, &FewRows)?
        } else {
            x.matmul(&self.transposed)?
        };
        match &self.bias {
            Some(bias) => rows::add_bias(product, bias),
            None => Ok(product),
        }
    }

    /// `activation` of [`Self::forward`].
    pub(crate) fn forward_activated(&self, x: &Tensor, activation: Activation) -> Result<Tensor> {
        rows::activate(self.forward(x)?, activation)
    }
}

struct FewRows;

impl CustomOp2 for FewRows {
    fn name(&self) -> &'static str {
        "few-rows"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        xl: &Layout,
        w: &CpuStorage,
        wl: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let ((m, k), (n, _)) = (xl.shape().dims2()?, wl.shape().dims2()?);
        let mut out = vec![0.0; m * n];
        kernels::few_rows(contiguous(x, xl)?, contiguous(w, wl)?, &mut out, m, k);
        Ok((CpuStorage::F32(out), (m, n).into()))
    }
}
