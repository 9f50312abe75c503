//! The loaded model: what the host drives.

use std::collections::HashSet;
use std::num::{NonZeroU32, NonZeroUsize};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use drivetrain_engine::{
    AdapterId, Batch, EngineError, ErrorKind, ModelKind, Outputs, SeqId, Services, TokenModel,
    TokenModelInfo,
};
use drivetrain_execution::{
    Call, Held, ModelFiles, Planned, Runs, Tables, available_bytes, model_error, plan_into,
};
use drivetrain_kernels::{Cpu, Isa, KernelError, Member, Team};
use drivetrain_transformer::{Adapter, AdapterFiles};
use self_cell::self_cell;

use crate::adapters::{Addition, Additions};
use crate::arena::Arena;
use crate::cache::{Caches, cross_segments, give_back, own_segments, passing_segments};
use crate::pass::{ModelWeights, Pass, PassStack, RankState};

/// The weights of a model, by rank.
#[derive(Debug)]
pub(crate) struct RankedWeights<'a>(pub(crate) Vec<ModelWeights<'a>>);

self_cell!(
    /// A model's files, and the weights that look into them.
    pub(crate) struct WeightsOfFiles {
        owner: ModelFiles,
        #[covariant]
        dependent: RankedWeights,
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
    pub(crate) ranks: Vec<RankState>,
    /// The ranks' threads; none if there is one rank.
    pub(crate) team: Option<Team>,
    /// The segments of the batch that runs.
    pub(crate) planned: Vec<Planned>,
    /// Its adapters.
    pub(crate) runs: Runs,
    /// The adapters that are loaded beside the weights.
    pub(crate) adapters: HashSet<AdapterId>,
    /// Highest rank of these.
    pub(crate) max_lora_rank: Option<NonZeroU32>,
    pub(crate) services: Services,
    pub(crate) isa: Isa,
}

/// What an adapter adds to a rank's weights, made and not yet put in.
struct Made {
    linears: Vec<Vec<Addition>>,
    tables: Vec<Option<Addition>>,
}

impl Made {
    /// Makes it, and room in the arena for what it computes.
    fn of(
        weights: &mut ModelWeights<'_>,
        (cpu, read): (Cpu<'_>, &Adapter),
        arena: &mut Arena,
    ) -> Result<Self, EngineError> {
        let (mut linears, mut tables, mut width) = (Vec::new(), Vec::new(), 0);
        for linear in weights.linears() {
            linears.push(linear.additions_of(cpu, read)?);
            width = width.max(linear.width());
        }
        for (module, _, table_width) in weights.tables_mut() {
            let part = read.get(module).map(|part| Additions::of_table(cpu, part));
            tables.push(part.transpose()?);
            width = width.max(table_width);
        }
        let n_rows = arena.attention.identity.len();
        let scratch = linears.iter().flatten().chain(tables.iter().flatten());
        let scratch = scratch.map(|a: &Addition| a.scratch_bytes(n_rows, cpu.pool.n_threads()));
        arena.workspace.scratch.reserve(scratch.max().unwrap_or(0));
        arena.workspace.adapters.reserve(n_rows, read.max_rank(), width);
        Ok(Self { linears, tables })
    }
}

impl RankedWeights<'_> {
    /// The parts of an adapter that none of these ranks computes.
    fn left_of<'r>(&mut self, read: &'r Adapter) -> Vec<&'r str> {
        let mut left: HashSet<&str> = read.modules().collect();
        for linear in self.0.iter().flat_map(ModelWeights::linears) {
            left.retain(|module| linear.modules().all(|own| own != *module));
        }
        let tables = self.0.iter_mut().flat_map(ModelWeights::tables_mut);
        tables.for_each(|(module, _, _)| left.retain(|other| *other != module));
        let mut left: Vec<&str> = left.into_iter().collect();
        left.sort_unstable();
        left
    }

    /// Whether an adapter changes what an attention shares with its distances.
    fn shares_with_distances(&self, read: &Adapter) -> bool {
        let stacks = self.0.iter().flat_map(|rank| rank.encoder.iter().chain(&rank.decoder));
        let layers = stacks.flat_map(|stack| &stack.layers);
        layers.filter_map(|layer| layer.self_attention.as_ref()).any(|attention| {
            let mut linears = attention.projections.linears().iter();
            attention.scoring.distances.is_some()
                && linears.any(|linear| linear.modules().any(|module| read.get(module).is_some()))
        })
    }

    /// Adds `read` beside the weights of each rank.
    fn add(
        &mut self,
        isa: Isa,
        adapter: AdapterId,
        read: &Adapter,
        ranks: &mut [RankState],
    ) -> Result<(), EngineError> {
        let mut made = Vec::new();
        for (weights, rank) in self.0.iter_mut().zip(&mut *ranks) {
            made.push(Made::of(weights, (Cpu { isa, pool: &rank.pool }, read), &mut rank.arena)?);
        }
        for (weights, made) in self.0.iter_mut().zip(made) {
            for (linear, additions) in weights.linears_mut().zip(made.linears) {
                linear.additions_mut().insert(adapter, additions);
            }
            for ((_, table, _), addition) in weights.tables_mut().zip(made.tables) {
                table.insert(adapter, addition.into_iter().collect());
            }
        }
        Ok(())
    }

    fn remove(&mut self, adapter: AdapterId) {
        for weights in &mut self.0 {
            weights.linears_mut().for_each(|linear| linear.additions_mut().remove(adapter));
            weights.tables_mut().for_each(|(_, table, _)| table.remove(adapter));
        }
    }
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

    /// A pass over the planned tokens or, of an encoder, inputs.
    fn run(
        &mut self,
        stack: PassStack,
        batch: &Batch<'_>,
        out: &mut Outputs<'_>,
    ) -> Result<(), EngineError> {
        let (tables, cross_tables, in_order, spare) = self.caches.split();
        let [mut own, mut cross] = Caches::lists(spare);
        match stack {
            PassStack::Encoder => {
                passing_segments(&mut own, &self.planned, in_order);
                own_segments(&mut cross, &self.planned, cross_tables);
            }
            PassStack::Decoder => {
                own_segments(&mut own, &self.planned, tables);
                cross_segments(&mut cross, &self.planned, cross_tables);
            }
        }
        let pass = Pass {
            stack,
            batch,
            planned: &self.planned,
            runs: &self.runs,
            segments: &own,
            cross_segments: &cross,
            dim: self.info.dim as usize,
            isa: self.isa,
            services: &self.services,
        };
        let weights = &self.weights.borrow_dependent().0;
        let done = run(weights, &mut self.ranks, self.team.as_ref(), &pass, out);
        give_back(spare, [own, cross]);
        done
    }
}

/// Refuses an adapter with parts that can't be computed beside the weights: those that are `left`, and what
/// is shared with distances.
fn refuse_parts(left: &[impl AsRef<str>], shares: bool) -> Result<(), EngineError> {
    if !shares && left.is_empty() {
        return Ok(());
    }
    let mut names: Vec<&str> = left.iter().map(AsRef::as_ref).take(4).collect();
    if shares {
        names.push("queries and keys of attention to distances");
    }
    Err(EngineError::unsupported(format!(
        "the adapter changes {}, which is not computed beside the weights; merge it instead",
        names.join(", ")
    )))
}

/// Lets every rank do its part of a pass; the first has the outputs.
fn run(
    weights: &[ModelWeights<'_>],
    ranks: &mut [RankState],
    team: Option<&Team>,
    pass: &Pass<'_>,
    out: &mut Outputs<'_>,
) -> Result<(), EngineError> {
    let Some(team) = team else {
        let alone = weights.first().zip(ranks.first_mut());
        let Some((weights, rank)) = alone else {
            return Err(EngineError::internal("a model without weights"));
        };
        let leads = rank.arena.leads();
        let done = guarded(|| weights.run(rank, pass, leads.then_some(out)));
        let Some(collective) = &rank.arena.collective else { return done };
        // The others are processes that may have gone on, and can't be met again.
        return done.map_err(|error| {
            collective.abandon();
            EngineError::wrap(ErrorKind::DeviceLost, "a rank's part of a step failed", &error)
        });
    };
    let out = Mutex::new(out);
    team.each(ranks, |idx, rank| {
        let mut out = (idx == 0).then(|| out.lock().unwrap_or_else(PoisonError::into_inner));
        let out = out.as_mut().map(|out| &mut ***out);
        rank.failure = guarded(|| weights[idx].run(rank, pass, out)).err();
        // Who failed meets the others no more.
        if rank.failure.is_some()
            && let Some(collective) = &rank.arena.collective
        {
            collective.abandon();
        }
    });
    settle(ranks)
}

/// What `work` returns, or its panic as an error: what was planned for a pass is then undone.
fn guarded(work: impl FnOnce() -> Result<(), EngineError>) -> Result<(), EngineError> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<&str>().copied();
        let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
        let text = text.unwrap_or("without a message");
        Err(EngineError::internal(format!("a pass panicked: {text}")))
    })
}

/// The first reason for which ranks failed, if they did; they can then meet again.
fn settle(ranks: &mut [RankState]) -> Result<(), EngineError> {
    if ranks.iter().all(|rank| rank.failure.is_none()) {
        return Ok(());
    }
    // What follows from another rank's failure says less.
    let echo = KernelError::Abandoned.to_string();
    let is_echo = |error: &EngineError| error.causes().contains(&echo);
    let mut reason: Option<EngineError> = None;
    for failure in ranks.iter_mut().filter_map(|rank| rank.failure.take()) {
        if reason.as_ref().is_none_or(|known| is_echo(known) && !is_echo(&failure)) {
            reason = Some(failure);
        }
    }
    let Some(reason) = reason else { return Ok(()) };
    join(ranks);
    Err(reason)
}

/// Makes the ranks one group.
pub(crate) fn join(ranks: &mut [RankState]) {
    let Some(n_ranks) = NonZeroUsize::new(ranks.len()) else { return };
    let capacity = ranks.iter().map(|rank| rank.arena.shared).max().unwrap_or(0);
    for (member, rank) in Member::group(n_ranks, capacity).into_iter().zip(ranks) {
        rank.arena.collective = Some(Box::new(member));
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
        let done = self.run(PassStack::Encoder, batch, out);
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
            return self.run(PassStack::Encoder, batch, out);
        }
        let copied = self.caches.reserve(&self.planned)?;
        self.ranks.iter_mut().for_each(|rank| rank.stores.copy(copied));
        let done = self.run(PassStack::Decoder, batch, out);
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
        let read = self.read_adapter(adapter, dir)?;
        let Self { weights, ranks, isa, .. } = self;
        weights.with_dependent_mut(|_, loaded| {
            refuse_parts(&loaded.left_of(&read), loaded.shares_with_distances(&read))?;
            loaded.add(*isa, adapter, &read, ranks)
        })?;
        self.adapters.insert(adapter);
        Ok(())
    }

    fn unload_adapter(&mut self, adapter: AdapterId) {
        if self.adapters.remove(&adapter) {
            self.weights.with_dependent_mut(|_, loaded| loaded.remove(adapter));
        }
    }
}

impl FusedModel {
    /// An adapter's files, held against the model.
    fn read_adapter(&self, adapter: AdapterId, dir: &Path) -> Result<Adapter, EngineError> {
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
        Ok(read)
    }
}

/// A model of which this process has one rank's part.
///
/// What does not depend on a rank's weights (which sequences there are, what is refused) goes alike on all
/// of them, so the same calls end alike. A step that fails on one rank alone is `DeviceLost`.
pub struct RankModel(pub(crate) FusedModel);

impl std::fmt::Debug for RankModel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("RankModel(..)")
    }
}

impl RankModel {
    /// What the ranks do together.
    pub fn model(&mut self) -> &mut dyn TokenModel {
        &mut self.0
    }

    /// Bytes of this rank's weights.
    pub fn n_bytes(&self) -> u64 {
        let weights = &self.0.weights.borrow_dependent().0;
        weights.iter().map(|rank| rank.n_bytes() as u64).sum()
    }

    /// Loads this rank's part of an adapter. Returns the modules that the adapter changes and that are not
    /// computed here: what is so on every rank can't be computed at all, see [`Self::refuse`].
    ///
    /// # Errors
    /// As [`TokenModel::load_adapter`].
    pub fn load_adapter(
        &mut self,
        adapter: AdapterId,
        dir: &Path,
    ) -> Result<Vec<String>, EngineError> {
        let read = self.0.read_adapter(adapter, dir)?;
        let FusedModel { weights, ranks, isa, .. } = &mut self.0;
        let left = weights.with_dependent_mut(|_, loaded| {
            let none: [&str; 0] = [];
            refuse_parts(&none, loaded.shares_with_distances(&read))?;
            loaded.add(*isa, adapter, &read, ranks)?;
            Ok::<_, EngineError>(loaded.left_of(&read).into_iter().map(str::to_owned).collect())
        })?;
        self.0.adapters.insert(adapter);
        Ok(left)
    }

    /// Refuses an adapter with modules that no rank computes.
    ///
    /// # Errors
    /// There are some.
    pub fn refuse(left_on_all: &[String]) -> Result<(), EngineError> {
        refuse_parts(left_on_all, false)
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
