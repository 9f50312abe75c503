//! Parameters one by one, with errors that name them.

use std::borrow::Cow;
use std::fmt::Display;
use std::ops::RangeInclusive;

use drivetrain_engine::TokenId;
use serde_json::{Map, Value};

use crate::HostError;
use crate::generate::Naming;

/// Most ids in one list, and most runs in a list of runs.
const MAX_LIST: usize = 4096;

/// Most ids in all runs of one list.
const MAX_RUN_IDS: usize = 16_384;

/// Most pairs of a token and its bias.
const MAX_BIASES: usize = 4096;

/// The largest bias.
const MAX_BIAS: f64 = 100.0;

/// Runs of ids, and what is added to the score of an id that would complete one.
type BiasedRuns = Vec<(Vec<TokenId>, f32)>;

/// A request's parameters, read one by one with errors that name them as the client does.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Params<'a> {
    map: &'a Map<String, Value>,
    naming: Naming,
}

impl<'a> Params<'a> {
    pub(crate) fn new(map: &'a Map<String, Value>, naming: Naming) -> Self {
        Self { map, naming }
    }

    /// What the client calls its parameters.
    pub(crate) fn naming(self) -> Naming {
        self.naming
    }

    /// The value of `name`; null is absent.
    pub(crate) fn get(self, name: &str) -> Option<&'a Value> {
        self.map.get(name).filter(|value| !value.is_null())
    }

    pub(super) fn names(self) -> impl Iterator<Item = &'a str> {
        self.map.keys().map(String::as_str)
    }

    /// What the client calls `name`.
    pub(super) fn shown(self, name: &str) -> Cow<'_, str> {
        self.naming.shown(name)
    }

    /// Which of the names of one thing the request uses, the first if none.
    ///
    /// # Errors
    /// `BadRequest` if it uses two with different values.
    pub(super) fn named(self, names: &[&'static str]) -> Result<&'static str, HostError> {
        let mut found: Option<(&'static str, &Value)> = None;
        for &name in names {
            let Some(value) = self.get(name) else { continue };
            match found {
                None => found = Some((name, value)),
                Some((first, other)) if other != value => {
                    let why = "they are two names of one thing; give one of them";
                    return Err(self.conflict((first, &brief(other)), (name, &brief(value)), why));
                }
                Some(_) => {}
            }
        }
        Ok(found.map_or_else(|| names.first().copied().unwrap_or_default(), |(name, _)| name))
    }

    pub(super) fn wrong(self, name: &str, value: &Value, wanted: &str) -> HostError {
        HostError::bad_request(format!("{}={}: expected {wanted}", self.shown(name), brief(value)))
    }

    /// Two parameters that do not go together.
    pub(super) fn conflict(
        self,
        first: (&str, &dyn Display),
        second: (&str, &dyn Display),
        why: &str,
    ) -> HostError {
        let (one, other) = (self.shown(first.0), self.shown(second.0));
        HostError::bad_request(format!("{one}={} and {other}={}: {why}", first.1, second.1))
    }

    /// A truth value.
    pub(crate) fn flag(self, name: &str) -> Result<Option<bool>, HostError> {
        self.get(name)
            .map(|v| v.as_bool().ok_or_else(|| self.wrong(name, v, "true or false")))
            .transpose()
    }

    /// A whole number, `low` or more.
    pub(crate) fn whole(self, name: &str, low: u32) -> Result<Option<u32>, HostError> {
        let number = self.integer(name, i64::from(low)..=i64::from(u32::MAX), || {
            format!("a whole number, {low} or more")
        })?;
        Ok(number.map(|number| number as u32))
    }

    /// A whole number of a range.
    pub(super) fn whole_in(
        self,
        name: &str,
        range: RangeInclusive<usize>,
    ) -> Result<Option<usize>, HostError> {
        let (low, high) = (*range.start(), *range.end());
        let number = self.integer(name, low as i64..=high as i64, || {
            format!("a whole number from {low} to {high}")
        })?;
        Ok(number.map(|number| number as usize))
    }

    /// A whole number; 3.0 is one.
    pub(super) fn integer(
        self,
        name: &str,
        range: RangeInclusive<i64>,
        wanted: impl Fn() -> String,
    ) -> Result<Option<i64>, HostError> {
        self.get(name)
            .map(|value| {
                integer(value)
                    .filter(|number| range.contains(number))
                    .ok_or_else(|| self.wrong(name, value, &wanted()))
            })
            .transpose()
    }

    /// A number of a range.
    pub(super) fn number(
        self,
        name: &str,
        range: RangeInclusive<f64>,
    ) -> Result<Option<f64>, HostError> {
        self.get(name)
            .map(|value| {
                value.as_f64().filter(|number| range.contains(number)).ok_or_else(|| {
                    let wanted = format!("a number from {} to {}", range.start(), range.end());
                    self.wrong(name, value, &wanted)
                })
            })
            .transpose()
    }

    /// A token id or a list of them; `n_logits` is how many there are.
    pub(crate) fn ids(self, name: &str, n_logits: u32) -> Result<Option<Vec<TokenId>>, HostError> {
        self.ids_up_to(name, n_logits, MAX_LIST)
    }

    /// A token id or a list of at most `most` of them.
    pub(super) fn ids_up_to(
        self,
        name: &str,
        n_logits: u32,
        most: usize,
    ) -> Result<Option<Vec<TokenId>>, HostError> {
        self.get(name)
            .map(|value| {
                let list = match value {
                    Value::Array(list) => list.as_slice(),
                    one => std::slice::from_ref(one),
                };
                let read = || list.iter().map(|id| token_id(id, n_logits)).collect();
                (list.len() <= most).then(read).flatten().ok_or_else(|| {
                    let wanted = format!("at most {most} token ids, each below {n_logits}");
                    self.wrong(name, value, &wanted)
                })
            })
            .transpose()
    }

    /// A list of runs of token ids.
    pub(super) fn runs(
        self,
        name: &str,
        n_logits: u32,
    ) -> Result<Option<Vec<Vec<TokenId>>>, HostError> {
        self.get(name)
            .map(|value| {
                let list = value.as_array().filter(|list| list.len() <= MAX_LIST);
                let mut n_ids = 0;
                list.and_then(|list| {
                    list.iter().map(|ids| run(ids, n_logits, &mut n_ids)).collect()
                })
                .ok_or_else(|| {
                    let wanted = format!(
                        "a list of at most {MAX_LIST} lists of token ids, each below {n_logits}, \
                             none empty, {MAX_RUN_IDS} ids in all"
                    );
                    self.wrong(name, value, &wanted)
                })
            })
            .transpose()
    }

    /// `[[ids, bias], ...]`, as transformers has it; of a run that comes twice the last one counts.
    pub(super) fn biased_runs(
        self,
        name: &str,
        n_logits: u32,
    ) -> Result<Option<BiasedRuns>, HostError> {
        let read = |value: &Value| {
            let list = value.as_array().filter(|list| list.len() <= MAX_BIASES)?;
            let mut n_ids = 0;
            let pairs = list.iter().map(|pair| match pair.as_array()?.as_slice() {
                [ids, bias] => Some((run(ids, n_logits, &mut n_ids)?, bias_of(bias)?)),
                _ => None,
            });
            pairs.collect::<Option<Vec<_>>>()
        };
        let Some(value) = self.get(name) else { return Ok(None) };
        let pairs = read(value).ok_or_else(|| {
            let wanted = format!(
                "a list of at most {MAX_BIASES} pairs [token ids, bias], each id below {n_logits}, \
                 {MAX_RUN_IDS} ids in all, the bias from -{MAX_BIAS} to {MAX_BIAS}"
            );
            self.wrong(name, value, &wanted)
        })?;
        let mut last = std::collections::BTreeMap::new();
        last.extend(pairs);
        Ok(Some(last.into_iter().collect()))
    }

    /// An object of token ids and what is added to their scores, as OpenAI has it.
    pub(super) fn biases(
        self,
        name: &str,
        n_logits: u32,
    ) -> Result<Option<Vec<(TokenId, f32)>>, HostError> {
        self.get(name)
            .map(|value| {
                let read = |(id, bias): (&String, &Value)| {
                    let id = id.parse::<TokenId>().ok().filter(|id| *id < n_logits)?;
                    Some((id, bias_of(bias)?))
                };
                let map = value.as_object().filter(|map| map.len() <= MAX_BIASES);
                map.and_then(|map| map.iter().map(read).collect()).ok_or_else(|| {
                    let wanted = format!(
                        "an object of at most {MAX_BIASES} token ids below {n_logits} with numbers \
                         from -{MAX_BIAS} to {MAX_BIAS}"
                    );
                    self.wrong(name, value, &wanted)
                })
            })
            .transpose()
    }

    /// `[start, factor]`.
    pub(super) fn decay(self, name: &str) -> Result<Option<(u32, f64)>, HostError> {
        self.get(name)
            .map(|value| {
                let read = |start: &Value, factor: &Value| {
                    let start = u32::try_from(start.as_u64()?).ok()?;
                    Some((start, factor.as_f64().filter(|f| f.is_finite() && *f > 0.0)?))
                };
                match value.as_array().map(Vec::as_slice) {
                    Some([start, factor]) => read(start, factor),
                    _ => None,
                }
                .ok_or_else(|| self.wrong(name, value, "[start, factor], the factor above 0"))
            })
            .transpose()
    }

    /// A text or a list of at most `n` texts, none empty, of at most `n_chars` characters each. A
    /// single text that is empty is none.
    pub(super) fn texts(
        self,
        name: &str,
        n: usize,
        n_chars: usize,
    ) -> Result<Option<Vec<String>>, HostError> {
        let Some(value) = self.get(name) else { return Ok(None) };
        if value.as_str() == Some("") {
            return Ok(None);
        }
        let list = match value {
            Value::Array(list) => list.as_slice(),
            one => std::slice::from_ref(one),
        };
        let read = |text: &Value| {
            let text = text.as_str().filter(|text| !text.is_empty())?;
            text.chars().nth(n_chars).is_none().then(|| text.to_owned())
        };
        let texts = (list.len() <= n).then(|| list.iter().map(read).collect()).flatten();
        texts.map(Some).ok_or_else(|| {
            let wanted =
                format!("a text or a list of at most {n} texts of 1 to {n_chars} characters");
            self.wrong(name, value, &wanted)
        })
    }
}

/// A value as messages show it.
pub(super) fn brief(value: &Value) -> String {
    let mut found = value.to_string();
    if let Some((cut, _)) = found.char_indices().nth(60) {
        found.truncate(cut);
        found.push_str("...");
    }
    found
}

fn integer(value: &Value) -> Option<i64> {
    value.as_i64().or_else(|| {
        let whole = value.as_f64().filter(|f| f.fract() == 0.0 && f.abs() < (1_u64 << 53) as f64);
        whole.map(|whole| whole as i64)
    })
}

fn token_id(value: &Value, n_logits: u32) -> Option<TokenId> {
    value.as_u64().and_then(|id| TokenId::try_from(id).ok()).filter(|id| *id < n_logits)
}

fn run(value: &Value, n_logits: u32, n_ids: &mut usize) -> Option<Vec<TokenId>> {
    let ids = value.as_array().filter(|ids| !ids.is_empty())?;
    *n_ids += ids.len();
    if *n_ids > MAX_RUN_IDS {
        return None;
    }
    ids.iter().map(|id| token_id(id, n_logits)).collect()
}

fn bias_of(value: &Value) -> Option<f32> {
    value.as_f64().filter(|bias| bias.abs() <= MAX_BIAS).map(|bias| bias as f32)
}
