//! Byte-level BPE, which GGUF calls `gpt2`.

use serde_json::{Value as Json, json};

use super::{Source, as_json};
use crate::error::ArtifactError;

const PRE: &str = "tokenizer.ggml.pre";

/// LLaMA 3's words: contractions, letters with what precedes them, up to three digits, signs.
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// The same with single digits.
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// BLOOM's words.
const BLOOM: &str = r" ?[^(\s|[.,!?…。，、।۔،])]+";

/// How a text is split into words before merges are applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Words {
    /// GPT-2's expression, which the library has built in.
    Gpt2,
    /// Each digit alone, then as GPT-2.
    Digits,
    /// By an expression.
    Expression(&'static str),
    /// Falcon's four steps.
    Falcon,
}

/// The names of `tokenizer.ggml.pre` whose meaning is known.
const KNOWN: [(&[&str], Words); 6] = [
    (
        &[
            "gpt-2",
            "gpt2",
            "phi-2",
            "olmo",
            "mpt",
            "jais",
            "roberta-bpe",
            "jina-v1-en",
            "modern-bert",
        ],
        Words::Gpt2,
    ),
    (&["smollm", "starcoder", "refact", "codeshell", "command-r"], Words::Digits),
    (
        &["llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral", "dbrx", "smaug-bpe"],
        Words::Expression(LLAMA3),
    ),
    (&["qwen2", "deepseek-r1-qwen", "megrez", "kormo"], Words::Expression(QWEN2)),
    (&["bloom", "gpt3-finnish"], Words::Expression(BLOOM)),
    (&["falcon"], Words::Falcon),
];

/// The words of files that name none, by family. Old files name none.
const BY_FAMILY: [(&str, Words); 6] = [
    ("gpt2", Words::Gpt2),
    ("gptneox", Words::Gpt2),
    ("phi2", Words::Gpt2),
    ("qwen2", Words::Expression(QWEN2)),
    ("falcon", Words::Falcon),
    ("bloom", Words::Expression(BLOOM)),
];

pub(super) fn definition(source: &Source<'_, '_>) -> Result<Json, ArtifactError> {
    const MERGES: &str = "tokenizer.ggml.merges";
    let header = source.header;
    let pre = header.str(PRE)?.unwrap_or("default");
    let words = words(source, pre)?;
    let array = header.array(MERGES)?;
    let array = array.ok_or_else(|| header.missing(MERGES, "the merges of the vocabulary"))?;
    let merges: Option<Json> = array
        .iter()
        .map(|value| {
            // A token may not hold a space: there it is another letter.
            let (left, right) = value.as_str()?.split_once(' ')?;
            Some(json!([left, right]))
        })
        .collect();
    let wanted = "an array of two tokens each with a space between";
    let merges = merges.ok_or_else(|| header.invalid(MERGES, wanted))?;
    let is_llama3 = words == Words::Expression(LLAMA3) && pre != "dbrx" && pre != "smaug-bpe";
    let vocabulary = source.tokens.vocabulary();
    // Only of use where some byte is no token.
    let unknown = source.named("unknown")?.map(|(text, _)| text);
    Ok(json!({
        // Qwen's vocabularies are of composed letters.
        "normalizer": (words == Words::Expression(QWEN2)).then(|| json!({"type": "NFC"})),
        "pre_tokenizer": pre_tokenizer(words),
        "post_processor": post_processor(source, pre, is_llama3)?,
        "decoder": byte_level(true),
        "model": {
            "type": "BPE", "dropout": null, "unk_token": unknown, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
            "ignore_merges": is_llama3, "vocab": as_json(&vocabulary), "merges": merges,
        },
    }))
}

fn words(source: &Source<'_, '_>, pre: &str) -> Result<Words, ArtifactError> {
    if let Some((_, words)) = KNOWN.iter().find(|(names, _)| names.contains(&pre)) {
        return Ok(*words);
    }
    let family = source.header.architecture;
    let known = BY_FAMILY.iter().find(|(name, _)| *name == family);
    match known {
        Some((_, words)) if pre == "default" => Ok(*words),
        _ => {
            let names: Vec<&str> =
                KNOWN.iter().flat_map(|(names, _)| names.iter().copied()).collect();
            let wanted = format!(
                "one of {}, or a tokenizer.json beside the file, which wins",
                names.join(", ")
            );
            Err(source.header.invalid(PRE, &wanted))
        }
    }
}

fn byte_level(use_regex: bool) -> Json {
    json!({
        "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
        "use_regex": use_regex,
    })
}

fn pre_tokenizer(words: Words) -> Json {
    let steps = match words {
        Words::Gpt2 => return byte_level(true),
        Words::Digits => {
            vec![json!({"type": "Digits", "individual_digits": true}), byte_level(true)]
        }
        Words::Expression(expression) => vec![split(expression), byte_level(false)],
        Words::Falcon => vec![
            json!({"type": "Punctuation", "behavior": "Contiguous"}),
            byte_level(true),
            json!({"type": "Digits", "individual_digits": false}),
            split("[0-9][0-9][0-9]"),
        ],
    };
    json!({"type": "Sequence", "pretokenizers": steps})
}

fn split(expression: &str) -> Json {
    json!({
        "type": "Split", "pattern": {"Regex": expression}, "behavior": "Isolated", "invert": false,
    })
}

fn post_processor(
    source: &Source<'_, '_>,
    pre: &str,
    is_llama3: bool,
) -> Result<Json, ArtifactError> {
    if source.header.architecture == "bert" || pre == "roberta-bpe" {
        let cls = source.named("cls")?.or(source.named("bos")?);
        let sep = source.named("seperator")?.or(source.named("eos")?);
        if let (Some(cls), Some(sep)) = (cls, sep) {
            return Ok(json!({
                "type": "RobertaProcessing", "cls": cls, "sep": sep, "trim_offsets": true,
                "add_prefix_space": false,
            }));
        }
    }
    source.around(is_llama3, false)
}
