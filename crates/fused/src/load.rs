//! Canonical weights to the forms that kernels multiply.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use drivetrain_artifacts::{DType, RowOrder};
use drivetrain_engine::{EngineError, ErrorKind, Services};
use drivetrain_execution::model_error;
use drivetrain_kernels::{BlockFormat, BlockMatrix, Cpu, Matrix, Precision, Source};
use drivetrain_transformer::{CanonicalTensor, CanonicalWeights, TransformerError};
use half::{bf16, f16};

use crate::embedding::{Table, TableValues};
use crate::linear::{Linear, Pad, Part, Weights};
use crate::options::WeightForm;
use crate::packed::PackedFile;
use crate::share::ModelShare;
use crate::step::compute;

mod groups;
mod kept;
mod stacks;

pub(crate) use groups::{group_format, note_of_groups};
use kept::Kept;

const STAGE: &str = "loading weights";

/// Makes a rank's weights of tensors, and tells the host how far all ranks are.
pub(crate) struct Loader<'a, 'l> {
    pub(crate) weights: &'l CanonicalWeights<'a>,
    pub(crate) cpu: Cpu<'l>,
    pub(crate) form: WeightForm,
    pub(crate) services: &'l Services,
    pub(crate) share: &'l ModelShare,
    /// The hidden size.
    pub(crate) dim: usize,
    /// Bytes that all ranks have read.
    pub(crate) done: &'l AtomicU64,
    /// Weights that an earlier start packed, or a file for those of this one.
    pub(crate) packed: Option<&'l PackedFile>,
    /// Whether it is the last of the ranks of this process.
    pub(crate) is_last: bool,
}

/// Which part of a tensor is loaded.
#[derive(Clone, Debug)]
pub(crate) enum Cut {
    All,
    /// These outputs.
    Rows(Range<usize>),
    /// These inputs.
    Columns(Range<usize>),
}

impl Cut {
    /// The rows and columns that it leaves of a tensor.
    fn of(&self, shape: &[usize]) -> (Range<usize>, Range<usize>) {
        let n_rows = shape.first().copied().unwrap_or(0);
        let n_columns = shape.get(1).copied().unwrap_or(1);
        match self {
            Self::All => (0..n_rows, 0..n_columns),
            Self::Rows(rows) => (rows.clone(), 0..n_columns),
            Self::Columns(columns) => (0..n_rows, columns.clone()),
        }
    }

    /// Itself, or columns that begin and end with blocks of this length.
    fn to_blocks(&self, block_len: usize) -> Self {
        match self {
            Self::Columns(columns) => Self::Columns(
                columns.start / block_len * block_len..columns.end.next_multiple_of(block_len),
            ),
            cut => cut.clone(),
        }
    }
}

/// A module of a layer, and which part of it.
type Module<'m> = (&'m str, Cut);

type Loaded<T> = Result<T, EngineError>;

/// A tensor's values, where they can be multiplied or packed from.
enum Values<'a> {
    F32(&'a [f32]),
    F16(&'a [f16]),
    Bf16(&'a [bf16]),
    Own(Vec<f32>),
    OwnF16(Vec<f16>),
    OwnBf16(Vec<bf16>),
}

impl<'a> Values<'a> {
    /// These columns of rows of `n_columns`; themselves, if those are all.
    fn cut(self, n_columns: usize, columns: &Range<usize>) -> Values<'a> {
        fn of<T: Copy>(all: &[T], n_columns: usize, columns: &Range<usize>) -> Vec<T> {
            let rows = all.chunks_exact(n_columns);
            let mut own = Vec::with_capacity(rows.len() * columns.len());
            rows.for_each(|row| own.extend_from_slice(&row[columns.clone()]));
            own
        }
        if columns.len() == n_columns {
            return self;
        }
        match self {
            Self::F32(all) => Self::Own(of(all, n_columns, columns)),
            Self::F16(all) => Self::OwnF16(of(all, n_columns, columns)),
            Self::Bf16(all) => Self::OwnBf16(of(all, n_columns, columns)),
            own => own,
        }
    }

    fn source(&self) -> Source<'_> {
        match self {
            Self::F32(values) => Source::F32(values),
            Self::F16(values) => Source::F16(values),
            Self::Bf16(values) => Source::Bf16(values),
            Self::Own(values) => Source::F32(values),
            Self::OwnF16(values) => Source::F16(values),
            Self::OwnBf16(values) => Source::Bf16(values),
        }
    }
}

/// The kernels' name for a type of blocks.
fn block_format(dtype: DType) -> Option<BlockFormat> {
    BlockFormat::named(dtype.name())
}

impl<'a> Loader<'a, '_> {
    /// Whether the model has the tensor.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.weights.contains(name)
    }

    fn rank(&self) -> usize {
        self.share.share.rank
    }

    fn get(&self, name: &str) -> Loaded<&CanonicalTensor<'a>> {
        self.weights.get(name).ok_or_else(|| {
            let error = TransformerError::NoSuchTensor { name: name.to_owned() };
            EngineError::wrap(ErrorKind::Internal, "loading the weights", &error)
        })
    }

    /// Counts the part of a tensor that is done, and stops if nobody waits for the rest.
    fn count(&self, tensor: &CanonicalTensor<'_>, cut: &Cut) -> Loaded<()> {
        if self.services.cancelled() {
            return Err(EngineError::new(ErrorKind::Cancelled, "loading was cancelled"));
        }
        let (rows, columns) = cut.of(tensor.shape());
        let n = (rows.len() * columns.len()) as u64;
        let bytes = match cut {
            // What each rank has counts once.
            Cut::All if self.rank() > 0 => 0,
            _ => tensor.bytes() * n / (tensor.n_elements() as u64).max(1),
        };
        let done = self.done.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let total = self.weights.total_bytes();
        self.services.progress(STAGE, done.min(total), total);
        Ok(())
    }

    /// The values of a tensor as f32.
    fn values(&self, name: &str) -> Loaded<Vec<f32>> {
        let values = self.part_of(name, &Cut::All)?;
        self.release(&[name])?;
        Ok(values)
    }

    /// The same of a part of it.
    fn part_of(&self, name: &str, cut: &Cut) -> Loaded<Vec<f32>> {
        let tensor = self.get(name)?;
        let (rows, columns) = cut.of(tensor.shape());
        let mut values = vec![0.0; rows.len() * columns.len()];
        let is_whole = values.len() == tensor.n_elements();
        if is_whole || self.weights.is_changed(name) {
            let mut whole = vec![0.0; if is_whole { 0 } else { tensor.n_elements() }];
            let to = if is_whole { &mut values } else { &mut whole };
            self.weights.read_f32(name, to).map_err(|error| model_error(&error))?;
            let n_columns = tensor.shape().get(1).copied().unwrap_or(1);
            let from = whole.chunks_exact(n_columns).skip(rows.start);
            for (to, from) in values.chunks_exact_mut(columns.len().max(1)).zip(from) {
                to.copy_from_slice(&from[columns.clone()]);
            }
        } else {
            let read = tensor.read_part_f32(rows, columns, &mut values);
            read.map_err(|error| model_error(&error))?;
        }
        self.count(tensor, cut)?;
        Ok(values)
    }

    /// The values of a matrix where they lie, if kernels can read them there, or as they lie.
    fn in_place(&self, name: &str, cut: &Cut) -> Loaded<Values<'a>> {
        let tensor = self.get(name)?;
        let source = tensor.source();
        let (rows, columns) = cut.of(tensor.shape());
        let n_columns = tensor.shape().get(1).copied().unwrap_or(1);
        if is_as_stored(self.weights, name, tensor) && source.is_contiguous() {
            let elements = rows.start * n_columns..rows.end * n_columns;
            let dtype = source.dtype();
            let bytes = elements.start * dtype.size()..elements.end * dtype.size();
            let bytes = source.bytes().get(bytes).unwrap_or_default();
            let found = match dtype {
                DType::F32 => bytemuck::try_cast_slice(bytes).ok().map(Values::F32),
                DType::F16 => bytemuck::try_cast_slice(bytes).ok().map(Values::F16),
                DType::BF16 => bytemuck::try_cast_slice(bytes).ok().map(Values::Bf16),
                _ => None,
            };
            if let Some(found) = found.filter(|_| cfg!(target_endian = "little")) {
                self.count(tensor, cut)?;
                return Ok(found.cut(n_columns, &columns));
            }
        }
        self.part_of(name, cut).map(Values::Own)
    }

    /// The blocks of a matrix in the mapped file, or copies of those that a rank has of each row, if it is
    /// kept as such.
    fn blocks(&self, name: &str, order: RowOrder, cut: &Cut) -> Loaded<Option<BlockMatrix<'a>>> {
        let tensor = self.get(name)?;
        let source = tensor.source();
        let Some(format) = blocks_of(self.weights, self.form, name) else { return Ok(None) };
        if source.groups().is_some() {
            return if order == RowOrder::Plain {
                self.groups(name, format, cut)
            } else {
                Ok(None)
            };
        }
        if source.row_order() != order {
            return Ok(None);
        }
        let (n_in, len) = (tensor.shape().last().copied().unwrap_or(0), format.block_len());
        let (rows, columns) = cut.to_blocks(len).of(tensor.shape());
        if n_in % len != 0 {
            return Ok(None);
        }
        let bytes_of = |n: usize| n / len * format.block_bytes();
        let row_bytes = bytes_of(n_in);
        let own = rows.start * row_bytes..rows.end * row_bytes;
        let Some(bytes) = source.bytes().get(own) else { return Ok(None) };
        self.count(tensor, cut)?;
        if columns.len() == n_in {
            return Ok(BlockMatrix::new(format, bytes, n_in).ok());
        }
        let own = bytes_of(columns.start)..bytes_of(columns.end);
        let bytes = bytes.chunks_exact(row_bytes).flat_map(|row| &row[own.clone()]).copied();
        let matrix = BlockMatrix::of_bytes(format, bytes.collect(), columns.len()).ok();
        self.release(&[name])?;
        Ok(matrix)
    }

    /// How matrices of these tensors are held.
    fn precision(&self, names: &[String]) -> Loaded<Precision> {
        match self.form {
            // Rounding what the head reads to 127 steps costs as much as all other matrices together:
            // half of the added perplexity of SmolLM2-135M.
            WeightForm::Packed(Precision::Int8) if names == ["head.weight"] => {
                return Ok(Precision::F16);
            }
            // It decides for all others, and is small.
            _ if names.iter().all(|name| name.ends_with(".router.weight")) => {
                return Ok(Precision::F32);
            }
            WeightForm::Packed(precision) => return Ok(precision),
            WeightForm::Encoded(_) | WeightForm::AsStored => {}
        }
        let mut dtypes = Vec::new();
        for name in names {
            dtypes.push(self.get(name)?.source().dtype());
        }
        let all = |dtype: DType| dtypes.iter().all(|found| *found == dtype);
        let changed = names.iter().any(|name| self.weights.is_changed(name));
        Ok(match () {
            () if all(DType::F16) && !changed => Precision::F16,
            () if all(DType::BF16) && !changed => Precision::Bf16,
            () => Precision::F32,
        })
    }

    /// The biases of `modules`, one after the other; zeros for one without if another has one. Where ranks
    /// have columns, the first that has some has the bias.
    fn bias(&self, path: &str, modules: &[Module<'_>]) -> Loaded<Option<Vec<f32>>> {
        let name_of = |module: &str| join(path, &format!("{module}.bias"));
        let has_bias = |(module, cut): &Module<'_>| {
            let is_first = !matches!(cut, Cut::Columns(columns) if columns.start > 0);
            is_first && self.has(&name_of(module))
        };
        if !modules.iter().any(has_bias) {
            return Ok(None);
        }
        let mut bias = Vec::new();
        for of in modules {
            let (module, cut) = of;
            let rows = cut.of(self.get(&join(path, &format!("{module}.weight")))?.shape()).0;
            bias.extend(match has_bias(of) {
                true => self.part_of(&name_of(module), &Cut::Rows(rows))?,
                false => vec![0.0; rows.len()],
            });
        }
        Ok(Some(bias))
    }

    /// Tensors and parts of `modules`.
    fn parts(&self, path: &str, modules: &[Module<'_>]) -> Loaded<(Vec<String>, Vec<Part>)> {
        let names: Vec<String> =
            modules.iter().map(|(module, _)| join(path, &format!("{module}.weight"))).collect();
        let of = |((module, cut), name): (&Module<'_>, &String)| -> Loaded<Part> {
            let (rows, columns) = cut.of(self.get(name)?.shape());
            Ok(Part { module: join(path, module), rows, columns })
        };
        let parts: Loaded<Vec<Part>> = modules.iter().zip(&names).map(of).collect();
        Ok((names, parts?))
    }

    /// Matrices of one input as one product, whose outputs follow one another in a row.
    fn fused(&self, path: &str, modules: &[Module<'_>]) -> Loaded<Linear<'a>> {
        self.product(path, modules, RowOrder::Plain)
    }

    fn product(&self, path: &str, modules: &[Module<'_>], order: RowOrder) -> Loaded<Linear<'a>> {
        let (names, parts) = self.parts(path, modules)?;
        let bias = self.bias(path, modules)?;
        if let ([name], [(_, cut)]) = (names.as_slice(), modules)
            && let Some(blocks) = self.blocks(name, order, cut)?
        {
            let pad = pad(&parts, blocks.format().block_len(), blocks.n_in());
            return Ok(Linear::new(Weights::Blocks(blocks), bias, parts, pad));
        }
        let n_in = self.get(&names[0])?.shape().last().copied().unwrap_or(1);
        let format = self.encoding(&names, n_in)?;
        let block_len = format.map_or(1, BlockFormat::block_len);
        let cuts: Vec<Cut> = modules.iter().map(|(_, cut)| cut.to_blocks(block_len)).collect();
        let n_rows = parts.iter().map(|part| part.rows.len()).sum();
        let n_in = cuts[0].of(self.get(&names[0])?.shape()).1.len();
        let kept = Kept { names: &names, cuts: &cuts, shape: (n_rows, n_in) };
        let values = || -> Loaded<Vec<Values<'a>>> {
            names.iter().zip(&cuts).map(|(name, cut)| self.in_place(name, cut)).collect()
        };
        let weights = match format {
            Some(format) => Weights::Blocks(self.kept_blocks(&kept, format, || {
                let values = values()?;
                let sources: Vec<Source<'_>> = values.iter().map(Values::source).collect();
                BlockMatrix::encode(format, self.cpu.pool, &sources, n_in).map_err(compute)
            })?),
            None => {
                let precision = self.precision(&names)?;
                Weights::Packed(self.kept_matrix(&kept, (precision, false), || {
                    let values = values()?;
                    let sources: Vec<Source<'_>> = values.iter().map(Values::source).collect();
                    Matrix::pack(self.cpu, &sources, n_in, precision).map_err(compute)
                })?)
            }
        };
        self.release(&names)?;
        let pad = pad(&parts, block_len, n_in);
        Ok(Linear::new(weights, bias, parts, pad))
    }

    /// Gives back the file's pages of tensors that were packed: weights are in memory once. Of ranks that
    /// read different parts of them at the same time, the last does so.
    fn release(&self, names: &[impl AsRef<str>]) -> Loaded<()> {
        if self.is_last {
            for name in names {
                self.get(name.as_ref())?.source().release_pages();
            }
        }
        Ok(())
    }

    /// The blocks that matrices of these tensors are encoded to, if they are.
    fn encoding(&self, names: &[String], n_in: usize) -> Loaded<Option<BlockFormat>> {
        let WeightForm::Encoded(format) = self.form else { return Ok(None) };
        if names.iter().all(|name| name.ends_with(".router.weight")) {
            return Ok(None);
        }
        if !n_in.is_multiple_of(format.block_len()) {
            let (name, len) = (names.join(" and "), format.block_len());
            return Err(EngineError::unsupported(format!(
                "option.quantize: {name} has {n_in} columns, which blocks of {len} don't divide; use \
                 int8 or int8-weight-only, which take any number"
            )));
        }
        // Rounding the head's matrix to 4 bits costs as much as all others together.
        let is_head = names == ["head.weight"];
        Ok(Some(if is_head { BlockFormat::Q8Zero } else { format }))
    }

    /// Whether a matrix stays in the blocks of its file.
    fn stays_in_blocks(&self, path: &str, part: &str, order: RowOrder) -> bool {
        let name = join(path, &format!("{part}.weight"));
        let Some(tensor) = self.weights.get(&name) else { return false };
        // What was packed in groups is shown in its plain order.
        let source = tensor.source();
        let own = if source.groups().is_some() { RowOrder::Plain } else { source.row_order() };
        blocks_of(self.weights, self.form, &name).is_some() && own == order
    }

    /// The pooler, the head, or a part of it.
    pub(crate) fn linear(&self, path: &str, cut: Cut) -> Loaded<Linear<'a>> {
        let (parent, part) = path.rsplit_once('.').unwrap_or(("", path));
        self.fused(parent, &[(part, cut)])
    }

    /// Rows of a table, in the file where they can be read there.
    fn table(&self, name: &str) -> Loaded<Table<'a>> {
        let tensor = self.get(name)?;
        let width = tensor.shape().last().copied().unwrap_or(1);
        let in_rows = !matches!(tensor.source().row_order(), RowOrder::Transposed);
        let values = if in_rows && is_as_stored(self.weights, name, tensor) {
            // Whether it can be read at all.
            tensor.source().read_f32_at(0, &mut []).map_err(|error| model_error(&error))?;
            self.count(tensor, &Cut::All)?;
            TableValues::Mapped(tensor.clone())
        } else {
            TableValues::Own(self.values(name)?)
        };
        Ok(Table { values, width })
    }
}

/// Whether the file's tensor is the canonical one, row by row.
fn is_as_stored(weights: &CanonicalWeights<'_>, name: &str, tensor: &CanonicalTensor<'_>) -> bool {
    tensor.rows().is_all()
        && !tensor.is_transposed()
        && !weights.is_changed(name)
        && tensor.source().value_offset() == 0.0
}

/// The blocks that a matrix stays in, or that its groups become, if it does.
pub(crate) fn blocks_of(
    weights: &CanonicalWeights<'_>,
    form: WeightForm,
    name: &str,
) -> Option<BlockFormat> {
    let tensor = weights.get(name)?;
    if let Some(format) = group_format(tensor, form) {
        return Some(format).filter(|_| !weights.is_changed(name));
    }
    let stays = form == WeightForm::AsStored && is_as_stored(weights, name, tensor);
    block_format(tensor.source().dtype()).filter(|_| stays)
}

/// Where a matrix of `n_in` columns, whole blocks, has some beside those of its part.
fn pad(parts: &[Part], block_len: usize, n_in: usize) -> Option<Pad> {
    let columns = &parts.first()?.columns;
    let pad = Pad { before: columns.start % block_len, own: columns.len() };
    (pad.own != n_in).then_some(pad)
}

/// `path.part`, or `part` alone.
fn join(path: &str, part: &str) -> String {
    if path.is_empty() { part.to_owned() } else { format!("{path}.{part}") }
}

/// Bytes that the weights will occupy in `form` on all ranks together but for what several have, tied ones
/// twice where the table is read from the file as well.
pub(crate) fn planned_bytes(weights: &CanonicalWeights<'_>, form: WeightForm) -> u64 {
    weights.iter().map(|tensor| held_bytes(tensor, form)).sum()
}

/// Bytes that a tensor will occupy in `form`, if a rank has all of it, beside what is mapped.
fn held_bytes(tensor: &CanonicalTensor<'_>, form: WeightForm) -> u64 {
    let is_mapped = form == WeightForm::AsStored && block_format(tensor.source().dtype()).is_some();
    if is_mapped { 0 } else { form_bytes(tensor, form) }
}

/// Bytes of a tensor in `form`; none of a table, which is read where it lies.
pub(crate) fn form_bytes(tensor: &CanonicalTensor<'_>, form: WeightForm) -> u64 {
    let is_table = tensor.name().contains(".embedding.");
    let is_projection = tensor.name().ends_with(".embedding.projection.weight");
    let n = tensor.n_elements() as u64;
    match form {
        _ if is_table && !is_projection => 0,
        _ if tensor.shape().len() < 2 => n * 4,
        WeightForm::Packed(Precision::F32) => n * 4,
        WeightForm::Packed(Precision::Int8) if tensor.name() != "head.weight" => n,
        WeightForm::Packed(Precision::Int8Weights) => n,
        WeightForm::Encoded(format) => n / format.block_len() as u64 * format.block_bytes() as u64,
        WeightForm::Packed(_) => n * 2,
        WeightForm::AsStored if tensor.source().groups().is_some() => {
            let format = group_format(tensor, form);
            format.map_or(n * 4, |format| format.bytes_for(tensor.n_elements()) as u64)
        }
        WeightForm::AsStored => match tensor.source().dtype() {
            DType::F16 | DType::BF16 => n * 2,
            dtype if block_format(dtype).is_some() => tensor.bytes(),
            _ => n * 4,
        },
    }
}
