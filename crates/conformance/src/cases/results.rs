//! What a model computes does not depend on how it is asked.

use drivetrain_engine::{ErrorKind, HeadKind, ModelKind, SeqId, TokenModelInfo, Wanted, pool};

use super::{needs_cache, needs_sequences};
use crate::compare::{bit_difference, difference};
use crate::driver::{Driver, Pass, Piece, Rows, Text};
use crate::random::Random;
use crate::suite::{Context, Stop, Verdict, describe, ensure, unless};

/// Every output form, with whether the model has it.
pub(super) fn forms(info: &TokenModelInfo) -> [(Wanted, Available); 10] {
    let logits = Available::when(info.head.is_per_token());
    let hidden = Available::when(info.dim > 0);
    [
        (Wanted::Nothing, Available::Yes),
        (Wanted::LastLogits, logits),
        (Wanted::AllLogits, logits),
        (Wanted::SequenceLogits, Available::when(info.head == HeadKind::SequenceClassification)),
        (Wanted::Hidden, hidden),
        (Wanted::PooledFirst, hidden),
        (Wanted::PooledMean, hidden),
        (Wanted::PooledMax, hidden),
        (Wanted::PooledLast, hidden),
        (Wanted::PooledHead, Available::when(info.has_pooler)),
    ]
}

/// Whether a model has an output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Available {
    Yes,
    No,
}

impl Available {
    fn when(condition: bool) -> Self {
        if condition { Self::Yes } else { Self::No }
    }
}

pub(super) fn rows(context: &mut Context<'_>) -> Verdict {
    let Context { driver, random, .. } = context;
    let n_tokens = driver.longest(5, 1);
    let text = driver.text(random, n_tokens);
    let mut found: Vec<(Wanted, Rows)> = Vec::new();
    for (wanted, available) in forms(&driver.info) {
        let sequence = driver.begin(&text)?;
        let tokens = text.tokens.clone();
        let result = driver.run(Pass::Forward, &[Piece { sequence, tokens, position: 0, wanted }]);
        driver.release(sequence);
        match (result, available) {
            (Ok(mut rows), Available::Yes) => {
                found.push((wanted, rows.pop().unwrap_or_default()));
            }
            (Err(error), Available::Yes) => {
                return Err(Stop::Fail(format!("{wanted:?}: {}", describe(&error))));
            }
            (Ok(_), Available::No) => {
                return Err(Stop::Fail(format!("{wanted:?} is not what the model's info offers")));
            }
            (Err(error), Available::No) => {
                let refused = matches!(error.kind(), ErrorKind::BadInput | ErrorKind::Unsupported);
                ensure(refused, || {
                    format!("{wanted:?}: expected bad input, got {}", describe(&error))
                })?;
            }
        }
    }
    let rows_of = |form| found.iter().find(|(wanted, _)| *wanted == form).map(|(_, rows)| rows);
    if let (Some(last), Some(all)) = (rows_of(Wanted::LastLogits), rows_of(Wanted::AllLogits)) {
        let expected = &all[all.len() - driver.info.n_logits as usize..];
        unless(difference(last, expected), "LastLogits against the last row of AllLogits")?;
    }
    if let Some(hidden) = rows_of(Wanted::Hidden) {
        for form in [Wanted::PooledFirst, Wanted::PooledMean, Wanted::PooledMax, Wanted::PooledLast]
        {
            let mut expected = vec![0.0; driver.info.dim as usize];
            pool(form, hidden, &mut expected);
            let found = rows_of(form).map(Vec::as_slice).unwrap_or_default();
            unless(difference(found, &expected), format!("{form:?} against the rows of Hidden"))?;
        }
    }
    Ok(None)
}

pub(super) fn determinism(context: &mut Context<'_>) -> Verdict {
    let n_tokens = context.driver.longest(16, 1);
    let text = context.driver.text(context.random, n_tokens);
    let first = context.driver.fresh(&text)?;
    for run in 2..=4 {
        let again = context.driver.fresh(&text)?;
        unless(bit_difference(&again, &first), format!("run {run} of the same prompt"))?;
    }
    let mut other = context.loader.driver()?;
    unless(bit_difference(&other.fresh(&text)?, &first), "the same prompt on a second load")?;
    Ok(None)
}

pub(super) fn batching(context: &mut Context<'_>) -> Verdict {
    let Context { driver, random, .. } = context;
    let most = driver.info.max_sequences.min(8);
    for round in 0..6 {
        let n_texts = random.between(1, most);
        let longest = driver.longest(24, n_texts);
        let texts: Vec<Text> = (0..n_texts)
            .map(|_| {
                let n_tokens = random.between(1, longest);
                driver.text(random, n_tokens)
            })
            .collect();
        let plan = plan(random, &driver.info, &texts);
        let alone = follow(driver, &texts, &plan, |driver, pieces| {
            pieces
                .iter()
                .map(|piece| Ok(driver.run(Pass::Forward, std::slice::from_ref(piece))?.remove(0)))
                .collect()
        })?;
        let batched =
            follow(driver, &texts, &plan, |driver, pieces| Ok(driver.run(Pass::Forward, pieces)?))?;
        for (step, (alone, batched)) in alone.iter().zip(&batched).enumerate() {
            for (idx, (expected, found)) in alone.iter().zip(batched).enumerate() {
                let what = format!(
                    "round {round}, step {step}: segment {idx} of {} in a batch against alone",
                    alone.len()
                );
                unless(difference(found, expected), what)?;
            }
        }
    }
    Ok(None)
}

/// One segment of a plan: which text, how many of its tokens, what of them.
struct Part {
    text_idx: usize,
    start: usize,
    end: usize,
    wanted: Wanted,
}

/// Cuts `texts` into steps: in each, some texts in a random order, by a chunk or by one token.
fn plan(random: &mut Random, info: &TokenModelInfo, texts: &[Text]) -> Vec<Vec<Part>> {
    let mut done = vec![0; texts.len()];
    let mut steps = Vec::new();
    let available: Vec<Wanted> = forms(info)
        .into_iter()
        .filter(|(_, available)| *available == Available::Yes)
        .map(|(wanted, _)| wanted)
        .collect();
    while done.iter().zip(texts).any(|(done, text)| *done < text.tokens.len()) {
        let mut parts = Vec::new();
        for text_idx in random.order(texts.len()) {
            let (start, n_tokens) = (done[text_idx], texts[text_idx].tokens.len());
            if start == n_tokens || (!parts.is_empty() && random.between(0, 3) == 0) {
                continue;
            }
            let n_left = (n_tokens - start) as u32;
            let n_taken = match (info.kind, random.between(0, 2)) {
                (ModelKind::Encoder, _) => n_left,
                (_, 0) => 1,
                _ => random.between(1, n_left),
            };
            let end = start + n_taken as usize;
            let wanted = available[random.between(0, available.len() as u32 - 1) as usize];
            parts.push(Part { text_idx, start, end, wanted });
            done[text_idx] = end;
        }
        steps.push(parts);
    }
    steps
}

/// Runs a plan on sequences of its own; the rows by step and part.
fn follow(
    driver: &mut Driver,
    texts: &[Text],
    plan: &[Vec<Part>],
    mut run: impl FnMut(&mut Driver, &[Piece]) -> Result<Vec<Rows>, Stop>,
) -> Result<Vec<Vec<Rows>>, Stop> {
    let begun: Result<Vec<SeqId>, _> = texts.iter().map(|text| driver.begin(text)).collect();
    let sequences = begun?;
    let mut found = Vec::new();
    for parts in plan {
        let pieces: Vec<Piece> = parts
            .iter()
            .map(|part| Piece {
                sequence: sequences[part.text_idx],
                tokens: texts[part.text_idx].tokens[part.start..part.end].to_vec(),
                position: part.start as u32,
                wanted: part.wanted,
            })
            .collect();
        found.push(run(driver, &pieces)?);
    }
    for sequence in sequences {
        driver.release(sequence);
    }
    Ok(found)
}

pub(super) fn chunking(context: &mut Context<'_>) -> Verdict {
    needs_cache(context)?;
    needs_sequences(context, 1)?;
    let Context { driver, random, .. } = context;
    let n_tokens = driver.longest(32, 1);
    let text = driver.text(random, n_tokens);
    let whole = driver.fresh(&text)?;
    for longest_chunk in [1, 2, 5, n_tokens] {
        let sequence = driver.begin(&text)?;
        let (mut rows, mut position) = (Vec::new(), 0);
        while position < n_tokens {
            let end = position + random.between(1, longest_chunk).min(n_tokens - position);
            let chunk = &text.tokens[position as usize..end as usize];
            rows.extend(driver.extend(sequence, position, chunk)?);
            position = end;
        }
        driver.release(sequence);
        let width = driver.width();
        for (idx, (found, expected)) in
            rows.chunks_exact(width).zip(whole.chunks_exact(width)).enumerate()
        {
            let what = format!("row {idx} of {n_tokens} in chunks of up to {longest_chunk}");
            unless(difference(found, expected), what)?;
        }
    }
    Ok(None)
}
