//! Requests that are there only to keep others company.

use drivetrain_host::{GenerateRequest, Prompt};
use serde_json::json;

use super::served::request;

/// Requests of every kind: draws of several choices, beams of other widths, short and long texts
/// and prompts, of which some begin alike; made of tokens below `n_words`.
pub(super) fn company(n: usize, n_words: u32, salt: u32) -> Vec<GenerateRequest> {
    (0..n as u32)
        .map(|idx| {
            let mixed = idx.wrapping_mul(2_654_435_761).wrapping_add(salt.wrapping_mul(40_503));
            let n_tokens = 1 + mixed % 5;
            // Every second one begins as the one before it does.
            let first = 4 + (idx / 2 + salt) * 7;
            let tokens =
                (0..n_tokens).map(|at| 4 + (first + at * at * 3) % (n_words - 4)).collect();
            let n_new = 2 + mixed % 9;
            let parameters = match idx % 5 {
                0 => json!({"do_sample": true, "n": 2, "temperature": 0.9, "seed": mixed}),
                1 => json!({"num_beams": 3, "num_return_sequences": 2}),
                2 => json!({"repetition_penalty": 1.2, "logprobs": 2}),
                3 => json!({"do_sample": true, "top_p": 0.8, "n": 3}),
                _ => json!({"num_beams": 7, "early_stopping": true, "length_penalty": 0.3}),
            };
            let mut request = request(Prompt::Tokens(tokens), parameters);
            request.parameters.insert("max_new_tokens".to_owned(), json!(n_new));
            request
        })
        .collect()
}
