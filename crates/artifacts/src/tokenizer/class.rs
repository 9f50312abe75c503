//! Which of transformers' tokenizer classes a model gets.
//!
//! Since version 5, four classes make their pipeline anew and take the vocabulary only from
//! `tokenizer.json`; the rest take the file as it is. Source: transformers 5.23.0,
//! `models/auto/tokenization_auto.py` and `models/*/tokenization_*.py`.

use crate::error::ArtifactError;
use crate::json::JsonFile;

/// A class, by what it does to the pipeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    /// `tokenizer.json` as it is.
    AsStored,
    Bert,
    Gpt2,
    Llama,
    Roberta,
}

/// Model types whose tokenizer is registered as one of the four.
const BERT_MODELS: [&str; 25] = [
    "align",
    "bark",
    "bert",
    "blip",
    "bros",
    "chinese_clip",
    "convbert",
    "distilbert",
    "electra",
    "ernie",
    "flava",
    "git",
    "grounding-dino",
    "layoutlm",
    "megatron-bert",
    "mm-grounding-dino",
    "nezha",
    "nomic_bert",
    "qdqbert",
    "realm",
    "retribert",
    "squeezebert",
    "tvp",
    "vilt",
    "visual_bert",
];
const ROBERTA_MODELS: [&str; 14] = [
    "bart",
    "bridgetower",
    "clap",
    "data2vec-text",
    "florence2",
    "ibert",
    "led",
    "lilt",
    "longformer",
    "mega",
    "mra",
    "mvp",
    "roberta",
    "roberta-prelayernorm",
];
const GPT2_MODELS: [&str; 14] = [
    "blip-2",
    "codegen",
    "dbrx",
    "emu3",
    "gpt2",
    "gpt_neo",
    "gptj",
    "hyperclovax_vision_v2",
    "instructblip",
    "instructblipvideo",
    "jais2",
    "opt",
    "phi",
    "starcoder2",
];
const LLAMA_MODELS: [&str; 2] = ["idefics", "idefics2"];

/// Model types registered with the generic class, whatever class their files name.
const AS_STORED_MODELS: [&str; 83] = [
    "EvollaModel",
    "arctic",
    "aria",
    "beam",
    "bigbird_pegasus",
    "camembertv2-base",
    "canary",
    "chatlm",
    "cohere_asr",
    "ernie4_5",
    "ernie4_5_moe",
    "flex_olmo",
    "fuyu",
    "glm",
    "glm4",
    "glm4_moe",
    "glm4_moe_lite",
    "glm4v",
    "glm4v_moe",
    "glm_image",
    "glmasr",
    "got_ocr2",
    "gpt_bigcode",
    "gradium_phonon_tts",
    "granite",
    "granitemoe",
    "granitemoehybrid",
    "granitemoeshared",
    "h2ovl_chat",
    "hyperclovax",
    "hyperclovax_vlm",
    "internlm2",
    "internlm3",
    "iquestcoder",
    "jamba",
    "kimi_k25",
    "kimi_linear",
    "kosmos-2",
    "llava",
    "llava_next",
    "mimo_v2_flash",
    "minicpm3",
    "minicpm_ocr",
    "minicpmv",
    "minicpmv4_6",
    "minicpmv4_7",
    "minimax_m2",
    "ministral",
    "ministral3",
    "mistral",
    "mistral3",
    "mistral_large4",
    "mixtral",
    "modernbert",
    "modernbert-decoder",
    "molmo",
    "molmo2",
    "nemo_speechlm",
    "nemotron",
    "nvfp4",
    "nystromformer",
    "olmo2",
    "olmo3",
    "olmo_hybrid",
    "opencua",
    "openvla",
    "paddleocr_vl",
    "pegasus_x",
    "persimmon",
    "phi3",
    "phi3_v",
    "phimoe",
    "pix2struct",
    "pixtral",
    "pocket_tts",
    "smolvlm",
    "stablelm",
    "step3_vl",
    "umt5",
    "vipllava",
    "voxtral",
    "voxtral_realtime",
    "xlm-roberta-xl",
];

/// The class of a model by `tokenizer_class` of `tokenizer_config.json` or `config.json` and the
/// model type. `is_byte_level` says whether `tokenizer.json` is of that kind.
pub(super) fn of_model(
    config: &JsonFile,
    model_config: Option<&JsonFile>,
    is_byte_level: impl FnOnce() -> bool,
) -> Result<Class, ArtifactError> {
    let own = config.opt_str("tokenizer_class")?;
    let (model_type, fallback) = match model_config {
        Some(json) => (json.opt_str("model_type")?, json.opt_str("tokenizer_class")?),
        None => (None, None),
    };
    let registered = model_type.and_then(registered);
    let Some(named) = own.or(fallback) else { return Ok(registered.unwrap_or(Class::AsStored)) };
    let class = by_name(named.strip_suffix("Fast").unwrap_or(named));
    Ok(match (class, registered) {
        (_, Some(Class::AsStored)) => Class::AsStored,
        // Byte-level files that name LLaMA's class by mistake.
        (Class::Llama, _) if is_byte_level() => Class::AsStored,
        (class, _) => class,
    })
}

/// The class that a vocabulary without `tokenizer.json` is read by.
pub(super) fn of_byte_level_files(class: Class, model_config: Option<&JsonFile>) -> Class {
    let model_type = model_config.and_then(|json| json.opt_str("model_type").ok()?);
    match (class, model_type.and_then(registered)) {
        (Class::Gpt2 | Class::Roberta, _) => class,
        (_, Some(Class::Roberta)) => Class::Roberta,
        _ => Class::Gpt2,
    }
}

fn registered(model_type: &str) -> Option<Class> {
    let lists: [(&[&str], Class); 5] = [
        (&BERT_MODELS, Class::Bert),
        (&ROBERTA_MODELS, Class::Roberta),
        (&GPT2_MODELS, Class::Gpt2),
        (&LLAMA_MODELS, Class::Llama),
        (&AS_STORED_MODELS, Class::AsStored),
    ];
    lists.into_iter().find(|(models, _)| models.contains(&model_type)).map(|(_, class)| class)
}

fn by_name(name: &str) -> Class {
    match name {
        "BertTokenizer"
        | "ConvBertTokenizer"
        | "DPRQuestionEncoderTokenizer"
        | "DistilBertTokenizer"
        | "ElectraTokenizer"
        | "LxmertTokenizer"
        | "MobileBertTokenizer"
        | "SqueezeBertTokenizer" => Class::Bert,
        "BartTokenizer"
        | "LEDTokenizer"
        | "LongformerTokenizer"
        | "MvpTokenizer"
        | "RobertaTokenizer" => Class::Roberta,
        "GPT2Tokenizer" => Class::Gpt2,
        "LlamaTokenizer" => Class::Llama,
        _ => Class::AsStored,
    }
}
