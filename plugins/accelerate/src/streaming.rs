//! Weights that stay in their file, or in the CPU's memory, and come while others are computed with.
//!
//! A reader thread goes through what a pass needs, in order, at most [`SLOTS`] pieces ahead: one is
//! computed with while the next is read. When a pass is over it goes on with the beginning of the same
//! pass, since the next one mostly is. The memory of a piece that is done with is filled again.

use std::collections::{HashMap, VecDeque};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use candle_core::Device;
use drivetrain_engine::{EngineError, ErrorKind, Services};
use drivetrain_execution::ModelFiles;
use drivetrain_transformer::Stack;

use crate::error;
use crate::executor::Executor;
use crate::forms::{Forms, WeightForm};
use crate::layer::LayerWeights;
use crate::linear::Linear;
use crate::load::{Loader, Shared, Source};
use crate::matrix::{Buffer, Matrix};

/// Pieces of weights in memory at once.
pub(crate) const SLOTS: usize = 2;

/// A piece of the weights that is read at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unit {
    /// A layer of the encoder or the decoder.
    Layer {
        /// Of the decoder.
        of_decoder: bool,
        /// Its number.
        idx: usize,
    },
    /// What makes keys and values of the encoder's output in a decoder layer.
    CrossKeysValues {
        /// The layer's number.
        idx: usize,
    },
    /// Rows of the head's matrix.
    HeadRows {
        /// The first of them.
        first: usize,
        /// How many.
        n: usize,
    },
}

/// A piece in memory.
#[derive(Debug)]
pub(crate) enum Piece {
    Layer(Box<LayerWeights>),
    CrossKeysValues(Linear),
    HeadRows(Matrix),
    /// One that may share its memory with what the CPU has.
    LentLayer(Box<LayerWeights>),
    /// The same.
    LentKeysValues(Linear),
}

impl Piece {
    /// Its matrices' numbers.
    fn into_buffers(self) -> impl Iterator<Item = Buffer> {
        let matrices = match self {
            Self::Layer(mut layer) => layer.linears_mut().flat_map(Linear::take_weights).collect(),
            Self::CrossKeysValues(mut linear) => linear.take_weights(),
            Self::HeadRows(rows) => vec![rows],
            Self::LentLayer(_) | Self::LentKeysValues(_) => Vec::new(),
        };
        matrices.into_iter().filter_map(Matrix::into_buffer)
    }
}

/// What a reader thread needs of the model.
pub(crate) struct Streamed {
    pub(crate) files: Arc<ModelFiles>,
    pub(crate) executor: Arc<Executor>,
    /// The executor's number.
    pub(crate) number: usize,
    /// How matrices are held.
    pub(crate) wanted: WeightForm,
    pub(crate) services: Services,
    /// Layers that are in the CPU's memory.
    pub(crate) lent: Lent,
}

/// Layers that the CPU lends, by whether they are the decoder's, and their number.
pub(crate) type Lent = HashMap<(bool, usize), Arc<LayerWeights>>;

/// The reader thread, from the outside. Calls come from one thread at a time.
#[derive(Debug)]
pub(crate) struct Streamer {
    inner: Arc<Inner>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Inner {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// What is still to be read.
    wanted: VecDeque<Unit>,
    /// What the next pass is taken to need.
    pass: Vec<Unit>,
    /// What has been read and not been taken, in order.
    ready: VecDeque<(Unit, Piece)>,
    /// What is being read, of use unless the wishes have changed.
    reading: Option<Unit>,
    /// Changes with the wishes.
    epoch: u64,
    /// Pieces that are computed with.
    n_held: usize,
    /// Pieces that are done with.
    returned: Vec<Piece>,
    gathers: VecDeque<Gather>,
    failure: Option<EngineError>,
    is_over: bool,
}

/// Rows of a token table that are asked for.
#[derive(Debug)]
struct Gather {
    table: String,
    ids: Vec<u32>,
    answer: SyncSender<Vec<f32>>,
}

/// What the reader does next.
enum Task {
    Read(Unit, u64),
    Gather(Gather),
    Reclaim(Vec<Piece>),
}

/// A piece that is computed with. When it is dropped, its memory is used again.
pub(crate) struct Held<'a> {
    inner: &'a Inner,
    piece: Option<Piece>,
}

impl Held<'_> {
    /// The layer that it is.
    pub(crate) fn layer_mut(&mut self) -> Option<&mut LayerWeights> {
        match &mut self.piece {
            Some(Piece::Layer(layer) | Piece::LentLayer(layer)) => Some(layer),
            _ => None,
        }
    }

    /// The matrix that it is.
    pub(crate) fn linear_mut(&mut self) -> Option<&mut Linear> {
        match &mut self.piece {
            Some(Piece::CrossKeysValues(linear) | Piece::LentKeysValues(linear)) => Some(linear),
            _ => None,
        }
    }

    /// The rows that it is.
    pub(crate) fn rows(&self) -> Option<&Matrix> {
        match &self.piece {
            Some(Piece::HeadRows(rows)) => Some(rows),
            _ => None,
        }
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        let mut state = self.inner.lock();
        state.n_held -= 1;
        state.returned.extend(self.piece.take());
        drop(state);
        self.inner.changed.notify_all();
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&'a self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
    }
}

impl Streamer {
    /// Starts a reader.
    pub(crate) fn start(streamed: Streamed) -> Result<Self, EngineError> {
        let inner = Arc::new(Inner::default());
        let for_thread = Arc::clone(&inner);
        let body = move || {
            let end = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                read(&for_thread, &streamed)
            }));
            let failure = match end {
                Ok(Ok(())) => return,
                Ok(Err(error)) => error,
                Err(_) => EngineError::new(ErrorKind::DeviceLost, "the reader of weights panicked"),
            };
            let mut state = for_thread.lock();
            state.failure = Some(failure);
            state.gathers.clear();
            drop(state);
            for_thread.changed.notify_all();
        };
        let thread = std::thread::Builder::new().name("accelerate-reader".to_owned()).spawn(body);
        let thread = thread.map_err(|error| {
            EngineError::wrap(ErrorKind::OutOfMemory, "no thread to read weights on", &error)
        })?;
        Ok(Self { inner, thread: Some(thread) })
    }

    /// Says what the pass that begins takes, in order.
    pub(crate) fn begin(&self, units: &[Unit]) {
        let mut guard = self.inner.lock();
        let state = &mut *guard;
        let have = state.ready.iter().map(|(unit, _)| unit).chain(&state.reading);
        let n_have = state.ready.len() + usize::from(state.reading.is_some());
        let is_beginning = n_have <= units.len() && have.eq(units.iter().take(n_have));
        state.wanted.clear();
        if is_beginning {
            state.wanted.extend(units.iter().skip(n_have));
        } else {
            state.returned.extend(state.ready.drain(..).map(|(_, piece)| piece));
            state.reading = None;
            state.epoch += 1;
            state.wanted.extend(units);
        }
        if state.pass != units {
            state.pass.clear();
            state.pass.extend_from_slice(units);
        }
        drop(guard);
        self.inner.changed.notify_all();
    }

    /// The next piece of the pass, which must be `unit`; waits until it is there.
    ///
    /// # Errors
    /// Why the weights can't be read any more.
    pub(crate) fn take(&self, unit: Unit) -> candle_core::Result<Held<'_>> {
        let mut state = self.inner.lock();
        loop {
            if let Some(error) = &state.failure {
                candle_core::bail!("{error}");
            }
            match state.ready.front() {
                Some((first, _)) if *first == unit => {
                    let piece = state.ready.pop_front().map(|(_, piece)| piece);
                    state.n_held += 1;
                    drop(state);
                    self.inner.changed.notify_all();
                    return Ok(Held { inner: &self.inner, piece });
                }
                Some((first, _)) => candle_core::bail!("{first:?} was read instead of {unit:?}"),
                None => state = self.inner.wait(state),
            }
        }
    }

    /// The rows `ids` of the table `table`, one after the other.
    ///
    /// # Errors
    /// Why the weights can't be read any more.
    pub(crate) fn gather(&self, table: String, ids: Vec<u32>) -> candle_core::Result<Vec<f32>> {
        let (answer, rows): (_, Receiver<Vec<f32>>) = sync_channel(1);
        let mut state = self.inner.lock();
        if state.failure.is_none() {
            state.gathers.push_back(Gather { table, ids, answer });
        }
        drop(state);
        self.inner.changed.notify_all();
        if let Ok(rows) = rows.recv() {
            return Ok(rows);
        }
        // The reader let go of the question because it ends: it says why next.
        let mut state = self.inner.lock();
        loop {
            match &state.failure {
                Some(error) => candle_core::bail!("{error}"),
                None => state = self.inner.wait(state),
            }
        }
    }

    /// Why the weights can't be read any more.
    pub(crate) fn failure(&self) -> Option<EngineError> {
        self.inner.lock().failure.clone()
    }
}

impl Drop for Streamer {
    fn drop(&mut self) {
        self.inner.lock().is_over = true;
        self.inner.changed.notify_all();
        if let Some(thread) = self.thread.take() {
            // It catches its panics.
            let _ = thread.join();
        }
    }
}

/// The reader thread.
fn read(inner: &Inner, streamed: &Streamed) -> Result<(), EngineError> {
    let weights = streamed.files.canonical()?;
    let architecture = &streamed.files.architecture;
    let forms = Forms { weights: &weights, wanted: streamed.wanted, on_cpu: false };
    let source = Source::new(architecture, forms, &streamed.services);
    let loader = Loader::new(&source, streamed.number, &streamed.executor).streaming();
    let shared = |stack: &Option<Stack>| stack.as_ref().map(|s| loader.shared(s)).transpose();
    let encoder = architecture.encoder.as_ref().zip(shared(&architecture.encoder)?);
    let decoder = architecture.decoder.as_ref().zip(shared(&architecture.decoder)?);
    let stacks = Stacks { encoder, decoder, lent: &streamed.lent };
    let lost = |error: EngineError| {
        EngineError::wrap(ErrorKind::DeviceLost, "weights can't be read from their file", &error)
    };
    while let Some(task) = next_task(inner) {
        match task {
            Task::Reclaim(pieces) => {
                let buffers = pieces.into_iter().flat_map(Piece::into_buffers);
                buffers.for_each(|buffer| source.reuse(buffer));
            }
            Task::Gather(gather) => {
                let rows = loader.gathered(&gather.table, &gather.ids).map_err(lost)?;
                // Who asked may have gone.
                let _ = gather.answer.send(rows);
            }
            Task::Read(unit, epoch) => {
                let piece = stacks.read(unit, &loader).map_err(lost)?;
                let mut state = inner.lock();
                if state.epoch == epoch {
                    state.reading = None;
                    state.ready.push_back((unit, piece));
                } else {
                    state.returned.push(piece);
                }
                drop(state);
                inner.changed.notify_all();
            }
        }
    }
    Ok(())
}

/// Waits for something to do; `None` at the end.
fn next_task(inner: &Inner) -> Option<Task> {
    let mut guard = inner.lock();
    loop {
        let state = &mut *guard;
        if state.is_over {
            return None;
        }
        if let Some(gather) = state.gathers.pop_front() {
            return Some(Task::Gather(gather));
        }
        if !state.returned.is_empty() {
            return Some(Task::Reclaim(std::mem::take(&mut state.returned)));
        }
        if state.n_held + state.ready.len() < SLOTS {
            if state.wanted.is_empty() {
                state.wanted.extend(&state.pass);
            }
            if let Some(unit) = state.wanted.pop_front() {
                state.reading = Some(unit);
                return Some(Task::Read(unit, state.epoch));
            }
        }
        guard = inner.wait(guard);
    }
}

/// The stacks, with what their layers share.
struct Stacks<'a> {
    encoder: Option<(&'a Stack, Shared)>,
    decoder: Option<(&'a Stack, Shared)>,
    lent: &'a Lent,
}

impl Stacks<'_> {
    /// What the CPU lends of `unit`, on `device`.
    fn borrow(&self, unit: Unit, device: &Device) -> Option<candle_core::Result<Piece>> {
        match unit {
            Unit::Layer { of_decoder, idx } => {
                let layer = self.lent.get(&(of_decoder, idx))?;
                Some(layer.on(device).map(|layer| Piece::LentLayer(Box::new(layer))))
            }
            Unit::CrossKeysValues { idx } => {
                let (attention, _) = self.lent.get(&(true, idx))?.cross_attention.as_ref()?;
                Some(attention.kv.on(device).map(Piece::LentKeysValues))
            }
            Unit::HeadRows { .. } => None,
        }
    }

    fn read(&self, unit: Unit, loader: &Loader<'_, '_>) -> Result<Piece, EngineError> {
        let nothing = || EngineError::internal(format!("there is no {unit:?}"));
        if let Some(piece) = self.borrow(unit, loader.device) {
            return piece.map_err(error::compute);
        }
        match unit {
            Unit::Layer { of_decoder, idx } => {
                let stack = if of_decoder { &self.decoder } else { &self.encoder };
                let (stack, shared) = stack.as_ref().ok_or_else(nothing)?;
                loader.layer(stack, idx, shared).map(|layer| Piece::Layer(Box::new(layer)))
            }
            Unit::CrossKeysValues { idx } => {
                let (stack, _) = self.decoder.as_ref().ok_or_else(nothing)?;
                let path = format!("{}.layers.{idx}", stack.name);
                loader.cross_keys_values(&path).map(Piece::CrossKeysValues)
            }
            Unit::HeadRows { first, n } => {
                loader.rows("head.weight", first, n).map(Piece::HeadRows)
            }
        }
    }
}
