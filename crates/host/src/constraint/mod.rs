//! What a text has to follow, a token at a time: JSON schemas, regular expressions, choices.
//!
//! Grammars are compiled and followed by the crate llguidance, which says for each step which tokens
//! may come next, as one bit a token. That takes up to some milliseconds, so a small pool of threads
//! does it while the engine computes: [`Constraint::begin`], then [`Constraint::apply`]. A grammar
//! that costs too much is stopped by llguidance's own limits and ends its request.

mod grammars;
mod pool;

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use drivetrain_engine::{EngineError, TokenId};
use llguidance::Matcher;
use llguidance::api::StopReason;
use serde_json::Value;
use toktrie::SimpleVob;

pub(crate) use grammars::Grammars;

/// What a text has to follow, as a request says it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Grammar {
    /// Some JSON object.
    JsonObject,
    /// JSON that keeps to a schema.
    JsonSchema(Value),
    /// A regular expression, over the whole text.
    Regex(String),
    /// One of these texts.
    Choice(Vec<String>),
    /// A grammar in llguidance's form of Lark.
    Lark(String),
}

/// Where one choice stands in its grammar. Copies share what the grammar's lexer has learnt.
pub(crate) struct Constraint(Arc<Desk>);

/// Where a matcher lies while no thread works with it.
#[derive(Default)]
struct Desk {
    place: Mutex<Place>,
    is_back: Condvar,
}

#[derive(Default)]
struct Place {
    /// None while a thread of the pool has it.
    matcher: Option<Matcher>,
    /// What may come next, once that was computed.
    mask: Option<Result<SimpleVob, String>>,
}

impl Desk {
    fn lock(&self) -> MutexGuard<'_, Place> {
        self.place.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until the matcher lies here.
    fn wait(&self) -> MutexGuard<'_, Place> {
        let waited = self.is_back.wait_while(self.lock(), |place| place.matcher.is_none());
        waited.unwrap_or_else(PoisonError::into_inner)
    }

    fn put_back(&self, matcher: Matcher, mask: Result<SimpleVob, String>) {
        let mut place = self.lock();
        place.matcher = Some(matcher);
        place.mask = Some(mask);
        self.is_back.notify_all();
    }
}

impl Constraint {
    fn new(matcher: Matcher) -> Self {
        let place = Place { matcher: Some(matcher), mask: None };
        Self(Arc::new(Desk { place: Mutex::new(place), is_back: Condvar::new() }))
    }

    /// Begins to compute, on another thread, which tokens may come next; called as soon as that is
    /// settled, so that it is done while the engine computes.
    pub(crate) fn begin(&mut self) {
        let mut place = self.0.lock();
        if place.mask.is_some() {
            return;
        }
        let Some(mut matcher) = place.matcher.take() else { return };
        let desk = Arc::clone(&self.0);
        pool::run(Box::new(move || {
            let mask = compute(&mut matcher);
            desk.put_back(matcher, mask);
        }));
    }

    /// Sets the scores of tokens that may not come next to minus infinity; waits for [`Self::begin`].
    ///
    /// # Errors
    /// The grammar was stopped for its cost.
    pub(crate) fn apply(&mut self, scores: &mut [f32]) -> Result<(), EngineError> {
        let mut place = self.0.wait();
        let Place { matcher, mask } = &mut *place;
        let Some(matcher) = matcher else { return Err(EngineError::internal("no matcher")) };
        match mask.get_or_insert_with(|| compute(matcher)) {
            Ok(mask) => {
                keep_only(mask.as_slice(), scores);
                Ok(())
            }
            Err(reason) => Err(stopped(reason)),
        }
    }

    /// Goes past `id`; `true` if the text is complete and nothing may follow.
    ///
    /// # Errors
    /// The token may not come here.
    pub(crate) fn advance(&mut self, id: TokenId) -> Result<bool, EngineError> {
        let mut place = self.0.wait();
        place.mask = None;
        let Some(matcher) = &mut place.matcher else {
            return Err(EngineError::internal("no matcher"));
        };
        guarded(|| matcher.consume_token(id).map_err(|error| short(&error.to_string())))
            .map_err(|reason| stopped(&reason))?;
        match matcher.stop_reason() {
            StopReason::NotStopped => Ok(false),
            StopReason::NoExtension | StopReason::NoExtensionBias | StopReason::EndOfSentence => {
                Ok(true)
            }
            other => Err(stopped(&format!("{other:?}"))),
        }
    }
}

impl Clone for Constraint {
    fn clone(&self) -> Self {
        let place = self.0.wait();
        let copy = Place { matcher: place.matcher.clone(), mask: place.mask.clone() };
        Self(Arc::new(Desk { place: Mutex::new(copy), is_back: Condvar::new() }))
    }
}

impl fmt::Debug for Constraint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Constraint").finish_non_exhaustive()
    }
}

fn compute(matcher: &mut Matcher) -> Result<SimpleVob, String> {
    guarded(|| matcher.compute_mask_or_eos().map_err(|error| short(&error.to_string())))
}

/// Calls into the library; a panic in it becomes an error. A matcher is not used again after one.
fn guarded<T>(call: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(call))
        .unwrap_or_else(|_| Err("the grammar library panicked".to_owned()))
}

fn stopped(reason: &str) -> EngineError {
    EngineError::bad_input(format!("the grammar can't be followed any further: {reason}"))
}

/// The first line of a message, bounded.
fn short(message: &str) -> String {
    const MAX_CHARS: usize = 300;
    message.lines().next().unwrap_or_default().chars().take(MAX_CHARS).collect()
}

/// Sets the scores whose bits are 0, or that have no bit, to minus infinity.
fn keep_only(mask: &[u32], scores: &mut [f32]) {
    let mut words = mask.iter();
    for block in scores.chunks_mut(32) {
        match words.next().copied().unwrap_or(0) {
            u32::MAX => {}
            0 => block.fill(f32::NEG_INFINITY),
            word => {
                for (bit, score) in block.iter_mut().enumerate() {
                    let is_kept = word >> bit & 1 == 1;
                    *score = if is_kept { *score } else { f32::NEG_INFINITY };
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
