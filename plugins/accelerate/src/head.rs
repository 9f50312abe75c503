//! What makes logits of hidden states: a language model's head, or a task's.

use candle_core::{Result, Tensor};
use drivetrain_engine::{EngineError, HeadKind};
use drivetrain_transformer::{Activation, Architecture, HeadReads, HeadTask, LmHead, TaskHead};

use crate::adapters::Runs;
use crate::linear::Linear;
use crate::load::Loader;
use crate::norm::NormLayer;

/// `cap * tanh(linear(norm(activation(dense(x))) * scale) / cap)`, each part where it exists.
#[derive(Debug)]
pub(crate) struct Head {
    pub(crate) kind: HeadKind,
    /// Columns of a row.
    pub(crate) width: u32,
    /// Whether a whole sequence is judged by its first state; else by its last.
    pub(crate) reads_first: bool,
    dense: Option<(Linear, Activation)>,
    norm: Option<NormLayer>,
    scale: Option<f32>,
    linear: Linear,
    soft_cap: Option<f32>,
}

impl Head {
    /// The model's head, if its checkpoint has one.
    pub(crate) fn load(
        architecture: &Architecture,
        loader: &Loader<'_>,
    ) -> std::result::Result<Option<Self>, EngineError> {
        match (&architecture.head, &architecture.task_head) {
            (_, Some(head)) => Self::of_task(head, loader),
            (Some(head), None) => Self::of_language_model(head, architecture.vocab, loader),
            (None, None) => Ok(None),
        }
    }

    fn of_language_model(
        head: &LmHead,
        width: u32,
        loader: &Loader<'_>,
    ) -> std::result::Result<Option<Self>, EngineError> {
        if !loader.has("head.weight") {
            return Ok(None);
        }
        Ok(Some(Self {
            kind: HeadKind::LanguageModel,
            width,
            reads_first: false,
            dense: None,
            norm: None,
            scale: head.scale,
            linear: loader.linear("head")?,
            soft_cap: head.soft_cap,
        }))
    }

    fn of_task(
        head: &TaskHead,
        loader: &Loader<'_>,
    ) -> std::result::Result<Option<Self>, EngineError> {
        // A tied matrix is always there; the part that is the head's own says whether it is.
        let own = if head.dense.is_some() { "head.dense.weight" } else { "head.weight" };
        if !loader.has(own) {
            return Ok(None);
        }
        let dense = match head.dense {
            Some(activation) => Some((loader.linear("head.dense")?, activation)),
            None => None,
        };
        Ok(Some(Self {
            kind: match head.task {
                HeadTask::MaskedLm => HeadKind::MaskedLanguageModel,
                HeadTask::SequenceClassification => HeadKind::SequenceClassification,
                HeadTask::TokenClassification => HeadKind::TokenClassification,
                HeadTask::QuestionAnswering => HeadKind::QuestionAnswering,
            },
            width: head.width,
            reads_first: head.reads == HeadReads::First,
            dense,
            norm: loader.norm("head.norm", head.norm)?,
            scale: None,
            linear: loader.linear("head")?,
            soft_cap: None,
        }))
    }

    /// Its matrices.
    pub(crate) fn linears_mut(&mut self) -> impl Iterator<Item = &mut Linear> {
        self.dense.iter_mut().map(|(linear, _)| linear).chain([&mut self.linear])
    }

    /// `[rows, dim]` to `[rows, width]`.
    pub(crate) fn forward(&self, hidden: &Tensor, runs: &Runs) -> Result<Tensor> {
        let mut x = hidden.clone();
        if let Some((dense, activation)) = &self.dense {
            x = dense.forward_activated(&x, *activation, runs)?;
        }
        if let Some(norm) = &self.norm {
            x = norm.forward(&x)?;
        }
        if let Some(scale) = self.scale {
            x = (x * f64::from(scale))?;
        }
        let logits = self.linear.forward(&x, runs)?;
        match self.soft_cap.map(f64::from) {
            Some(cap) => (logits / cap)?.tanh()? * cap,
            None => Ok(logits),
        }
    }
}
