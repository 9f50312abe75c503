//! Collects a job's outcomes into one answer.

use tokio::sync::oneshot;

use crate::HostError;
use crate::model::inbox::Place;
use crate::scheduler::{Outcome, Sink};

/// Sends all outcomes at once when the last one is there.
pub(crate) struct WholeSink {
    outcomes: Vec<Option<Outcome>>,
    n_open: usize,
    place: Option<Place>,
    answer: Option<oneshot::Sender<Result<Vec<Outcome>, HostError>>>,
}

impl WholeSink {
    pub(crate) fn new(
        n_items: usize,
        place: Place,
        answer: oneshot::Sender<Result<Vec<Outcome>, HostError>>,
    ) -> Self {
        let outcomes = (0..n_items).map(|_| None).collect();
        Self { outcomes, n_open: n_items, place: Some(place), answer: Some(answer) }
    }

    fn answer(&mut self, answer: Result<Vec<Outcome>, HostError>) {
        if let Some(sender) = self.answer.take() {
            // Whoever waited may have gone; then the answer is of no use.
            let _ = sender.send(answer);
        }
    }
}

impl Sink for WholeSink {
    fn is_closed(&self) -> bool {
        self.answer.as_ref().is_none_or(oneshot::Sender::is_closed)
    }

    fn started(&mut self) {
        self.place = None;
    }

    fn finished(&mut self, item: usize, outcome: Outcome) {
        if let Some(slot @ None) = self.outcomes.get_mut(item) {
            *slot = Some(outcome);
            self.n_open -= 1;
        }
        if self.n_open == 0 {
            let outcomes = std::mem::take(&mut self.outcomes).into_iter().flatten().collect();
            self.answer(Ok(outcomes));
        }
    }

    fn failed(&mut self, error: HostError) {
        self.answer(Err(error));
    }
}
