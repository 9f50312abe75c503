//! `question-answering`: the spans of a context that answer a question; a long context is read in
//! windows that overlap.
//!
//! Source: transformers 4.57, `pipelines/question_answering.py`.

use serde_json::{Map, Value, json};

use super::classify::{check_finite, logits};
use super::context::{Budget, Prepared, TaskContext};
use super::input::field;
use super::parts::{Input as Tokens, Letters, Parts};
use super::spans::{Search, best_spans};
use super::text::Encoded;
use super::{Input, TaskReply, TaskRequest};
use crate::HostError;
use crate::logits::Params;
use crate::scheduler::{Outcome, Work};

/// Most questions of one request.
const MAX_QUESTIONS: usize = 4096;
/// Most answers to a question.
const MAX_ANSWERS: u32 = 1000;
/// Longest answer in tokens; longer ones that are asked for are not looked for.
const MAX_ANSWER_LEN: u32 = 4096;
/// What the pipeline reads of a question and its context at once, where nothing else is said.
const USUAL_LENGTH: usize = 384;
/// Tokens that its windows have in common, where nothing else is said.
const USUAL_STRIDE: usize = 128;

/// What is asked of all questions.
#[derive(Clone, Copy)]
struct Asked {
    n_answers: usize,
    max_answer: usize,
    may_be_impossible: bool,
    aligns: bool,
    max_length: usize,
    stride: usize,
    /// Which of the two texts the context is.
    context_text: usize,
}

/// A question's context, and what the model read of it.
struct Read {
    context: String,
    encoded: Encoded,
    windows: Vec<Tokens>,
}

struct Answer {
    score: f64,
    start: usize,
    end: usize,
    text: String,
}

pub(super) fn prepare(
    context: &TaskContext,
    request: &TaskRequest,
    params: Params<'_>,
) -> Result<(Vec<Work>, Prepared), HostError> {
    let asked = asked(context, params)?;
    let examples = examples(&request.inputs)?;
    let limit = context.max_input();
    let mut budget = Budget::new(0);
    let (mut works, mut reads) = (Vec::new(), Vec::new());
    for (idx, (question, about)) in examples.iter().enumerate() {
        let place =
            if examples.len() == 1 { "the question".to_owned() } else { format!("question {idx}") };
        context.bounded_to(&place, question, limit, false)?;
        context.bounded_to(&place, about, 1 << 16, false)?;
        let (first, second) =
            if asked.context_text == 1 { (question, about) } else { (about, question) };
        let parts = Parts::pair(context.text.as_ref(), first, second)?;
        let windows =
            parts.windows(asked.context_text, asked.max_length, asked.stride).map_err(|room| {
                HostError::bad_request(format!(
                    "{place}: the question and the special tokens leave {} tokens of \
                     max_seq_len={} for the context, and doc_stride={} has to be less: ask \
                     shorter, lower parameters.doc_stride or raise parameters.max_seq_len",
                    room.max(0),
                    asked.max_length,
                    asked.stride
                ))
            })?;
        let mut windows = windows;
        parts.untrim(&mut windows, asked.context_text, context.text.as_ref());
        for window in &windows {
            context.check_length(&place, window.ids.len(), limit)?;
            budget.take(idx, window.ids.len())?;
            works.push(context.rows(window.clone(), None)?);
        }
        let encoded = parts.encoded().clone();
        reads.push(Read { context: (*about).to_owned(), encoded, windows });
    }
    let cls = context.text.cls();
    let finish = move |outcomes: Vec<Outcome>| {
        let mut outcomes = outcomes.into_iter();
        let mut all = Vec::with_capacity(reads.len());
        for read in &reads {
            let own = outcomes.by_ref().take(read.windows.len()).map(logits);
            let rows = own.collect::<Result<Vec<_>, _>>()?;
            let rows: Vec<Vec<f32>> = rows.into_iter().map(|(_, values)| values).collect();
            rows.iter().try_for_each(|row| check_finite("a question", row))?;
            all.push(read.answers(&rows, &asked, cls));
        }
        // Several answers to one question are a list already.
        Ok(TaskReply::Document(match all.as_mut_slice() {
            [Value::Array(answers)] => Value::Array(std::mem::take(answers)),
            _ => Value::Array(all),
        }))
    };
    Ok((works, Prepared::finished_by(finish)))
}

fn asked(context: &TaskContext, params: Params<'_>) -> Result<Asked, HostError> {
    let whole = |name: &str, low: u32| params.whole(name, low);
    let n_answers = whole("top_k", 1)?.or(whole("topk", 1)?).unwrap_or(1);
    if n_answers > MAX_ANSWERS {
        return Err(HostError::bad_request(format!(
            "parameters.top_k={n_answers}: expected {MAX_ANSWERS} at most"
        )));
    }
    let limit = context.max_input();
    let usual = context.text.max_length().map_or(USUAL_LENGTH, |n| n.min(USUAL_LENGTH));
    let max_length = whole("max_seq_len", 1)?.map_or(usual.min(limit), |n| n as usize);
    let stride =
        whole("doc_stride", 0)?.map_or_else(|| (max_length / 2).min(USUAL_STRIDE), |n| n as usize);
    if stride > max_length || max_length > limit {
        return Err(HostError::bad_request(format!(
            "parameters.max_seq_len={max_length} and parameters.doc_stride={stride}: expected a \
             stride of no more than the length, and a length of {limit} at most"
        )));
    }
    Ok(Asked {
        n_answers: n_answers as usize,
        max_answer: whole("max_answer_len", 1)?.unwrap_or(15).min(MAX_ANSWER_LEN) as usize,
        may_be_impossible: params.flag("handle_impossible_answer")?.unwrap_or(false),
        aligns: params.flag("align_to_words")?.unwrap_or(true),
        max_length,
        stride,
        context_text: usize::from(context.facts.question_first),
    })
}

/// The questions with their contexts.
fn examples(inputs: &[Input]) -> Result<Vec<(&str, &str)>, HostError> {
    let mut all = Vec::new();
    for (idx, input) in inputs.iter().enumerate() {
        let place = format!("inputs[{idx}]");
        let Input::Object(map) = input else {
            return Err(HostError::bad_request(format!(
                "{place} is no object: give {{\"question\": .., \"context\": ..}}, or a list of \
                 such objects"
            )));
        };
        if let Some(other) = map.keys().find(|key| *key != "question" && *key != "context") {
            return Err(HostError::bad_request(format!(
                "{place} has the key {other:?}: expected question and context"
            )));
        }
        of_object(&place, map, &mut all)?;
        if all.len() > MAX_QUESTIONS {
            return Err(HostError::bad_request(format!(
                "{} questions: expected {MAX_QUESTIONS} at most in one request",
                all.len()
            )));
        }
    }
    Ok(all)
}

/// One question, or several of one context or of as many.
fn of_object<'a>(
    place: &str,
    map: &'a Map<String, Value>,
    all: &mut Vec<(&'a str, &'a str)>,
) -> Result<(), HostError> {
    let list = |name: &str| match map.get(name) {
        Some(Value::Array(list)) => {
            let texts = list.iter().map(Value::as_str).collect::<Option<Vec<&str>>>();
            texts.map(Some).ok_or_else(|| {
                HostError::bad_request(format!("{place}.{name}: expected strings in the list"))
            })
        }
        _ => Ok(None),
    };
    let before = all.len();
    match (list("question")?, list("context")?) {
        (None, None) => {
            all.push((field(place, map, "question")?, field(place, map, "context")?));
        }
        (Some(questions), None) => {
            let context = field(place, map, "context")?;
            all.extend(questions.into_iter().map(|question| (question, context)));
        }
        (Some(questions), Some(contexts)) if questions.len() == contexts.len() => {
            all.extend(questions.into_iter().zip(contexts));
        }
        _ => {
            return Err(HostError::bad_request(format!(
                "{place}: expected as many questions as contexts, or one context"
            )));
        }
    }
    let new = all.get(before..).unwrap_or_default();
    if new.is_empty() || new.iter().any(|(question, about)| question.is_empty() || about.is_empty())
    {
        return Err(HostError::bad_request(format!(
            "{place}: question and context may not be empty"
        )));
    }
    Ok(())
}

impl Read {
    /// The best answers: an object if there is one, else a list.
    fn answers(&self, rows: &[Vec<f32>], asked: &Asked, cls: Option<u32>) -> Value {
        let mut answers: Vec<Answer> = Vec::new();
        let mut least_null = f64::INFINITY;
        let letters = Letters::new(&self.context);
        for (window, rows) in self.windows.iter().zip(rows) {
            let search = Search {
                // Some candidates may fall together where answers are aligned to words.
                n_spans: if asked.aligns { asked.n_answers * 2 + 10 } else { asked.n_answers },
                max_len: asked.max_answer,
            };
            let open: Vec<bool> = window
                .origins
                .iter()
                .zip(&window.ids)
                .map(|(origin, id)| {
                    origin.text == Some(asked.context_text) || (cls.is_some() && cls == Some(*id))
                })
                .collect();
            let (spans, null) = best_spans(rows, &open, search);
            least_null = least_null.min(null);
            for span in spans {
                let (start, end) = self.place(window, (span.start, span.end), asked, &letters);
                let text = letters.slice(start, end);
                let lower = text.to_lowercase();
                let known = answers.iter_mut().find(|answer| answer.text.to_lowercase() == lower);
                match known {
                    Some(answer) => answer.score += span.score,
                    None => {
                        answers.push(Answer {
                            score: span.score,
                            start,
                            end,
                            text: text.to_owned(),
                        });
                    }
                }
            }
        }
        if asked.may_be_impossible {
            let text = String::new();
            answers.push(Answer { score: least_null, start: 0, end: 0, text });
        }
        answers.sort_by(|a, b| b.score.total_cmp(&a.score));
        answers.truncate(asked.n_answers);
        let told = |answer: &Answer| {
            json!({"score": answer.score, "start": answer.start, "end": answer.end,
                "answer": answer.text})
        };
        match answers.as_slice() {
            [one] => told(one),
            all => all.iter().map(told).collect(),
        }
    }

    /// The letters of a span of a window's tokens: of their words where answers are aligned.
    fn place(
        &self,
        window: &Tokens,
        (start, end): (usize, usize),
        asked: &Asked,
        letters: &Letters<'_>,
    ) -> (usize, usize) {
        let origin = |at: usize| window.origins.get(at).map_or(0, |origin| origin.idx);
        let offsets = |idx: usize| window.offsets(&self.encoded, idx);
        let (first, last) = (origin(start), origin(end));
        let plain = (letters.range(offsets(first)).0, letters.range(offsets(last)).1);
        if !asked.aligns {
            return plain;
        }
        let word = |idx: usize| self.encoded.words.get(idx).copied().flatten();
        let bounds = |word: u32| {
            // Of the context's tokens in this window that belong to the word.
            let mut own = window.origins.iter().filter(|origin| {
                origin.text == Some(asked.context_text)
                    && self.encoded.words.get(origin.idx).copied().flatten() == Some(word)
            });
            let first = own.next()?;
            let last = own.next_back().unwrap_or(first);
            Some((letters.range(offsets(first.idx)).0, letters.range(offsets(last.idx)).1))
        };
        let aligned = || Some((bounds(word(first)?)?.0, bounds(word(last)?)?.1));
        aligned().unwrap_or(plain)
    }
}
