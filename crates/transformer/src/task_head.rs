//! What makes labels of hidden states, or the tokens that a mask stands for.

use crate::activation::Activation;
use crate::norm::Norm;

/// `out(norm(activation(dense(x))))`, each inner part where it exists, where `x` is what
/// [`Self::reads`] says.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TaskHead {
    /// What its rows mean.
    pub task: HeadTask,
    /// Which hidden states it reads.
    pub reads: HeadReads,
    /// Columns of a row: labels, 2 for question answering, or the vocabulary.
    pub width: u32,
    /// The matrix ahead of the last one, which keeps the hidden size.
    pub dense: Option<Activation>,
    /// Norm of what the inner matrix gives.
    pub norm: Option<Norm>,
    /// Whether the last matrix has a bias.
    pub bias: bool,
    /// Whether the token table is the last matrix, if the checkpoint has none of its own.
    pub tied: bool,
    /// Whether a checkpoint of the class may lack the head, as published sentence encoders do whose
    /// config still names the class they were trained as.
    pub optional: bool,
}

/// What the rows of a task's head mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeadTask {
    /// The vocabulary, at each token: `ForMaskedLM`.
    MaskedLm,
    /// Labels of the whole sequence: `ForSequenceClassification`.
    SequenceClassification,
    /// Labels of each token: `ForTokenClassification`.
    TokenClassification,
    /// How well an answer begins and ends at each token: `ForQuestionAnswering`.
    QuestionAnswering,
}

/// Which hidden states a head reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeadReads {
    /// All, one row for each.
    Every,
    /// The first token's.
    First,
    /// The last token's.
    Last,
}
