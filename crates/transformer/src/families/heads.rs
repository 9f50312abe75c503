//! The heads of tasks: which class has which, and what checkpoints call its parts.
//!
//! A head follows from the class that saved the checkpoint (`architectures` of the config), so it is
//! put on the family's description here, for all families; transformers 4.57, `models/*`.

use super::reader::Reader;
use super::{ModuleNames, Place};
use crate::activation::Activation;
use crate::architecture::{Architecture, DefaultDecoderInput, Kind};
use crate::error::TransformerError;
use crate::norm::Norm;
use crate::task_head::{HeadReads, HeadTask, TaskHead};

/// Most labels.
const MAX_LABELS: u32 = 1 << 24;
/// The epsilon of DistilBERT's norms, which its config can't change.
const DISTILBERT_EPS: f64 = 1e-12;

/// How a family's heads are built.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Build {
    /// A pooler and one matrix; the masked language model's is under `cls.predictions`.
    Bert,
    /// As BERT's, with a pooler of its own.
    Deberta,
    /// Two matrices on the first state; `lm_head` for masked language models.
    Roberta,
    /// As RoBERTa's, with other names.
    Distilbert,
    /// As RoBERTa's, with another activation, and other names for masked tokens.
    Electra,
    /// Two matrices on the state of the last end token.
    Bart,
    /// One matrix without a bias.
    Decoder,
}

fn build(family: &str, kind: Kind) -> Build {
    match (family, kind) {
        ("bert", _) => Build::Bert,
        ("deberta-v2" | "deberta", _) => Build::Deberta,
        ("distilbert", _) => Build::Distilbert,
        ("electra", _) => Build::Electra,
        (_, Kind::Encoder) => Build::Roberta,
        (_, Kind::EncoderDecoder) => Build::Bart,
        (_, Kind::Decoder) => Build::Decoder,
    }
}

/// The task that a class was made for, if its head is one of these.
fn task_of(architectures: &[String]) -> Option<HeadTask> {
    let class = architectures.first()?;
    let suffixes = [
        ("ForMaskedLM", HeadTask::MaskedLm),
        ("ForSequenceClassification", HeadTask::SequenceClassification),
        ("ForTokenClassification", HeadTask::TokenClassification),
        ("ForQuestionAnswering", HeadTask::QuestionAnswering),
    ];
    let found = suffixes.iter().find(|(suffix, _)| class.ends_with(suffix)).map(|(_, task)| *task);
    found.or_else(|| (class == "BertForPreTraining").then_some(HeadTask::MaskedLm))
}

/// Gives `architecture` the head of the class that the config names, in place of a language model's.
///
/// # Errors
/// A number of labels that is impossible, an activation that is not known, or a head that is none of
/// this family's.
pub(super) fn add(
    architecture: &mut Architecture,
    config: &Reader<'_>,
) -> Result<(), TransformerError> {
    let Some(task) = task_of(&config.config.architectures) else { return Ok(()) };
    let (kind, dim) = (architecture.kind, architecture.dim);
    if task == HeadTask::MaskedLm && kind != Kind::Encoder {
        return Err(config.unsupported("architectures", "a class without a masked language model"));
    }
    if task == HeadTask::TokenClassification && kind == Kind::EncoderDecoder {
        return Err(config.unsupported("architectures", "a class without token classification"));
    }
    let build = build(architecture.family, kind);
    let mut head = TaskHead {
        task,
        reads: HeadReads::Every,
        width: match task {
            HeadTask::MaskedLm => architecture.vocab,
            HeadTask::QuestionAnswering => 2,
            _ => n_labels(config)?,
        },
        dense: None,
        norm: None,
        bias: true,
        tied: false,
        optional: false,
    };
    match task {
        HeadTask::MaskedLm => {
            let key = if build == Build::Distilbert { "activation" } else { "hidden_act" };
            head.dense = Some(match build {
                Build::Roberta | Build::Electra => Activation::Gelu,
                _ => config.activation(key, Activation::Gelu)?,
            });
            head.norm = Some(Norm::layer(match build {
                Build::Distilbert => DISTILBERT_EPS,
                Build::Bert | Build::Deberta | Build::Electra => {
                    config.eps("layer_norm_eps", 1e-12)?
                }
                _ => config.eps("layer_norm_eps", 1e-5)?,
            }));
            head.tied = config.flag("tie_word_embeddings", true)?;
            head.optional = true;
        }
        HeadTask::SequenceClassification => {
            let first = kind == Kind::Encoder;
            head.reads = if first { HeadReads::First } else { HeadReads::Last };
            head.bias = build != Build::Decoder;
            head.dense = match build {
                Build::Decoder => None,
                Build::Distilbert => Some(Activation::Relu),
                Build::Electra => Some(Activation::Gelu),
                Build::Deberta => {
                    if config.opt_size("pooler_hidden_size")?.is_some_and(|size| size != dim) {
                        let wanted = format!("{dim}, the hidden size");
                        return Err(config.unsupported("pooler_hidden_size", wanted));
                    }
                    Some(config.activation("pooler_hidden_act", Activation::Gelu)?)
                }
                Build::Bert | Build::Roberta | Build::Bart => Some(Activation::Tanh),
            };
        }
        HeadTask::TokenClassification | HeadTask::QuestionAnswering => {}
    }
    if head.dense.is_some() && task == HeadTask::SequenceClassification {
        // The pooler is the head's inner matrix.
        architecture.pooler = None;
    }
    if architecture.default_decoder_input == DefaultDecoderInput::None
        && kind == Kind::EncoderDecoder
    {
        // These classes shift the input right by themselves where the plain model does not.
        architecture.default_decoder_input = DefaultDecoderInput::ShiftRight;
    }
    architecture.head = None;
    architecture.task_head = Some(head);
    Ok(())
}

/// As transformers' `PretrainedConfig`: the names of the labels say how many there are.
fn n_labels(config: &Reader<'_>) -> Result<u32, TransformerError> {
    let wanted = "an object of 1 to 16777216 labels by number";
    let named = match config.json.get("id2label")? {
        None => None,
        Some(value) => {
            let n = value.as_object().and_then(|labels| u32::try_from(labels.len()).ok());
            let n = n.filter(|n| (1..=MAX_LABELS).contains(n));
            Some(n.ok_or_else(|| config.json.invalid("id2label", wanted))?)
        }
    };
    match named {
        Some(n) => Ok(n),
        None => config.size(
            if config.json.contains("_num_labels") { "_num_labels" } else { "num_labels" },
            2,
        ),
    }
}

/// A module at one place.
const fn at(canonical: &'static str, found: &'static [Place]) -> ModuleNames {
    ModuleNames { canonical, found }
}

const fn top(module: &'static str) -> Place {
    Place::top(module)
}

const WORDS: Place = Place::new("embeddings.word_embeddings").tied();

static BERT_MLM: [ModuleNames; 4] = [
    at("head.dense", &[top("cls.predictions.transform.dense")]),
    at("head.norm", &[top("cls.predictions.transform.LayerNorm")]),
    at("head.weight", &[top("cls.predictions.decoder"), WORDS]),
    at("head.bias", &[top("cls.predictions"), top("cls.predictions.decoder")]),
];
static ROBERTA_MLM: [ModuleNames; 4] = [
    at("head.dense", &[top("lm_head.dense")]),
    at("head.norm", &[top("lm_head.layer_norm")]),
    at("head.weight", &[top("lm_head.decoder"), WORDS]),
    at("head.bias", &[top("lm_head"), top("lm_head.decoder")]),
];
static DISTILBERT_MLM: [ModuleNames; 4] = [
    at("head.dense", &[top("vocab_transform")]),
    at("head.norm", &[top("vocab_layer_norm")]),
    at("head.weight", &[top("vocab_projector"), WORDS]),
    at("head.bias", &[top("vocab_projector")]),
];
static ELECTRA_MLM: [ModuleNames; 3] = [
    at("head.dense", &[top("generator_predictions.dense")]),
    at("head.norm", &[top("generator_predictions.LayerNorm")]),
    at("head", &[top("generator_lm_head"), WORDS]),
];
static BERT_LABELS: [ModuleNames; 2] =
    [at("head.dense", &[Place::new("pooler.dense")]), at("head", &[top("classifier")])];
static DEBERTA_LABELS: [ModuleNames; 2] =
    [at("head.dense", &[top("pooler.dense")]), at("head", &[top("classifier")])];
static ROBERTA_LABELS: [ModuleNames; 2] =
    [at("head.dense", &[top("classifier.dense")]), at("head", &[top("classifier.out_proj")])];
static DISTILBERT_LABELS: [ModuleNames; 2] =
    [at("head.dense", &[top("pre_classifier")]), at("head", &[top("classifier")])];
static BART_LABELS: [ModuleNames; 2] = [
    at("head.dense", &[top("classification_head.dense")]),
    at("head", &[top("classification_head.out_proj")]),
];
static SCORE: [ModuleNames; 1] = [at("head", &[top("score")])];
static TOKEN_LABELS: [ModuleNames; 1] = [at("head", &[top("classifier"), top("score")])];
static SPANS: [ModuleNames; 1] = [at("head", &[top("qa_outputs")])];

/// What checkpoints of `architecture` call the parts of its task's head; `None` without one.
pub(crate) fn modules(architecture: &Architecture) -> Option<&'static [ModuleNames]> {
    let task = architecture.task_head?.task;
    let build = build(architecture.family, architecture.kind);
    Some(match (task, build) {
        (HeadTask::MaskedLm, Build::Bert | Build::Deberta) => &BERT_MLM,
        (HeadTask::MaskedLm, Build::Distilbert) => &DISTILBERT_MLM,
        (HeadTask::MaskedLm, Build::Electra) => &ELECTRA_MLM,
        (HeadTask::MaskedLm, _) => &ROBERTA_MLM,
        (HeadTask::SequenceClassification, Build::Bert) => &BERT_LABELS,
        (HeadTask::SequenceClassification, Build::Deberta) => &DEBERTA_LABELS,
        (HeadTask::SequenceClassification, Build::Roberta | Build::Electra) => &ROBERTA_LABELS,
        (HeadTask::SequenceClassification, Build::Distilbert) => &DISTILBERT_LABELS,
        (HeadTask::SequenceClassification, Build::Bart) => &BART_LABELS,
        (HeadTask::SequenceClassification, Build::Decoder) => &SCORE,
        (HeadTask::TokenClassification, _) => &TOKEN_LABELS,
        (HeadTask::QuestionAnswering, _) => &SPANS,
    })
}
