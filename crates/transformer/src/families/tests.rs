//! Descriptions of configs, in both spellings and with defaults.

use drivetrain_artifacts::JsonFile;
use serde_json::{Value, json};

use super::*;
use crate::activation::Activation;
use crate::attention::AttentionPositions;
use crate::rotary::RotaryScaling;
use crate::task_head::HeadReads;

fn config(value: Value) -> ModelConfig {
    ModelConfig::from_json(JsonFile::from_value("config.json", value)).unwrap()
}

fn describe_json(value: Value) -> Result<Architecture, TransformerError> {
    Architecture::from_config(&config(value))
}

#[test]
fn an_empty_config_is_the_published_default() {
    let check = |model_type, layers: usize, dim, vocab, tensors: usize| {
        let architecture = describe_json(json!({"model_type": model_type})).unwrap();
        let n_layers: usize = architecture.stacks().map(|stack| stack.layers.len()).sum();
        assert_eq!((n_layers, architecture.dim, architecture.vocab), (layers, dim, vocab));
        assert_eq!(architecture.tensors().len(), tensors, "{model_type}");
    };
    check("bart", 24, 1024, 50_265, 2 * (2 + 2) + 12 * 16 + 12 * 26 + 2);
    check("gpt2", 12, 768, 50_257, 2 + 12 * 16 + 2 + 1);
    check("llama", 32, 4096, 32_000, 1 + 32 * 9 + 1 + 1);
    check("bert", 12, 768, 30_522, 5 + 12 * 16 + 2);
}

#[test]
fn every_canonical_tensor_has_a_place() {
    for model_type in model_types() {
        let mut json = json!({"model_type": model_type});
        if model_type == "electra" {
            // The usual size is one that can't be described.
            json["embedding_size"] = json!(256);
        }
        let architecture = describe_json(json).unwrap();
        let family = family(architecture.family).unwrap();
        for spec in architecture.tensors() {
            let places = family.places(&architecture, &spec.module, spec.parameter.name());
            assert!(!places.is_empty(), "{model_type}: {}", spec.name());
        }
    }
}

#[test]
fn names_carry_prefix_stack_and_layer() {
    let bart = family("bart").unwrap();
    let architecture = describe_json(json!({"model_type": "bart"})).unwrap();
    let module = "decoder.layers.3.cross_attention.q";
    let name =
        bart.places(&architecture, module, "weight")[0].tensor_name("model.", module, "weight");
    assert_eq!(name, "model.decoder.layers.3.encoder_attn.q_proj.weight");
    let name = bart.places(&architecture, "head", "bias")[0].tensor_name("model.", "head", "bias");
    assert_eq!(name, "final_logits_bias");
}

#[test]
fn rotary_parameters_are_read_in_both_spellings() {
    let scaling = |extra: Value| {
        let mut json = json!({"model_type": "llama", "max_position_embeddings": 64});
        json.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        let decoder = describe_json(json).unwrap().decoder.unwrap();
        let AttentionPositions::Rotary(rotary) = &decoder.layers[0].self_attention.positions else {
            panic!("no rotation")
        };
        (rotary.theta, rotary.scaling.clone(), decoder.max_positions)
    };
    let linear = RotaryScaling::Linear { factor: 4.0 };
    for extra in [
        json!({"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 4}}),
        json!({"rope_theta": 5e5, "rope_scaling": {"rope_type": "linear", "factor": 4.0}}),
        json!({"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 5e5}}),
    ] {
        assert_eq!(scaling(extra), (5e5, linear.clone(), 256));
    }
    assert_eq!(scaling(json!({})), (1e4, RotaryScaling::None, 64));
    assert_eq!(scaling(json!({"rope_scaling": null})), (1e4, RotaryScaling::None, 64));
    let (_, yarn, reach) = scaling(json!({"rope_scaling": {
        "rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 32}}));
    let RotaryScaling::Yarn { attention_factor, beta_fast, truncate, .. } = yarn else {
        panic!("{yarn:?}")
    };
    assert!((attention_factor - (0.1 * 2f64.ln() + 1.0)).abs() < 1e-12);
    assert_eq!((beta_fast, truncate, reach), (32.0, true, 64));
}

#[test]
fn flags_reach_the_description() {
    let gpt2 = describe_json(json!({"model_type": "gpt2", "n_embd": 64, "n_head": 4,
        "scale_attn_by_inverse_layer_idx": true, "n_inner": 100, "activation_function": "relu"}));
    let layers = gpt2.unwrap().decoder.unwrap().layers;
    assert_eq!(layers[3].self_attention.scale, 0.25 / 4.0);
    assert_eq!(layers[0].feed_forward.width, 100);
    assert_eq!(layers[0].feed_forward.activation, Activation::Relu);
    let bart = describe_json(json!({"model_type": "bart", "d_model": 64, "scale_embedding": true}));
    assert_eq!(bart.unwrap().encoder.unwrap().embedding.scale, 8.0);
    let llama =
        describe_json(json!({"model_type": "llama", "head_dim": 80, "attention_bias": true,
        "num_attention_heads": 8, "num_key_value_heads": 2, "hidden_size": 512}));
    let attention = llama.unwrap().decoder.unwrap().layers[0].self_attention.clone();
    assert_eq!((attention.q_width(), attention.kv_width()), (640, 160));
    assert!(attention.bias.o);
}

#[test]
fn other_names_of_keys_are_read() {
    let dim = |json: Value| describe_json(json).unwrap().dim;
    assert_eq!(dim(json!({"model_type": "gpt2", "hidden_size": 36})), 36);
    assert_eq!(dim(json!({"model_type": "gpt2", "hidden_size": 36, "n_embd": 48})), 48);
    assert_eq!(dim(json!({"model_type": "bloom", "n_embed": 40})), 40);
}

#[test]
fn windows_are_those_of_the_layers() {
    let windows = |mut json: Value| -> Vec<Option<u32>> {
        json["num_hidden_layers"] = json!(4);
        let layers = describe_json(json).unwrap().decoder.unwrap().layers;
        layers.iter().map(|layer| layer.self_attention.window).collect()
    };
    let (some, none) = (Some(4096), None);
    assert_eq!(windows(json!({"model_type": "mistral"})), [some; 4]);
    assert_eq!(windows(json!({"model_type": "mistral", "sliding_window": null})), [none; 4]);
    assert_eq!(windows(json!({"model_type": "qwen2", "sliding_window": 9})), [none; 4]);
    let qwen = json!({"model_type": "qwen2", "use_sliding_window": true, "max_window_layers": 2});
    assert_eq!(windows(qwen), [none, none, some, some]);
    assert_eq!(windows(json!({"model_type": "gemma2"})), [some, none, some, none]);
    let gemma = json!({"model_type": "gemma3_text", "sliding_window_pattern": 3});
    assert_eq!(windows(gemma), [some, some, none, some]);
    let typed = json!({"model_type": "gemma3_text", "sliding_window": 7, "layer_types": [
        "full_attention", "sliding_attention", "full_attention", "full_attention"]});
    assert_eq!(windows(typed), [none, Some(7), none, none]);
}

#[test]
fn null_is_told_from_absent_where_classes_do() {
    let cap = |json: Value| describe_json(json).unwrap().head.unwrap().soft_cap;
    assert_eq!(cap(json!({"model_type": "gemma2"})), Some(30.0));
    assert_eq!(cap(json!({"model_type": "gemma2", "final_logit_softcapping": null})), None);
}

#[test]
fn impossible_values_name_their_key() {
    for (json, key) in [
        (json!({"model_type": "falcon", "num_ln_in_parallel_attn": 2}), "num_ln_in_parallel_attn"),
        (json!({"model_type": "gptj", "rotary_dim": 7}), "rotary_dim"),
        (json!({"model_type": "gpt_neo", "attention_types": [[["global"], 5]]}), "attention_types"),
        (json!({"model_type": "gpt_neo", "attention_types": "local"}), "attention_types"),
        (json!({"model_type": "mixtral", "num_experts_per_tok": 9}), "num_experts_per_tok"),
        (json!({"model_type": "mixtral", "num_local_experts": 1_000_000}), "num_local_experts"),
        (
            json!({"model_type": "mixtral", "num_local_experts": 512, "num_hidden_layers": 4096}),
            "num_local_experts",
        ),
        (json!({"model_type": "phi", "partial_rotary_factor": 0.001}), "partial_rotary_factor"),
        (json!({"model_type": "llama", "partial_rotary_factor": 0.5}), "partial_rotary_factor"),
        (json!({"model_type": "roberta", "pad_token_id": 600}), "max_position_embeddings"),
        (json!({"model_type": "t5", "feed_forward_proj": "gated-what"}), "feed_forward_proj"),
        (json!({"model_type": "t5", "relative_attention_max_distance": 16}), "max_distance"),
        (json!({"model_type": "deberta-v2", "conv_kernel_size": 3}), "conv_kernel_size"),
        (json!({"model_type": "electra"}), "embedding_size"),
        (json!({"model_type": "mistral", "layer_types": ["full_attention"]}), "layer_types"),
        (json!({"model_type": "marian", "decoder_vocab_size": 7}), "decoder_vocab_size"),
        (json!({"model_type": "gemma2", "query_pre_attn_scalar": 0}), "query_pre_attn_scalar"),
        (json!({"model_type": "gemma", "use_bidirectional_attention": true}), "bidirectional"),
    ] {
        let error = describe_json(json.clone()).unwrap_err().to_string();
        assert!(error.starts_with("config.json: ") && error.contains(key), "{json}: {error}");
    }
}

#[test]
fn unknown_families_and_values_name_what_is_known() {
    let error = describe_json(json!({"model_type": "mamba"})).unwrap_err().to_string();
    assert!(error.contains("mamba") && error.contains("bart, bert, bloom"), "{error}");
    for (found, nearest) in [("qwen2_moe", "qwen2"), ("t5x", "t5"), ("deberta", "deberta-v2")] {
        let error = describe_json(json!({"model_type": found})).unwrap_err().to_string();
        assert!(error.contains(&format!("nearest by name is {nearest},")), "{error}");
    }
    let error = describe_json(json!({"model_type": "bert", "hidden_act": "prelu"})).unwrap_err();
    assert!(error.to_string().starts_with("config.json: hidden_act = \"prelu\":"), "{error}");
}

#[test]
fn a_class_gives_a_description_its_head() {
    let head = |model_type: &str, class: &str, extra: Value| {
        let mut json = json!({"model_type": model_type, "architectures": [class]});
        json.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        let architecture = describe_json(json).unwrap();
        let names: Vec<String> = architecture
            .tensors()
            .iter()
            .filter(|spec| spec.module.starts_with("head"))
            .map(|spec| {
                let family = family(architecture.family).unwrap();
                let name = spec.parameter.name();
                let place = family.places(&architecture, &spec.module, name)[0];
                format!("{} {:?}", place.tensor_name("P.", &spec.module, name), spec.shape)
            })
            .collect();
        (architecture.task_head.unwrap(), names)
    };
    let labels = json!({"id2label": {"0": "a", "1": "b", "2": "c"}, "hidden_size": 8,
        "num_attention_heads": 2, "vocab_size": 9});
    // transformers 4.57, `state_dict` of these classes.
    let (bert, names) = head("bert", "BertForSequenceClassification", labels.clone());
    assert_eq!((bert.reads, bert.width), (HeadReads::First, 3));
    assert_eq!(
        names,
        [
            "P.pooler.dense.weight [8, 8]",
            "P.pooler.dense.bias [8]",
            "classifier.weight [3, 8]",
            "classifier.bias [3]"
        ]
    );
    let (_, names) = head("bert", "BertForMaskedLM", labels.clone());
    assert_eq!(
        names,
        [
            "cls.predictions.transform.dense.weight [8, 8]",
            "cls.predictions.transform.dense.bias [8]",
            "cls.predictions.transform.LayerNorm.weight [8]",
            "cls.predictions.transform.LayerNorm.bias [8]",
            "cls.predictions.decoder.weight [9, 8]",
            "cls.predictions.bias [9]"
        ]
    );
    let mut narrow = labels.clone();
    narrow["embedding_size"] = json!(8);
    let (_, names) = head("electra", "ElectraForMaskedLM", narrow.clone());
    assert_eq!(names[0], "generator_predictions.dense.weight [8, 8]");
    assert_eq!(names[4], "generator_lm_head.weight [9, 8]");
    let (electra, names) = head("electra", "ElectraForSequenceClassification", narrow);
    assert_eq!((electra.dense, electra.reads), (Some(Activation::Gelu), HeadReads::First));
    assert_eq!(names[2], "classifier.out_proj.weight [3, 8]");
    let (llama, names) = head("llama", "LlamaForSequenceClassification", labels.clone());
    assert_eq!((llama.reads, names), (HeadReads::Last, vec!["score.weight [3, 8]".to_owned()]));
    let (_, names) = head("bert", "BertForQuestionAnswering", labels.clone());
    assert_eq!(names, ["qa_outputs.weight [2, 8]", "qa_outputs.bias [2]"]);
    let (_, names) = head("gpt2", "GPT2ForTokenClassification", json!({"n_embd": 8, "n_head": 2}));
    assert_eq!(names, ["classifier.weight [2, 8]", "classifier.bias [2]"]);
    let bart = json!({"d_model": 8, "encoder_attention_heads": 2, "decoder_attention_heads": 2,
        "num_labels": 3});
    let (_, names) = head("bart", "BartForSequenceClassification", bart);
    assert_eq!(names[0], "classification_head.dense.weight [8, 8]");
    assert_eq!(names[2], "classification_head.out_proj.weight [3, 8]");
    for wrong in [json!({}), json!([]), json!("x")] {
        let json = json!({"model_type": "bert", "id2label": wrong,
            "architectures": ["BertForTokenClassification"]});
        let error = describe_json(json).unwrap_err().to_string();
        assert!(error.contains("id2label"), "{error}");
    }
}
