//! How a runner is asked: one JSON object a line on its standard input, one a line on its output.
//!
//! A runner loads its model, says [`Line::Ready`], and then answers each [`Command`] with one line, until
//! its input ends. It is the runner that takes the time, so that no pipe is in it.

use serde::{Deserialize, Serialize};

use crate::Task;

/// What a runner is asked to do.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Command {
    /// What is computed.
    pub task: Task,
    /// The sequences, all of one length.
    pub ids: Vec<Vec<u32>>,
    /// New tokens of each sequence.
    pub n_new: usize,
    /// Beams of each sequence; 1 is greedy.
    pub n_beams: usize,
    /// A token that is never chosen, so that no answer ends early.
    pub eos: u32,
    /// What an encoder-decoder model's decoder starts with.
    pub decoder_start: u32,
    /// Whether the answer is to hold what was computed.
    pub wants_output: bool,
}

/// What a runner says.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Line {
    /// The model is loaded.
    Ready(Ready),
    /// The work is done.
    Done(Done),
    /// The runner has no way to do this work.
    Unsupported(String),
    /// The work failed.
    Failed(String),
}

/// A loaded model.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Ready {
    /// How long loading took.
    pub load_seconds: f64,
    /// The engine or library, with its version.
    pub version: String,
    /// What it warned of: options that have no effect, for one.
    #[serde(default)]
    pub warnings: Vec<String>,
}

/// Work that was done.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Done {
    /// How long it took.
    pub seconds: f64,
    /// What was computed, if it was asked for: of each sequence the hidden states of the first, the
    /// middle (`n / 2`) and the last token, or the logits of the first sequence's last token.
    #[serde(default)]
    pub values: Vec<f32>,
    /// The new tokens of each sequence, if they were asked for.
    #[serde(default)]
    pub tokens: Vec<Vec<u32>>,
}
