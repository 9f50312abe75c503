//! Matrices of rows on a device, and their values on the CPU.
//!
//! Operations here have two bodies: a kernel for the CPU, and candle's own for other devices.

use candle_core::{
    CpuStorage, CustomOp1, InplaceOp1, InplaceOp2, Layout, Result, Shape, Storage, Tensor, bail,
};
use drivetrain_transformer::Activation;

use crate::kernels;

/// Whether `x` lies where the kernels of this crate work.
pub(crate) fn has_kernels(x: &Tensor) -> bool {
    #[cfg(test)]
    if WITHOUT_KERNELS.load(std::sync::atomic::Ordering::Relaxed) {
        return false;
    }
    x.device().is_cpu()
}

/// Makes tests on the CPU take the way of other devices.
#[cfg(test)]
pub(crate) static WITHOUT_KERNELS: std::sync::atomic::AtomicBool =
    std::sync::atomic::AtomicBool::new(false);

/// The values of a CPU storage from the layout's first on.
pub(crate) fn values<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    match storage {
        CpuStorage::F32(values) => Ok(values.get(layout.start_offset()..).unwrap_or_default()),
        _ => bail!("values of another type than f32"),
    }
}

/// The values of a contiguous CPU storage.
pub(crate) fn contiguous<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    let n = layout.shape().elem_count();
    match values(storage, layout)?.get(..n) {
        Some(values) if layout.is_contiguous() => Ok(values),
        _ => bail!("values that are not contiguous"),
    }
}

/// The same to be written.
pub(crate) fn contiguous_mut<'a>(
    storage: &'a mut CpuStorage,
    layout: &Layout,
) -> Result<&'a mut [f32]> {
    let range = layout.start_offset()..layout.start_offset() + layout.shape().elem_count();
    match storage {
        CpuStorage::F32(values) if layout.is_contiguous() => match values.get_mut(range) {
            Some(values) => Ok(values),
            None => bail!("values outside their storage"),
        },
        _ => bail!("values that are not contiguous f32"),
    }
}

/// Takes the values out of a tensor on the CPU, which may not be used afterwards.
pub(crate) fn take_values(tensor: &Tensor) -> Option<Vec<f32>> {
    let op = TakeValues(std::sync::Mutex::default());
    if tensor.device().is_cpu() {
        tensor.inplace_op1(&op).ok()?;
    }
    op.0.into_inner().ok()?
}

struct TakeValues(std::sync::Mutex<Option<Vec<f32>>>);

impl InplaceOp1 for TakeValues {
    fn name(&self) -> &'static str {
        "take-values"
    }

    fn cpu_fwd(&self, x: &mut CpuStorage, _: &Layout) -> Result<()> {
        if let (CpuStorage::F32(values), Ok(mut taken)) = (x, self.0.lock()) {
            *taken = Some(std::mem::take(values));
        }
        Ok(())
    }
}

/// Calls `body` with the values of a contiguous tensor, which are copied only from other devices.
pub(crate) fn with_values<R>(tensor: &Tensor, body: impl FnOnce(&[f32]) -> R) -> Result<R> {
    {
        let (storage, layout) = tensor.storage_and_layout();
        if let (Storage::Cpu(storage), true) = (&*storage, layout.is_contiguous()) {
            return Ok(body(contiguous(storage, layout)?));
        }
    }
    Ok(body(&tensor.flatten_all()?.to_vec1::<f32>()?))
}

/// `x + y`, in place of `y` where the device allows; equal shapes.
pub(crate) fn add(x: &Tensor, y: Tensor) -> Result<Tensor> {
    if !has_kernels(x) {
        return x + y;
    }
    y.inplace_op2(&x.contiguous()?, &Add)?;
    Ok(y)
}

struct Add;

impl InplaceOp2 for Add {
    fn name(&self) -> &'static str {
        "add"
    }

    fn cpu_fwd(&self, y: &mut CpuStorage, yl: &Layout, x: &CpuStorage, xl: &Layout) -> Result<()> {
        kernels::add_assign(contiguous_mut(y, yl)?, contiguous(x, xl)?);
        Ok(())
    }
}

/// `x + bias` over rows, in place of `x` where the device allows.
pub(crate) fn add_bias(x: Tensor, bias: &Tensor) -> Result<Tensor> {
    if !has_kernels(&x) {
        return x.broadcast_add(bias);
    }
    x.inplace_op2(bias, &AddBias)?;
    Ok(x)
}

struct AddBias;

impl InplaceOp2 for AddBias {
    fn name(&self) -> &'static str {
        "add-bias"
    }

    fn cpu_fwd(&self, x: &mut CpuStorage, xl: &Layout, b: &CpuStorage, bl: &Layout) -> Result<()> {
        kernels::add_bias(contiguous_mut(x, xl)?, contiguous(b, bl)?);
        Ok(())
    }
}

/// `activation(x)`, in place of `x` where the device allows.
pub(crate) fn activate(x: Tensor, activation: Activation) -> Result<Tensor> {
    if has_kernels(&x) {
        x.inplace_op1(&Activate(activation))?;
        return Ok(x);
    }
    match activation {
        Activation::Gelu => x.gelu_erf(),
        Activation::GeluTanh => x.gelu(),
        Activation::QuickGelu => &x * candle_nn::ops::sigmoid(&(&x * 1.702)?)?,
        Activation::Silu => x.silu(),
        Activation::Relu => x.relu(),
        Activation::ReluSquared => x.relu()?.sqr(),
        Activation::Tanh => x.tanh(),
        Activation::Sigmoid => candle_nn::ops::sigmoid(&x),
        Activation::Identity => Ok(x),
    }
}

struct Activate(Activation);

impl InplaceOp1 for Activate {
    fn name(&self) -> &'static str {
        "activate"
    }

    fn cpu_fwd(&self, x: &mut CpuStorage, layout: &Layout) -> Result<()> {
        kernels::activate(contiguous_mut(x, layout)?, self.0);
        Ok(())
    }
}

/// `activation(gate) * up` of rows `[gate | up]`.
pub(crate) fn gate(x: &Tensor, activation: Activation) -> Result<Tensor> {
    if has_kernels(x) {
        return x.apply_op1_no_bwd(&Gate(activation));
    }
    let width = x.dim(1)? / 2;
    let gate = x.narrow(1, 0, width)?.contiguous()?;
    activate(gate, activation)? * x.narrow(1, width, width)?
}

struct Gate(Activation);

impl CustomOp1 for Gate {
    fn name(&self) -> &'static str {
        "gate"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (rows, width) = layout.shape().dims2()?;
        let mut out = vec![0.0; rows * width / 2];
        kernels::gate(contiguous(x, layout)?, &mut out, width / 2, self.0);
        Ok((CpuStorage::F32(out), (rows, width / 2).into()))
    }
}

/// The rows `indices` of `x`; `x` itself if these are all its rows in order.
pub(crate) fn select(x: &Tensor, indices: &[u32]) -> Result<Tensor> {
    let all = indices.len() == x.dim(0)?
        && indices.iter().enumerate().all(|(row, idx)| row == *idx as usize);
    if all {
        return Ok(x.clone());
    }
    x.index_select(&Tensor::new(indices, x.device())?, 0)
}
