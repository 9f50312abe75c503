//! What suites of engines measure with, where no fixture has the answers.

use drivetrain_engine::{ModelKind, SeqId, Wanted};

use super::support::Model;

/// A prompt that no rule makes.
pub(crate) fn tokens(n: usize, salt: u32) -> Vec<u32> {
    (0..n as u32).map(|i| 5 + (i * 37 + salt * 11) % 300).collect()
}

/// Logits of a prompt, or hidden states of an encoder or a model without logits.
pub(crate) fn rows(model: &mut Model, prompt: &[u32]) -> Vec<f32> {
    let sequence = model.begin(prompt);
    let found = step(model, sequence, prompt, 0);
    model.inner.release(sequence);
    found
}

/// The root of the mean square of the difference, as a part of that of the values.
pub(crate) fn distance(found: &[f32], expect: &[f32]) -> f32 {
    let square = |values: &mut dyn Iterator<Item = f32>| values.map(|x| x * x).sum::<f32>();
    let apart = square(&mut found.iter().zip(expect).map(|(a, b)| a - b));
    (apart / square(&mut expect.iter().copied())).sqrt()
}

/// What [`rows`] are of the next tokens of a sequence.
pub(crate) fn step(
    model: &mut Model,
    sequence: SeqId,
    tokens: &[u32],
    position: usize,
) -> Vec<f32> {
    let has_logits = model.info.n_logits > 0 && model.info.kind != ModelKind::Encoder;
    let wanted = if has_logits { Wanted::AllLogits } else { Wanted::Hidden };
    let rows = model.step(sequence, tokens, position, wanted);
    if has_logits { rows.logits } else { rows.hidden }
}
