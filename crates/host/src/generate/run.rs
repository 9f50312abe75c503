//! A generation under way.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use drivetrain_artifacts::DecodeStream;

use super::event::{Completion, Event, PromptInfo, TokenDetail};
use super::pipe::{Happened, Pipe};
use crate::activity::ActiveRequest;
use crate::model::DRAIN_GRACE;
use crate::scheduler::{Choice, Outcome};
use crate::tasks::TaskContext;
use crate::{FinishReason, HostError};

/// When a request came, and when it is of no use any more.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Term {
    pub(crate) submitted: Instant,
    pub(crate) deadline: Instant,
}

/// A generation under way: a stream of [`Event`]s. Dropping it cancels the work.
pub struct Generation {
    pub(crate) pipe: Pipe,
    pub(crate) prompts: Vec<PromptInfo>,
    pub(crate) tasks: Arc<TaskContext>,
    /// One for each prompt's single choice.
    pub(crate) streams: Vec<DecodeStream>,
    pub(crate) texts: Vec<String>,
    pub(crate) ready: VecDeque<Event>,
    pub(crate) term: Term,
    pub(crate) guard: ActiveRequest,
    pub(crate) is_over: bool,
}

impl Generation {
    /// The prompts as the model reads them, in the request's order.
    pub fn prompts(&self) -> &[PromptInfo] {
        &self.prompts
    }

    /// What happens next; `None` when every choice of every prompt is done. An error is the last.
    /// To be awaited in a tokio runtime with its timer.
    pub async fn next(&mut self) -> Option<Result<Event, HostError>> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Some(Ok(event));
            }
            if self.is_over {
                return None;
            }
            let deadline = self.term.deadline;
            let happened = tokio::select! {
                biased;
                happened = self.pipe.next() => happened,
                () = tokio::time::sleep_until(deadline.into()) => {
                    self.is_over = true;
                    return Some(Err(HostError::Timeout {
                        model: self.tasks.model().to_owned(),
                        waited: deadline.saturating_duration_since(self.term.submitted),
                    }));
                }
                () = self.guard.past_drain(DRAIN_GRACE) => {
                    self.is_over = true;
                    return Some(Err(HostError::ShuttingDown));
                }
            };
            match happened {
                None => self.is_over = true,
                Some(Happened::Failed(error)) => {
                    self.is_over = true;
                    return Some(Err(error));
                }
                Some(happened) => self.take(happened),
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

    fn take(&mut self, happened: Happened) {
        match happened {
            Happened::Token { item, choice, token, .. } => {
                let text = self
                    .streams
                    .get_mut(item)
                    .and_then(|stream| stream.push(token.id))
                    .unwrap_or_default();
                if let Some(whole) = self.texts.get_mut(item) {
                    whole.push_str(&text);
                }
                let token = TokenDetail {
                    id: token.id,
                    text: text.clone(),
                    bytes: text.clone().into_bytes(),
                    logprob: None,
                    is_special: false,
                    top: Vec::new(),
                };
                self.ready.push_back(Event::Token { prompt: item, choice, token, text });
            }
            Happened::Finished { item, outcome: Outcome::Generated(choices) } => {
                let rest =
                    self.streams.get_mut(item).and_then(DecodeStream::finish).unwrap_or_default();
                for (choice, Choice { ids, finish, score, .. }) in choices.into_iter().enumerate() {
                    let mut text = self.texts.get(item).cloned().unwrap_or_default();
                    text.push_str(&rest);
                    let completion = Completion {
                        prompt: item,
                        choice,
                        text,
                        full_text: None,
                        finish,
                        stop: None,
                        n_prompt_tokens: self.prompts.get(item).map_or(0, |p| p.ids.len()),
                        ids,
                        tokens: Vec::new(),
                        logprob: None,
                        score,
                        seed: None,
                    };
                    self.ready.push_back(Event::Done { text: rest.clone(), completion });
                }
            }
            Happened::Prompt { .. }
            | Happened::ChoiceFinished { .. }
            | Happened::Finished { .. } => {}
            Happened::Failed(_) => debug_assert!(false, "taken by the caller"),
        }
    }
}

impl fmt::Debug for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Generation").field("prompts", &self.prompts.len()).finish_non_exhaustive()
    }
}

/// Whether generation ended by itself.
impl FinishReason {
    /// Whether the model itself came to the end, by an end token or a stop string.
    pub fn is_natural(self) -> bool {
        matches!(self, Self::EndToken | Self::Stop)
    }
}
