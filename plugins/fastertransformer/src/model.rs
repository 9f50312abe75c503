//! The loaded model: what the host drives.

use std::collections::HashSet;
use std::num::NonZeroU32;
use std::path::Path;

use drivetrain_engine::{
    AdapterId, Batch, EngineError, ModelKind, Outputs, SeqId, Services, TokenModel, TokenModelInfo,
    Wanted, pool,
};
use drivetrain_execution::{
    Call, HeadPlan, Held, ModelFiles, Planned, Runs, Tables, available_bytes, model_error,
    plan_into,
};
use drivetrain_kernels::{Activation, Cpu, Isa, Pool};
use drivetrain_transformer::{Adapter, AdapterFiles};
use self_cell::self_cell;

use crate::adapters::{Addition, Additions};
use crate::arena::Arena;
use crate::cache::{Caches, cross_segments, give_back, own_segments, passing_segments};
use crate::head::Head;
use crate::linear::{After, Linear};
use crate::stack::{StackCaches, StackWeights};
use crate::step::{Step, compute};

/// The weights of a model.
#[derive(Debug)]
pub(crate) struct ModelWeights<'a> {
    pub(crate) encoder: Option<StackWeights<'a>>,
    pub(crate) decoder: Option<StackWeights<'a>>,
    pub(crate) head: Option<Head<'a>>,
    pub(crate) pooler: Option<Linear<'a>>,
}

self_cell!(
    /// A model's files, and the weights that look into them.
    pub(crate) struct WeightsOfFiles {
        owner: ModelFiles,
        #[covariant]
        dependent: ModelWeights,
    }

    impl {Debug}
);

/// A model of any kind.
pub(crate) struct FusedModel {
    pub(crate) info: TokenModelInfo,
    pub(crate) encoder_tables: Tables,
    pub(crate) decoder_tables: Tables,
    pub(crate) weights: WeightsOfFiles,
    pub(crate) caches: Caches,
    pub(crate) arena: Arena,
    /// The segments of the batch that runs.
    pub(crate) planned: Vec<Planned>,
    /// Its adapters.
    pub(crate) runs: Runs,
    /// Those of the rows that outputs are made of.
    pub(crate) selected: Runs,
    /// The adapters that are loaded beside the weights.
    pub(crate) adapters: HashSet<AdapterId>,
    /// Highest rank of these.
    pub(crate) max_lora_rank: Option<NonZeroU32>,
    pub(crate) services: Services,
    pub(crate) isa: Isa,
    pub(crate) pool: Pool,
}

impl<'a> ModelWeights<'a> {
    /// What the head is.
    pub(crate) fn head_plan(&self) -> Option<&HeadPlan> {
        self.head.as_ref().map(|head| &head.plan)
    }

    /// Bytes that the matrices occupy.
    pub(crate) fn n_bytes(&self) -> usize {
        self.linears().map(Linear::n_bytes).sum()
    }

    /// Scratch memory that the matrices need for `n_rows`.
    pub(crate) fn scratch_bytes(&self, n_rows: usize, n_threads: usize) -> usize {
        let linears = self.linears().map(|linear| linear.scratch_bytes(n_rows, n_threads));
        let layers = self.encoder.iter().chain(&self.decoder).flat_map(|stack| &stack.layers);
        let distances = layers.filter_map(|layer| layer.self_attention.scoring.distances.as_ref());
        let distances = distances.map(|distances| distances.scratch_bytes(n_rows, n_threads));
        linears.chain(distances).max().unwrap_or(0)
    }

    fn reads_first(&self) -> bool {
        self.head.as_ref().is_some_and(|head| head.plan.reads_first)
    }

    fn linears(&self) -> impl Iterator<Item = &Linear<'a>> {
        let stacks = self.encoder.iter().chain(&self.decoder);
        stacks
            .flat_map(StackWeights::linears)
            .chain(self.head.iter().flat_map(Head::linears))
            .chain(&self.pooler)
    }

    fn linears_mut(&mut self) -> impl Iterator<Item = &mut Linear<'a>> {
        let stacks = self.encoder.iter_mut().chain(&mut self.decoder);
        stacks
            .flat_map(StackWeights::linears_mut)
            .chain(self.head.iter_mut().flat_map(Head::linears_mut))
            .chain(&mut self.pooler)
    }

    /// What adapters add to the token tables, with the tables' canonical modules and widths.
    fn tables_mut(&mut self) -> impl Iterator<Item = (&'static str, &mut Additions, usize)> {
        let encoder = self.encoder.iter_mut().map(|s| ("encoder.embedding.tokens", s));
        let decoder = self.decoder.iter_mut().map(|s| ("decoder.embedding.tokens", s));
        encoder.chain(decoder).map(|(module, stack)| {
            let embedding = &mut stack.embedding;
            (module, &mut embedding.additions, embedding.tokens.width)
        })
    }

    /// Refuses an adapter with parts that can't be computed beside the weights.
    fn check(&mut self, read: &Adapter) -> Result<(), EngineError> {
        let mut left: HashSet<&str> = read.modules().collect();
        for linear in self.linears() {
            left.retain(|module| linear.modules().all(|own| own != *module));
        }
        self.tables_mut().for_each(|(module, _, _)| left.retain(|other| *other != module));
        let stacks = self.encoder.iter().chain(&self.decoder);
        let shares = stacks.flat_map(|stack| &stack.layers).any(|layer| {
            let attention = &layer.self_attention;
            let mut linears = attention.projections.linears().iter();
            attention.scoring.distances.is_some()
                && linears.any(|linear| linear.modules().any(|module| read.get(module).is_some()))
        });
        if !shares && left.is_empty() {
            return Ok(());
        }
        let mut names: Vec<&str> = left.into_iter().collect();
        names.sort_unstable();
        names.truncate(4);
        if shares {
            names.push("queries and keys of attention to distances");
        }
        Err(EngineError::unsupported(format!(
            "the adapter changes {}, which is not computed beside the weights; merge it instead",
            names.join(", ")
        )))
    }

    /// Adds `read` beside the weights; nothing is added if there is a part that can't be.
    fn add(
        &mut self,
        cpu: Cpu<'_>,
        adapter: AdapterId,
        read: &Adapter,
        arena: &mut Arena,
    ) -> Result<(), EngineError> {
        self.check(read)?;
        let (mut made, mut tables, mut width) = (Vec::new(), Vec::new(), 0);
        for linear in self.linears() {
            made.push(linear.additions_of(cpu, read)?);
            width = width.max(linear.width());
        }
        for (module, _, table_width) in self.tables_mut() {
            let part = read.get(module).map(|part| Additions::of_table(cpu, part));
            tables.push(part.transpose()?);
            width = width.max(table_width);
        }
        let n_rows = arena.attention.identity.len();
        let scratch = made.iter().flatten().chain(tables.iter().flatten());
        let scratch = scratch.map(|a: &Addition| a.scratch_bytes(n_rows, cpu.pool.n_threads()));
        arena.workspace.scratch.reserve(scratch.max().unwrap_or(0));
        arena.workspace.adapters.reserve(n_rows, read.max_rank(), width);
        for (linear, additions) in self.linears_mut().zip(made) {
            linear.additions_mut().insert(adapter, additions);
        }
        for ((_, table, _), addition) in self.tables_mut().zip(tables) {
            table.insert(adapter, addition.into_iter().collect());
        }
        Ok(())
    }

    fn remove(&mut self, adapter: AdapterId) {
        self.linears_mut().for_each(|linear| linear.additions_mut().remove(adapter));
        self.tables_mut().for_each(|(_, table, _)| table.remove(adapter));
    }

    /// Makes the outputs of `rows` `[n_needed, dim]`, those that `planned` needs, in order.
    fn write(
        &self,
        (cpu, planned): (Cpu<'_>, &[Planned]),
        (runs, selected): (&Runs, &mut Runs),
        arena: &mut Arena,
        dim: usize,
        out: &mut Outputs<'_>,
    ) -> Result<(), EngineError> {
        let Arena { x, normed: rows, head: picked, workspace, .. } = arena;
        let needed = |segment: &Planned| segment.needed(self.reads_first());
        let wants_logits = |segment: &&Planned| segment.wanted.n_logits_rows(segment.n) > 0;
        if let Some(head) = &self.head {
            let (mut first, mut n) = (0, 0);
            for segment in planned {
                let own = needed(segment).len();
                if wants_logits(&segment) {
                    let from = first * dim..(first + own) * dim;
                    picked[n * dim..(n + own) * dim].copy_from_slice(&rows[from]);
                    n += own;
                }
                first += own;
            }
            if n > 0 {
                selected.set_selected(runs, planned.iter().filter(wants_logits).flat_map(needed));
                let logits = out.next_logits(n)?;
                let io = (&mut picked[..n * dim], &mut x[..n * dim]);
                head.forward((cpu, selected), io, logits, workspace).map_err(compute)?;
            }
        }
        let mut first = 0;
        for segment in planned {
            let n = needed(segment).len();
            let own = &rows[first * dim..(first + n) * dim];
            first += n;
            match segment.wanted {
                Wanted::Nothing
                | Wanted::LastLogits
                | Wanted::AllLogits
                | Wanted::SequenceLogits => {}
                Wanted::Hidden => out.next_hidden(n)?.copy_from_slice(own),
                Wanted::PooledHead => {
                    let Some(pooler) = &self.pooler else { continue };
                    selected.set_selected(runs, needed(segment));
                    let (row, after) = (out.next_hidden(1)?, After::activation(Activation::Tanh));
                    pooler.forward((cpu, selected), own, row, after, workspace).map_err(compute)?;
                }
                pooling => pool(pooling, own, out.next_hidden(1)?),
            }
        }
        Ok(())
    }
}

/// Copies the rows that `planned` needs from `from` to `to`, one after the other; returns how many.
fn gather(
    planned: &[Planned],
    reads_first: bool,
    dim: usize,
    from: &[f32],
    to: &mut [f32],
) -> usize {
    let mut n = 0;
    for segment in planned {
        let rows = segment.needed(reads_first);
        let n_own = rows.len();
        to[n * dim..(n + n_own) * dim].copy_from_slice(&from[rows.start * dim..rows.end * dim]);
        n += n_own;
    }
    n
}

impl FusedModel {
    fn plan(&mut self, batch: &Batch<'_>, call: Call) -> Result<(), EngineError> {
        let is_encoder = call == Call::Encode || self.info.kind == ModelKind::Encoder;
        let tables = if is_encoder { self.encoder_tables } else { self.decoder_tables };
        let held = Held { sequences: &self.caches.tables, adapters: &self.adapters };
        plan_into(&mut self.planned, batch, (call, tables), &self.info, held)?;
        self.runs.set(&self.planned);
        Ok(())
    }

    /// A pass of an encoder over the planned inputs, and what the decoder keeps of them.
    fn run_encoder(&mut self, batch: &Batch<'_>, out: &mut Outputs<'_>) -> Result<(), EngineError> {
        let Self { weights, caches, arena, planned, runs, selected, .. } = self;
        let cpu = Cpu { isa: self.isa, pool: &self.pool };
        let loaded = weights.borrow_dependent();
        let Some(encoder) = &loaded.encoder else {
            return Err(EngineError::internal("a model without any stack"));
        };
        let (_, cross_tables, stores, spare) = caches.split();
        let [mut own, mut cross] = Caches::lists(spare);
        passing_segments(&mut own, planned, &stores.in_order);
        own_segments(&mut cross, planned, cross_tables);
        let n_rows = planned.iter().map(|segment| segment.n).sum();
        let step = Step { cpu, segments: &own, cross_segments: &cross, runs, n_rows };
        let mut stack_caches = StackCaches { own: &mut stores.passing, cross: &[] };
        let io = (batch, &planned[..]);
        encoder.forward(io, &step, &mut stack_caches, arena, &self.services)?;
        let (from_dim, dim) = (encoder.embedding.dim, self.info.dim as usize);
        let is_whole = loaded.decoder.is_some();
        let Arena { x, y, normed, attention, workspace, .. } = &mut *arena;
        if let Some(decoder) = &loaded.decoder {
            let (x, y) = (&mut x[..n_rows * from_dim], &mut y[..n_rows * from_dim]);
            encoder.finish(&step, x, y, workspace).map_err(compute)?;
            let crosses = decoder.layers.iter().filter_map(|layer| layer.cross_attention.as_ref());
            for ((layer, _), cache) in crosses.zip(&mut stores.cross) {
                layer.keep(&step, y, attention, cache, workspace).map_err(compute)?;
            }
            gather(planned, loaded.reads_first(), from_dim, y, normed);
        } else {
            let n = gather(planned, loaded.reads_first(), from_dim, x, y);
            if n > 0 {
                selected.set_selected(
                    runs,
                    planned.iter().flat_map(|s| s.needed(loaded.reads_first())),
                );
                let step = Step { runs: selected, n_rows: n, ..step };
                let (y, normed) = (&mut y[..n * from_dim], &mut normed[..n * dim]);
                encoder.finish(&step, y, normed, workspace).map_err(compute)?;
            }
        }
        let dim = if is_whole { from_dim } else { dim };
        let written = loaded.write((cpu, planned), (runs, selected), arena, dim, out);
        give_back(spare, [own, cross]);
        written
    }

    /// A pass of the decoder over the planned tokens.
    fn run_decoder(&mut self, batch: &Batch<'_>, out: &mut Outputs<'_>) -> Result<(), EngineError> {
        let Self { weights, caches, arena, planned, runs, selected, .. } = self;
        let cpu = Cpu { isa: self.isa, pool: &self.pool };
        let loaded = weights.borrow_dependent();
        let Some(decoder) = &loaded.decoder else {
            return Err(EngineError::internal("a model without any stack"));
        };
        let (tables, cross_tables, stores, spare) = caches.split();
        let [mut own, mut cross] = Caches::lists(spare);
        own_segments(&mut own, planned, tables);
        cross_segments(&mut cross, planned, cross_tables);
        let n_rows = planned.iter().map(|segment| segment.n).sum();
        let step = Step { cpu, segments: &own, cross_segments: &cross, runs, n_rows };
        let mut stack_caches = StackCaches { own: &mut stores.own, cross: &stores.cross };
        let io = (batch, &planned[..]);
        decoder.forward(io, &step, &mut stack_caches, arena, &self.services)?;
        let (from_dim, dim) = (decoder.embedding.dim, self.info.dim as usize);
        let Arena { x, y, normed, workspace, .. } = &mut *arena;
        let n = gather(planned, loaded.reads_first(), from_dim, x, y);
        if n > 0 {
            selected
                .set_selected(runs, planned.iter().flat_map(|s| s.needed(loaded.reads_first())));
            let step = Step { runs: selected, n_rows: n, ..step };
            let (y, normed) = (&mut y[..n * from_dim], &mut normed[..n * dim]);
            decoder.finish(&step, y, normed, workspace).map_err(compute)?;
        }
        let written = loaded.write((cpu, planned), (runs, selected), arena, dim, out);
        give_back(spare, [own, cross]);
        written
    }
}

impl TokenModel for FusedModel {
    fn info(&self) -> TokenModelInfo {
        self.info
    }

    fn encode(&mut self, batch: &Batch<'_>, out: &mut Outputs<'_>) -> Result<(), EngineError> {
        if self.info.kind != ModelKind::EncoderDecoder {
            return Err(EngineError::unsupported("this model has no encoder beside its decoder"));
        }
        self.plan(batch, Call::Encode)?;
        if self.planned.is_empty() {
            return Ok(());
        }
        self.caches.tables.check_sequences(self.planned.len())?;
        self.caches.reserve_cross(&self.planned)?;
        let done = self.run_encoder(batch, out);
        match &done {
            Ok(()) => {
                self.caches.cross_tables.commit(&self.planned);
                for segment in &self.planned {
                    self.caches.tables.begin(segment.sequence);
                }
            }
            Err(_) => self.caches.cross_tables.roll_back(&self.planned),
        }
        done
    }

    fn forward(&mut self, batch: &Batch<'_>, out: &mut Outputs<'_>) -> Result<(), EngineError> {
        self.plan(batch, Call::Forward)?;
        if self.planned.is_empty() {
            return Ok(());
        }
        if self.info.kind == ModelKind::Encoder {
            return self.run_encoder(batch, out);
        }
        self.caches.reserve(&self.planned)?;
        let done = self.run_decoder(batch, out);
        match &done {
            Ok(()) => self.caches.tables.commit(&self.planned),
            Err(_) => self.caches.tables.roll_back(&self.planned),
        }
        done
    }

    fn fork(&mut self, from: SeqId, to: SeqId, len: u32) -> Result<(), EngineError> {
        self.caches.fork(from, to, len as usize)
    }

    fn truncate(&mut self, sequence: SeqId, len: u32) -> Result<(), EngineError> {
        self.caches.tables.truncate(sequence, len as usize)
    }

    fn release(&mut self, sequence: SeqId) {
        self.caches.release(sequence);
    }

    fn n_sequences(&self) -> usize {
        self.caches.tables.n_sequences()
    }

    fn load_adapter(&mut self, adapter: AdapterId, dir: &Path) -> Result<(), EngineError> {
        if adapter == AdapterId::NONE || self.adapters.contains(&adapter) {
            return Err(EngineError::bad_input(format!("adapter {} is taken", adapter.0)));
        }
        let files = AdapterFiles::open(dir).map_err(|error| model_error(&error))?;
        let architecture = &self.weights.borrow_owner().architecture;
        let read = Adapter::read(&files, architecture).map_err(|error| model_error(&error))?;
        let rank = read.max_rank();
        if let Some(max) = self.max_lora_rank.filter(|max| rank > max.get() as usize) {
            return Err(EngineError::bad_input(format!(
                "the adapter has rank {rank}: option.max_lora_rank={max} allows no more"
            )));
        }
        check_room(&read)?;
        let Self { weights, arena, isa, pool, .. } = self;
        let cpu = Cpu { isa: *isa, pool };
        weights.with_dependent_mut(|_, loaded| loaded.add(cpu, adapter, &read, arena))?;
        self.adapters.insert(adapter);
        Ok(())
    }

    fn unload_adapter(&mut self, adapter: AdapterId) {
        if self.adapters.remove(&adapter) {
            self.weights.with_dependent_mut(|_, loaded| loaded.remove(adapter));
        }
    }
}

/// Refuses an adapter that would not fit.
fn check_room(adapter: &Adapter) -> Result<(), EngineError> {
    match available_bytes() {
        Some(available) if adapter.bytes() > available => Err(EngineError::out_of_memory(format!(
            "the adapter needs {} MiB, {} MiB are available",
            adapter.bytes() >> 20,
            available >> 20
        ))),
        _ => Ok(()),
    }
}
