//! Loading: what a model is, whether it fits, and the weights of each rank.

use std::collections::HashSet;
use std::num::NonZeroUsize;
use std::sync::atomic::AtomicU64;

use drivetrain_engine::{
    DevicePlan, EngineError, ErrorKind, LoadPlan, LoadRequest, LoadedModel, LogLevel, PlannedPart,
    Services, TokenModelInfo,
};
use drivetrain_execution::{
    CacheRoom, Capacity, HeadPlan, KvForm, ModelFiles, Runs, Tables, check_memory, figures,
};
use drivetrain_kernels::{
    BlockFormat, Cpu, FORCE_VARIABLE, Isa, Pool, Precision, TOKENS_PER_BLOCK, Team, part,
};
use drivetrain_transformer::{Architecture, CanonicalWeights};

use crate::arena::{Arena, rotations};
use crate::cache::{Caches, Stores};
use crate::footprint::Footprint;
use crate::head::Head;
use crate::load::{Cut, Loader, note_of_groups, planned_bytes};
use crate::model::{FusedModel, RankedWeights, WeightsOfFiles, join};
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

/// Loads what `request` names.
///
/// # Errors
/// Files or options can't be served, the model does not fit, or there are more ranks than it can be shared
/// out to.
pub fn load(request: &LoadRequest<'_>, settings: &Settings) -> Result<LoadedModel, EngineError> {
    let Settings { options, degree } = settings;
    let forced = std::env::var(FORCE_VARIABLE).ok();
    let isa = Isa::choose(forced.as_deref())
        .map_err(|error| EngineError::unsupported(error.to_string()))?;
    let files = ModelFiles::open(request)?;
    let Outline { shares, mut info, footprint } = {
        let weights = files.canonical()?;
        ModelFiles::warn_of_unused(request, &weights);
        if let Some(note) = note_of_groups(&weights, options.weights) {
            let note = format!("model {}: {note}", request.model_name);
            request.services.log(LogLevel::Warn, &note);
        }
        Outline::of(&files.architecture, &weights, request.model_name, settings)?
    };
    let no_threads = |error: std::io::Error| {
        EngineError::wrap(ErrorKind::OutOfMemory, "no threads to compute on", &error)
    };
    let team = (degree.get() > 1).then(|| Team::new(*degree)).transpose().map_err(no_threads)?;
    let mut pools = Vec::with_capacity(shares.len());
    for share in &shares {
        let n_threads = part(request.n_threads.get(), 1, share.share.rank, degree.get()).len();
        let n_threads = NonZeroUsize::new(n_threads).unwrap_or(NonZeroUsize::MIN);
        pools.push(Pool::new(n_threads).map_err(no_threads)?);
    }
    let packed = packed_file(request, &files, settings, isa);
    let packed_ref = packed.as_ref();
    let ranks =
        Ranks { shares: &shares, pools: &pools, team: team.as_ref(), isa, packed: packed_ref };
    let weights =
        WeightsOfFiles::try_new(files, |files| ranks.load(files, options, &request.services))?;
    if let Some(packed) = packed {
        packed.finish();
    }
    let architecture = &weights.borrow_owner().architecture;
    let loaded = &weights.borrow_dependent().0;
    info.weight_bytes = loaded.iter().map(|rank| rank.n_bytes() as u64).sum();
    let capacity = Capacity::plan(&mut info, options.max_sequences)?;
    report(request, architecture.family, &info, &[held_as(options.weights), &isa.to_string()]);
    if loaded.len() > 1 {
        report_ranks(request, loaded, &footprint);
    }
    let caches = Caches::new(architecture, &info, capacity);
    let n_rotaries = n_rotaries(architecture);
    let n_rows = info.max_batch_tokens as usize;
    let mut ranks = Vec::with_capacity(pools.len());
    for ((pool, share), weights) in pools.into_iter().zip(&shares).zip(loaded) {
        let needs = weights.needs(n_rows, pool.n_threads());
        ranks.push(RankState {
            stores: Stores::new(&share.architecture, &caches, options.kv)?,
            arena: Arena::new(&share.architecture, n_rotaries, n_rows, needs),
            pool,
            selected: Runs::default(),
            failure: None,
        });
    }
    if team.is_some() {
        join(&mut ranks);
    }
    Ok(LoadedModel::Token(Box::new(FusedModel {
        info,
        encoder_tables: Tables::of(architecture.encoder.as_ref()),
        decoder_tables: Tables::of(architecture.decoder.as_ref()),
        weights,
        caches,
        ranks,
        team,
        planned: Vec::new(),
        runs: Runs::default(),
        adapters: HashSet::new(),
        max_lora_rank: options.max_lora_rank,
        services: request.services.clone(),
        isa,
    })))
}

/// What [`load`] would do: each rank as a device, with its weights, its rows of a batch and its part of the
/// caches. One rank alone is the CPU.
///
/// # Errors
/// As [`load`].
pub fn plan(request: &LoadRequest<'_>, settings: &Settings) -> Result<LoadPlan, EngineError> {
    let files = ModelFiles::open(request)?;
    let weights = files.canonical()?;
    let Outline { shares, mut info, footprint } =
        Outline::of(&files.architecture, &weights, request.model_name, settings)?;
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
    fn of(
        architecture: &Architecture,
        weights: &CanonicalWeights<'_>,
        name: &str,
        settings: &Settings,
    ) -> Result<Self, EngineError> {
        let Settings { options, degree } = settings;
        check_degree(architecture, *degree)?;
        check_memory(name, planned_bytes(weights, options.weights), held_as(options.weights))?;
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
    isa: Isa,
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
    let form = format!("{:?} {isa} {degree}", options.weights);
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
