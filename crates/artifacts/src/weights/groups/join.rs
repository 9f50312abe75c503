//! Of the tensors that a packed matrix is made of, one.

use std::sync::Arc;

use super::{GroupLayout, Packing, Part, QuantizationConfig, QuantizationMethod};
use crate::error::{ArtifactError, shorten};
use crate::weights::dtype::DType;
use crate::weights::tensor::{Layout, element_count, is_contiguous, row_major};
use crate::weights::{Place, RowOrder, Weights};

const WORDS: &str = ".qweight";

/// Puts a tensor `m.weight` in place of each `m.qweight` and what belongs to it.
///
/// # Errors
/// One of them is missing or has another type or shape than `config` asks for, a group is out of range, or
/// the matrix is there unpacked as well; the error names the tensor.
pub(in crate::weights) fn join(
    weights: &mut Weights,
    config: &QuantizationConfig,
) -> Result<(), ArtifactError> {
    let modules: Vec<String> =
        weights.names().filter_map(|name| name.strip_suffix(WORDS)).map(str::to_owned).collect();
    if modules.is_empty() {
        let path = weights.paths.first().cloned().unwrap_or_default();
        let method = config.method;
        let reason = format!("has no tensor m.qweight, though quantization_config says {method}");
        return Err(ArtifactError::WeightFile { path, reason });
    }
    for module in modules {
        let place = Module { weights, config, name: &module }.join()?;
        for part in ["qweight", "qzeros", "scales", "g_idx"] {
            weights.tensors.remove(&format!("{module}.{part}"));
        }
        weights.tensors.insert(format!("{module}.weight"), place);
    }
    Ok(())
}

/// A module that has a packed matrix.
struct Module<'w> {
    weights: &'w Weights,
    config: &'w QuantizationConfig,
    name: &'w str,
}

impl Module<'_> {
    fn join(&self) -> Result<Place, ArtifactError> {
        let weight = format!("{}.weight", self.name);
        if self.weights.contains(&weight) {
            return Err(self.broken("weight", format!("is there beside {}{WORDS}", self.name)));
        }
        let QuantizationConfig { method, bits, group_size, zeros_are_less } = *self.config;
        let n = 32 / bits;
        let packing = match method {
            QuantizationMethod::Gptq => Packing::Inputs,
            QuantizationMethod::Awq => Packing::Outputs,
        };
        let words = self.required("qweight")?;
        let &[rows, columns] = &*words.layout.shape else {
            return Err(self.broken("qweight", "is no matrix".to_owned()));
        };
        let shape = match packing {
            Packing::Inputs => (rows.checked_mul(n), Some(columns)),
            Packing::Outputs => (Some(rows), columns.checked_mul(n)),
        };
        let count = |shape: &[usize; 2]| element_count(shape).filter(|n| *n > 0);
        let shape = shape.0.zip(shape.1).map(|(n_in, n_out)| [n_out, n_in]);
        let Some((shape, n_elements)) = shape.and_then(|s| Some((s, count(&s)?))) else {
            return Err(self.broken("qweight", format!("its shape [{rows}, {columns}] can't be")));
        };
        let [n_out, n_in] = shape;
        self.check("qweight", &[DType::I32, DType::U32], &[rows, columns])?;
        if !n_out.is_multiple_of(n) {
            let reason = format!("has {n_out} outputs, whose zeros {n} to a word don't hold");
            return Err(self.broken("qweight", reason));
        }
        let group = group_size.unwrap_or(n_in);
        let n_groups = n_in.div_ceil(group);
        self.check("scales", &[DType::F16, DType::BF16, DType::F32], &[n_groups, n_out])?;
        self.check("qzeros", &[DType::I32, DType::U32], &[n_groups, n_out / n])?;
        let (scales, zeros) = (self.required("scales")?, self.required("qzeros")?);
        let groups = GroupLayout {
            bits,
            packing,
            n_in,
            n_out,
            group,
            zero_offset: if zeros_are_less { u32::MAX / ((1 << bits) - 1) } else { 0 },
            scale_type: scales.layout.dtype,
            scales: self.part(scales),
            zeros: self.part(zeros),
            order: self.order(n_in, group, n_groups)?,
        };
        let dtype = if bits == 4 { DType::Int4Groups } else { DType::Int8Groups };
        let strides = row_major(&shape).unwrap_or_default();
        let span = words.layout.span.clone();
        let mut layout = Layout::plain(dtype, shape.into(), strides, span, n_elements);
        layout.order = RowOrder::Transposed;
        layout.groups = Some(Arc::new(groups));
        Ok(Place { file_idx: words.file_idx, layout })
    }

    /// The group of each input, if that is not where it lies.
    fn order(
        &self,
        n_in: usize,
        group: usize,
        n_groups: usize,
    ) -> Result<Option<Box<[u32]>>, ArtifactError> {
        let Some(tensor) = self.weights.get(&format!("{}.g_idx", self.name)) else {
            return Ok(None);
        };
        self.check("g_idx", &[DType::I32, DType::U32], &[n_in])?;
        let words = tensor.bytes().as_chunks().0;
        let order: Box<[u32]> = words.iter().map(|word| u32::from_le_bytes(*word)).collect();
        if let Some(wrong) = order.iter().find(|idx| **idx as usize >= n_groups) {
            let reason = format!("names group {}, there are {n_groups}", wrong.cast_signed());
            return Err(self.broken("g_idx", reason));
        }
        let is_in_place = order.iter().enumerate().all(|(at, idx)| at / group == *idx as usize);
        Ok((!is_in_place).then_some(order))
    }

    fn find(&self, part: &str) -> Option<&Place> {
        self.weights.tensors.get(&format!("{}.{part}", self.name))
    }

    fn required(&self, part: &str) -> Result<&Place, ArtifactError> {
        self.find(part).ok_or_else(|| {
            let method = self.config.method;
            self.broken(part, format!("is missing: {method} has it beside {}{WORDS}", self.name))
        })
    }

    /// Holds a tensor against what it has to be.
    fn check(&self, part: &str, types: &[DType], shape: &[usize]) -> Result<(), ArtifactError> {
        let Layout { dtype, shape: found, strides, .. } = &self.required(part)?.layout;
        if !types.contains(dtype) {
            let types: Vec<&str> = types.iter().map(|dtype| dtype.name()).collect();
            let wanted = types.join(" or ");
            return Err(self.broken(part, format!("is of {dtype}, expected {wanted}")));
        }
        if **found != *shape || !is_contiguous(found, strides) {
            let QuantizationConfig { method, bits, group_size, .. } = self.config;
            let size = group_size.map_or_else(|| "-1".to_owned(), |size| size.to_string());
            let reason = format!(
                "its shape is {found:?}, expected {shape:?} in rows by {WORDS} and \
                 quantization_config: {method}, bits {bits}, group_size {size}"
            );
            return Err(self.broken(part, reason));
        }
        Ok(())
    }

    fn part(&self, place: &Place) -> Part {
        let file = Arc::clone(&self.weights.files[place.file_idx]);
        Part { file, span: place.layout.span.clone() }
    }

    fn broken(&self, part: &str, reason: String) -> ArtifactError {
        let words = self.find(part).or_else(|| self.find("qweight"));
        let path = words.and_then(|place| self.weights.paths.get(place.file_idx));
        ArtifactError::Tensor {
            path: path.cloned().unwrap_or_default(),
            tensor: shorten(&format!("{}.{part}", self.name)),
            reason,
        }
    }
}
