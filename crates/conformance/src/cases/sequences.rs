//! The life of a sequence: born, grown, forked, cut, released.

use drivetrain_engine::{SeqId, TokenId};

use super::{needs_cache, needs_sequences};
use crate::compare::difference;
use crate::driver::{Driver, Rows, Text};
use crate::suite::{Context, Stop, Verdict, describe, ensure, unless};

pub(super) fn lifecycle(context: &mut Context<'_>) -> Verdict {
    let driver = &mut *context.driver;
    alive(driver, 0, "before the first call")?;
    let longest = driver.longest(6, 2);
    if needs_cache(context).is_err() {
        let Context { driver, random, .. } = context;
        let text = driver.text(random, longest);
        let sequence = driver.begin(&text)?;
        driver.extend(sequence, 0, &text.tokens)?;
        return alive(driver, 0, "after a call of an encoder, which leaves nothing");
    }
    let Context { driver, random, .. } = context;
    let text = driver.text(random, longest);
    let first = driver.begin(&text)?;
    driver.extend(first, 0, &text.tokens)?;
    alive(driver, 1, "after one prompt")?;
    if driver.info.max_sequences > 1 {
        let second = driver.begin(&text)?;
        driver.extend(second, 0, &text.tokens)?;
        alive(driver, 2, "after two prompts")?;
        driver.release(second);
        alive(driver, 1, "after one of two was released")?;
    }
    driver.release(first);
    alive(driver, 0, "after all were released")?;
    driver.release(first);
    let unknown = driver.name();
    driver.release(unknown);
    alive(driver, 0, "after releases of sequences that are not there")
}

fn alive(driver: &mut Driver, expected: usize, when: &str) -> Verdict {
    // A release returns no error: what went wrong in one is told by the next call that can.
    driver.model().health()?;
    let found = driver.model().n_sequences();
    ensure(found == expected, || format!("{found} sequences {when}: expected {expected}"))?;
    Ok(None)
}

/// Checks that `sequence`, which holds all but the last `n` tokens of `text`, goes on as one that
/// was made of them at once.
fn goes_on(
    driver: &mut Driver,
    sequence: SeqId,
    text: &Text,
    n: usize,
    what: &str,
) -> Result<(), Stop> {
    let position = text.tokens.len() - n;
    let found = driver
        .extend(sequence, position as u32, &text.tokens[position..])
        .map_err(|error| Stop::Fail(format!("{what}: {}", describe(&error))))?;
    let expected: Rows = driver.fresh(text)?.split_off(position * driver.width());
    unless(difference(&found, &expected), what)
}

fn joined(text: &Text, n_kept: usize, rest: &[TokenId]) -> Text {
    let tokens = [&text.tokens[..n_kept], rest].concat();
    Text { source: text.source.clone(), tokens }
}

pub(super) fn fork(context: &mut Context<'_>) -> Verdict {
    needs_cache(context)?;
    needs_sequences(context, 5)?;
    let Context { driver, random, .. } = context;
    let n_tokens = driver.longest(20, 5).saturating_sub(4);
    if n_tokens < 2 {
        return Err(Stop::Skip("the model's sequences are too short to fork".to_owned()));
    }
    let vocab = driver.info.vocab;
    for _ in 0..4 {
        let text = driver.text(random, n_tokens);
        let cut = random.between(1, n_tokens - 1) as usize;
        let (more, other) = (random.tokens(3, vocab), random.tokens(3, vocab));
        let from = driver.begin(&text)?;
        driver.extend(from, 0, &text.tokens)?;
        let short = driver.fork(from, cut as u32)?;
        let full = driver.fork(from, n_tokens)?;
        let none = driver.fork(from, 0)?;
        let what = format!("a fork at {cut} of {n_tokens} tokens");
        goes_on(driver, short, &joined(&text, cut, &other), 3, &what)?;
        goes_on(driver, full, &joined(&text, text.tokens.len(), &other), 3, "a fork of it all")?;
        let what = "the sequence forked from, after its forks had grown";
        goes_on(driver, from, &joined(&text, text.tokens.len(), &more), 3, what)?;
        driver.release(from);
        goes_on(driver, none, &joined(&text, 0, &other), 3, "a fork of no tokens")?;
        let grown = joined(&joined(&text, cut, &other), cut + 3, &more[..1]);
        goes_on(driver, short, &grown, 1, "a fork whose origin was released")?;
        for sequence in [short, full, none] {
            driver.release(sequence);
        }
        alive(driver, 0, "after a sequence and its forks were released")?;
    }
    Ok(None)
}

pub(super) fn truncate(context: &mut Context<'_>) -> Verdict {
    needs_cache(context)?;
    needs_sequences(context, 2)?;
    let Context { driver, random, .. } = context;
    let n_tokens = driver.longest(20, 3).saturating_sub(3);
    if n_tokens < 2 {
        return Err(Stop::Skip("the model's sequences are too short to cut".to_owned()));
    }
    let vocab = driver.info.vocab;
    for round in 0..5 {
        let text = driver.text(random, n_tokens);
        let kept = if round == 0 { 0 } else { random.between(1, n_tokens - 1) as usize };
        let rest = random.tokens(3, vocab);
        let sequence = driver.begin(&text)?;
        driver.extend(sequence, 0, &text.tokens)?;
        driver.model().truncate(sequence, kept as u32)?;
        let what = format!("a sequence cut from {n_tokens} tokens to {kept}");
        goes_on(driver, sequence, &joined(&text, kept, &rest), 3, &what)?;
        let len = kept as u32 + 3;
        driver.model().truncate(sequence, len)?;
        driver.model().truncate(sequence, len - 1)?;
        let again = joined(&joined(&text, kept, &rest), kept + 2, &rest[..1]);
        goes_on(driver, sequence, &again, 1, "a sequence cut twice")?;
        driver.release(sequence);
    }
    alive(driver, 0, "after all were released")
}
