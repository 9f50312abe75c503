//! GGUF models: types, names and layouts, configs, tokenizers, and files that lie.

use std::fs;
use std::path::PathBuf;

use drivetrain_artifacts::{
    GenerationConfig, ModelConfig, ModelDir, RowOrder, SpecialTokens, Tokenizer, UnpackOptions,
    Weights,
};
use serde_json::Value;
use tempfile::TempDir;

use crate::fixtures;
use crate::gguf_writer::{Writer, llama, text};

/// The families of `make_gguf_families.py`, by the fixtures that their files were made from.
const FAMILIES: [&str; 17] = [
    "bert",
    "bloom",
    "falcon",
    "flan_t5",
    "gemma",
    "gemma2",
    "gemma3",
    "gpt2",
    "gpt_neox",
    "llama3_rope",
    "llama_gqa",
    "mixtral",
    "phi",
    "phi3",
    "qwen2",
    "qwen3",
    "t5",
];

fn open(path: PathBuf) -> ModelDir {
    ModelDir::open(&path, &UnpackOptions::default()).unwrap()
}

fn family(name: &str) -> ModelDir {
    open(fixtures::path("gguf_families").join(format!("{name}.gguf")))
}

fn json(path: PathBuf) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

fn unhex(text: &Value) -> Vec<u8> {
    let text = text.as_str().unwrap();
    let pairs = (0..text.len()).step_by(2);
    pairs.map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
}

/// A model of one file, or why it can't be opened.
fn weights_of(bytes: &[u8]) -> Result<(TempDir, Weights), String> {
    let dir = TempDir::new().unwrap();
    fs::write(dir.path().join("model.gguf"), bytes).unwrap();
    let model = ModelDir::open(dir.path(), &UnpackOptions::default()).unwrap();
    Weights::open(&model).map(|weights| (dir, weights)).map_err(|error| error.to_string())
}

#[test]
fn every_type_stands_for_the_numbers_that_the_gguf_package_reads() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/gguf/blocks.json");
    for (name, case) in json(path.into()).as_object().unwrap() {
        let (blocks, values) = (unhex(&case["blocks"]), unhex(&case["values"]));
        let expected: Vec<f32> =
            values.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
        let mut file = Writer::new("llama");
        let number = case["number"].as_u64().unwrap() as u32;
        file.tensor("token_embd.weight", &[256, 2], number, &blocks);
        let (_dir, weights) = weights_of(&file.bytes()).unwrap();
        let tensor = weights.get("model.embed_tokens.weight").unwrap();
        assert_eq!(tensor.dtype().name(), name);
        assert_eq!(tensor.bytes(), blocks, "{name}");
        let check = |start: usize, found: &[f32]| {
            for (idx, (found, expected)) in found.iter().zip(&expected[start..]).enumerate() {
                let same = found.to_bits() == expected.to_bits();
                assert!(
                    same || found.is_nan() && expected.is_nan(),
                    "{name} {idx} from {start}: {found}, expected {expected}"
                );
            }
        };
        check(0, &tensor.to_f32_vec().unwrap());
        for (start, n) in [(0, 1), (1, 33), (31, 2), (255, 2), (300, 212), (511, 1), (512, 0)] {
            let mut part = vec![0.0; n];
            tensor.read_f32_at(start, &mut part).unwrap();
            check(start, &part);
        }
        assert!(tensor.read_f32_at(511, &mut [0.0; 2]).is_err());
    }
}

/// The name in the fixture: with the prefix of the class that has the head, or without.
fn name_in<'a>(weights: &Weights, name: &'a str) -> Option<&'a str> {
    let without = name.split_once('.').map(|(_, rest)| rest);
    [Some(name), without].into_iter().flatten().find(|name| weights.contains(name))
}

#[test]
fn every_family_has_the_tensors_of_its_checkpoint() {
    for family_name in FAMILIES {
        let (gguf, fixture) = (family(family_name), fixtures::open(family_name));
        let (found, expected) = (Weights::open(&gguf).unwrap(), Weights::open(&fixture).unwrap());
        let mut n_seen = 0;
        for name in found.names() {
            let Some(other) = name_in(&expected, name) else {
                panic!("{family_name}: {name} is in no checkpoint")
            };
            let (found, expected) = (found.get(name).unwrap(), expected.get(other).unwrap());
            assert_eq!(found.shape(), expected.shape(), "{family_name}: {name}");
            let values = found.to_f32_vec().unwrap();
            let wanted = expected.to_f32_vec().unwrap();
            // One was added to norms and is taken away again, which rounds twice.
            let tolerance = if found.value_offset() == 0.0 { 0.0 } else { 2.5e-7 };
            for (idx, (a, b)) in values.iter().zip(&wanted).enumerate() {
                assert!((a - b).abs() <= tolerance, "{family_name}: {name}[{idx}]: {a}, {b}");
            }
            for start in [0, 1, values.len() / 2, values.len() - 1] {
                let mut part = vec![0.0; (values.len() - start).min(70)];
                found.read_f32_at(start, &mut part).unwrap();
                assert_eq!(part, values[start..start + part.len()], "{family_name}: {name}");
            }
            n_seen += 1;
        }
        let left_out = ["pooler.", "embed_tokens.weight", "lm_head.weight", ".masked_bias"];
        let n_expected = expected
            .names()
            .filter(|name| {
                let own = found.names().any(|own| own.ends_with(name));
                own || !left_out.iter().any(|part| name.contains(part))
            })
            .count();
        assert!(n_seen >= n_expected, "{family_name}: {n_seen} of {n_expected}");
    }
}

#[test]
fn blocks_of_permuted_rows_stay_as_they_are() {
    let model = open(fixtures::path("gguf_llama").join("model-Q4_0.gguf"));
    let weights = Weights::open(&model).unwrap();
    let query = weights.get("model.layers.0.self_attn.q_proj.weight").unwrap();
    assert_eq!(query.row_order(), RowOrder::Rotary { head_rows: 16 });
    assert!(!query.is_contiguous());
    assert_eq!(query.bytes().len(), query.dtype().bytes_for(query.n_elements()));
    let value = weights.get("model.layers.0.self_attn.v_proj.weight").unwrap();
    assert!(value.is_contiguous() && value.row_order() == RowOrder::Plain);
    assert_eq!(
        weights.total_bytes(),
        weights.names().map(|name| weights.get(name).unwrap().bytes().len() as u64).sum::<u64>()
    );
}

/// Texts that tell pipelines apart.
const TEXTS: [&str; 12] = [
    "The engine reads the sentence",
    " leading and trailing ",
    "two  spaces,   three\tand a tab",
    "It's we'll DON'T 12345 3.14",
    "line\nbreaks\n\n\r\nhere",
    "Ünïcödé naïve 東京 🙂",
    "x",
    "",
    "a<b>c</s>d",
    "function(x) { return x+1; }",
    "CamelCaseWords and_snake_case",
    "tail\n",
];

#[test]
fn every_family_has_the_tokenizer_of_its_checkpoint() {
    for name in FAMILIES {
        let found = Tokenizer::read(&family(name)).unwrap();
        let expected = Tokenizer::read(&fixtures::open(name)).unwrap();
        let reference = json(fixtures::path(name).join("reference.json"));
        for prompt in reference["prompts"].as_array().into_iter().flatten() {
            let ids: Vec<u32> = serde_json::from_value(prompt["input_ids"].clone()).unwrap();
            let text = prompt["text"].as_str().unwrap();
            assert_eq!(found.encode(text, SpecialTokens::Add).unwrap().ids, ids, "{name}: {text}");
        }
        // Some fixtures treat spaces otherwise than their families do, which is what files describe:
        // those of T5 all of them, those of LLaMA's kind where one is put before a text.
        let is_plain = |text: &&str| match name {
            "t5" | "flan_t5" => {
                !text.contains("  ") && !text.contains(['\t', '\n']) && text.trim() == *text
            }
            "llama_gqa" | "mixtral" => !text.starts_with(' ') && !text.contains("</s>"),
            _ => true,
        };
        for text in TEXTS.into_iter().filter(is_plain) {
            let ids = |tokenizer: &Tokenizer, special| tokenizer.encode(text, special).unwrap().ids;
            let wanted = ids(&expected, SpecialTokens::None);
            assert_eq!(ids(&found, SpecialTokens::None), wanted, "{name}: {text:?}");
            let keep = drivetrain_artifacts::DecodeSpecial::Keep;
            let texts = [&found, &expected].map(|t| t.decode(&wanted, keep).unwrap());
            assert_eq!(texts[0], texts[1], "{name}: {text:?}");
        }
        for (found, expected) in [
            (found.bos_token_id(), expected.bos_token_id()),
            (found.eos_token_id(), expected.eos_token_id()),
            (found.pad_token_id(), expected.pad_token_id()),
        ] {
            assert!(found.is_none() || found == expected, "{name}: {found:?}, {expected:?}");
        }
        assert_eq!(found.chat_template(), expected.chat_template(), "{name}");
    }
}

#[test]
fn configs_say_what_checkpoints_say() {
    for name in FAMILIES {
        let found = ModelConfig::read(&family(name)).unwrap();
        let expected = ModelConfig::read(&fixtures::open(name)).unwrap();
        let as_text = |config: &ModelConfig| config.model_type.clone();
        assert_eq!(as_text(&found), as_text(&expected));
        for (key, value) in found.json.value().as_object().unwrap() {
            let Some(other) = expected.json.value().get(key) else { continue };
            // LLaMA 3's scaling comes as factors.
            // Falcon's config may name key heads that its one shared head makes void.
            let is_void = key == "num_kv_heads" && expected.json.contains("multi_query");
            // No file says how far T5 looks.
            let unsaid = ["rope_scaling", "architectures", "relative_attention_max_distance"];
            let is_other = unsaid.contains(&key.as_str());
            if is_other || is_void || other.is_null() {
                continue;
            }
            // The end of a turn that the template writes is behind the end of a text.
            let value = if key == "eos_token_id" { value.get(0).unwrap_or(value) } else { value };
            let same = match (value.as_f64(), other.as_f64()) {
                (Some(a), Some(b)) => (a - b).abs() <= 1e-6 * b.abs(),
                _ => value == other,
            };
            assert!(same, "{name}: {key} = {value}, expected {other}");
        }
    }
}

#[test]
fn a_directory_with_one_model_is_that_model() {
    let dir = TempDir::new().unwrap();
    fs::write(dir.path().join("tiny.Q8_0.gguf"), llama().bytes()).unwrap();
    fs::write(dir.path().join("config.json"), r#"{"model_type": "stub"}"#).unwrap();
    fs::write(dir.path().join("mmproj-model.gguf"), "an image reader").unwrap();
    let model = ModelDir::open(dir.path(), &UnpackOptions::default()).unwrap();
    let config = ModelConfig::read(&model).unwrap();
    assert_eq!(config.model_type, "llama");
    assert_eq!(config.json.path().file_name().unwrap(), "tiny.Q8_0.gguf");
    let generation = GenerationConfig::read(&model, &config).unwrap();
    assert_eq!((generation.bos_token_id, generation.eos_token_id), (Some(1), vec![2]));
    let tokenizer = Tokenizer::read(&model).unwrap();
    assert_eq!(tokenizer.encode("ab\na", SpecialTokens::Add).unwrap().ids, [1, 7, 6, 3, 5]);
    assert_eq!(tokenizer.model_max_length(), Some(64));

    // Two models: one has to be named.
    fs::write(dir.path().join("tiny.Q4_0.gguf"), llama().bytes()).unwrap();
    let error = Weights::open(&model).map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("2 GGUF models") && error.contains("tiny.Q4_0.gguf"), "{error}");
    let named = open(dir.path().join("tiny.Q4_0.gguf"));
    assert_eq!(Weights::open(&named).unwrap().len(), 11);
    assert_eq!(named.location(), dir.path().join("tiny.Q4_0.gguf"));
    assert_eq!(named.path(), dir.path());

    // What Hugging Face wrote goes first.
    fs::copy(
        fixtures::path("bert").join("model.safetensors"),
        dir.path().join("model.safetensors"),
    )
    .unwrap();
    assert!(Weights::open(&model).unwrap().contains("embeddings.word_embeddings.weight"));
    assert_eq!(ModelConfig::read(&model).unwrap().model_type, "stub");
}

#[test]
fn a_model_in_parts_is_one_model() {
    let dir = TempDir::new().unwrap();
    let part = |n: u32| dir.path().join(format!("tiny-{n:05}-of-00002.gguf"));
    fs::write(part(1), llama().bytes()).unwrap();
    let model = ModelDir::open(dir.path(), &UnpackOptions::default()).unwrap();
    let error = Weights::open(&model).map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("tiny-00002-of-00002.gguf"), "{error}");
    let mut second = Writer::new("llama");
    second.tensor("output.weight", &[8, 9], 0, &[0; 8 * 9 * 4]);
    fs::write(part(2), second.bytes()).unwrap();
    for model in [open(part(1)), open(part(2)), open(dir.path().into())] {
        let weights = Weights::open(&model).unwrap();
        assert_eq!((weights.len(), weights.files().len()), (12, 2));
        let config = ModelConfig::read(&model).unwrap();
        assert_eq!(config.json.opt_bool("tie_word_embeddings").unwrap(), Some(false));
        assert_eq!(config.json.u32("hidden_size").unwrap(), 8);
    }
}

fn refused(bytes: &[u8], expect: &str) {
    let message = weights_of(bytes).map(|_| ()).unwrap_err();
    assert!(message.contains("model.gguf: ") && message.contains(expect), "{message}");
}

#[test]
fn files_that_lie_are_refused() {
    let with = |change: &dyn Fn(&mut Writer)| {
        let mut writer = llama();
        change(&mut writer);
        writer.bytes()
    };
    refused(b"", "does not start with");
    refused(b"GGUF", "is cut off");
    refused(b"GGML\x01\0\0\0", "does not start with");
    refused(&with(&|w| w.version = 1), "GGUF version 1, 2 and 3");
    refused(&with(&|w| w.version = 3u32.swap_bytes()), "big-endian");
    refused(&with(&|w| w.n_tensors = Some(u64::MAX)), "tensors, which can't be in");
    refused(&with(&|w| w.n_keys = Some(1 << 40)), "keys, which can't be in");
    refused(
        &with(&|w| {
            w.raw("x", 13, &[]);
        }),
        "type 13",
    );
    refused(
        &with(&|w| {
            w.raw("x", 8, &u64::MAX.to_le_bytes());
        }),
        "is cut off",
    );
    let huge = [&4u32.to_le_bytes()[..], &(u64::MAX / 2).to_le_bytes()].concat();
    refused(
        &with(&|w| {
            w.raw("x", 9, &huge);
        }),
        "claims an array of",
    );
    let nested = |depth: usize| {
        let mut value = [&4u32.to_le_bytes()[..], &0u64.to_le_bytes()].concat();
        for _ in 0..depth {
            let head = [&9u32.to_le_bytes()[..], &1u64.to_le_bytes()].concat();
            value = [head, value].concat();
        }
        value
    };
    assert!(
        weights_of(&with(&|w| {
            w.raw("x", 9, &nested(3));
        }))
        .is_ok()
    );
    refused(
        &with(&|w| {
            w.raw("x", 9, &nested(4));
        }),
        "deeper than 4",
    );
    refused(
        &with(&|w| {
            w.raw("x", 9, &nested(100_000));
        }),
        "deeper than 4",
    );
    refused(
        &with(&|w| {
            w.u32("llama.block_count", 2);
        }),
        "\"llama.block_count\" twice",
    );
    refused(
        &with(&|w| {
            w.u32("general.alignment", 3);
        }),
        "a power of two",
    );
    let entry = |name: &str, dims: &[u64], dtype: u32, offset: u64| {
        let (name, dims) = (name.to_owned(), dims.to_vec());
        with(&move |w| {
            w.entry(&name, &dims, dtype, offset);
        })
    };
    let end = 1 << 20;
    refused(&entry("output.weight", &[8, 9], 0, end), "are not inside");
    refused(&entry("output.weight", &[8, 9], 0, 32), "overlap");
    refused(&entry("output.weight", &[8, 9], 0, 1), "no multiple of 32");
    refused(&entry("output.weight", &[8, 9], 0, u64::MAX - 31), "are not inside");
    refused(&entry("output.weight", &[u64::MAX, u64::MAX], 0, 0), "more than memory");
    refused(&entry("output.weight", &[0, u64::MAX, 3], 0, 0), "more than memory");
    refused(&entry("output.weight", &[8; 5], 0, 0), "at most 4");
    refused(&entry("token_embd.weight", &[8], 0, 0), "twice");
    refused(&entry("output.weight", &[48], 2, 0), "no whole blocks of Q4_0");
    refused(&entry("output.weight", &[256], 16, 0), "type IQ2_XXS can't be read");
    refused(&entry("output.weight", &[256], 99, 0), "type number 99 can't be read");
    refused(&entry("blk.0.mystery.weight", &[0], 0, 0), "no llama is known");
    let bytes = llama().bytes();
    refused(&bytes[..bytes.len() - 1], "are not inside");
    refused(&Writer::new("nomic-bert").tensor("x", &[1], 0, &[0; 4]).bytes(), "expected one of");
    refused(Writer::new("llama").text("general.type", "adapter").bytes().as_slice(), "an adapter");
}

/// A llama with other keys, and the message of its config.
fn config_of(change: impl Fn(&mut Writer)) -> Result<ModelConfig, String> {
    let dir = TempDir::new().unwrap();
    let mut writer = llama();
    change(&mut writer);
    fs::write(dir.path().join("model.gguf"), writer.bytes()).unwrap();
    let model = ModelDir::open(dir.path(), &UnpackOptions::default()).unwrap();
    ModelConfig::read(&model).map_err(|error| error.to_string())
}

#[test]
fn rotary_scalings_are_told() {
    let config = config_of(|w| {
        w.text("llama.rope.scaling.type", "linear").f32("llama.rope.scaling.factor", 4.0);
    });
    let config = config.unwrap();
    assert_eq!(config.json.str("rope_scaling.rope_type").unwrap(), "linear");
    assert_eq!(config.json.f64("rope_scaling.factor").unwrap(), 4.0);
    let config = config_of(|w| {
        w.text("llama.rope.scaling.type", "yarn").f32("llama.rope.scaling.factor", 8.0);
        w.u32("llama.rope.scaling.original_context_length", 16);
    });
    let config = config.unwrap();
    assert_eq!(config.json.u32("rope_scaling.original_max_position_embeddings").unwrap(), 16);
    let message = config_of(|w| {
        w.text("llama.rope.scaling.type", "spiral");
    })
    .unwrap_err();
    assert!(message.contains("llama.rope.scaling.type = \"spiral\": expected none"), "{message}");
    let message = config_of(|w| {
        w.u32("llama.rope.dimension_count", 5);
    })
    .unwrap_err();
    assert!(message.contains("from 1 to 4, the size of a head"), "{message}");
}

#[test]
fn a_turn_s_end_in_the_template_ends_an_answer() {
    let dir = TempDir::new().unwrap();
    let mut writer = Writer::new("gpt2");
    for key in ["context_length", "embedding_length", "block_count", "feed_forward_length"] {
        writer.u32(&format!("gpt2.{key}"), 1);
    }
    writer.u32("gpt2.attention.head_count", 1).f32("gpt2.attention.layer_norm_epsilon", 1e-5);
    writer.array("tokenizer.ggml.tokens", 8, &["a", "<|end|>", "<|im_end|>"].map(text));
    let kinds = [1i32, 3, 3].map(|kind| kind.to_le_bytes().to_vec());
    writer.array("tokenizer.ggml.token_type", 5, &kinds);
    writer.u32("tokenizer.ggml.eos_token_id", 2);
    // -1, as some converters write for none.
    writer.u32("tokenizer.ggml.padding_token_id", u32::MAX);
    writer.text("tokenizer.chat_template", "{{ messages[0].content }}<|end|>");
    writer.tensor("token_embd.weight", &[1, 3], 0, &[0; 12]);
    fs::write(dir.path().join("model.gguf"), writer.bytes()).unwrap();
    let model = ModelDir::open(dir.path(), &UnpackOptions::default()).unwrap();
    let config = ModelConfig::read(&model).unwrap();
    let generation = GenerationConfig::read(&model, &config).unwrap();
    assert_eq!(generation.eos_token_id, [2, 1]);
    assert_eq!(generation.pad_token_id, None);
}

#[test]
fn no_more_layers_are_described_than_a_model_has() {
    let dir = TempDir::new().unwrap();
    let check = |n_layers: u32, expect: &str| {
        let mut writer = Writer::new("gemma3");
        for key in ["context_length", "embedding_length", "feed_forward_length"] {
            writer.u32(&format!("gemma3.{key}"), 8);
        }
        writer.u32("gemma3.block_count", n_layers).u32("gemma3.attention.head_count", 1);
        writer.f32("gemma3.attention.layer_norm_rms_epsilon", 1e-6);
        writer.tensor("token_embd.weight", &[8, 3], 0, &[0; 96]);
        fs::write(dir.path().join("model.gguf"), writer.bytes()).unwrap();
        let model = ModelDir::open(dir.path(), &UnpackOptions::default()).unwrap();
        let message = match ModelConfig::read(&model) {
            Ok(config) => config.json.u32("num_hidden_layers").unwrap().to_string(),
            Err(error) => error.to_string(),
        };
        assert!(message.ends_with(expect), "{message}");
    };
    check(4096, "4096");
    for n in [0, 4097, u32::MAX] {
        check(n, &format!("gemma3.block_count = {n}: expected a whole number from 1 to 4096"));
    }
}

#[test]
fn keys_that_make_nothing_of_the_config_are_told() {
    let dir = TempDir::new().unwrap();
    let mut writer = llama();
    writer.u32("llama.leading_dense_block_count", 1).u32("other.block_count", 1);
    fs::write(dir.path().join("model.gguf"), writer.bytes()).unwrap();
    let model = ModelDir::open(dir.path(), &UnpackOptions::default()).unwrap();
    let unread = ModelConfig::unread_metadata(&model).unwrap().unwrap();
    assert_eq!(unread, ["llama.leading_dense_block_count"]);
    let empty = TempDir::new().unwrap();
    let model = ModelDir::open(empty.path(), &UnpackOptions::default()).unwrap();
    assert_eq!(ModelConfig::unread_metadata(&model).unwrap(), None);
}
