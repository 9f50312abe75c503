//! Stated limits hold, and nothing leaks.

use std::time::{Duration, Instant};

use drivetrain_engine::{EngineError, ErrorKind, LoadedModel, ModelKind, SeqId, Wanted};

use super::{needs_cache, needs_sequences};
use crate::driver::{Driver, Pass, Piece};
use crate::memory::resident_bytes;
use crate::random::Random;
use crate::suite::{Context, Loader, Stop, Verdict, describe, ensure};

/// Tokens that a case fills at most, and how long it may take.
const MOST_TOKENS: u64 = 1 << 19;
const MOST_TIME: Duration = Duration::from_secs(20);
/// Sequences that a case makes at most.
const MOST_SEQUENCES: u32 = 4096;
const CHUNK: u32 = 512;
/// Growth that is no leak: the allocator's own slack, and what threads keep.
const SLACK_BYTES: u64 = 8 << 20;

/// Appends `n` tokens in chunks, wanting nothing; `None` once `since` is too long ago.
fn fill(
    driver: &mut Driver,
    random: &mut Random,
    sequence: SeqId,
    n: u32,
    since: Instant,
) -> Result<Option<()>, EngineError> {
    let (mut position, chunk) = (0, CHUNK.min(driver.info.max_batch_tokens));
    while position < n {
        if since.elapsed() > MOST_TIME {
            return Ok(None);
        }
        let tokens = random.tokens(chunk.min(n - position), driver.info.vocab);
        let n_tokens = tokens.len() as u32;
        let wanted = Wanted::Nothing;
        driver.run(Pass::Forward, &[Piece { sequence, tokens, position, wanted }])?;
        position += n_tokens;
    }
    Ok(Some(()))
}

pub(super) fn max_positions(context: &mut Context<'_>) -> Verdict {
    let Context { driver, random, .. } = context;
    let (info, start) = (driver.info, Instant::now());
    let most = u64::from(info.max_positions);
    if most > 1 << 16 || (info.kind != ModelKind::Encoder && most > info.kv_capacity_tokens) {
        let reason = format!("{most} positions are more than this case or the cache holds");
        return Err(Stop::Skip(reason));
    }
    let text = driver.text(random, 1);
    let sequence = driver.begin(&text)?;
    let result = if info.kind == ModelKind::Encoder {
        let tokens = random.tokens(info.max_positions + 1, info.vocab);
        driver.extend(sequence, 0, &tokens)
    } else {
        if fill(driver, random, sequence, info.max_positions, start)?.is_none() {
            let seconds = MOST_TIME.as_secs();
            return Err(Stop::Skip(format!("{most} positions took more than {seconds} s")));
        }
        driver.extend(sequence, info.max_positions, &[0])
    };
    match result {
        Ok(_) => Err(Stop::Fail(format!("token {} of {most} was accepted", most + 1))),
        Err(error) if error.kind() == ErrorKind::BadInput => Ok(None),
        Err(error) => Err(Stop::Fail(format!("expected bad input, got {}", describe(&error)))),
    }
}

/// A sequence past a limit may work, or be refused for want of memory.
fn past_the_limit(result: Result<(), EngineError>) -> Result<(), Stop> {
    match result {
        Err(error) if error.kind() != ErrorKind::OutOfMemory => {
            let found = describe(&error);
            Err(Stop::Fail(format!("past the limit: expected out of memory, got {found}")))
        }
        _ => Ok(()),
    }
}

pub(super) fn max_sequences(context: &mut Context<'_>) -> Verdict {
    needs_cache(context)?;
    let Context { driver, random, .. } = context;
    let (info, start) = (driver.info, Instant::now());
    let room = if info.kind == ModelKind::EncoderDecoder {
        info.kv_capacity_tokens.min(info.cross_capacity_tokens)
    } else {
        info.kv_capacity_tokens
    };
    if info.max_sequences > MOST_SEQUENCES || room < u64::from(info.max_sequences) {
        let n = info.max_sequences;
        return Err(Stop::Skip(format!(
            "{n} sequences are more than this case or the cache holds"
        )));
    }
    let mut text = driver.text(random, 1);
    text.source.truncate(1);
    for n in 0..info.max_sequences {
        if start.elapsed() > MOST_TIME {
            let seconds = MOST_TIME.as_secs();
            return Err(Stop::Skip(format!("{n} sequences took {seconds} s")));
        }
        let made = driver.begin(&text).and_then(|sequence| driver.extend(sequence, 0, &[0]));
        made.map_err(|error| {
            let most = info.max_sequences;
            Stop::Fail(format!("sequence {} of {most}: {}", n + 1, describe(&error)))
        })?;
    }
    let one_more = driver.begin(&text).and_then(|sequence| driver.extend(sequence, 0, &[0]));
    past_the_limit(one_more.map(drop))?;
    Ok(None)
}

pub(super) fn capacity(context: &mut Context<'_>) -> Verdict {
    needs_cache(context)?;
    let Context { driver, random, .. } = context;
    let (info, start) = (driver.info, Instant::now());
    let most = info.kv_capacity_tokens;
    if most > MOST_TOKENS {
        let stated =
            if most == u64::MAX { "no limit".to_owned() } else { format!("{most} tokens") };
        return Err(Stop::Skip(format!("{stated}: this case fills up to {MOST_TOKENS} tokens")));
    }
    let mut text = driver.text(random, 1);
    text.source.truncate(1);
    let (mut n_filled, mut n_sequences) = (0, 0);
    while n_filled < most && n_sequences < info.max_sequences {
        let n = u64::from(info.max_positions).min(most - n_filled) as u32;
        let filled = driver
            .begin(&text)
            .and_then(|sequence| fill(driver, random, sequence, n, start))
            .map_err(|error| {
                let found = describe(&error);
                Stop::Fail(format!("{n_filled} of {most} tokens are in the cache: {found}"))
            })?;
        if filled.is_none() {
            let seconds = MOST_TIME.as_secs();
            return Err(Stop::Skip(format!("{n_filled} of {most} tokens took {seconds} s")));
        }
        n_filled += u64::from(n);
        n_sequences += 1;
    }
    if n_filled < most {
        return Ok(Some(format!("max_sequences reached at {n_filled} of {most} tokens")));
    }
    let one_more = driver.begin(&text).and_then(|sequence| driver.extend(sequence, 0, &[0]));
    past_the_limit(one_more.map(drop))?;
    Ok(None)
}

pub(super) fn sequence_cycles(context: &mut Context<'_>) -> Verdict {
    let (cycles, budget) = (context.loader.options.cycles, context.loader.options.load_budget);
    let has_cache = needs_cache(context).and_then(|()| needs_sequences(context, 2)).is_ok();
    let Context { driver, random, .. } = context;
    let longest = driver.longest(4, 2);
    repeat(cycles, budget, SLACK_BYTES, |cycle| {
        let n_tokens = random.between(1, longest);
        let text = driver.text(random, n_tokens);
        let sequence = driver.begin(&text)?;
        driver.extend(sequence, 0, &text.tokens)?;
        if has_cache {
            let fork = driver.fork(sequence, n_tokens)?;
            driver.model().truncate(fork, n_tokens - 1)?;
            driver.extend(fork, n_tokens - 1, &[0])?;
            driver.release(sequence);
            driver.release(fork);
        }
        let left = driver.model().n_sequences();
        ensure(left == 0, || format!("{left} sequences are left after cycle {cycle}"))
    })
}

pub(super) fn load_cycles(context: &mut Context<'_>) -> Verdict {
    let slack = SLACK_BYTES.max(context.driver.info.weight_bytes / 2);
    let Context { loader, random, .. } = context;
    reload(loader, slack, |model| {
        let LoadedModel::Token(model) = model else {
            return Err(Stop::Fail("the same model was loaded as another kind".to_owned()));
        };
        let mut driver = Driver::new(model);
        let text = driver.text(random, 1);
        driver.fresh(&text)?;
        Ok(())
    })
}

/// Loads, uses and drops the model again and again.
pub(super) fn reload(
    loader: &Loader<'_>,
    slack_bytes: u64,
    mut take: impl FnMut(LoadedModel) -> Result<(), Stop>,
) -> Verdict {
    let (cycles, budget) = (loader.options.cycles, loader.options.load_budget);
    repeat(cycles, budget, slack_bytes, |_| take(loader.load()?))
}

/// Repeats `cycle` up to `n` times within `budget`, and compares the memory of the process at a
/// quarter of the way with that at the end.
pub(super) fn repeat(
    n: u32,
    budget: Duration,
    slack_bytes: u64,
    mut cycle: impl FnMut(u32) -> Result<(), Stop>,
) -> Verdict {
    let start = Instant::now();
    let mut resident = Vec::new();
    for idx in 0..n {
        cycle(idx)?;
        resident.extend(resident_bytes());
        if start.elapsed() > budget {
            break;
        }
    }
    let done = resident.len();
    let (Some(early), Some(late)) = (resident.get(done / 4), resident.last()) else {
        return Ok(Some("this system does not say how much memory a process holds".to_owned()));
    };
    let grown = late.saturating_sub(*early);
    ensure(grown <= slack_bytes, || {
        format!(
            "the process grew by {:.1} MiB over {} cycles: up to {:.1} MiB is slack",
            mebibytes(grown),
            done - done / 4,
            mebibytes(slack_bytes)
        )
    })?;
    let seconds = budget.as_secs();
    let count = if done < n as usize {
        format!("{done} of {n} cycles in {seconds} s")
    } else {
        format!("{done} cycles")
    };
    Ok(Some(format!("{count}, grew by {:.1} MiB", mebibytes(grown))))
}

fn mebibytes(n_bytes: u64) -> f64 {
    n_bytes as f64 / f64::from(1 << 20)
}
