//! What a model can be asked for: the tasks, their requests and their replies.

mod classify;
mod context;
mod conversational;
mod entities;
mod facts;
mod feature_extraction;
mod fill_mask;
mod generation;
mod input;
mod parts;
mod prompts;
mod question_answering;
mod rerank;
mod sentence_embedding;
mod sentences;
mod spans;
mod suited;
mod text;
mod text2text_generation;
mod text_classification;
mod text_generation;
mod token_classification;
mod translation;
mod zero_shot_classification;

use std::fmt;
use std::str::FromStr;
use std::time::Instant;

use serde_json::{Map, Value};

pub(crate) use context::TaskContext;
pub(crate) use generation::{PreparedGeneration, is_quick};
pub use input::Input;
pub use suited::{Suited, suited};
pub(crate) use text::ModelText;

/// What a request asks of a model, by the names of transformers' pipelines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Task {
    /// `feature-extraction`: the last hidden states of a text.
    FeatureExtraction,
    /// `sentence-embedding`: one vector of a text, as sentence-transformers makes it.
    SentenceEmbedding,
    /// `text-classification`: labels of a text.
    TextClassification,
    /// `token-classification`: labels of a text's tokens, or the entities in it.
    TokenClassification,
    /// `question-answering`: the span of a context that answers a question.
    QuestionAnswering,
    /// `fill-mask`: what a mask in a text stands for.
    FillMask,
    /// `zero-shot-classification`: how well labels of the request fit a text.
    ZeroShotClassification,
    /// `rerank`: how well texts answer a query.
    Rerank,
    /// `text2text-generation`: what an encoder-decoder model says to a text.
    Text2TextGeneration,
    /// `summarization`: as text2text generation, under another name.
    Summarization,
    /// `translation`: the same, between languages.
    Translation,
    /// `text-generation`: how a decoder-only model continues a text.
    TextGeneration,
    /// `conversational`: what a model says next in a conversation.
    Conversational,
}

/// Other names of tasks.
const ALIASES: [(&str, Task); 7] = [
    ("sentiment-analysis", Task::TextClassification),
    ("ner", Task::TokenClassification),
    ("text-embedding", Task::SentenceEmbedding),
    ("sentence-similarity", Task::SentenceEmbedding),
    ("embedding", Task::SentenceEmbedding),
    ("reranking", Task::Rerank),
    ("text-ranking", Task::Rerank),
];

impl Task {
    /// Every task, in the order that messages list them.
    pub const ALL: [Self; 13] = [
        Self::FeatureExtraction,
        Self::SentenceEmbedding,
        Self::TextClassification,
        Self::TokenClassification,
        Self::QuestionAnswering,
        Self::FillMask,
        Self::ZeroShotClassification,
        Self::Rerank,
        Self::Text2TextGeneration,
        Self::Summarization,
        Self::Translation,
        Self::TextGeneration,
        Self::Conversational,
    ];

    /// The name that `option.task` takes.
    pub fn name(self) -> &'static str {
        match self {
            Self::FeatureExtraction => "feature-extraction",
            Self::SentenceEmbedding => "sentence-embedding",
            Self::TextClassification => "text-classification",
            Self::TokenClassification => "token-classification",
            Self::QuestionAnswering => "question-answering",
            Self::FillMask => "fill-mask",
            Self::ZeroShotClassification => "zero-shot-classification",
            Self::Rerank => "rerank",
            Self::Text2TextGeneration => "text2text-generation",
            Self::Summarization => "summarization",
            Self::Translation => "translation",
            Self::TextGeneration => "text-generation",
            Self::Conversational => "conversational",
        }
    }

    /// The task that a model's first class was made for, if it is one of these. The suffixes are
    /// those of DJL Serving's Hugging Face handler.
    pub fn of_architectures(architectures: &[String]) -> Option<Self> {
        const SUFFIXES: [(&str, Task); 11] = [
            ("ForQuestionAnswering", Task::QuestionAnswering),
            ("ForTokenClassification", Task::TokenClassification),
            ("ForSequenceClassification", Task::TextClassification),
            ("ForMaskedLM", Task::FillMask),
            ("ForCausalLM", Task::TextGeneration),
            ("GPT2LMHeadModel", Task::TextGeneration),
            ("BloomModel", Task::TextGeneration),
            ("ForConditionalGeneration", Task::Text2TextGeneration),
            ("MTModel", Task::Text2TextGeneration),
            ("EncoderDecoderModel", Task::Text2TextGeneration),
            ("T5WithLMHeadModel", Task::Text2TextGeneration),
        ];
        let class = architectures.first()?;
        SUFFIXES.iter().find(|(suffix, _)| class.ends_with(suffix)).map(|(_, task)| *task)
    }

    /// Whether the task's reply is text that the model generated, and may be told token by token.
    pub fn generates(self) -> bool {
        matches!(
            self,
            Self::Text2TextGeneration
                | Self::Summarization
                | Self::Translation
                | Self::TextGeneration
                | Self::Conversational
        )
    }
}

impl fmt::Display for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A name that is no task of this version.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("task {name:?} is not one of {}", task_names())]
pub struct UnknownTask {
    /// The name found.
    pub name: String,
}

fn task_names() -> String {
    Task::ALL.map(Task::name).join(", ")
}

impl FromStr for Task {
    type Err = UnknownTask;

    fn from_str(name: &str) -> Result<Self, UnknownTask> {
        let wanted = name.trim().to_ascii_lowercase().replace('_', "-");
        // `translation_en_to_de`: which languages is the task's own affair.
        if wanted.strip_prefix("translation-").is_some_and(|pair| pair.contains("-to-")) {
            return Ok(Self::Translation);
        }
        let named = Self::ALL.into_iter().find(|task| task.name() == wanted);
        let alias = || ALIASES.iter().find(|(alias, _)| *alias == wanted).map(|(_, task)| *task);
        named.or_else(alias).ok_or_else(|| UnknownTask { name: name.to_owned() })
    }
}

/// A request to a model that the host schedules.
#[derive(Clone, Debug, Default)]
pub struct TaskRequest {
    /// The request's id, for logs.
    pub id: String,
    /// The inputs; the reply has one entry for each, in order.
    pub inputs: Vec<Input>,
    /// Whether the request gave one input by itself and not a list, where the task tells it apart.
    pub is_single: bool,
    /// The pipeline's keyword arguments (`max_new_tokens`, `truncation`, ...).
    pub parameters: Map<String, Value>,
    /// When the answer is of no use any more. The model's `predict_timeout` bounds it anyway.
    pub deadline: Option<Instant>,
}

/// The answer to a [`TaskRequest`], in the order of its inputs.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum TaskReply {
    /// Of `feature-extraction`.
    Features(Vec<Features>),
    /// Of `sentence-embedding`.
    Embeddings(Vec<Embedding>),
    /// Of `rerank`, best first.
    Ranks(Vec<Rank>),
    /// Of the tasks whose pipelines answer with objects: what the pipeline answers.
    Document(Value),
    /// Of the tasks that generate: one entry an input, or one for each of its choices
    /// (`num_return_sequences`). The task says what the field is called.
    Generated(Vec<Generated>, Task),
}

/// The hidden states of one input.
#[derive(Clone, Debug, PartialEq)]
pub struct Features {
    /// Rows.
    pub n_tokens: usize,
    /// Columns.
    pub dim: usize,
    /// The states, `[n_tokens, dim]`, row-major.
    pub values: Vec<f32>,
}

impl Features {
    /// The states token by token, each `[dim]`.
    pub fn rows(&self) -> impl ExactSizeIterator<Item = &[f32]> {
        self.values.chunks_exact(self.dim.max(1))
    }
}

/// The vector of one input.
#[derive(Clone, Debug, PartialEq)]
pub struct Embedding {
    /// Tokens of the input, special ones included.
    pub n_tokens: usize,
    /// The vector.
    pub values: Vec<f32>,
}

/// A text that was compared with a query.
#[derive(Clone, Debug, PartialEq)]
pub struct Rank {
    /// Its place in the request.
    pub index: usize,
    /// The text, where that was asked for.
    pub text: Option<String>,
    /// How well it fits: from 0 to 1, or the model's logit where that was asked for.
    pub score: f64,
}

/// What was generated for one input: one of its choices.
#[derive(Clone, Debug, PartialEq)]
pub struct Generated {
    /// Which input.
    pub input: usize,
    /// The text of the new tokens alone.
    pub text: String,
    /// Prompt and continuation: `text-generation`, unless `return_full_text` is false.
    pub full_text: Option<String>,
    /// Why generation ended.
    pub finish: FinishReason,
    /// Tokens of the input, special ones included.
    pub n_prompt_tokens: usize,
    /// Tokens generated; the end token counts.
    pub n_tokens: usize,
    /// The ids generated, the end token included.
    pub ids: Vec<u32>,
}

impl Generated {
    /// The text to print as `generated_text` or `summary_text`: [`Self::full_text`] where there is
    /// one, else [`Self::text`].
    pub fn reply_text(&self) -> &str {
        self.full_text.as_deref().unwrap_or(&self.text)
    }
}

/// Why generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum FinishReason {
    /// The model said an end token.
    EndToken,
    /// The text came to a stop string, or followed its grammar to the end.
    Stop,
    /// The length limit was reached.
    Length,
    /// The server is shutting down; the text is what there was by then.
    Shutdown,
}

impl FinishReason {
    /// The name used in replies: `eos_token`, `stop_sequence`, `length`, `shutdown`.
    pub fn name(self) -> &'static str {
        match self {
            Self::EndToken => "eos_token",
            Self::Stop => "stop_sequence",
            Self::Length => "length",
            Self::Shutdown => "shutdown",
        }
    }
}

impl fmt::Display for FinishReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
