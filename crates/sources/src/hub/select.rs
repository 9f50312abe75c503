//! Which files of a repository a model needs.
//!
//! A repository holds the same weights many times over: for PyTorch, TensorFlow, Flax, ONNX, in
//! other precisions, with the state of its training. One copy of the weights is taken, safetensors
//! before pickles before GGUF, and what stands beside them that is small and tells how to use them.

use crate::error::{SourceError, shorten};

/// Ends of the names of small files that say how a model is used.
const DESCRIPTIONS: [&str; 8] =
    [".json", ".txt", ".model", ".jinja", ".tiktoken", ".py", ".spm", ".vocab"];

/// Files of those ends that belong to other things.
const NOT_NEEDED: [&str; 9] = [
    "trainer_state.json",
    "training_args.json",
    "all_results.json",
    "train_results.json",
    "eval_results.json",
    "tf_model.h5.index.json",
    "flax_model.msgpack.index.json",
    "requirements-dev.txt",
    "setup.py",
];

/// Directories whose files count as the model's own.
const DIRECTORIES: [&str; 2] = ["additional_chat_templates", "adapters"];

/// Quantisations of GGUF, the preferred first: the usual compromise, then larger ones, then smaller.
const QUANTISATIONS: [&str; 14] = [
    "q4_k_m", "q8_0", "q5_k_m", "q6_k", "q4_k_s", "q5_k_s", "q4_0", "q5_0", "q4_1", "q5_1", "bf16",
    "f16", "q3_k_m", "q2_k",
];

/// The files to have, descriptions first and weights last.
///
/// # Errors
/// There are no weights that can be served.
pub(super) fn choose(place: &str, files: &[String]) -> Result<Vec<String>, SourceError> {
    let mut chosen: Vec<String> = files.iter().filter(|name| describes(name)).cloned().collect();
    chosen.sort();
    let weights = weights(files);
    if weights.is_empty() {
        let found: Vec<String> = files.iter().take(8).map(|name| shorten(name)).collect();
        return Err(SourceError::Refused {
            place: place.to_owned(),
            reason: format!(
                "has no weights that are served: expected .safetensors, pytorch_model.bin or .gguf, \
                 found {}{}",
                if found.is_empty() { "nothing".to_owned() } else { found.join(", ") },
                if files.len() > found.len() { ", …" } else { "" }
            ),
            source: None,
        });
    }
    // An index stands among the descriptions: it comes with its weights, and only with those.
    chosen
        .retain(|name| !name.ends_with(".index.json") || weights.iter().any(|w| of_index(name, w)));
    chosen.extend(weights);
    Ok(chosen)
}

/// Whether `name` is in the root or in a directory that counts as the model's own.
fn is_near(name: &str) -> bool {
    match name.split_once('/') {
        None => true,
        // Modules of a sentence transformer: 1_Pooling, 2_Dense.
        Some((directory, rest)) => {
            let digits = directory.bytes().take_while(u8::is_ascii_digit).count();
            let is_module = digits > 0 && directory[digits..].starts_with('_');
            let is_known = DIRECTORIES.contains(&directory);
            (is_module && !rest.contains('/')) || is_known
        }
    }
}

fn describes(name: &str) -> bool {
    let last = name.rsplit('/').next().unwrap_or(name);
    let folded = last.to_ascii_lowercase();
    is_near(name)
        && !last.starts_with('.')
        && !NOT_NEEDED.contains(&folded.as_str())
        && (DESCRIPTIONS.iter().any(|end| folded.ends_with(end)) || folded == "serving.properties")
        && !folded.starts_with("readme")
        && !folded.starts_with("license")
}

/// Whether `index` lists the shard or file `weights`.
fn of_index(index: &str, weights: &str) -> bool {
    let Some(whole) = index.strip_suffix(".index.json") else { return false };
    whole == weights
        || whole.rsplit_once('.').is_some_and(|(stem, end)| {
            weights.strip_prefix(stem).is_some_and(|rest| is_shard(rest, end))
        })
}

/// Whether `rest` is `-00001-of-00002.end`.
fn is_shard(rest: &str, end: &str) -> bool {
    let numbers = rest.strip_prefix('-').and_then(|rest| rest.strip_suffix(end)?.strip_suffix('.'));
    numbers.and_then(|numbers| numbers.split_once("-of-")).is_some_and(|(shard, of)| {
        let is_number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        is_number(shard) && is_number(of)
    })
}

fn weights(files: &[String]) -> Vec<String> {
    let has = |name: &str| files.iter().any(|file| file == name);
    let shards = |stem: &str, end: &str| -> Vec<String> {
        let of = |name: &&String| name.strip_prefix(stem).is_some_and(|rest| is_shard(rest, end));
        sorted(files.iter().filter(of))
    };
    let near = |end: &str| -> Vec<String> {
        sorted(files.iter().filter(|name| is_near(name) && name.ends_with(end)))
    };
    let in_root = |names: Vec<String>| -> Vec<String> {
        names.into_iter().filter(|name| !name.contains('/')).collect()
    };
    let beside = |main: Vec<String>, end: &str, adapter: &str| -> Vec<String> {
        let mut all = main;
        // Weights of modules and adapters, which are small.
        let own = near(end).into_iter().filter(|name| name.contains('/') || name == adapter);
        all.extend(own);
        all.sort();
        all.dedup();
        all
    };
    for (stem, end, adapter) in [
        ("model", "safetensors", "adapter_model.safetensors"),
        ("pytorch_model", "bin", "adapter_model.bin"),
    ] {
        let whole = format!("{stem}.{end}");
        let main = match has(&whole) && !has(&format!("{whole}.index.json")) {
            true => vec![whole.clone()],
            false => shards(stem, end),
        };
        if !main.is_empty() {
            return beside(main, end, adapter);
        }
        if has(&whole) {
            return beside(vec![whole], end, adapter);
        }
        if end == "safetensors" {
            let others = in_root(near(".safetensors"));
            if !others.is_empty() {
                return beside(others, end, adapter);
            }
        }
        if has(adapter) {
            return beside(Vec::new(), end, adapter);
        }
    }
    gguf(&in_root(near(".gguf")))
}

/// One quantisation, and all its shards. What holds an image model beside the text model is none.
fn gguf(files: &[String]) -> Vec<String> {
    let files: Vec<&String> =
        files.iter().filter(|name| !name.to_ascii_lowercase().contains("mmproj")).collect();
    let rank = |name: &str| {
        let folded = name.to_ascii_lowercase().replace('-', "_");
        let is_part = |kind: &str| folded.contains(kind);
        QUANTISATIONS.iter().position(|kind| is_part(kind)).unwrap_or(QUANTISATIONS.len())
    };
    let Some(best) = files.iter().min_by_key(|name| (rank(name), name.as_str())) else {
        return Vec::new();
    };
    let stem = |name: &str| {
        name.char_indices()
            .find(|(idx, _)| is_shard(&name[*idx..], "gguf"))
            .map(|(idx, _)| name[..idx].to_owned())
    };
    match stem(best) {
        Some(of) => {
            sorted(files.iter().copied().filter(|name| stem(name).is_some_and(|stem| stem == of)))
        }
        None => vec![(*best).clone()],
    }
}

fn sorted<'a>(names: impl Iterator<Item = &'a String>) -> Vec<String> {
    let mut names: Vec<String> = names.cloned().collect();
    names.sort();
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(files: &str, wanted: &str) {
        let list = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(choose("m", &list(files)).unwrap(), list(wanted), "{files}");
    }

    #[test]
    fn one_copy_of_the_weights_is_taken() {
        check(
            ".gitattributes README.md config.json flax_model.msgpack model.safetensors \
             onnx/model.onnx onnx/config.json pytorch_model.bin rust_model.ot tf_model.h5 \
             tokenizer.json vocab.json merges.txt generation_config.json training_args.bin \
             64-8bits.tflite",
            "config.json generation_config.json merges.txt tokenizer.json vocab.json \
             model.safetensors",
        );
        check(
            "config.json model-00001-of-00002.safetensors model-00002-of-00002.safetensors \
             model.safetensors.index.json consolidated.safetensors original/params.json \
             pytorch_model-00001-of-00001.bin pytorch_model.bin.index.json",
            "config.json model.safetensors.index.json model-00001-of-00002.safetensors \
             model-00002-of-00002.safetensors",
        );
        check(
            "config.json model.fp16.safetensors model.safetensors",
            "config.json model.safetensors",
        );
        check(
            "config.json pytorch_model.bin optimizer.bin spiece.model",
            "config.json spiece.model pytorch_model.bin",
        );
        check("config.json weights.safetensors", "config.json weights.safetensors");
    }

    #[test]
    fn what_stands_beside_comes_along() {
        check(
            "1_Pooling/config.json 2_Dense/config.json 2_Dense/model.safetensors \
             2_Dense/pytorch_model.bin config.json model.safetensors modules.json \
             sentence_bert_config.json openvino/openvino_model.xml runs/events.json",
            "1_Pooling/config.json 2_Dense/config.json config.json modules.json \
             sentence_bert_config.json 2_Dense/model.safetensors model.safetensors",
        );
        check(
            "adapter_config.json adapter_model.safetensors",
            "adapter_config.json adapter_model.safetensors",
        );
        check(
            "chat_template.jinja additional_chat_templates/tool.jinja config.json model.safetensors \
             adapters/a/adapter_config.json adapters/a/adapter_model.safetensors",
            "adapters/a/adapter_config.json additional_chat_templates/tool.jinja \
             chat_template.jinja config.json adapters/a/adapter_model.safetensors model.safetensors",
        );
    }

    #[test]
    fn one_quantisation_is_taken() {
        check("m-Q2_K.gguf m-Q4_K_M.gguf m-Q8_0.gguf", "m-Q4_K_M.gguf");
        check("m.f16.gguf m.q8_0.gguf mmproj-f16.gguf", "m.q8_0.gguf");
        check(
            "m-Q8_0-00001-of-00002.gguf m-Q8_0-00002-of-00002.gguf m-F16.gguf",
            "m-Q8_0-00001-of-00002.gguf m-Q8_0-00002-of-00002.gguf",
        );
        check("x.gguf", "x.gguf");
    }

    #[test]
    fn no_weights_are_an_error_that_lists_what_is_there() {
        let error = choose("m", &["config.json".into(), "tf_model.h5".into()]).unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains("no weights that are served") && text.contains("tf_model.h5"),
            "{text}"
        );
    }
}
