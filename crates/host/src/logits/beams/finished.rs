//! The best finished texts of a beam search.

use drivetrain_engine::TokenId;

use crate::FinishReason;
use crate::scheduler::Choice;

/// How a text ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct End {
    pub(super) finish: FinishReason,
    /// The stop string, by its place in the list.
    pub(super) stop: Option<usize>,
}

impl End {
    pub(super) fn of(finish: FinishReason) -> Self {
        Self { finish, stop: None }
    }
}

#[derive(Clone, Debug)]
struct Text {
    score: f64,
    /// The new ids.
    ids: Vec<TokenId>,
    end: End,
}

/// The best finished texts, best first, at most as many as there are slots.
#[derive(Clone, Debug)]
pub(super) struct Finished {
    texts: Vec<Text>,
    n_slots: usize,
}

impl Finished {
    pub(super) fn new(n_slots: usize) -> Self {
        Self { texts: Vec::with_capacity(n_slots), n_slots }
    }

    /// Whether every slot has a text.
    pub(super) fn is_full(&self) -> bool {
        self.texts.len() >= self.n_slots
    }

    /// The worst text's score, if every slot has one.
    pub(super) fn worst(&self) -> Option<f64> {
        self.texts.last().filter(|_| self.is_full()).map(|text| text.score)
    }

    /// Takes the text `ids`, and `token` after it, if there is an empty slot or it is better than the
    /// worst.
    pub(super) fn add(&mut self, score: f64, ids: &[TokenId], token: Option<TokenId>, end: End) {
        if score.is_nan() || self.worst().is_some_and(|worst| score <= worst) {
            return;
        }
        let mut buffer = match self.is_full() {
            true => self.texts.pop().map(|text| text.ids).unwrap_or_default(),
            false => Vec::new(),
        };
        buffer.clear();
        buffer.extend_from_slice(ids);
        buffer.extend(token);
        let place = self.texts.partition_point(|text| text.score >= score);
        self.texts.insert(place, Text { score, ids: buffer, end });
    }

    /// Takes the texts of `other` as well, however many they are.
    pub(super) fn merge(&mut self, other: Self) {
        self.n_slots += other.n_slots;
        self.texts.extend(other.texts);
        self.texts.sort_by(|a, b| b.score.total_cmp(&a.score));
    }

    /// What stands for a text that is missing.
    pub(super) fn missing(score: f32) -> Choice {
        let finish = FinishReason::Length;
        Choice { ids: Vec::new(), finish, stop: None, score: Some(score), logprob: 0.0 }
    }

    /// The best `n` as choices.
    pub(super) fn into_choices(self, n: usize) -> Vec<Choice> {
        let choice = |text: Text| Choice {
            ids: text.ids,
            finish: text.end.finish,
            stop: text.end.stop,
            score: Some(text.score as f32),
            logprob: 0.0,
        };
        self.texts.into_iter().take(n).map(choice).collect()
    }
}
