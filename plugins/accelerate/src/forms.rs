//! In which form a model's matrices are held.
//!
//! Those of 16 bits or in blocks stay as they are in their file, unless the options say otherwise; of
//! other types they become f32. What is added or multiplied element by element is f32, and so is all
//! that lies on an accelerator with memory of its own.

use std::collections::BTreeSet;

use drivetrain_kernels::BlockFormat;
use drivetrain_transformer::{CanonicalTensor, CanonicalWeights, Parameter};

use crate::matrix::HalfType;
use crate::memory::F32;

/// What the options want of matrices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WeightForm {
    /// As the file has them.
    AsStored,
    /// All of 32 bits.
    Full,
    /// All of 16 bits.
    Half(HalfType),
    /// Those of layers in blocks that are made on loading; the others as the file has them.
    Encoded(BlockFormat),
}

/// How a matrix is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    Full,
    Half(HalfType),
    Blocks(BlockFormat),
}

impl Form {
    /// Bytes of `n` elements, which are whole blocks.
    pub(crate) fn bytes(self, n: usize) -> u64 {
        match self {
            Self::Full => n as u64 * F32,
            Self::Half(_) => n as u64 * 2,
            Self::Blocks(format) => format.bytes_for(n) as u64,
        }
    }

    /// What people call it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Full => "f32",
            Self::Half(HalfType::F16) => "f16",
            Self::Half(HalfType::Bf16) => "bf16",
            Self::Blocks(format) => format.name(),
        }
    }
}

/// The forms of a model's matrices.
#[derive(Clone, Copy)]
pub(crate) struct Forms<'w, 'a> {
    pub(crate) weights: &'w CanonicalWeights<'a>,
    pub(crate) wanted: WeightForm,
    /// Whether all devices compute in the CPU's memory, so that products may read files themselves.
    pub(crate) on_cpu: bool,
}

impl<'w, 'a> Forms<'w, 'a> {
    /// The form of a matrix or table in the CPU's memory; `is_streamed` where it is read from its file
    /// whenever it is needed, which leaves no time to make blocks.
    pub(crate) fn of(&self, tensor: &CanonicalTensor<'_>, is_streamed: bool) -> Form {
        if !is_matrix(tensor) {
            return Form::Full;
        }
        match self.wanted {
            WeightForm::Full => Form::Full,
            WeightForm::Half(form) => Form::Half(form),
            WeightForm::Encoded(format)
                if !is_streamed
                    && is_of_layer(tensor)
                    && n_in(tensor).is_multiple_of(format.block_len()) =>
            {
                Form::Blocks(format)
            }
            WeightForm::Encoded(_) | WeightForm::AsStored => self.stored(tensor),
        }
    }

    /// The form that the file has, as far as it is kept.
    fn stored(&self, tensor: &CanonicalTensor<'_>) -> Form {
        let dtype = tensor.source().dtype();
        if self.weights.is_changed(&tensor.name()) || cfg!(target_endian = "big") {
            return Form::Full;
        }
        match (dtype.name(), BlockFormat::named(dtype.name())) {
            ("F16", _) => Form::Half(HalfType::F16),
            ("BF16", _) => Form::Half(HalfType::Bf16),
            (_, Some(format)) if tensor.row_bytes().is_some() => Form::Blocks(format),
            _ => Form::Full,
        }
    }

    /// Whether the file has the rows of a tensor in this form.
    pub(crate) fn is_as_stored(&self, tensor: &CanonicalTensor<'_>, form: Form) -> bool {
        let stored = tensor.source().dtype().name();
        form.name().eq_ignore_ascii_case(stored)
            && cfg!(target_endian = "little")
            && tensor.row_bytes().is_some()
            && !self.weights.is_changed(&tensor.name())
    }

    /// Whether products can be made of a tensor while it is in its file; what is no matrix needs no
    /// product.
    pub(crate) fn multiplies_in_file(&self, tensor: &CanonicalTensor<'_>) -> bool {
        !is_matrix(tensor) || (self.on_cpu && self.is_as_stored(tensor, self.of(tensor, true)))
    }

    /// Whether a table of tokens is read from its file row by row though it could be in memory: its rows
    /// are blocks, which only products are made for.
    pub(crate) fn reads_rows(&self, tensor: &CanonicalTensor<'_>) -> bool {
        matches!(self.of(tensor, false), Form::Blocks(_)) && tensor.lies_in_rows()
    }

    /// Bytes of a tensor in memory.
    pub(crate) fn bytes(&self, tensor: &CanonicalTensor<'_>, is_streamed: bool) -> u64 {
        self.of(tensor, is_streamed).bytes(tensor.n_elements())
    }

    /// Bytes of all tensors in memory, tied ones once.
    pub(crate) fn total_bytes(&self) -> u64 {
        self.weights.distinct().map(|tensor| self.bytes(tensor, false)).sum()
    }

    /// The columns of the widest matrix that is no f32.
    pub(crate) fn widest(&self) -> Option<usize> {
        let matrices = self.weights.iter().filter(|t| self.of(t, false) != Form::Full);
        matrices.map(|tensor| n_in(tensor)).max()
    }

    /// The columns of the widest matrix.
    pub(crate) fn widest_of_all(&self) -> usize {
        let matrices = self.weights.iter().filter(|tensor| is_matrix(tensor));
        matrices.map(|tensor| n_in(tensor)).max().unwrap_or(0)
    }

    /// The names of the matrices' forms.
    pub(crate) fn names(&self) -> String {
        let matrices = self.weights.iter().filter(|tensor| is_matrix(tensor));
        let names: BTreeSet<&str> = matrices.map(|tensor| self.of(tensor, false).name()).collect();
        let names: Vec<&str> = names.into_iter().collect();
        names.join(", ")
    }

    /// Matrices of layers that blocks don't divide, where blocks are wanted.
    pub(crate) fn n_undivided(&self) -> usize {
        let WeightForm::Encoded(format) = self.wanted else { return 0 };
        let matrices = self.weights.distinct().filter(|t| is_matrix(t) && is_of_layer(t));
        matrices.filter(|tensor| !n_in(tensor).is_multiple_of(format.block_len())).count()
    }
}

/// Columns of a matrix.
fn n_in(tensor: &CanonicalTensor<'_>) -> usize {
    tensor.shape().last().copied().unwrap_or(0)
}

fn is_of_layer(tensor: &CanonicalTensor<'_>) -> bool {
    tensor.spec().module.split('.').nth(1) == Some("layers")
}

/// Whether a tensor is a matrix that is multiplied with, or a table of tokens. A router is not taken for
/// one: it decides for others, and is small.
pub(crate) fn is_matrix(tensor: &CanonicalTensor<'_>) -> bool {
    const ELEMENTWISE: [&str; 5] =
        ["positions", "token_types", "relative", "relative_bias", "router"];
    let spec = tensor.spec();
    let part = spec.module.rsplit('.').next().unwrap_or_default();
    spec.parameter == Parameter::Weight && spec.shape.len() == 2 && !ELEMENTWISE.contains(&part)
}
