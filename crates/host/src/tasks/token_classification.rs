//! `token-classification`: the labels of a text's tokens, alone or joined to entities; long texts in
//! windows that overlap.
//!
//! Source: transformers 4.57, `pipelines/token_classification.py`.

use drivetrain_artifacts::SpecialTokens;
use serde_json::Value;

use super::classify::{check_finite, logits, softmax};
use super::context::{Budget, Prepared, TaskContext};
use super::entities::{Scored, Strategy, entities, without_overlaps};
use super::input::text_of;
use super::parts::{Cut, Input as Tokens, Letters, Parts};
use super::text::Text;
use super::{Input, TaskReply, TaskRequest};
use crate::HostError;
use crate::logits::Params;
use crate::scheduler::{Outcome, Work};

/// What is asked of all texts.
struct Asked {
    strategy: Strategy,
    ignored: Vec<String>,
    /// Tokens that windows have in common; `None` where a long text is cut.
    stride: Option<usize>,
    /// What stands between words that are given apart; `None` where texts are given.
    delimiter: Option<String>,
}

/// An input's text, and what the model read of it.
struct Read {
    text: String,
    encoded: super::text::Encoded,
    /// Letters ahead of each word, where words were given.
    words: Option<Vec<usize>>,
    windows: Vec<Window>,
}

/// A window's tokens, special ones apart.
struct Window {
    /// Place in the window, the word it belongs to, first byte and end, id.
    tokens: Vec<(usize, usize, (usize, usize), u32)>,
}

pub(super) fn prepare(
    context: &TaskContext,
    request: &TaskRequest,
    params: Params<'_>,
) -> Result<(Vec<Work>, Prepared), HostError> {
    let asked = asked(context, params)?;
    let limit = context.max_input();
    // The pipeline always cuts to what the tokenizer says, if it says something.
    let cut = context.text.max_length().map_or(limit, |n| n.min(limit));
    let mut budget = Budget::new(0);
    let (mut works, mut reads) = (Vec::new(), Vec::new());
    // A flat list of words is one text, as the pipeline has it.
    let flat = request.inputs.iter().map(|input| match input {
        Input::Text(word) if asked.delimiter.is_some() => Some(word.clone()),
        _ => None,
    });
    let flat = flat.collect::<Option<Vec<String>>>().filter(|words| !words.is_empty());
    let flat = flat.map(|words| vec![Input::Words(words)]);
    for (idx, input) in flat.as_ref().unwrap_or(&request.inputs).iter().enumerate() {
        let place = format!("inputs[{idx}]");
        let (text, words, parts) = encode(context, &place, input, &asked)?;
        let windows = match asked.stride {
            Some(stride) => windows(context, &parts, cut, stride).map_err(|room| {
                HostError::bad_request(format!(
                    "parameters.stride={stride}: expected less than {room}, which is what the \
                     model's {cut} tokens leave beside the special ones"
                ))
            })?,
            None if context.text.max_length().is_some() => {
                vec![parts.cut(cut, Cut::Longest).ok_or_else(|| no_room(&place, cut))?]
            }
            None => vec![parts.whole()],
        };
        let mut read = Read { text, encoded: parts.encoded().clone(), words, windows: Vec::new() };
        for window in windows {
            context.check_length(&place, window.ids.len(), limit)?;
            budget.take(idx, window.ids.len())?;
            read.windows.push(Window::of(&window, &read.encoded));
            works.push(context.rows(window, None)?);
        }
        reads.push(read);
    }
    let finish = move |context: &TaskContext, outcomes: Vec<Outcome>| {
        let mut outcomes = outcomes.into_iter();
        let mut all = Vec::with_capacity(reads.len());
        for (idx, read) in reads.iter().enumerate() {
            let mut found = Vec::new();
            for window in &read.windows {
                let Some(outcome) = outcomes.next() else { break };
                let (n_rows, values) = logits(outcome)?;
                check_finite(&format!("inputs[{idx}]"), &values)?;
                let width = values.len() / n_rows.max(1);
                let text = context.text.as_ref();
                let tokens = read.scored(text, window, &values, width);
                found.extend(entities(
                    text,
                    &context.facts,
                    tokens,
                    asked.strategy,
                    &asked.ignored,
                )?);
            }
            if read.windows.len() > 1 {
                found = without_overlaps(found);
            }
            all.push(found.iter().map(super::entities::Entity::told).collect::<Value>());
        }
        Ok(TaskReply::Document(Value::Array(all)))
    };
    Ok((works, Prepared::finished_with(finish)))
}

/// The windows over a text.
fn windows(
    context: &TaskContext,
    parts: &Parts,
    cut: usize,
    stride: usize,
) -> Result<Vec<Tokens>, i64> {
    let mut windows = parts.windows(0, cut, stride)?;
    parts.untrim(&mut windows, 0, context.text.as_ref());
    Ok(windows)
}

fn no_room(place: &str, cut: usize) -> HostError {
    HostError::bad_request(format!(
        "{place}: {cut} tokens leave no room for the text beside the special ones"
    ))
}

fn asked(context: &TaskContext, params: Params<'_>) -> Result<Asked, HostError> {
    let wrong = |name: &str, value: &Value, wanted: &str| {
        HostError::bad_request(format!("parameters.{name}={value}: expected {wanted}"))
    };
    let (groups, skips) = (params.flag("grouped_entities")?, params.flag("ignore_subwords")?);
    let old = match (groups, skips) {
        (None, None) => None,
        (Some(true), Some(true)) => Some(Strategy::First),
        (Some(true), _) => Some(Strategy::Simple),
        _ => Some(Strategy::None),
    };
    let strategy = match params.get("aggregation_strategy") {
        None => old.unwrap_or(Strategy::None),
        Some(value) => match value.as_str().map(str::to_ascii_lowercase).as_deref() {
            Some("none") => Strategy::None,
            Some("simple") => Strategy::Simple,
            Some("first") => Strategy::First,
            Some("average") => Strategy::Average,
            Some("max") => Strategy::Max,
            _ => {
                let wanted = "\"none\", \"simple\", \"first\", \"average\" or \"max\"";
                return Err(wrong("aggregation_strategy", value, wanted));
            }
        },
    };
    let ignored = match params.get("ignore_labels") {
        None => vec!["O".to_owned()],
        Some(value) => {
            let list = value.as_array().map(|list| {
                list.iter().map(|label| label.as_str().map(str::to_owned)).collect::<Option<_>>()
            });
            list.flatten().ok_or_else(|| wrong("ignore_labels", value, "a list of strings"))?
        }
    };
    let stride = params.whole("stride", 0)?.map(|n| n as usize);
    if stride.is_some() && strategy == Strategy::None {
        return Err(HostError::bad_request(
            "parameters.stride needs an aggregation_strategy other than \"none\": tokens of \
             windows that overlap would be told twice",
        ));
    }
    if let (Some(stride), Some(most)) = (stride, context.text.max_length())
        && stride >= most
    {
        let wanted = format!("less than {most}, which is as many tokens as the model takes");
        return Err(wrong("stride", &stride.into(), &wanted));
    }
    let delimiter = match params.get("delimiter") {
        None => " ".to_owned(),
        Some(Value::String(text)) => text.clone(),
        Some(value) => return Err(wrong("delimiter", value, "a string")),
    };
    let splits = params.flag("is_split_into_words")?.unwrap_or(false);
    Ok(Asked { strategy, ignored, stride, delimiter: splits.then_some(delimiter) })
}

/// An input's text, the letters ahead of its words, and its tokens.
fn encode(
    context: &TaskContext,
    place: &str,
    input: &Input,
    asked: &Asked,
) -> Result<(String, Option<Vec<usize>>, Parts), HostError> {
    let special = SpecialTokens::Add;
    let cuts = asked.stride.is_none() && context.text.max_length().is_some();
    match (input, &asked.delimiter) {
        (Input::Words(words), Some(delimiter)) => {
            let text = words.join(delimiter);
            context.bounded_to(place, &text, context.max_input(), false)?;
            let n_between = delimiter.chars().count();
            let mut at = 0;
            let starts = words.iter().map(|word| {
                let start = at;
                at += word.chars().count() + n_between;
                start
            });
            let starts = starts.collect();
            let all = context.text.encode_words(words, special)?;
            Ok((text, Some(starts), Parts::of(all)))
        }
        (Input::Words(_), None) => Err(HostError::bad_request(format!(
            "{place} is a list of words: give a string, or set parameters.is_split_into_words"
        ))),
        (_, Some(_)) => Err(HostError::bad_request(format!(
            "{place}: expected a list of words, since parameters.is_split_into_words is set"
        ))),
        (input, None) => {
            let text = text_of(place, input)?;
            // Windows go over texts of any length that one request may have.
            let n_tokens = if asked.stride.is_some() { 1 << 16 } else { context.max_input() };
            let text = context.bounded_to(place, text, n_tokens, cuts)?;
            let parts = Parts::single(context.text.as_ref(), text, special)?;
            Ok((text.to_owned(), None, parts))
        }
    }
}

impl Window {
    fn of(input: &Tokens, encoded: &super::text::Encoded) -> Self {
        let each = input.origins.iter().zip(&input.ids).enumerate();
        let plain = each.filter(|(_, (origin, _))| origin.text.is_some());
        let of = |(at, (origin, id)): (usize, (&super::parts::Origin, &u32))| {
            (at, origin.idx, input.offsets(encoded, origin.idx), *id)
        };
        Self { tokens: plain.map(of).collect() }
    }
}

impl Read {
    /// The tokens of a window with the scores that its rows `[n, width]` make.
    fn scored(&self, text: &dyn Text, window: &Window, rows: &[f32], width: usize) -> Vec<Scored> {
        let letters = Letters::new(&self.text);
        let continues = text.continuing_prefix();
        let mut tokens = Vec::with_capacity(window.tokens.len());
        for (at, idx, offsets, id) in &window.tokens {
            let row = rows.get(at * width..(at + 1) * width).unwrap_or_default();
            let (start, end) = match &self.words {
                None => letters.range(*offsets),
                Some(starts) => self.in_word(starts, *idx, *offsets),
            };
            let mut word = text.id_to_token(*id).unwrap_or_default();
            let shown = letters.slice(start, end);
            let mut is_inner = if continues {
                word.chars().count() != shown.chars().count()
            } else {
                start > 0 && !letters.slice(start - 1, start + 1).contains(' ')
            };
            if Some(*id) == text.unknown() {
                shown.clone_into(&mut word);
                is_inner = false;
            }
            let scores = softmax(row);
            tokens.push(Scored { word, scores, start, end, index: *at, is_inner });
        }
        tokens
    }

    /// The letters of a token whose bytes are counted from the start of its word.
    fn in_word(
        &self,
        starts: &[usize],
        idx: usize,
        (start, end): (usize, usize),
    ) -> (usize, usize) {
        let word = self.encoded.words.get(idx).copied().flatten().map_or(0, |word| word as usize);
        let first = starts.get(word).copied().unwrap_or_default();
        let letters = Letters::new(&self.text);
        let n_left = self.text.chars().count().saturating_sub(first);
        let own = Letters::new(letters.slice(first, first + n_left));
        let (start, end) = own.range((start, end));
        (first + start, first + end)
    }
}
