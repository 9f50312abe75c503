//! Calls that have to fail, say why, and change nothing.

use std::path::Path;

use drivetrain_engine::{AdapterId, EngineError, ErrorKind, ModelKind, SeqId, Wanted};

use super::results::{Available, forms};
use super::{needs_cache, needs_sequences};
use crate::compare::difference;
use crate::driver::{Driver, Pass, Piece, Text};
use crate::suite::{Context, Stop, Verdict, describe, ensure, unless};

/// A sequence that other calls must leave alone, and what it holds.
struct Bystander {
    sequence: SeqId,
    /// All but the last token is cached.
    text: Text,
}

impl Bystander {
    fn len(&self) -> u32 {
        self.text.tokens.len() as u32 - 1
    }
}

/// A call that has to be refused.
type WrongCall<'a> = &'a dyn Fn(&mut Driver, &Bystander) -> Result<(), EngineError>;

/// Runs calls that are wrong, each of which has to be refused with `BadInput` and leave a sequence
/// beside it as it was.
fn refused(context: &mut Context<'_>, calls: &[(&str, WrongCall<'_>)]) -> Verdict {
    needs_cache(context)?;
    needs_sequences(context, 3)?;
    let Context { driver, random, .. } = context;
    let n_tokens = driver.longest(6, 3);
    if n_tokens < 4 {
        return Err(Stop::Skip("the model's sequences are too short".to_owned()));
    }
    let text = driver.text(random, n_tokens);
    let expected = driver.fresh(&text)?.split_off((n_tokens as usize - 1) * driver.width());
    for (what, call) in calls {
        let sequence = driver.begin(&text)?;
        let bystander = Bystander { sequence, text: text.clone() };
        driver.extend(sequence, 0, &text.tokens[..n_tokens as usize - 1])?;
        let alive = driver.model().n_sequences();
        match call(driver, &bystander) {
            Ok(()) => return Err(Stop::Fail(format!("{what} was accepted"))),
            Err(error) if error.kind() != ErrorKind::BadInput => {
                let found = describe(&error);
                return Err(Stop::Fail(format!("{what}: expected bad input, got {found}")));
            }
            Err(_) => {}
        }
        let found = driver.model().n_sequences();
        ensure(found == alive, || {
            format!("{what}: {found} sequences after it was refused, {alive} before")
        })?;
        let rows = driver
            .extend(sequence, n_tokens - 1, &text.tokens[n_tokens as usize - 1..])
            .map_err(|error| {
                let found = describe(&error);
                Stop::Fail(format!("{what}: the sequence beside it can't go on: {found}"))
            })?;
        unless(difference(&rows, &expected), format!("{what}: the sequence beside it"))?;
        driver.release(sequence);
    }
    Ok(None)
}

/// Runs a wrong segment after a right one of the bystander's, which must not be kept either.
fn forward(driver: &mut Driver, bystander: &Bystander, wrong: Piece) -> Result<(), EngineError> {
    let right = Piece {
        sequence: bystander.sequence,
        tokens: vec![0],
        position: bystander.len(),
        wanted: Wanted::Nothing,
    };
    driver.run(Pass::Forward, &[right, wrong]).map(drop)
}

fn piece(sequence: SeqId, position: u32) -> Piece {
    Piece { sequence, tokens: vec![0], position, wanted: Wanted::Nothing }
}

pub(super) fn unknown_adapter(context: &mut Context<'_>) -> Verdict {
    if !context.driver.info.has_adapters {
        return Err(Stop::Skip("the model has no adapters".to_owned()));
    }
    let unknown = AdapterId(u32::MAX - 1);
    refused(
        context,
        &[
            ("a segment through an adapter that was never loaded", &|driver, beside| {
                let sequence = driver.begin(&beside.text)?;
                driver.adapter = unknown;
                let end = driver.run(Pass::Forward, &[piece(sequence, 0)]).map(drop);
                driver.adapter = AdapterId::NONE;
                driver.release(sequence);
                end
            }),
            ("an adapter from a missing directory", &|driver, _| {
                driver.model().load_adapter(unknown, Path::new("/nonexistent/adapter"))
            }),
        ],
    )
}

pub(super) fn unknown_sequence(context: &mut Context<'_>) -> Verdict {
    refused(
        context,
        &[
            ("a decode step of a sequence that never was", &|driver, beside| {
                let unknown = driver.name();
                forward(driver, beside, piece(unknown, 3))
            }),
            ("a decode step of a released sequence", &|driver, beside| {
                let released = driver.begin(&beside.text)?;
                driver.extend(released, 0, &beside.text.tokens)?;
                driver.release(released);
                forward(driver, beside, piece(released, beside.len() + 1))
            }),
        ],
    )
}

pub(super) fn wrong_position(context: &mut Context<'_>) -> Verdict {
    // The second sequence is the wrong one, so that a batch has a right one too.
    fn on_another(
        driver: &mut Driver,
        beside: &Bystander,
        position: u32,
    ) -> Result<(), EngineError> {
        let other = driver.begin(&beside.text)?;
        driver.extend(other, 0, &beside.text.tokens[..2])?;
        let result = forward(driver, beside, piece(other, position));
        driver.release(other);
        // The count is compared with the one before the call.
        result
    }
    refused(
        context,
        &[
            ("a segment that leaves a gap", &|driver, beside| on_another(driver, beside, 3)),
            ("a segment over cached tokens", &|driver, beside| on_another(driver, beside, 1)),
            ("a prompt over a sequence that is alive", &|driver, beside| {
                on_another(driver, beside, 0)
            }),
            ("a segment far past its sequence", &|driver, beside| {
                on_another(driver, beside, u32::MAX)
            }),
        ],
    )
}

pub(super) fn wrong_token(context: &mut Context<'_>) -> Verdict {
    let wrong = |driver: &mut Driver, beside: &Bystander, token: u32| {
        let other = driver.begin(&beside.text)?;
        let wanted = Wanted::Nothing;
        let piece = Piece { sequence: other, tokens: vec![0, token], position: 0, wanted };
        let result = forward(driver, beside, piece);
        driver.release(other);
        result
    };
    let vocab = context.driver.info.vocab;
    if context.driver.info.kind == ModelKind::Encoder {
        let sequence = context.driver.name();
        let wanted = context.driver.all_rows();
        let piece = Piece { sequence, tokens: vec![vocab], position: 0, wanted };
        return match context.driver.run(Pass::Forward, &[piece]) {
            Err(error) if error.kind() == ErrorKind::BadInput => Ok(None),
            Err(error) => Err(Stop::Fail(format!("expected bad input, got {}", describe(&error)))),
            Ok(_) => Err(Stop::Fail(format!("token {vocab} of {vocab} was accepted"))),
        };
    }
    refused(
        context,
        &[
            ("the first id past the vocabulary", &|driver, beside| wrong(driver, beside, vocab)),
            ("the largest id there is", &|driver, beside| wrong(driver, beside, u32::MAX)),
        ],
    )
}

pub(super) fn missing_output(context: &mut Context<'_>) -> Verdict {
    let missing: Vec<Wanted> = forms(&context.driver.info)
        .into_iter()
        .filter(|(_, available)| *available == Available::No)
        .map(|(wanted, _)| wanted)
        .collect();
    if missing.is_empty() {
        return Err(Stop::Skip("the model has every output".to_owned()));
    }
    for wanted in missing {
        refused(
            context,
            &[(&format!("{wanted:?}"), &|driver, beside| {
                let other = driver.begin(&beside.text)?;
                let wrong = Piece { sequence: other, tokens: vec![0], position: 0, wanted };
                let result = forward(driver, beside, wrong);
                driver.release(other);
                result
            })],
        )?;
    }
    Ok(None)
}

pub(super) fn wrong_fork(context: &mut Context<'_>) -> Verdict {
    refused(
        context,
        &[
            ("a fork of an unknown sequence", &|driver, _| {
                let (from, to) = (driver.name(), driver.name());
                driver.model().fork(from, to, 0)
            }),
            ("a fork longer than its origin", &|driver, beside| {
                let to = driver.name();
                driver.model().fork(beside.sequence, to, beside.len() + 1)
            }),
            ("a fork onto a sequence that exists", &|driver, beside| {
                driver.model().fork(beside.sequence, beside.sequence, 1)
            }),
        ],
    )
}

pub(super) fn wrong_truncation(context: &mut Context<'_>) -> Verdict {
    refused(
        context,
        &[
            ("a truncation of an unknown sequence", &|driver, _| {
                let unknown = driver.name();
                driver.model().truncate(unknown, 0)
            }),
            ("a truncation to more than there is", &|driver, beside| {
                driver.model().truncate(beside.sequence, beside.len() + 1)
            }),
        ],
    )
}
