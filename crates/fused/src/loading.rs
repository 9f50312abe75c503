//! Loading: what a model is, whether it fits, and the weights of each rank.

use std::collections::HashSet;
use std::num::NonZeroUsize;
use std::sync::atomic::AtomicU64;

use drivetrain_engine::{
    DevicePlan, EngineError, ErrorKind, LoadPlan, LoadRequest, LoadedModel, LogLevel, PlannedPart,
    Services, TokenModelInfo,
};
use drivetrain_execution::{
    CacheRoom, Capacity, HeadPlan, KvForm, ModelFiles, Runs, Tables, available_bytes, check_memory,
    figures,
};
use drivetrain_kernels::{
    BlockFormat, Cpu, FORCE_VARIABLE, Isa, Pool, Precision, TOKENS_PER_BLOCK, Team, part,
};
use drivetrain_transformer::{Architecture, CanonicalWeights};

use crate::arena::{Arena, rotations};
use crate::cache::{Caches, Stores};
use crate::collective::Collective;
use crate::footprint::Footprint;
use crate::head::Head;
use crate::load::{Cut, Loader, note_of_groups, planned_bytes};
use crate::model::{FusedModel, RankModel, RankedWeights, WeightsOfFiles, join};
use crate::options::{LoadOptions, WeightForm};
use crate::packed::{PackedFile, PackedKey};
use crate::pass::{ModelWeights, RankState};
use crate::share::{ModelShare, Share, most_ranks};

/// How a model is loaded.
#[derive(Debug)]
pub struct Settings {
    /// The options.
    pub options: LoadOptions,
    /// Ranks that have a share of each layer.
    pub degree: NonZeroUsize,
}

/// The ranks of a model, each in a process of its own, as one of them sees the others while it loads. Every
/// rank calls the same functions in the same order.
pub trait Group {
    /// This rank's number.
    fn rank(&self) -> usize;

    /// Ranks on this machine.
    fn n_here(&self) -> usize;

    /// The sum of what all ranks give.
    fn sum(&mut self, value: u64) -> u64;

    /// Of each value the least that any rank gives.
    fn least(&mut self, values: [u64; 2]) -> [u64; 2];

    /// What the ranks exchange results by, of `capacity` elements at most.
    fn collective(&mut self, capacity: usize) -> Box<dyn Collective>;
}

/// Loads what `request` names, with all ranks in this process.
///
/// # Errors
/// Files or options can't be served, the model does not fit, or there are more ranks than it can be shared
/// out to.
pub fn load(request: &LoadRequest<'_>, settings: &Settings) -> Result<LoadedModel, EngineError> {
    let Settings { options, degree } = settings;
    let opened = Opened::new(request, settings, degree.get())?;
    if let Some(note) = note_of_groups(&opened.files.canonical()?, options.weights) {
        let note = format!("model {}: {note}", request.model_name);
        request.services.log(LogLevel::Warn, &note);
    }
    let Opened { isa, files, outline: Outline { shares, mut info, footprint } } = opened;
    let team = (degree.get() > 1).then(|| Team::new(*degree)).transpose().map_err(no_threads)?;
    let mut pools = Vec::with_capacity(shares.len());
    for share in &shares {
        let n_threads = part(request.n_threads.get(), 1, share.share.rank, degree.get()).len();
        let n_threads = NonZeroUsize::new(n_threads).unwrap_or(NonZeroUsize::MIN);
        pools.push(Pool::new(n_threads).map_err(no_threads)?);
    }
    let packed = packed_file(request, &files, settings, (isa, "all ranks"));
    let kept = packed.as_ref();
    let ranks = Ranks { shares: &shares, pools: &pools, team: team.as_ref(), isa, packed: kept };
    let weights =
        WeightsOfFiles::try_new(files, |files| ranks.load(files, options, &request.services))?;
    if let Some(packed) = packed {
        packed.finish();
    }
    let family = weights.borrow_owner().architecture.family;
    let loaded = &weights.borrow_dependent().0;
    info.weight_bytes = loaded.iter().map(|rank| rank.n_bytes() as u64).sum();
    let capacity = Capacity::plan(&mut info, options.max_sequences)?;
    report(request, family, &info, &[held_as(options.weights), &isa.to_string()]);
    if loaded.len() > 1 {
        report_ranks(request, loaded, &footprint);
    }
    let made = Made { request, options, shares: &shares, pools, info, capacity, isa };
    let mut model = made.model(weights)?;
    if team.is_some() {
        join(&mut model.ranks);
    }
    model.team = team;
    Ok(LoadedModel::Token(Box::new(model)))
}

/// Loads the part of one of several ranks that are processes, of which `group` has the others.
///
/// # Errors
/// As [`load`].
pub fn load_rank(
    request: &LoadRequest<'_>,
    settings: &Settings,
    group: &mut dyn Group,
) -> Result<RankModel, EngineError> {
    let Settings { options, degree } = settings;
    let n_here = group.n_here().clamp(1, degree.get());
    let opened = Opened::new(request, settings, n_here)?;
    let Opened { isa, files, outline: Outline { mut shares, mut info, .. } } = opened;
    let kv = kv_form(options);
    let of_each = |idx: usize| cache_bytes(std::slice::from_ref(&shares[idx]), kv);
    let most = (0..shares.len())
        .map(of_each)
        .fold((0, 0), |most, own: (u64, u64)| (most.0.max(own.0), most.1.max(own.1)));
    if group.rank() >= shares.len() {
        let message = format!("there is no rank {} of {degree}", group.rank());
        return Err(EngineError::internal(message));
    }
    let share = shares.swap_remove(group.rank());
    let shares = [share];
    let n_threads = (request.n_threads.get() / n_here).max(1);
    let n_threads = NonZeroUsize::new(n_threads).unwrap_or(NonZeroUsize::MIN);
    let pools = vec![Pool::new(n_threads).map_err(no_threads)?];
    let own = format!("rank {}", group.rank());
    let packed = packed_file(request, &files, settings, (isa, &own));
    let ranks = Ranks { shares: &shares, pools: &pools, team: None, isa, packed: packed.as_ref() };
    let weights =
        WeightsOfFiles::try_new(files, |files| ranks.load(files, options, &request.services))?;
    if let Some(packed) = packed {
        packed.finish();
    }
    // After this no rank takes memory for weights any more.
    let own_bytes = weights.borrow_dependent().0.iter().map(|rank| rank.n_bytes() as u64);
    info.weight_bytes = group.sum(own_bytes.sum());
    let room = CacheRoom {
        bytes: available_bytes().map_or(u64::MAX, |available| available / 2),
        kv_bytes_per_token: info.kv_bytes_per_token.min(most.0 * n_here as u64),
        cross_bytes_per_token: info.cross_bytes_per_token.min(most.1 * n_here as u64),
    };
    let mut capacity = Capacity::within(&mut info, options.max_sequences, &[room])?;
    [capacity.tokens, capacity.cross_tokens] =
        group.least([capacity.tokens, capacity.cross_tokens]);
    (info.kv_capacity_tokens, info.cross_capacity_tokens) =
        (capacity.tokens, capacity.cross_tokens);
    let made = Made { request, options, shares: &shares, pools, info, capacity, isa };
    let mut model = made.model(weights)?;
    if degree.get() > 1 {
        for rank in &mut model.ranks {
            rank.arena.collective = Some(group.collective(rank.arena.shared));
        }
    }
    Ok(RankModel(model))
}

/// Refuses what no rank of `request` could load for a reason that is the same on all of them: options,
/// files, a degree above what there is work for.
///
/// # Errors
/// As [`load`].
pub fn check(request: &LoadRequest<'_>, settings: &Settings) -> Result<(), EngineError> {
    Opened::new(request, settings, 1).map(drop)
}

fn no_threads(error: std::io::Error) -> EngineError {
    EngineError::wrap(ErrorKind::OutOfMemory, "no threads to compute on", &error)
}

/// A model whose files are open, before anything of it is in memory.
struct Opened {
    isa: Isa,
    files: ModelFiles,
    outline: Outline,
}

impl Opened {
    /// For `n_here` ranks on this machine.
    fn new(
        request: &LoadRequest<'_>,
        settings: &Settings,
        n_here: usize,
    ) -> Result<Self, EngineError> {
        let forced = std::env::var(FORCE_VARIABLE).ok();
        let isa = Isa::choose(forced.as_deref())
            .map_err(|error| EngineError::unsupported(error.to_string()))?;
        let files = ModelFiles::open(request)?;
        let outline = {
            let weights = files.canonical()?;
            ModelFiles::warn_of_unused(request, &weights);
            Outline::of(&files.architecture, &weights, request.model_name, (settings, n_here))?
        };
        Ok(Self { isa, files, outline })
    }
}

/// What ranks are made of, once their weights are in memory.
struct Made<'m> {
    request: &'m LoadRequest<'m>,
    options: &'m LoadOptions,
    shares: &'m [ModelShare],
    pools: Vec<Pool>,
    info: TokenModelInfo,
    capacity: Capacity,
    isa: Isa,
}

impl Made<'_> {
    /// The model with these ranks, which don't know of each other.
    fn model(self, weights: WeightsOfFiles) -> Result<FusedModel, EngineError> {
        let Self { request, options, shares, pools, info, capacity, isa } = self;
        let architecture = &weights.borrow_owner().architecture;
        let caches = Caches::new(architecture, &info, capacity);
        let n_rotaries = n_rotaries(architecture);
        let n_rows = info.max_batch_tokens as usize;
        let mut ranks = Vec::with_capacity(pools.len());
        let loaded = &weights.borrow_dependent().0;
        for ((pool, share), weights) in pools.into_iter().zip(shares).zip(loaded) {
            let needs = weights.needs(n_rows, pool.n_threads());
            ranks.push(RankState {
                stores: Stores::new(&share.architecture, &caches, options.kv)?,
                arena: Arena::new(&share.architecture, n_rotaries, n_rows, needs),
                pool,
                selected: Runs::default(),
                failure: None,
            });
        }
        Ok(FusedModel {
            info,
            encoder_tables: Tables::of(architecture.encoder.as_ref()),
            decoder_tables: Tables::of(architecture.decoder.as_ref()),
            weights,
            caches,
            ranks,
            team: None,
            planned: Vec::new(),
            runs: Runs::default(),
            adapters: HashSet::new(),
            max_lora_rank: options.max_lora_rank,
            services: request.services.clone(),
            isa,
        })
    }
}

/// What [`load`] would do: each rank as a device, with its weights, its rows of a batch and its part of the
/// caches. One rank alone is the CPU.
///
/// # Errors
/// As [`load`].
pub fn plan(request: &LoadRequest<'_>, settings: &Settings) -> Result<LoadPlan, EngineError> {
    let files = ModelFiles::open(request)?;
    let weights = files.canonical()?;
    let degree = settings.degree.get();
    let Outline { shares, mut info, footprint } =
        Outline::of(&files.architecture, &weights, request.model_name, (settings, degree))?;
    let capacity = Capacity::plan(&mut info, settings.options.max_sequences)?;
    let kv = kv_form(&settings.options);
    let of_rank = |(share, bytes): (&ModelShare, &u64)| {
        let rank = std::slice::from_ref(share);
        let (kv_bytes_per_token, cross_bytes_per_token) = cache_bytes(rank, kv);
        let room = CacheRoom { bytes: 0, kv_bytes_per_token, cross_bytes_per_token };
        let part = |what: &str, bytes: u64| PlannedPart { what: what.to_owned(), bytes };
        let rows = u64::from(info.max_batch_tokens);
        let row_bytes = Arena::row_bytes(&share.architecture, n_rotaries(&files.architecture));
        let name = match shares.len() {
            1 => "cpu".to_owned(),
            _ => format!("rank {}", share.share.rank),
        };
        DevicePlan {
            name,
            limit_bytes: None,
            parts: vec![
                part("weights", *bytes),
                part("activations", rows * row_bytes),
                part("caches", capacity.bytes_in(&info, &room)),
            ],
        }
    };
    let devices = shares.iter().zip(&footprint.ranks).map(of_rank).collect();
    let mut notes = vec![
        "token and position tables are read where they lie in the mapped file, and so are matrices that \
         the kernels take as they are stored; products take scratch memory beside"
            .to_owned(),
    ];
    if shares.len() > 1 {
        notes.push(format!("the matrices of the whole model take {} bytes", footprint.whole));
    }
    notes.extend(note_of_groups(&weights, settings.options.weights));
    if footprint.replicated_bytes() > 0 {
        notes.push(format!("bytes on more than one rank: {}", footprint.replicated_parts()));
    }
    Ok(LoadPlan {
        devices,
        placements: Vec::new(),
        kv_capacity_tokens: info.kv_capacity_tokens,
        cross_capacity_tokens: info.cross_capacity_tokens,
        max_batch_tokens: info.max_batch_tokens,
        max_sequences: info.max_sequences,
        notes,
    })
}

/// Most distinct rotations of a stack.
fn n_rotaries(architecture: &Architecture) -> usize {
    architecture.stacks().map(|stack| rotations(stack).0.len()).max().unwrap_or(0)
}

/// A model before anything of it is in memory.
struct Outline {
    shares: Vec<ModelShare>,
    info: TokenModelInfo,
    footprint: Footprint,
}

impl Outline {
    /// Of a model of which `n_here` ranks are on this machine.
    fn of(
        architecture: &Architecture,
        weights: &CanonicalWeights<'_>,
        name: &str,
        (settings, n_here): (&Settings, usize),
    ) -> Result<Self, EngineError> {
        let Settings { options, degree } = settings;
        check_degree(architecture, *degree)?;
        let bytes = planned_bytes(weights, options.weights);
        let bytes = bytes.saturating_mul(n_here as u64) / degree.get() as u64;
        check_memory(name, bytes, held_as(options.weights))?;
        let of = |rank| Share { rank, degree: degree.get() };
        let of = |rank| ModelShare::new(architecture, weights, options.weights, of(rank));
        let shares: Vec<ModelShare> = (0..degree.get()).map(of).collect();
        let (head, kv) = (HeadPlan::of(architecture, weights), kv_form(options));
        let mut info = figures(architecture, weights, head.as_ref(), kv);
        (info.kv_bytes_per_token, info.cross_bytes_per_token) = cache_bytes(&shares, kv);
        info.has_adapters = true;
        if let Some(most) = options.max_positions {
            info.max_positions = info.max_positions.min(most.get());
        }
        let footprint = Footprint::of(weights, options.weights, &shares);
        Ok(Self { shares, info, footprint })
    }
}

/// How caches hold keys and values.
fn kv_form(options: &LoadOptions) -> KvForm {
    KvForm {
        element_bytes: options.kv.element_bytes() as u64,
        scale_bytes: options.kv.scale_bytes() as u64,
        block_tokens: TOKENS_PER_BLOCK as u32,
    }
}

/// The file of weights that were packed before, or are to be kept so, if the options ask for one.
fn packed_file(
    request: &LoadRequest<'_>,
    files: &ModelFiles,
    Settings { options, degree }: &Settings,
    (isa, ranks): (Isa, &str),
) -> Option<PackedFile> {
    if !options.packed_cache {
        return None;
    }
    let name = request.model_name;
    if request.adapter_dir.is_some() {
        let message = format!(
            "model {name}: option.packed_cache=true has no effect on a model with an adapter merged \
             into it"
        );
        request.services.log(LogLevel::Warn, &message);
        return None;
    }
    let form = format!("{:?} {isa} {degree} {ranks}", options.weights);
    let key = PackedKey { dir: files.dir(), sources: files.sources(), form };
    PackedFile::open(&key, name, &request.services)
}

/// Refuses more ranks than there is work for.
fn check_degree(architecture: &Architecture, degree: NonZeroUsize) -> Result<(), EngineError> {
    let (heads, columns) = most_ranks(architecture);
    if degree.get() <= columns {
        return Ok(());
    }
    Err(EngineError::bad_input(format!(
        "option.tensor_parallel_degree={degree}: the layers of this model have {heads} heads and \
         {columns} columns in their feed-forward, so {columns} ranks at most have work to do"
    )))
}

/// Bytes that a token takes of the ranks' KV caches, and an encoder token of those for cross-attention.
fn cache_bytes(shares: &[ModelShare], kv: KvForm) -> (u64, u64) {
    let layers = || {
        let stacks = shares.iter().flat_map(|share| share.architecture.decoder.as_ref());
        stacks.flat_map(|stack| &stack.layers)
    };
    let own = layers().map(|layer| kv.bytes_per_token(&layer.self_attention));
    let crosses = layers().filter_map(|layer| layer.cross_attention.as_ref());
    (own.sum(), crosses.map(|attention| kv.bytes_per_token(attention)).sum())
}

/// Says what is loaded, how it is held and what it is computed with.
fn report(
    request: &LoadRequest<'_>,
    family: &str,
    info: &TokenModelInfo,
    [held_as, isa]: &[&str; 2],
) {
    let message = format!(
        "model {}: {family} of {} parameters on the CPU ({isa}), {held_as}; KV cache of {} tokens",
        request.model_name, info.n_parameters, info.kv_capacity_tokens
    );
    request.services.log(LogLevel::Info, &message);
}

/// Says what each rank has, and what several have.
fn report_ranks(request: &LoadRequest<'_>, loaded: &[ModelWeights<'_>], footprint: &Footprint) {
    let bytes: Vec<usize> = loaded.iter().map(ModelWeights::n_bytes).collect();
    let of_ranks: Vec<String> = bytes.iter().map(usize::to_string).collect();
    let several = match footprint.replicated_bytes() {
        0 => "nothing twice".to_owned(),
        _ => format!("on more than one rank: {}", footprint.replicated_parts()),
    };
    let message = format!(
        "model {}: {} ranks with {} bytes of weights, {} together; {several}",
        request.model_name,
        loaded.len(),
        of_ranks.join(", "),
        bytes.iter().sum::<usize>()
    );
    request.services.log(LogLevel::Info, &message);
}

/// How weights are held, and why, for the log.
fn held_as(form: WeightForm) -> &'static str {
    match form {
        WeightForm::AsStored => {
            "weights as the checkpoint has them, since f32 arithmetic on them loses nothing"
        }
        WeightForm::Packed(Precision::F32) => "weights in f32",
        WeightForm::Packed(Precision::F16) => "weights in f16, multiplied in f32",
        WeightForm::Packed(Precision::Bf16) => "weights in bf16, multiplied in f32",
        WeightForm::Packed(Precision::Int8Weights) => "weights in int8, multiplied in f32",
        WeightForm::Packed(_) => "weights in int8, activations quantised for each product",
        WeightForm::Encoded(BlockFormat::Q8Zero) => "weights in blocks of 8 bits (Q8_0)",
        WeightForm::Encoded(_) => "weights in blocks of 4 bits (Q4_1), the head's of 8 (Q8_0)",
    }
}

/// The ranks while their weights are loaded.
struct Ranks<'r> {
    shares: &'r [ModelShare],
    pools: &'r [Pool],
    team: Option<&'r Team>,
    isa: Isa,
    packed: Option<&'r PackedFile>,
}

impl Ranks<'_> {
    /// Each rank's weights, which each rank reads on its own threads.
    fn load<'a>(
        &self,
        files: &'a ModelFiles,
        options: &LoadOptions,
        services: &Services,
    ) -> Result<RankedWeights<'a>, EngineError> {
        let weights = files.canonical()?;
        let done = AtomicU64::new(0);
        let load = |rank: usize| {
            let loader = Loader {
                weights: &weights,
                cpu: Cpu { isa: self.isa, pool: &self.pools[rank] },
                form: options.weights,
                services,
                share: &self.shares[rank],
                dim: files.architecture.dim as usize,
                done: &done,
                packed: self.packed,
                is_last: rank + 1 == self.shares.len(),
            };
            loader.model(&files.architecture)
        };
        let mut loaded: Vec<Option<Result<ModelWeights<'a>, EngineError>>> =
            self.shares.iter().map(|_| None).collect();
        match self.team {
            Some(team) => team.each(&mut loaded, |rank, slot| *slot = Some(load(rank))),
            None => loaded.iter_mut().for_each(|slot| *slot = Some(load(0))),
        }
        let all: Result<Vec<_>, _> = loaded.into_iter().flatten().collect();
        Ok(RankedWeights(all?))
    }
}

impl<'a> Loader<'a, '_> {
    /// All of a rank's weights.
    fn model(&self, architecture: &Architecture) -> Result<ModelWeights<'a>, EngineError> {
        let share = self.share;
        let head = HeadPlan::of(architecture, self.weights);
        let head = head.map(|plan| -> Result<Head<'a>, EngineError> {
            if share.head.is_empty() {
                return Ok(Head { plan, dense: None, norm: None, linear: None, split: None });
            }
            let dense = plan.dense.map(|_| self.linear("head.dense", Cut::All)).transpose()?;
            let norm = self.norm("head.norm", plan.norm)?;
            let mut linear = self.linear("head", Cut::Rows(share.head.clone()))?;
            if let Some(cap) = plan.soft_cap {
                linear.scale_bias(1.0 / cap);
            }
            let widest = || share.widest_head(plan.width as usize);
            let split = share.head_is_split.then(widest);
            Ok(Head { plan, dense, norm, linear: Some(linear), split })
        });
        let is_first = share.share.rank == 0;
        let has_pooler = is_first && architecture.pooler.is_some() && self.has("pooler.weight");
        Ok(ModelWeights {
            encoder: architecture.encoder.as_ref().map(|s| self.stack(s)).transpose()?,
            decoder: architecture.decoder.as_ref().map(|s| self.stack(s)).transpose()?,
            head: head.transpose()?,
            pooler: has_pooler.then(|| self.linear("pooler", Cut::All)).transpose()?,
        })
    }
}
