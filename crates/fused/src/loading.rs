//! Loading: what a model is, whether it fits, and the weights of each rank.

use std::collections::HashSet;
use std::num::NonZeroUsize;
use std::sync::atomic::AtomicU64;

use drivetrain_engine::{
    EngineError, ErrorKind, LoadRequest, LoadedModel, LogLevel, Services, TokenModelInfo,
};
use drivetrain_execution::{
    Capacity, HeadPlan, KvForm, ModelFiles, Runs, Tables, check_memory, figures,
};
use drivetrain_kernels::{
    BlockFormat, Cpu, FORCE_VARIABLE, Isa, Pool, Precision, TOKENS_PER_BLOCK, Team, part,
};
use drivetrain_transformer::Architecture;

use crate::arena::{Arena, rotations};
use crate::cache::{Caches, Stores};
use crate::head::Head;
use crate::load::{Cut, Loader, planned_bytes};
use crate::model::{FusedModel, RankedWeights, WeightsOfFiles, join};
use crate::options::{LoadOptions, WeightForm};
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
    check_degree(&files.architecture, *degree)?;
    let shares: Vec<ModelShare> = {
        let weights = files.canonical()?;
        ModelFiles::warn_of_unused(request, &weights);
        let bytes = planned_bytes(&weights, options.weights);
        check_memory(request.model_name, bytes, held_as(options.weights))?;
        let of = |rank| Share { rank, degree: degree.get() };
        let of = |rank| ModelShare::new(&files.architecture, &weights, options.weights, of(rank));
        (0..degree.get()).map(of).collect()
    };
    let no_threads = |error: std::io::Error| {
        EngineError::wrap(ErrorKind::OutOfMemory, "no threads to compute on", &error)
    };
    let team = (degree.get() > 1).then(|| Team::new(*degree)).transpose().map_err(no_threads)?;
    let mut slots = Vec::with_capacity(shares.len());
    for share in &shares {
        let n_threads = part(request.n_threads.get(), 1, share.share.rank, degree.get()).len();
        let n_threads = NonZeroUsize::new(n_threads).unwrap_or(NonZeroUsize::MIN);
        slots.push(Pool::new(n_threads).map_err(no_threads)?);
    }
    let ranks = Ranks { shares: &shares, pools: &slots, team: team.as_ref(), isa };
    let weights =
        WeightsOfFiles::try_new(files, |files| ranks.load(files, options, &request.services))?;
    let architecture = &weights.borrow_owner().architecture;
    let loaded = &weights.borrow_dependent().0;
    let kv = KvForm {
        element_bytes: options.kv.element_bytes() as u64,
        scale_bytes: options.kv.scale_bytes() as u64,
        block_tokens: TOKENS_PER_BLOCK as u32,
    };
    let head = loaded.first().and_then(ModelWeights::head_plan);
    let canonical = weights.borrow_owner().canonical()?;
    let mut info = figures(architecture, &canonical, head, kv);
    drop(canonical);
    info.weight_bytes = loaded.iter().map(|rank| rank.n_bytes() as u64).sum();
    info.has_adapters = true;
    limit(&mut info, &shares, options, kv);
    let capacity = Capacity::plan(&mut info, options.max_sequences)?;
    report(request, architecture, &info, (loaded, options.weights, isa));
    let caches = Caches::new(architecture, &info, capacity);
    let n_rotaries = architecture.stacks().map(|stack| rotations(stack).0.len()).max().unwrap_or(0);
    let n_rows = info.max_batch_tokens as usize;
    let mut ranks = Vec::with_capacity(slots.len());
    for ((pool, share), weights) in slots.into_iter().zip(&shares).zip(loaded) {
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

/// Enters what the ranks' own heads cost, and the longest sequence that is asked for.
fn limit(info: &mut TokenModelInfo, shares: &[ModelShare], options: &LoadOptions, kv: KvForm) {
    let layers = || {
        let stacks = shares.iter().flat_map(|share| share.architecture.decoder.as_ref());
        stacks.flat_map(|stack| &stack.layers)
    };
    let own = layers().map(|layer| kv.bytes_per_token(&layer.self_attention));
    info.kv_bytes_per_token = own.sum();
    let crosses = layers().filter_map(|layer| layer.cross_attention.as_ref());
    info.cross_bytes_per_token = crosses.map(|attention| kv.bytes_per_token(attention)).sum();
    if let Some(most) = options.max_positions {
        info.max_positions = info.max_positions.min(most.get());
    }
}

/// Says what is loaded, and where it is.
fn report(
    request: &LoadRequest<'_>,
    architecture: &Architecture,
    info: &TokenModelInfo,
    (loaded, form, isa): (&[ModelWeights<'_>], WeightForm, Isa),
) {
    let log = |text: &str| request.services.log(LogLevel::Info, text);
    log(&format!(
        "model {}: {} of {} parameters on the CPU ({isa}), {}; KV cache of {} tokens",
        request.model_name,
        architecture.family,
        info.n_parameters,
        held_as(form),
        info.kv_capacity_tokens
    ));
    if loaded.len() == 1 {
        return;
    }
    for (rank, weights) in loaded.iter().enumerate() {
        log(&format!(
            "model {}: rank {rank} of {} has {} bytes of weights, {} of them on every rank",
            request.model_name,
            loaded.len(),
            weights.n_bytes(),
            weights.n_replicated_bytes()
        ));
    }
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
