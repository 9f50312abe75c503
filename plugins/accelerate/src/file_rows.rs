//! Matrices that stay in their file, and are read while they are multiplied with.
//!
//! Each thread reads a tile that its cache holds and multiplies with it at once: a weight crosses the
//! memory bus once, no matter how many rows it meets, and no more of the file is in memory than a tile a
//! thread. The system's own cache of the file is what may keep more. Where reads turn out to be slow, the
//! system is asked for what comes next; what that is, is what came next the last time.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use candle_core::{CpuStorage, CustomOp1, Device, Layout, Result, Shape, Tensor, bail};
use drivetrain_engine::{EngineError, ErrorKind};
use drivetrain_execution::model_error;
use drivetrain_kernels::{BlockMatrix, Cpu, Epilogue, Scratch};
use drivetrain_transformer::HeldRows;
use rayon::prelude::*;

use crate::forms::Form;
use crate::kernels::{FewRows, in_parts};
use crate::matrix::{Compute, FEW_ROWS, Rows, by_tiles};
use crate::rows::contiguous;

/// Bytes that a thread reads at once: half of a usual second-level cache.
const TILE_BYTES: usize = 256 << 10;

/// Bytes that one of `n_threads` threads, and all together, read into.
pub(crate) fn tile_bytes(n_threads: usize) -> u64 {
    // For many rows a tile is read by all threads together, as large as one that is packed.
    (n_threads * TILE_BYTES + 2 * crate::matrix::TILE_BYTES) as u64
}

/// A read of a tile is slow if it takes longer than a memory of 1 GB/s would.
const SLOW: Duration = Duration::from_micros(TILE_BYTES as u64 / 1000);

/// For how many products a slow read is remembered.
const REMEMBERED: u32 = 64;

/// Bytes that the system is asked for ahead of what is multiplied with.
const AHEAD_BYTES: usize = 64 << 20;

/// Tensors one below the other, with the first row of each.
type Parts = Arc<[(usize, HeldRows)]>;

/// A matrix `[n_out, n_in]` in its file.
#[derive(Debug)]
pub(crate) struct FileRows {
    form: Form,
    n_in: usize,
    n_out: usize,
    row_bytes: usize,
    parts: Parts,
    compute: Arc<Compute>,
    reads: Arc<Reads>,
    /// Its number among those of `reads`.
    number: usize,
}

impl FileRows {
    /// The matrix that the tensors `parts`, one below the other, are, whose rows have this form.
    pub(crate) fn new(
        form: Form,
        parts: Vec<HeldRows>,
        compute: &Arc<Compute>,
        reads: &Arc<Reads>,
    ) -> Self {
        let (n_in, row_bytes) =
            parts.first().map_or((1, 1), |part| (part.row_len(), part.row_bytes()));
        let mut n_out = 0;
        let parts = parts.into_iter().map(|part| {
            let first = n_out;
            n_out += part.n();
            (first, part)
        });
        let parts: Arc<[_]> = parts.collect();
        let number = reads.enter(Arc::clone(&parts));
        let (compute, reads) = (Arc::clone(compute), Arc::clone(reads));
        Self { form, n_in, n_out, row_bytes, parts, compute, reads, number }
    }

    pub(crate) fn n_in(&self) -> usize {
        self.n_in
    }

    pub(crate) fn n_out(&self) -> usize {
        self.n_out
    }

    pub(crate) fn form(&self) -> Form {
        self.form
    }

    /// `x Wᵀ` for `x` `[rows, in]`.
    pub(crate) fn product(&self, x: &Tensor) -> Result<Tensor> {
        self.reads.begin(self.number)?;
        x.contiguous()?.apply_op1_no_bwd(&Times(self))
    }

    /// The rows of these numbers, as f32.
    pub(crate) fn gather(&self, ids: &[u32]) -> Result<Tensor> {
        self.reads.check()?;
        let mut values = vec![0.0; ids.len() * self.n_in];
        let mut scratch = Vec::new();
        for (id, values) in ids.iter().zip(values.chunks_exact_mut(self.n_in)) {
            let row = *id as usize;
            let part = self.parts.iter().rev().find(|(first, _)| *first <= row);
            let Some((first, part)) = part.filter(|_| row < self.n_out) else {
                bail!("there is no row {id} in the table");
            };
            let fetched = part.fetch_row_f32(row - first, &mut scratch, values);
            fetched.map_err(|error| self.reads.failed(&model_error(&error)))?;
        }
        Tensor::from_vec(values, (ids.len(), self.n_in), &Device::Cpu)
    }

    /// Reads rows from `first` on into `out`, as many as it holds.
    fn fetch(&self, first: usize, out: &mut [u8]) -> Result<()> {
        let begun = Instant::now();
        let (mut row, mut rest) = (first, out);
        for (start, part) in self.parts.iter() {
            let end = start + part.n();
            if rest.is_empty() || row >= end {
                continue;
            }
            let n_bytes = rest.len().min((end - row) * self.row_bytes);
            let (own, after) = rest.split_at_mut(n_bytes);
            let fetched = part.fetch(row - start, own);
            fetched.map_err(|error| self.reads.failed(&model_error(&error)))?;
            (row, rest) = (row + n_bytes / self.row_bytes, after);
        }
        if begun.elapsed() > SLOW {
            self.reads.slow.store(REMEMBERED, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Reads `n` rows from `first` on into `buffer`, on all threads.
    pub(crate) fn fetch_together<'b>(
        &self,
        first: usize,
        n: usize,
        buffer: &'b mut Vec<u32>,
    ) -> Result<&'b [u8]> {
        let each = (TILE_BYTES / self.row_bytes).max(1);
        let bytes = room(buffer, n * self.row_bytes);
        bytes
            .par_chunks_mut(each * self.row_bytes)
            .enumerate()
            .try_for_each(|(idx, out)| self.fetch(first + idx * each, out))?;
        Ok(bytes)
    }

    /// A few rows times the matrix.
    fn few(&self, x: &[f32], out: &mut [f32], m: usize) -> Result<()> {
        let half = match self.form {
            Form::Half(form) => Some(form),
            _ => None,
        };
        let times = FewRows::new(x, half, m, self.n_in);
        let each = (TILE_BYTES / self.row_bytes).max(4) / 4 * 4;
        in_parts(out, m, self.n_in, |first, out| {
            let mut tile = self.compute.tile();
            let mut done = Ok(());
            for (idx, out) in out.chunks_mut(each * m).enumerate() {
                done = self.few_of_tile((first + idx * each, &times), x, out, &mut tile);
                if done.is_err() {
                    break;
                }
            }
            self.compute.give_back(tile);
            done
        })
    }

    /// What the rows of a tile from `first` on give: `out` `[rows, m]`.
    fn few_of_tile(
        &self,
        (first, times): (usize, &FewRows<'_>),
        x: &[f32],
        out: &mut [f32],
        tile: &mut Tile,
    ) -> Result<()> {
        let m = x.len() / self.n_in;
        let n = out.len() / m;
        let bytes = room(&mut tile.words, n * self.row_bytes);
        self.fetch(first, bytes)?;
        match self.form {
            Form::Full => times.full(bytemuck::cast_slice(bytes), out),
            Form::Half(form) => times.half((bytemuck::cast_slice(bytes), form), out),
            Form::Blocks(format) => {
                let matrix =
                    BlockMatrix::new(format, bytes, self.n_in).map_err(candle_core::Error::wrap)?;
                let cpu = Cpu { pool: &self.compute.alone, ..self.compute.cpu() };
                tile.scratch.reserve(matrix.scratch_bytes(m, 1));
                let columns = if m == 1 { &mut *out } else { resized(&mut tile.columns, m * n) };
                matrix
                    .multiply(cpu, x, columns, &Epilogue::default(), &mut tile.scratch)
                    .map_err(candle_core::Error::wrap)?;
                if m > 1 {
                    for (i, row) in tile.columns.chunks_exact(n).take(m).enumerate() {
                        let column = out.iter_mut().skip(i).step_by(m);
                        column.zip(row).for_each(|(y, found)| *y = *found);
                    }
                }
            }
        }
        Ok(())
    }
}

/// What a thread reads a tile into and computes with.
#[derive(Debug)]
pub(crate) struct Tile {
    /// Words, so that floats of any width are aligned.
    words: Vec<u32>,
    scratch: Scratch,
    columns: Vec<f32>,
}

impl Default for Tile {
    fn default() -> Self {
        Self { words: Vec::new(), scratch: Scratch::with_capacity(0), columns: Vec::new() }
    }
}

/// The first `n_bytes` of a buffer, which grows to hold them.
fn room(buffer: &mut Vec<u32>, n_bytes: usize) -> &mut [u8] {
    &mut bytemuck::cast_slice_mut(resized(buffer, n_bytes.div_ceil(4)))[..n_bytes]
}

/// The first `n` of a buffer, which grows to hold them.
fn resized<T: Clone + Default>(buffer: &mut Vec<T>, n: usize) -> &mut [T] {
    if buffer.len() < n {
        buffer.resize(n, T::default());
    }
    &mut buffer[..n]
}

struct Times<'a>(&'a FileRows);

impl CustomOp1 for Times<'_> {
    fn name(&self) -> &'static str {
        "times-file"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let FileRows { n_in, n_out, compute, .. } = self.0;
        let (n_rows, width) = layout.shape().dims2()?;
        if width != *n_in {
            bail!("rows of {width} times a matrix of {n_in} columns");
        }
        let x = contiguous(x, layout)?;
        let mut out = vec![0.0; n_rows * n_out];
        if n_rows <= FEW_ROWS {
            self.0.few(x, &mut out, n_rows)?;
        } else {
            by_tiles(Rows::File(self.0), x, &mut out, compute)?;
        }
        Ok((CpuStorage::F32(out), (n_rows, *n_out).into()))
    }
}

/// What the matrices that are read from a model's files share.
#[derive(Debug, Default)]
pub(crate) struct Reads {
    failure: Mutex<Option<EngineError>>,
    /// Products that are still to come for which reads are taken to be slow.
    slow: AtomicU32,
    ahead: Mutex<Ahead>,
}

/// What is read, and in which order.
#[derive(Debug, Default)]
struct Ahead {
    matrices: Vec<Known>,
    /// What is multiplied with now.
    last: Option<usize>,
    /// What the system was asked for since, in order, and its bytes.
    asked: VecDeque<usize>,
    asked_bytes: usize,
    /// Asks the system, which may make it wait. There from the first slow read on.
    asker: Option<Sender<Parts>>,
}

/// A matrix, and what followed it last.
#[derive(Debug)]
struct Known {
    parts: Parts,
    next: Option<usize>,
}

impl Known {
    fn n_bytes(&self) -> usize {
        self.parts.iter().map(|(_, part)| part.n() * part.row_bytes()).sum()
    }
}

impl Reads {
    /// Why the weights can't be read any more.
    pub(crate) fn failure(&self) -> Option<EngineError> {
        lock(&self.failure).clone()
    }

    fn check(&self) -> Result<()> {
        match &*lock(&self.failure) {
            Some(error) => bail!("{error}"),
            None => Ok(()),
        }
    }

    /// Keeps `error` as the reason why nothing can be read any more.
    fn failed(&self, error: &EngineError) -> candle_core::Error {
        let message = "weights can't be read from their file";
        let lost = EngineError::wrap(ErrorKind::DeviceLost, message, error);
        let error = candle_core::Error::Msg(lost.to_string());
        lock(&self.failure).get_or_insert(lost);
        error
    }

    fn enter(&self, parts: Parts) -> usize {
        let mut ahead = lock(&self.ahead);
        ahead.matrices.push(Known { parts, next: None });
        ahead.matrices.len() - 1
    }

    /// A product with the matrix `number` begins.
    fn begin(&self, number: usize) -> Result<()> {
        self.check()?;
        let mut ahead = lock(&self.ahead);
        ahead.follow(number);
        let left = self.slow.load(Ordering::Relaxed);
        if left > 0 {
            self.slow.store(left - 1, Ordering::Relaxed);
            ahead.ask();
        }
        Ok(())
    }
}

impl Ahead {
    /// Notes that `number` follows what was last.
    fn follow(&mut self, number: usize) {
        if let Some(last) = self.last.and_then(|last| self.matrices.get_mut(last)) {
            last.next = Some(number);
        }
        self.last = Some(number);
        match self.asked.pop_front() {
            Some(first) if first == number => {
                let n_bytes = self.matrices.get(number).map_or(0, Known::n_bytes);
                self.asked_bytes = self.asked_bytes.saturating_sub(n_bytes);
            }
            _ => {
                self.asked.clear();
                self.asked_bytes = 0;
            }
        }
    }

    /// Asks for what follows, as far as [`AHEAD_BYTES`] go, and for one matrix at least.
    fn ask(&mut self) {
        while self.asked_bytes < AHEAD_BYTES && self.asked.len() < self.matrices.len() {
            let from = self.asked.back().copied().or(self.last);
            let next = from.and_then(|from| self.matrices.get(from)?.next);
            let Some((next, known)) = next.and_then(|next| Some((next, self.matrices.get(next)?)))
            else {
                return;
            };
            let (parts, n_bytes) = (Arc::clone(&known.parts), known.n_bytes());
            let asker = self.asker.get_or_insert_with(start_asker);
            // Without a thread the system reads when it has to.
            let _ = asker.send(parts);
            self.asked.push_back(next);
            self.asked_bytes += n_bytes;
        }
    }
}

/// A thread that asks the system for matrices, until nobody names any.
fn start_asker() -> Sender<Parts> {
    let (sender, asked) = channel::<Parts>();
    let body = move || {
        for parts in asked {
            parts.iter().for_each(|(_, part)| part.expect());
        }
    };
    // Without the thread nothing is asked for, and reads wait for the disk as they come.
    let _ = std::thread::Builder::new().name("accelerate-ahead".to_owned()).spawn(body);
    sender
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroUsize;
    use std::path::{Path, PathBuf};

    use drivetrain_engine::{LoadRequest, Options, Services};
    use drivetrain_execution::ModelFiles;

    use super::*;
    use crate::executor::Executor;
    use crate::forms::{Forms, WeightForm, is_matrix};
    use crate::load::{Loader, Source};
    use crate::matrix::Matrix;

    fn fixture(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures").join(name)
    }

    fn files(dir: &Path) -> ModelFiles {
        let request = LoadRequest {
            model_name: "m",
            model_dir: dir,
            adapter_dir: None,
            options: Options::new(&[]),
            n_threads: NonZeroUsize::MIN,
            services: Services::silent(),
        };
        ModelFiles::open(&request).unwrap()
    }

    fn executor(n_threads: usize) -> Executor {
        Executor::new("cpu", Device::Cpu, NonZeroUsize::new(n_threads).unwrap()).unwrap()
    }

    fn values(m: usize, n: usize) -> Tensor {
        let values: Vec<f32> = (0..m * n).map(|i| (i * 37 % 101) as f32 / 50.0 - 1.0).collect();
        Tensor::from_vec(values, (m, n), &Device::Cpu).unwrap()
    }

    fn floats(tensor: &Tensor) -> Vec<f32> {
        tensor.flatten_all().unwrap().to_vec1().unwrap()
    }

    /// How a file's matrices compare with the same in memory, and how many were compared.
    fn compare(dir: &Path, bound: f32) -> usize {
        let (files, services) = (files(dir), Services::silent());
        let weights = files.canonical().unwrap();
        let forms = Forms { weights: &weights, wanted: WeightForm::AsStored, on_cpu: true };
        let source = Source::new(&files.architecture, forms, &services);
        let executor = executor(2);
        let loader = Loader::new(&source, 0, &executor);
        let mut n = 0;
        for tensor in weights.iter().filter(|tensor| is_matrix(tensor)) {
            let (name, n_in) = (tensor.name(), tensor.shape()[1]);
            if !forms.multiplies_in_file(tensor) || name.contains("embedding") {
                continue;
            }
            let path = name.strip_suffix(".weight").unwrap();
            let held = loader.linear(path).unwrap().take_weights();
            let read = loader.in_file().linear(path).unwrap().take_weights();
            let ([held], [read]) = (held.as_slice(), read.as_slice()) else { panic!("{name}") };
            assert!(matches!(read, Matrix::InFile(_)), "{name}");
            for m in [1, 2, 3, 16, 17, 300] {
                let x = values(m, n_in);
                let (expect, found) =
                    executor.run(|| (held.product(&x).unwrap(), read.product(&x).unwrap()));
                let (expect, found) = (floats(&expect), floats(&found));
                assert_eq!(expect.len(), found.len());
                for (expect, found) in expect.iter().zip(&found) {
                    assert!((expect - found).abs() <= bound, "{name} {m}: {found} for {expect}");
                }
            }
            n += 1;
        }
        n
    }

    #[test]
    fn products_are_those_of_the_same_matrix_in_memory() {
        assert!(compare(&fixture("llama_gqa"), 1e-4) >= 14);
        for file in ["model-F16.gguf", "model-Q8_0.gguf", "model-Q4_K_M.gguf"] {
            assert!(compare(&fixture("gguf_llama").join(file), 1e-4) > 0, "{file}");
        }
    }

    #[test]
    fn rows_of_a_table_are_those_in_memory() {
        let (files, services) = (files(&fixture("llama_gqa")), Services::silent());
        let weights = files.canonical().unwrap();
        let forms = Forms { weights: &weights, wanted: WeightForm::AsStored, on_cpu: true };
        let source = Source::new(&files.architecture, forms, &services);
        let executor = executor(1);
        let loader = Loader::new(&source, 0, &executor);
        let table = |loader: &Loader<'_, '_>| {
            let mut table = loader.linear("decoder.embedding.tokens").unwrap().take_weights();
            table.remove(0)
        };
        let (held, read) = (table(&loader), table(&loader.in_file()));
        let of = |matrix: &Matrix| floats(&matrix.gather(&[7, 0, 7, 3]).unwrap());
        assert_eq!(of(&read), of(&held));
        assert!(read.gather(&[1 << 30]).unwrap_err().to_string().contains("no row"));
    }

    #[test]
    fn a_file_that_became_shorter_fails_once_and_for_all() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["config.json", "model.safetensors"] {
            std::fs::copy(fixture("llama_gqa").join(name), dir.path().join(name)).unwrap();
        }
        let (files, services) = (files(dir.path()), Services::silent());
        let weights = files.canonical().unwrap();
        let forms = Forms { weights: &weights, wanted: WeightForm::AsStored, on_cpu: true };
        let source = Source::new(&files.architecture, forms, &services);
        let executor = executor(1);
        let loader = Loader::new(&source, 0, &executor).in_file();
        let linear = loader.linear("decoder.layers.0.self_attention.o").unwrap().take_weights();
        let x =
            values(1, weights.get("decoder.layers.0.self_attention.o.weight").unwrap().shape()[1]);
        linear[0].product(&x).unwrap();
        let file =
            std::fs::OpenOptions::new().write(true).open(dir.path().join("model.safetensors"));
        file.unwrap().set_len(9000).unwrap();
        for _ in 0..2 {
            let error = linear[0].product(&x).unwrap_err().to_string();
            assert!(error.contains("can't be read from their file"), "{error}");
        }
        let failure = source.reads.failure().unwrap();
        assert_eq!(failure.kind(), ErrorKind::DeviceLost);
    }

    #[test]
    fn what_followed_last_is_asked_for() {
        let mut ahead = Ahead::default();
        for _ in 0..3 {
            ahead.matrices.push(Known { parts: Arc::new([]), next: None });
        }
        ahead.follow(0);
        ahead.ask();
        assert!(ahead.asked.is_empty(), "nobody knows what follows");
        [1, 2, 0].into_iter().for_each(|number| ahead.follow(number));
        ahead.ask();
        assert_eq!(ahead.asked, [1, 2, 0]);
        ahead.follow(1);
        assert_eq!(ahead.asked, [2, 0]);
        ahead.ask();
        assert_eq!(ahead.asked, [2, 0, 1]);
        // Another way: what was asked for is of no use.
        ahead.follow(0);
        assert!(ahead.asked.is_empty());
    }
}
