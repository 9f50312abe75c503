//! How tokens are chosen: greedily, by a draw or by beams.

use std::hash::{BuildHasher, RandomState};

use super::{Defaults, Params};
use crate::HostError;
use crate::logits::{BeamParams, EarlyStopping, Sampling};
use crate::scheduler::Search;

/// Most beams.
const MAX_BEAMS: usize = 16;

/// Most choices that one input may take.
const MAX_CHOICES: usize = 128;

/// A temperature below it leaves nothing to chance.
const COLD: f64 = 1e-5;

/// The highest temperature, and the highest penalty for what other groups of beams say.
const HOT: f64 = 100.0;

/// The largest exponent of the length, either way.
const MAX_EXPONENT: f64 = 50.0;

/// How tokens are chosen, and how many of the choices are given.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) search: Search,
    /// The request's seed; without one each input takes its own.
    pub(super) seed: Option<u64>,
    /// How many choices are given.
    pub(super) n_kept: usize,
    /// What decides on beams, and how many there are, for messages.
    pub(super) beams: Option<(&'static str, usize)>,
}

/// What a request says of numbers of choices.
struct Counts {
    num_beams: Option<usize>,
    n: Option<usize>,
    num_return: Option<usize>,
    best_of: Option<usize>,
    uses_beams: bool,
}

impl Plan {
    /// # Errors
    /// `BadRequest` that names the parameters that are wrong or do not go together.
    pub(super) fn read(
        params: Params<'_>,
        defaults: &Defaults,
        is_streamed: bool,
        n_eos: usize,
    ) -> Result<Self, HostError> {
        let counts = Counts {
            num_beams: params.whole_in("num_beams", 1..=MAX_BEAMS)?,
            n: params.whole_in("n", 1..=MAX_CHOICES)?,
            num_return: params.whole_in("num_return_sequences", 1..=MAX_CHOICES)?,
            best_of: params.whole_in("best_of", 1..=MAX_CHOICES)?,
            uses_beams: params.flag("use_beam_search")? == Some(true),
        };
        let do_sample = params.flag("do_sample")?.or(defaults.do_sample).unwrap_or(false);
        let temperature = params.number("temperature", 0.0..=HOT)?;
        let temperature = temperature.or(defaults.temperature.map(|t| t.min(HOT)));
        let is_cold = temperature.is_some_and(|t| t < COLD);
        // Read even where it is of no use: a wrong value is wrong.
        let sampling = sampling(params, defaults, temperature.filter(|_| !is_cold))?;
        let sampling = (do_sample && !is_cold).then_some(sampling);
        let seed = seed(params)?;
        let (beams, beam_plan) = beams(params, defaults, &counts)?;
        if beams.1 > 1 {
            if is_streamed {
                return Err(HostError::bad_request(format!(
                    "{}={}: beams are known only at the end, and this answer is streamed; set it to \
                     1, or do not stream",
                    params.shown(beams.0),
                    beams.1
                )));
            }
            let min_kept = if n_eos == 0 { 2 } else { n_eos + 1 };
            let sampling = sampling.map(|sampling| Sampling { min_kept, ..sampling });
            return Self::of_beams(params, beams, BeamParams { sampling, ..beam_plan }, seed);
        }
        let why_greedy = if is_cold { ("temperature", "0") } else { ("do_sample", "false") };
        Self::of_draws(params, defaults, &counts, (sampling, why_greedy, is_streamed), seed)
    }

    fn of_draws(
        params: Params<'_>,
        defaults: &Defaults,
        counts: &Counts,
        how: (Option<Sampling>, (&str, &str), bool),
        seed: Option<u64>,
    ) -> Result<Self, HostError> {
        let (sampling, why_greedy, is_streamed) = how;
        let name = params.named(&["n", "num_return_sequences"])?;
        let default = defaults.num_return_sequences.map_or(1, |n| n as usize);
        let default = if sampling.is_some() { default.clamp(1, MAX_CHOICES) } else { 1 };
        let n_kept = counts.n.or(counts.num_return).unwrap_or(default);
        let n = counts.best_of.unwrap_or(n_kept);
        if n < n_kept {
            let why = "no more choices can be given than are made";
            return Err(params.conflict(("best_of", &n), (name, &n_kept), why));
        }
        let Some(sampling) = sampling else {
            if n > 1 {
                let name = if n > n_kept { "best_of" } else { name };
                let (field, value) = why_greedy;
                let why = "without sampling all choices are the same; set it to 1, or sample";
                return Err(params.conflict((name, &n), (field, &value), why));
            }
            return Ok(Self { search: Search::Greedy, seed, n_kept, beams: None });
        };
        if n > n_kept && is_streamed {
            return Err(HostError::bad_request(format!(
                "{}={n}: the best of them are known only at the end, and this answer is streamed; \
                 leave it out, or do not stream",
                params.shown("best_of")
            )));
        }
        Ok(Self { search: Search::Sample { sampling, seed: 0, n }, seed, n_kept, beams: None })
    }

    fn of_beams(
        params: Params<'_>,
        beams: (&'static str, usize),
        plan: BeamParams,
        seed: Option<u64>,
    ) -> Result<Self, HostError> {
        if plan.n_groups > 1 && plan.sampling.is_some() {
            let why = "groups of beams take the best, they do not sample; set one of them off";
            return Err(params.conflict(
                ("num_beam_groups", &plan.n_groups),
                ("do_sample", &true),
                why,
            ));
        }
        let n_kept = plan.n_return;
        Ok(Self { search: Search::Beams(Box::new(plan)), seed, n_kept, beams: Some(beams) })
    }
}

/// The beams' figures, without what is drawn from; and the name that their number goes by.
fn beams(
    params: Params<'_>,
    defaults: &Defaults,
    counts: &Counts,
) -> Result<((&'static str, usize), BeamParams), HostError> {
    let default = defaults.num_beams.map_or(1, |n| (n as usize).clamp(1, MAX_BEAMS));
    let (name, n_beams) = if counts.uses_beams {
        width(params, counts)?
    } else {
        ("num_beams", counts.num_beams.unwrap_or(default))
    };
    if n_beams > 1 && !counts.uses_beams {
        for (other, n) in [("n", counts.n), ("best_of", counts.best_of)] {
            if let Some(n) = n.filter(|n| *n > 1) {
                let why = format!(
                    "beams give the best {}, at most as many as there are beams; set that instead",
                    params.shown("num_return_sequences")
                );
                return Err(params.conflict((other, &n), (name, &n_beams), &why));
            }
        }
    }
    let (return_name, asked) = match counts.n {
        Some(n) if counts.uses_beams => ("n", Some(n)),
        _ => ("num_return_sequences", counts.num_return),
    };
    if let Some(n) = asked.filter(|n| *n > n_beams && n_beams > 1) {
        let why = "no more choices can be given than there are beams";
        return Err(params.conflict((return_name, &n), (name, &n_beams), why));
    }
    let default = defaults.num_return_sequences.map_or(1, |n| n as usize);
    let n_return = asked.unwrap_or(default).clamp(1, n_beams.max(1));
    let default = defaults.num_beam_groups.map_or(1, |n| (n as usize).clamp(1, MAX_BEAMS));
    let n_groups = params.whole_in("num_beam_groups", 1..=MAX_BEAMS)?.unwrap_or(default);
    let penalty = params.number("diversity_penalty", 0.0..=HOT)?;
    let penalty = penalty.or(defaults.diversity_penalty.map(|p| p.min(HOT))).unwrap_or(0.0);
    if n_beams > 1 && n_groups > 1 {
        let groups = ("num_beam_groups", &n_groups as _);
        if !n_beams.is_multiple_of(n_groups) {
            let why = "the groups must divide the beams";
            return Err(params.conflict(groups, (name, &n_beams), why));
        }
        if penalty == 0.0 {
            let why = "without a penalty all groups say the same; set one above 0";
            return Err(params.conflict(groups, ("diversity_penalty", &penalty), why));
        }
    }
    let length_penalty = params.number("length_penalty", -MAX_EXPONENT..=MAX_EXPONENT)?;
    let default = defaults.length_penalty.map(|p| p.clamp(-MAX_EXPONENT, MAX_EXPONENT));
    let plan = BeamParams {
        n_beams,
        n_return,
        length_penalty: length_penalty.or(default).unwrap_or(1.0),
        early_stopping: early_stopping(params)?.unwrap_or(defaults.early_stopping),
        n_groups: if n_beams > 1 { n_groups } else { 1 },
        diversity_penalty: penalty as f32,
        sampling: None,
        seed: 0,
    };
    Ok(((name, n_beams), plan))
}

/// The number of beams where `use_beam_search` asks for them: vLLM took `best_of` for it.
fn width(params: Params<'_>, counts: &Counts) -> Result<(&'static str, usize), HostError> {
    let found = [
        ("best_of", counts.best_of),
        ("num_beams", counts.num_beams),
        ("n", counts.n),
        ("num_return_sequences", counts.num_return),
    ];
    if let (Some(best_of), Some(num_beams)) = (counts.best_of, counts.num_beams)
        && best_of != num_beams
    {
        let why = "both say how many beams there are; give one of them";
        return Err(params.conflict(("best_of", &best_of), ("num_beams", &num_beams), why));
    }
    let (name, n) =
        found.into_iter().find_map(|(name, n)| n.map(|n| (name, n))).unwrap_or(("best_of", 1));
    if !(2..=MAX_BEAMS).contains(&n) {
        let why = format!("beam search takes 2 to {MAX_BEAMS} beams; say how many");
        return Err(params.conflict(("use_beam_search", &true), (name, &n), &why));
    }
    Ok((name, n))
}

fn early_stopping(params: Params<'_>) -> Result<Option<EarlyStopping>, HostError> {
    let Some(value) = params.get("early_stopping") else { return Ok(None) };
    match (value.as_bool(), value.as_str()) {
        (Some(true), _) => Ok(Some(EarlyStopping::Immediate)),
        (Some(false), _) => Ok(Some(EarlyStopping::Heuristic)),
        (_, Some("never")) => Ok(Some(EarlyStopping::Never)),
        _ => Err(params.wrong("early_stopping", value, "true, false or \"never\"")),
    }
}

fn sampling(
    params: Params<'_>,
    defaults: &Defaults,
    temperature: Option<f64>,
) -> Result<Sampling, HostError> {
    /// transformers' own default once sampling is on.
    const TOP_K: u32 = 50;
    let top_k = params.integer("top_k", -1..=i64::from(u32::MAX), || {
        "a whole number, 1 or more, or 0 or -1 for all".to_owned()
    })?;
    let top_k = top_k.unwrap_or(i64::from(defaults.top_k.unwrap_or(TOP_K)));
    let part = |name: &str, default: Option<f64>| {
        Ok::<_, HostError>(params.number(name, 0.0..=1.0)?.or(default))
    };
    let typical_p = part("typical_p", defaults.typical_p)?;
    if typical_p == Some(0.0)
        && let Some(value) = params.get("typical_p")
    {
        return Err(params.wrong("typical_p", value, "a number above 0, up to 1"));
    }
    let within = |part: Option<f64>| part.filter(|p| *p > 0.0 && *p < 1.0).map(|p| p as f32);
    Ok(Sampling {
        temperature: temperature.filter(|t| *t != 1.0).map(|t| t as f32),
        top_k: usize::try_from(top_k).ok().filter(|k| *k > 0),
        top_p: part("top_p", defaults.top_p)?.filter(|p| *p < 1.0).map(|p| p as f32),
        min_p: part("min_p", defaults.min_p)?.filter(|p| *p > 0.0).map(|p| p as f32),
        typical_p: within(typical_p),
        epsilon_cutoff: within(part("epsilon_cutoff", defaults.epsilon_cutoff)?),
        eta_cutoff: within(part("eta_cutoff", defaults.eta_cutoff)?),
        min_kept: 1,
    })
}

/// The seed; -1 is none, as in vLLM.
fn seed(params: Params<'_>) -> Result<Option<u64>, HostError> {
    let name = params.named(&["seed", "manual_seed"])?;
    let Some(value) = params.get(name) else { return Ok(None) };
    if let Some(seed) = value.as_u64() {
        return Ok(Some(seed));
    }
    let seed = params.integer(name, -1..=i64::MAX, || {
        format!("a whole number from 0 to {}, or -1 for a random one", u64::MAX)
    })?;
    Ok(seed.and_then(|seed| u64::try_from(seed).ok()))
}

/// A seed that nobody has chosen. The standard library's hash keys are random in each process and
/// differ from call to call.
pub(super) fn fresh_seed() -> u64 {
    RandomState::new().hash_one(std::process::id())
}
