//! The tensors of a GGUF model under the names and in the layouts of a checkpoint.

use super::architectures::{self, Form, Found};
use super::config::{Heads, Meta};
use super::header::{Header, TensorInfo};
use crate::error::{ArtifactError, shorten};
use crate::mapping::MappedFile;
use crate::weights::{Layout, RowOrder, row_major};

/// Tensors that the config was made from, or that say again what it says.
const NOT_WEIGHTS: [&str; 3] =
    ["rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"];

/// Most experts of a layer.
const MAX_EXPERTS: usize = 4096;

/// A tensor as a checkpoint has it.
pub(crate) struct FoundTensor {
    pub(crate) name: String,
    /// The part that holds it.
    pub(crate) file_idx: usize,
    pub(crate) layout: Layout,
}

/// The tensors of a model's parts, the one with the metadata first.
pub(crate) fn read_tensors(files: &[MappedFile]) -> Result<Vec<FoundTensor>, ArtifactError> {
    let header = Header::read(files)?;
    if header.str("general.type")?.is_some_and(|kind| kind == "adapter") {
        return Err(header.invalid("general.type", "a model; an adapter alone can't be served"));
    }
    let architecture = architectures::of(&header)?;
    let mut found = Vec::with_capacity(header.tensors.len());
    for tensor in &header.tensors {
        if NOT_WEIGHTS.contains(&tensor.name) || tensor.name.ends_with(".attn_rot_embd") {
            continue;
        }
        let broken = |reason| ArtifactError::Tensor {
            path: header.path_of(tensor).to_owned(),
            tensor: shorten(tensor.name),
            reason,
        };
        let Some(module) = architecture.find(&header, tensor.name) else {
            let family = shorten(header.architecture);
            return Err(broken(format!("no {family} is known that has such a tensor")));
        };
        let place = Place { header: &header, tensor, found: &module };
        place.show(&mut found)?;
    }
    Ok(found)
}

/// A tensor of the file and the module it belongs to.
struct Place<'b, 'a> {
    header: &'b Header<'a>,
    tensor: &'b TensorInfo<'a>,
    found: &'b Found,
}

impl Place<'_, '_> {
    /// Adds what checkpoints have for the tensor.
    fn show(&self, out: &mut Vec<FoundTensor>) -> Result<(), ArtifactError> {
        let is_weight = self.found.parameter == "weight";
        match self.found.module.form {
            Form::Experts => return self.show_experts(out),
            Form::Fused => return self.show_parts(out),
            form => {
                let mut layout = self.rows(0, self.n_rows())?;
                layout.shape = self.tensor.shape.clone().into();
                match form {
                    Form::RotaryQuery => layout.order = self.rotary(self.heads()?.n_heads)?,
                    Form::RotaryKey => layout.order = self.rotary(self.heads()?.n_kv_heads)?,
                    Form::Grouped => layout.order = self.grouped()?,
                    Form::PlusOne if is_weight => layout.offset = -1.0,
                    Form::Transposed if is_weight => {
                        if layout.shape.len() != 2 {
                            return Err(self.broken("is no matrix".to_owned()));
                        }
                        layout.shape.reverse();
                        layout.order = RowOrder::Transposed;
                    }
                    _ => {}
                }
                layout.strides = row_major(&layout.shape).unwrap_or_default();
                self.push(out, self.found.name(), layout);
            }
        }
        Ok(())
    }

    fn push(&self, out: &mut Vec<FoundTensor>, name: String, layout: Layout) {
        out.push(FoundTensor { name, file_idx: self.tensor.file_idx, layout });
    }

    /// Rows; a bias has as many as elements.
    fn n_rows(&self) -> usize {
        self.tensor.shape.first().copied().unwrap_or(1)
    }

    fn heads(&self) -> Result<Heads, ArtifactError> {
        Meta { header: self.header }.heads()
    }

    /// Rows of the outermost dimension, as a tensor of their own.
    fn rows(&self, start: usize, n: usize) -> Result<Layout, ArtifactError> {
        let tensor = self.tensor;
        let row_len = tensor.n_elements.checked_div(self.n_rows()).unwrap_or_default();
        let (before, n_elements) = (start * row_len, n * row_len);
        let len = tensor.dtype.block_len();
        if !before.is_multiple_of(len) || !n_elements.is_multiple_of(len) {
            let wanted = format!("its rows can't be told apart in blocks of {len}");
            return Err(self.broken(wanted));
        }
        let first = tensor.start + tensor.dtype.bytes_for(before);
        let span = first..first + tensor.dtype.bytes_for(n_elements);
        let mut shape = tensor.shape.clone();
        if let Some(rows) = shape.first_mut() {
            *rows = n;
        }
        let strides = row_major(&shape).unwrap_or_default();
        Ok(Layout::plain(tensor.dtype, shape.into(), strides, span, n_elements))
    }

    fn rotary(&self, n_heads: u32) -> Result<RowOrder, ArtifactError> {
        let (rows, n_heads) = (self.n_rows(), n_heads as usize);
        let head_rows = rows / n_heads;
        if head_rows == 0 || rows % n_heads != 0 || head_rows % 2 != 0 {
            return Err(self.broken(format!(
                "its {rows} rows are not {n_heads} heads of an even number of rows"
            )));
        }
        self.check_rows(RowOrder::Rotary { head_rows })
    }

    fn grouped(&self) -> Result<RowOrder, ArtifactError> {
        let heads = self.heads()?;
        let (n_heads, n_kv_heads) = (heads.n_heads as usize, heads.n_kv_heads as usize);
        let rows = self.n_rows();
        let head_dim = rows / (n_heads + 2 * n_kv_heads);
        if head_dim == 0 || head_dim * (n_heads + 2 * n_kv_heads) != rows {
            return Err(self.broken(format!(
                "its {rows} rows are not {n_heads} heads of queries and {n_kv_heads} of keys and \
                 values"
            )));
        }
        self.check_rows(RowOrder::Grouped { n_heads, n_kv_heads, head_dim })
    }

    /// Rows can be put into order only where they are whole blocks.
    fn check_rows(&self, order: RowOrder) -> Result<RowOrder, ArtifactError> {
        self.rows(0, 1).map(|_| order)
    }

    /// Each expert's part of a tensor of all.
    fn show_experts(&self, out: &mut Vec<FoundTensor>) -> Result<(), ArtifactError> {
        let &[n_experts, rows, columns] = self.tensor.shape.as_slice() else {
            let wanted = format!("has {} dimensions, expected 3", self.tensor.shape.len());
            return Err(self.broken(wanted));
        };
        if n_experts > MAX_EXPERTS {
            return Err(self.broken(format!("has {n_experts} experts, at most {MAX_EXPERTS} are")));
        }
        for expert in 0..n_experts {
            let mut layout = self.rows(expert, 1)?;
            layout.shape = [rows, columns].into();
            layout.strides = row_major(&layout.shape).unwrap_or_default();
            self.push(out, self.found.name_of_expert(&expert.to_string()), layout);
        }
        Ok(())
    }

    /// Queries, keys and values of a fused projection.
    fn show_parts(&self, out: &mut Vec<FoundTensor>) -> Result<(), ArtifactError> {
        let heads = self.heads()?;
        let width = |n: u32| (n as usize).saturating_mul(heads.head_dim as usize);
        let (q, kv) = (width(heads.n_heads), width(heads.n_kv_heads));
        if self.n_rows() != q.saturating_add(kv.saturating_mul(2)) {
            let rows = self.n_rows();
            return Err(self.broken(format!("has {rows} rows, expected {q} and twice {kv}")));
        }
        for (part, start, n) in [("q", 0, q), ("k", q, kv), ("v", q + kv, kv)] {
            let layout = self.rows(start, n)?;
            self.push(out, self.found.name_of_part(part), layout);
        }
        Ok(())
    }

    fn broken(&self, reason: String) -> ArtifactError {
        ArtifactError::Tensor {
            path: self.header.path_of(self.tensor).to_owned(),
            tensor: shorten(self.tensor.name),
            reason,
        }
    }
}
