//! The encoder beside a decoder.

use drivetrain_engine::{ErrorKind, ModelKind, Wanted};

use crate::compare::difference;
use crate::driver::{Driver, Pass, Piece};
use crate::suite::{Context, Stop, Verdict, describe, ensure, unless};

pub(super) fn batching(context: &mut Context<'_>) -> Verdict {
    needs_encoder(context)?;
    let Context { driver, random, .. } = context;
    let info = driver.info;
    let n_inputs = info.max_sequences.min(5);
    let longest = u64::from(info.max_encoder_positions.min(24))
        .min(info.cross_capacity_tokens / u64::from(n_inputs))
        .min(u64::from(info.max_batch_tokens / n_inputs));
    let wanted = if info.dim > 0 { Wanted::Hidden } else { Wanted::Nothing };
    let mut inputs = Vec::new();
    for _ in 0..n_inputs {
        let n_tokens = random.between(1, longest.max(1) as u32);
        inputs.push(random.tokens(n_tokens, info.vocab));
    }
    let piece = |driver: &mut Driver, tokens: &Vec<u32>| {
        let sequence = driver.name();
        Piece { sequence, tokens: tokens.clone(), position: 0, wanted }
    };
    let pieces: Vec<Piece> = inputs.iter().map(|tokens| piece(driver, tokens)).collect();
    let batched = driver.run(Pass::Encode, &pieces)?;
    let alive = driver.model().n_sequences();
    ensure(alive == pieces.len(), || {
        format!("{alive} sequences after {} were encoded", pieces.len())
    })?;
    for encoded in &pieces {
        driver.release(encoded.sequence);
    }
    for (idx, (tokens, found)) in inputs.iter().zip(&batched).enumerate() {
        let alone = piece(driver, tokens);
        let expected = driver.run(Pass::Encode, std::slice::from_ref(&alone))?;
        driver.release(alone.sequence);
        let expected = expected.first().map(Vec::as_slice).unwrap_or_default();
        let what = format!("input {idx} of {n_inputs} in a batch against alone");
        unless(difference(found, expected), what)?;
    }
    Ok(None)
}

pub(super) fn order(context: &mut Context<'_>) -> Verdict {
    let Context { driver, random, .. } = context;
    let info = driver.info;
    if info.kind != ModelKind::EncoderDecoder {
        let (sequence, tokens) = (driver.name(), random.tokens(1, info.vocab));
        let piece = Piece { sequence, tokens, position: 0, wanted: Wanted::Nothing };
        let result = driver.run(Pass::Encode, &[piece]);
        return refused(result.map(drop), "encode of a model without an encoder of its own");
    }
    let (sequence, tokens) = (driver.name(), random.tokens(1, info.vocab));
    let result = driver.extend(sequence, 0, &tokens);
    refused(result.map(drop), "decoding a sequence that was not encoded")?;
    if info.max_encoder_positions < 4096 {
        let tokens = random.tokens(info.max_encoder_positions + 1, info.vocab);
        let piece = Piece { sequence, tokens, position: 0, wanted: Wanted::Nothing };
        let result = driver.run(Pass::Encode, &[piece]);
        refused(result.map(drop), "an input longer than max_encoder_positions")?;
    }
    let tokens = vec![info.vocab];
    let piece = Piece { sequence, tokens, position: 0, wanted: Wanted::Nothing };
    let result = driver.run(Pass::Encode, &[piece]);
    refused(result.map(drop), "an input with a token outside the vocabulary")?;
    let alive = driver.model().n_sequences();
    ensure(alive == 0, || format!("{alive} sequences after calls that failed"))?;
    // Another input gives another output: the decoder does read it.
    let sources = [vec![0; 3], vec![info.vocab - 1; 3]].map(|mut source| {
        source.truncate(info.max_encoder_positions as usize);
        source
    });
    let mut text = driver.text(random, 1);
    let mut rows = Vec::new();
    for source in sources {
        text.source = source;
        rows.push(driver.fresh(&text)?);
    }
    ensure(rows[0] != rows[1], || "two different inputs are decoded alike".to_owned())?;
    Ok(None)
}

fn needs_encoder(context: &Context<'_>) -> Result<(), Stop> {
    if context.driver.info.kind == ModelKind::EncoderDecoder {
        return Ok(());
    }
    Err(Stop::Skip("no encoder-decoder model".to_owned()))
}

fn refused(result: Result<(), drivetrain_engine::EngineError>, what: &str) -> Verdict {
    match result {
        Ok(()) => Err(Stop::Fail(format!("{what} was accepted"))),
        Err(error) => match error.kind() {
            ErrorKind::BadInput | ErrorKind::Unsupported => Ok(None),
            _ => Err(Stop::Fail(format!("{what}: expected bad input, got {}", describe(&error)))),
        },
    }
}
