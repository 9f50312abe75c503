//! What suites of engines measure with, where no fixture has the answers.

use drivetrain_engine::{ModelKind, Wanted};

use super::support::Model;

/// A prompt that no rule makes.
pub(crate) fn tokens(n: usize, salt: u32) -> Vec<u32> {
    (0..n as u32).map(|i| 5 + (i * 37 + salt * 11) % 200).collect()
}

/// Logits, or hidden states of a model without any, of a prompt and, but for an encoder, of one token more.
pub(crate) fn rows(model: &mut Model, prompt: &[u32]) -> Vec<f32> {
    let is_encoder = model.info.kind == ModelKind::Encoder;
    let wants_hidden = is_encoder || model.info.n_logits == 0;
    let wanted = if wants_hidden { Wanted::Hidden } else { Wanted::AllLogits };
    let sequence = model.begin(prompt);
    let mut rows = model.step(sequence, prompt, 0, wanted);
    if !is_encoder {
        let next = model.step(sequence, &[9], prompt.len(), wanted);
        rows.logits.extend(next.logits);
        rows.hidden.extend(next.hidden);
    }
    model.inner.release(sequence);
    if wants_hidden { rows.hidden } else { rows.logits }
}

/// The root of the mean square of the difference, as a part of that of the values.
pub(crate) fn distance(found: &[f32], expect: &[f32]) -> f32 {
    let square = |values: &mut dyn Iterator<Item = f32>| values.map(|x| x * x).sum::<f32>();
    let apart = square(&mut found.iter().zip(expect).map(|(a, b)| a - b));
    (apart / square(&mut expect.iter().copied())).sqrt()
}
