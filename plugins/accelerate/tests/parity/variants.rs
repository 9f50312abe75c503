//! Configs that differ from the published ones: see `tests/fixtures/make_variants.py`.

use drivetrain_engine::{ModelKind, Wanted};
use serde_json::Value;

use crate::support::{HIDDEN, LOGITS, Model, Part, Reference, assert_close, ids, workspace};

/// The rows `positions` of `rows`.
fn pick(rows: &[f32], positions: &[u32]) -> Vec<f32> {
    let n_rows = positions.last().unwrap() + 1;
    let width = rows.len() / n_rows as usize;
    positions
        .iter()
        .flat_map(|p| &rows[*p as usize * width..(*p as usize + 1) * width])
        .copied()
        .collect()
}

/// Holds the model in a folder of a family of fixtures against what transformers computed.
pub(crate) fn check(folder: &str, name: &str) {
    let dir = workspace("tests/fixtures").join(folder).join(name);
    let reference = Reference::read(&dir);
    let mut model = Model::load(&dir);
    let prompts = reference.json["prompts"].as_array().unwrap();
    for (idx, prompt) in prompts.iter().enumerate() {
        check_prompt(&mut model, &reference, idx, prompt, name);
    }
    assert_eq!(model.inner.n_sequences(), 0, "{name}");
}

fn check_prompt(model: &mut Model, reference: &Reference, idx: usize, prompt: &Value, name: &str) {
    let (tokens, positions) = (ids(&prompt["ids"]), ids(&prompt["positions"]));
    let compare = |what: &str, rows: &[f32], tolerance: f32| {
        let expect = reference.array(&format!("{what}.{idx}")).unwrap();
        assert_close(&format!("{name} {what} {idx}"), &pick(rows, &positions), &expect, tolerance);
    };
    let sequence = model.name();
    let mut input = tokens.clone();
    match model.info.kind {
        ModelKind::Encoder => {
            let types = ids(&prompt["token_types"]);
            let mut run = |wanted| {
                let part = Part { sequence, tokens: &tokens, position: 0, wanted };
                model.try_run(false, &[part], &types).unwrap()
            };
            compare("hidden", &run(Wanted::Hidden).hidden, HIDDEN);
            if let Some(expect) = reference.array(&format!("pooler.{idx}")) {
                let rows = run(Wanted::PooledHead);
                assert_close(&format!("{name} pooler"), &rows.hidden, &expect, HIDDEN);
            }
            return;
        }
        ModelKind::EncoderDecoder => {
            let rows = model.encode(sequence, &tokens, Wanted::Hidden);
            compare("encoder_hidden", &rows.hidden, HIDDEN);
            input.rotate_right(1);
            input[0] = 2;
            if !prompt["decoder_ids"].is_null() {
                input = ids(&prompt["decoder_ids"]);
            }
        }
        ModelKind::Decoder => {}
    }
    let rows = model.step(sequence, &input, 0, Wanted::Hidden);
    compare("hidden", &rows.hidden, HIDDEN);
    model.inner.truncate(sequence, 0).unwrap();
    if reference.array(&format!("logits.{idx}")).is_some() {
        let rows = model.step(sequence, &input, 0, Wanted::AllLogits);
        compare("logits", &rows.logits, LOGITS);
        model.inner.truncate(sequence, 0).unwrap();
        let expect = ids(&prompt["greedy"]);
        let start = if model.info.kind == ModelKind::Decoder { &input[..] } else { &[2] };
        let found = model.greedy(sequence, start, expect.len(), |_| None);
        assert_eq!(found, expect, "{name} greedy {idx}");
    }
    model.inner.release(sequence);
}

macro_rules! variants {
    ($($name:ident),* $(,)?) => {
        $(
            #[test]
            fn $name() {
                check("variants", stringify!($name));
            }
        )*

        #[test]
        fn every_folder_is_tested() {
            let names = [$(stringify!($name)),*];
            for entry in std::fs::read_dir(workspace("tests/fixtures/variants")).unwrap() {
                let name = entry.unwrap().file_name().into_string().unwrap();
                assert!(names.contains(&name.as_str()), "{name} is not tested");
            }
        }
    };
}

variants! {
    bart_uneven,
    bart_model,
    bart_own_head,
    bart_lm_head_only,
    gpt2_flags,
    gpt2_unscaled,
    gpt2_long,
    llama_bias_mqa,
    llama_linear,
    llama_dynamic,
    llama_yarn,
    llama_yarn_mscale,
    llama_llama3,
    llama_longrope,
    bert_mlm,
    bert_pooler,
    mbart_uneven,
    marian_two_vocabularies,
    marian_unscaled,
    pegasus_uneven,
    t5_tied,
    t5_gated,
    t5_gated_silu,
    t5_encoder,
    mt5_two_to_one,
    umt5_own_biases,
    gpt_neo_windows,
    gptj_partial,
    neox_sequential,
    neox_parallel,
    opt_projected,
    opt_plain_norms,
    bloom_six_heads,
    bloom_post_residual,
    falcon_grouped,
    falcon_one_norm,
    falcon_alibi,
    mistral_wide_heads,
    mistral_no_window,
    mixtral_five_experts,
    mixtral_fused,
    qwen2_windows,
    qwen3_tied,
    gemma_one_kv_head,
    gemma2_caps,
    gemma2_no_caps,
    gemma3_scaled,
    phi_normed,
    phi3_longrope,
    roberta_padding,
    xlm_roberta_mlm,
    camembert_model,
    distilbert_relu,
    electra_wide,
    mpnet_long,
    deberta_own_projections,
    deberta_one_way,
    deberta_absolute,
}

#[test]
fn heads_and_poolers_are_what_the_files_have() {
    let info = |name: &str| Model::load(&workspace("tests/fixtures/variants").join(name)).info;
    assert!(!info("bert_mlm").has_pooler, "its file has none");
    assert!(info("bert_pooler").has_pooler);
    assert_eq!(info("bert_pooler").n_logits, 0);
    assert_eq!(info("bart_model").n_logits, 64, "a tied head costs nothing");
    let (tied, own) = (info("bart_lm_head_only"), info("bart_own_head"));
    assert!(tied.n_parameters < own.n_parameters, "the second has a head of its own");
}
