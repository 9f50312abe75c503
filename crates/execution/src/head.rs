//! Which head a model has, and what it reads.

use drivetrain_engine::HeadKind;
use drivetrain_transformer::{
    Activation, Architecture, CanonicalWeights, HeadReads, HeadTask, LmHead, Norm, TaskHead,
};

/// `cap * tanh(head(norm(activation(head.dense(x))) * scale) / cap)`, each part where it exists.
#[derive(Clone, Copy, Debug)]
pub struct HeadPlan {
    /// What its rows mean.
    pub kind: HeadKind,
    /// Columns of a row.
    pub width: u32,
    /// Whether a whole sequence is judged by its first state; else by its last.
    pub reads_first: bool,
    /// What follows the inner matrix, `head.dense`, where there is one.
    pub dense: Option<Activation>,
    /// The norm `head.norm`.
    pub norm: Option<Norm>,
    /// Factor on what the last matrix reads.
    pub scale: Option<f32>,
    /// Cap of the logits.
    pub soft_cap: Option<f32>,
}

impl HeadPlan {
    /// The model's head, if its checkpoint has one.
    pub fn of(architecture: &Architecture, weights: &CanonicalWeights<'_>) -> Option<Self> {
        match (&architecture.head, &architecture.task_head) {
            (_, Some(head)) => Self::of_task(head, weights),
            (Some(head), None) => Self::of_language_model(head, architecture.vocab, weights),
            (None, None) => None,
        }
    }

    fn of_language_model(
        head: &LmHead,
        width: u32,
        weights: &CanonicalWeights<'_>,
    ) -> Option<Self> {
        weights.contains("head.weight").then_some(Self {
            kind: HeadKind::LanguageModel,
            width,
            reads_first: false,
            dense: None,
            norm: None,
            scale: head.scale,
            soft_cap: head.soft_cap,
        })
    }

    fn of_task(head: &TaskHead, weights: &CanonicalWeights<'_>) -> Option<Self> {
        // A tied matrix is always there; the part that is the head's own says whether it is.
        let own = if head.dense.is_some() { "head.dense.weight" } else { "head.weight" };
        weights.contains(own).then_some(Self {
            kind: match head.task {
                HeadTask::MaskedLm => HeadKind::MaskedLanguageModel,
                HeadTask::SequenceClassification => HeadKind::SequenceClassification,
                HeadTask::TokenClassification => HeadKind::TokenClassification,
                HeadTask::QuestionAnswering => HeadKind::QuestionAnswering,
            },
            width: head.width,
            reads_first: head.reads == HeadReads::First,
            dense: head.dense,
            norm: head.norm,
            scale: None,
            soft_cap: None,
        })
    }
}
