//! A generation under way.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use super::answers::Answers;
use super::event::{Completion, Event, PromptInfo};
use super::pipe::{Happened, Pipe};
use crate::activity::ActiveRequest;
use crate::model::{DRAIN_GRACE, Lifecycle};
use crate::{FinishReason, HostError};

/// When a request came, and when it is of no use any more.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Term {
    pub(crate) submitted: Instant,
    pub(crate) deadline: Instant,
}

/// A generation under way: a stream of [`Event`]s. Dropping it cancels the work.
pub struct Generation {
    pipe: Pipe,
    answers: Answers,
    ready: VecDeque<Event>,
    term: Term,
    guard: ActiveRequest,
    lifecycle: Arc<Lifecycle>,
    span: tracing::Span,
    /// How it ended, once it has.
    end: Option<&'static str>,
}

impl Generation {
    /// A generation whose events come through `pipe`; `id` is the request's, for logs.
    pub(crate) fn new(
        id: &str,
        pipe: Pipe,
        answers: Answers,
        term: Term,
        (guard, lifecycle): (ActiveRequest, Arc<Lifecycle>),
    ) -> Self {
        let span = tracing::debug_span!("request", id, model = answers.model());
        Self { pipe, answers, ready: VecDeque::new(), term, guard, lifecycle, span, end: None }
    }

    /// The prompts as the model reads them, in the request's order.
    pub fn prompts(&self) -> &[PromptInfo] {
        self.answers.prompts()
    }

    /// What happens next; `None` when every choice of every prompt is done. An error is the last.
    /// To be awaited in a tokio runtime with its timer.
    pub async fn next(&mut self) -> Option<Result<Event, HostError>> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Some(Ok(event));
            }
            if self.end.is_some() {
                return None;
            }
            if self.answers.are_done() {
                self.end = Some("done");
                return None;
            }
            let deadline = self.term.deadline;
            let happened = tokio::select! {
                biased;
                happened = self.pipe.next() => happened,
                () = tokio::time::sleep_until(deadline.into()) => {
                    return Some(Err(self.fail("too late", HostError::Timeout {
                        model: self.answers.model().to_owned(),
                        waited: deadline.saturating_duration_since(self.term.submitted),
                    })));
                }
                () = self.guard.past_drain(DRAIN_GRACE) => {
                    return Some(Err(self.fail("shut down", HostError::ShuttingDown)));
                }
            };
            if let Err(error) = self.take(happened) {
                return Some(Err(self.fail("failed", error)));
            }
        }
    }

    /// Waits for the end: all completions, by prompt and choice.
    ///
    /// # Errors
    /// As [`Self::next`].
    pub async fn finish(mut self) -> Result<Vec<Completion>, HostError> {
        let mut completions = Vec::new();
        while let Some(event) = self.next().await {
            if let Event::Done { completion, .. } = event? {
                completions.push(completion);
            }
        }
        completions.sort_by_key(|done| (done.prompt, done.choice));
        Ok(completions)
    }

    fn fail(&mut self, end: &'static str, error: HostError) -> HostError {
        self.end = Some(end);
        self.ready.clear();
        error
    }

    /// Turns what happened into events.
    fn take(&mut self, happened: Option<Happened>) -> Result<(), HostError> {
        let event = match happened.ok_or_else(|| self.lifecycle.lost())? {
            Happened::Failed(error) => return Err(error),
            Happened::Prompt { item, tokens } => self.answers.prompt(item, &tokens),
            Happened::Token { item, choice, token, top } => {
                self.answers.token(item, choice, token, &top)
            }
            Happened::ChoiceFinished { item, choice, finish, stop } => {
                self.answers.choice_finished(item, choice, finish, stop)?
            }
            Happened::Finished { item, outcome } => {
                self.answers.finished(item, outcome, &mut self.ready)?;
                None
            }
        };
        self.ready.extend(event);
        Ok(())
    }
}

impl Drop for Generation {
    fn drop(&mut self) {
        tracing::debug!(
            parent: &self.span,
            end = self.end.unwrap_or("nobody waits"),
            n_prompts = self.prompts().len(),
            n_prompt_tokens = self.prompts().iter().map(|prompt| prompt.ids.len()).sum::<usize>(),
            n_tokens = self.answers.n_tokens(),
            elapsed_ms = self.term.submitted.elapsed().as_millis() as u64,
            "the request has ended"
        );
    }
}

impl fmt::Debug for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Generation").field("prompts", &self.prompts().len()).finish_non_exhaustive()
    }
}

impl FinishReason {
    /// Whether the model itself came to the end, by an end token or a stop string.
    pub fn is_natural(self) -> bool {
        matches!(self, Self::EndToken | Self::Stop)
    }
}
