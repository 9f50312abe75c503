//! Log-probabilities as JSON can say them.

/// What stands for a probability of 0, as in OpenAI's API.
const FLOOR: f32 = -9999.0;

/// `logprob`, finite.
pub(crate) fn finite(logprob: f32) -> f32 {
    if logprob.is_nan() { FLOOR } else { logprob.clamp(FLOOR, 0.0) }
}
