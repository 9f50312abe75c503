//! A matrix with an optional bias.

use candle_core::{CpuStorage, CustomOp2, Device, Layout, Result, Shape, Tensor};
use drivetrain_execution::Runs;
use drivetrain_transformer::{Activation, Adapter};

use crate::adapters::{Addition, Additions};
use crate::kernels;
use crate::matrix::Matrix;
use crate::rows::{self, contiguous, has_kernels};

/// Up to this many rows the kernel for few rows is faster than candle's matrix product, which
/// packs the matrix anew each time: 3 to 10 times up to 8 rows, twice at 64 (768 by 3072, AVX2).
const FEW_ROWS: usize = 64;

/// `x Wᵀ + b`.
#[derive(Clone, Debug)]
pub(crate) struct Linear {
    /// `[out, in]`: matrices one below the other, where they are not of one form.
    weights: Vec<Matrix>,
    /// Where its results are.
    device: Device,
    /// `[out]`.
    bias: Option<Tensor>,
    /// The canonical modules whose outputs follow one another in a row, with their widths.
    parts: Vec<(String, usize)>,
    /// What adapters add.
    additions: Additions,
}

impl Linear {
    pub(crate) fn new(
        (weights, device): (Vec<Matrix>, &Device),
        bias: Option<Tensor>,
        parts: Vec<(String, usize)>,
    ) -> Self {
        let device = device.clone();
        Self { weights, device, bias, parts, additions: Additions::default() }
    }

    /// The same on `device`, without what adapters add.
    pub(crate) fn on(&self, device: &Device) -> Result<Self> {
        Ok(Self {
            weights: self.weights.iter().map(|matrix| matrix.on(device)).collect::<Result<_>>()?,
            device: device.clone(),
            bias: self.bias.as_ref().map(|bias| bias.to_device(device)).transpose()?,
            parts: self.parts.clone(),
            additions: Additions::default(),
        })
    }

    /// Makes what `adapter` adds to it, to be put in by [`Self::additions_mut`].
    pub(crate) fn additions_of(&self, adapter: &Adapter) -> Result<Vec<Addition>> {
        let mut first_column = 0;
        let mut additions = Vec::new();
        for (module, width) in &self.parts {
            if let Some(part) = adapter.get(module) {
                additions.push(Addition::new(first_column, part, &self.device)?);
            }
            first_column += width;
        }
        Ok(additions)
    }

    /// Takes its numbers out of it.
    pub(crate) fn take_weights(&mut self) -> Vec<Matrix> {
        std::mem::take(&mut self.weights)
    }

    /// Takes over what adapters add to `other`, which is the same matrix.
    pub(crate) fn add_as(&mut self, other: &Self) {
        self.additions.clone_from(&other.additions);
    }

    pub(crate) fn additions_mut(&mut self) -> &mut Additions {
        &mut self.additions
    }

    /// The canonical modules that it is made of.
    pub(crate) fn modules(&self) -> impl Iterator<Item = &str> {
        self.parts.iter().map(|(module, _)| module.as_str())
    }

    /// `[rows, in]` to `[rows, out]`, with what the adapters of `runs` add.
    pub(crate) fn forward(&self, x: &Tensor, runs: &Runs) -> Result<Tensor> {
        let products: Result<Vec<Tensor>> =
            self.weights.iter().map(|weights| weights.product(x)).collect();
        let mut products = products?;
        let product = match products.len() {
            1 => products.remove(0),
            _ => Tensor::cat(&products, 1)?,
        };
        self.finish(product, x, runs)
    }

    /// What the matrix made of `x`, with what the adapters of `runs` add and the bias.
    pub(crate) fn finish(&self, product: Tensor, x: &Tensor, runs: &Runs) -> Result<Tensor> {
        let product = self.additions.add_to(product, x, runs)?;
        match &self.bias {
            Some(bias) => rows::add_bias(product, bias),
            None => Ok(product),
        }
    }

    /// `activation` of [`Self::forward`].
    pub(crate) fn forward_activated(
        &self,
        x: &Tensor,
        activation: Activation,
        runs: &Runs,
    ) -> Result<Tensor> {
        rows::activate(self.forward(x, runs)?, activation)
    }
}

/// `x Wᵀ` for `x` `[rows, in]` and `weight` `[out, in]`.
pub(crate) fn product(x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    if has_kernels(x) && x.dim(0)? <= FEW_ROWS {
        x.contiguous()?.apply_op2_no_bwd(weight, &FewRows)
    } else {
        x.matmul(&weight.t()?)
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
