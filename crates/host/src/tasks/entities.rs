//! From scores of tokens to entities.
//!
//! Source: transformers 4.57, `pipelines/token_classification.py`.

use serde_json::{Value, json};

use super::classify::argmax;
use super::facts::Facts;
use super::text::Text;
use crate::HostError;

/// How tokens become entities.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Strategy {
    /// They do not: each token is told.
    None,
    /// Neighbours of one kind are one.
    Simple,
    /// As before, after each word has got its first token's label.
    First,
    /// The same with the label of the largest score.
    Max,
    /// The same with the label of the largest mean score.
    Average,
}

/// A token with its scores.
#[derive(Clone, Debug)]
pub(super) struct Scored {
    /// As the vocabulary writes it.
    pub(super) word: String,
    pub(super) scores: Vec<f64>,
    /// Letters of the text.
    pub(super) start: usize,
    pub(super) end: usize,
    /// Its place among the model's tokens.
    pub(super) index: usize,
    /// Whether it goes on with the word before.
    pub(super) is_inner: bool,
}

/// A token, a word or several of one kind.
#[derive(Clone, Debug)]
pub(super) struct Entity {
    label: String,
    score: f64,
    word: String,
    pub(super) start: usize,
    end: usize,
    /// Only of a token.
    index: Option<usize>,
    is_group: bool,
}

impl Entity {
    /// As the pipeline tells it.
    pub(super) fn told(&self) -> Value {
        let Self { label, score, word, start, end, index, is_group } = self;
        match (is_group, index) {
            (false, Some(index)) => json!({"entity": label, "score": score, "index": index,
                "word": word, "start": start, "end": end}),
            _ => json!({"entity_group": label, "score": score, "word": word, "start": start,
                "end": end}),
        }
    }
}

/// The entities of a window of a text.
pub(super) fn entities(
    text: &dyn Text,
    facts: &Facts,
    tokens: Vec<Scored>,
    strategy: Strategy,
    ignored: &[String],
) -> Result<Vec<Entity>, HostError> {
    let parts: Vec<Entity> = match strategy {
        Strategy::None | Strategy::Simple => {
            tokens.into_iter().map(|token| of_token(facts, token)).collect()
        }
        _ => words(text, facts, tokens, strategy)?,
    };
    let mut all = match strategy {
        Strategy::None => parts,
        _ => groups(text, parts)?,
    };
    all.retain(|entity| !ignored.contains(&entity.label));
    Ok(all)
}

fn of_token(facts: &Facts, token: Scored) -> Entity {
    let best = argmax(&token.scores);
    Entity {
        label: facts.label(best),
        score: token.scores.get(best).copied().unwrap_or_default(),
        word: token.word,
        start: token.start,
        end: token.end,
        index: Some(token.index),
        is_group: false,
    }
}

/// One entity for each word, so that its tokens agree.
fn words(
    text: &dyn Text,
    facts: &Facts,
    tokens: Vec<Scored>,
    strategy: Strategy,
) -> Result<Vec<Entity>, HostError> {
    let mut words: Vec<Vec<Scored>> = Vec::new();
    for token in tokens {
        match words.last_mut() {
            Some(word) if token.is_inner => word.push(token),
            _ => words.push(vec![token]),
        }
    }
    words.iter().map(|word| of_word(text, facts, word, strategy)).collect()
}

fn of_word(
    text: &dyn Text,
    facts: &Facts,
    tokens: &[Scored],
    strategy: Strategy,
) -> Result<Entity, HostError> {
    let best = |token: &Scored| token.scores.get(argmax(&token.scores)).copied().unwrap_or(0.0);
    let scores: Vec<f64> = match strategy {
        Strategy::Max => {
            let mut most = tokens.first();
            for token in tokens {
                if most.is_some_and(|most| best(token) > best(most)) {
                    most = Some(token);
                }
            }
            most.map(|token| token.scores.clone()).unwrap_or_default()
        }
        Strategy::Average => {
            let n = tokens.first().map_or(0, |token| token.scores.len());
            let of = |token: &Scored, idx: usize| token.scores.get(idx).copied().unwrap_or(0.0);
            let mean = |idx| tokens.iter().map(|t| of(t, idx)).sum::<f64>() / tokens.len() as f64;
            (0..n).map(mean).collect()
        }
        _ => tokens.first().map(|token| token.scores.clone()).unwrap_or_default(),
    };
    let label = argmax(&scores);
    let pieces: Vec<&str> = tokens.iter().map(|token| token.word.as_str()).collect();
    Ok(Entity {
        label: facts.label(label),
        score: scores.get(label).copied().unwrap_or_default(),
        word: text.join(&pieces)?,
        start: tokens.first().map_or(0, |token| token.start),
        end: tokens.last().map_or(0, |token| token.end),
        index: None,
        is_group: false,
    })
}

/// Neighbours of one kind as one; `B-` begins a new one.
fn groups(text: &dyn Text, parts: Vec<Entity>) -> Result<Vec<Entity>, HostError> {
    let mut groups: Vec<Vec<Entity>> = Vec::new();
    for part in parts {
        let (begins, kind) = tag(&part.label);
        let goes_on = groups.last().and_then(|group| group.last()).is_some_and(|last| {
            let (_, last_kind) = tag(&last.label);
            last_kind == kind && !begins
        });
        match groups.last_mut() {
            Some(group) if goes_on => group.push(part),
            _ => groups.push(vec![part]),
        }
    }
    groups.iter().map(|group| of_group(text, group)).collect()
}

fn of_group(text: &dyn Text, group: &[Entity]) -> Result<Entity, HostError> {
    let first = group.first().map_or("", |first| first.label.as_str());
    let pieces: Vec<&str> = group.iter().map(|part| part.word.as_str()).collect();
    Ok(Entity {
        label: first.split_once('-').map_or(first, |(_, kind)| kind).to_owned(),
        score: group.iter().map(|part| part.score).sum::<f64>() / group.len() as f64,
        word: text.join(&pieces)?,
        start: group.first().map_or(0, |part| part.start),
        end: group.last().map_or(0, |part| part.end),
        index: None,
        is_group: true,
    })
}

/// Whether a label begins an entity, and of which kind it is.
fn tag(label: &str) -> (bool, &str) {
    match label.strip_prefix("B-") {
        Some(kind) => (true, kind),
        None => (false, label.strip_prefix("I-").unwrap_or(label)),
    }
}

/// Of entities from windows that overlap, the longer ones, and of equally long ones those of the
/// larger score.
pub(super) fn without_overlaps(mut entities: Vec<Entity>) -> Vec<Entity> {
    entities.sort_by_key(|entity| entity.start);
    let mut all: Vec<Entity> = Vec::with_capacity(entities.len());
    for entity in entities {
        match all.last_mut() {
            Some(last) if last.start <= entity.start && entity.start < last.end => {
                let (own, other) = (entity.end - entity.start, last.end - last.start);
                if own > other || (own == other && entity.score > last.score) {
                    *last = entity;
                }
            }
            _ => all.push(entity),
        }
    }
    all
}
