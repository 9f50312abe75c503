//! What a model can be served as, by its files alone: what `inspect` shows.

use drivetrain_artifacts::{ModelConfig, ModelDir};
use drivetrain_engine::{HeadKind, ModelKind};

use super::Task;
use super::context::{needs, usual};
use super::facts::Facts;
use crate::HostError;

/// What a model can be served as.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Suited {
    /// The task where `option.task` says none.
    pub default: Option<Task>,
    /// Every task that it can do.
    pub tasks: Vec<Task>,
    /// The names of its head's labels, where it has such a head.
    pub labels: Vec<String>,
}

/// What a model of a kind can be served as, with a `head` whose rows have `n_logits` columns, and
/// hidden states of size `dim`.
///
/// # Errors
/// A file that says something of the task is broken, or a value in it is impossible.
pub fn suited(
    files: &ModelDir,
    config: &ModelConfig,
    kind: ModelKind,
    (head, n_logits): (HeadKind, u32),
    dim: u32,
) -> Result<Suited, HostError> {
    let facts = Facts::read(files, Some(&config.json), None)?;
    // Tasks read this one, too, if they shift inputs: the record of the keys is to say so.
    config.json.contains("decoder_start_token_id");
    let has_labels =
        matches!(head, HeadKind::SequenceClassification | HeadKind::TokenClassification);
    let n_labels = if has_labels { n_logits as usize } else { 0 };
    Ok(Suited {
        default: usual(&facts, &config.architectures),
        tasks: Task::ALL.into_iter().filter(|task| needs(*task, kind, head, dim).1).collect(),
        labels: (0..n_labels).map(|idx| facts.label(idx)).collect(),
    })
}
