//! The recorded fixtures: hidden states, logits, greedy tokens.

use drivetrain_engine::{ModelKind, Wanted};

use crate::support::{HIDDEN, LOGITS, Model, Part, Reference, assert_close, ids, workspace};

struct Fixture {
    model: Model,
    reference: Reference,
    prompts: Vec<Vec<u32>>,
}

fn open(name: &str) -> Fixture {
    let dir = workspace("tests/fixtures").join(name);
    let reference = Reference::read(&dir);
    let prompts = reference.json["prompts"].as_array().unwrap();
    let prompts = prompts.iter().map(|prompt| ids(&prompt["input_ids"])).collect();
    Fixture { model: Model::load(&dir), prompts, reference }
}

impl Fixture {
    fn array(&self, name: &str, idx: usize) -> Vec<f32> {
        let name = format!("{name}.{idx}");
        self.reference.array(&name).unwrap_or_else(|| panic!("no array {name}"))
    }

    /// The greedy continuation of a prompt, with the tokens that the generation config forces or
    /// forbids.
    fn check_greedy(&mut self, name: &str, idx: usize, start: &[u32]) {
        let recorded = &self.reference.json["greedy"][idx];
        let expect = ids(&recorded["new_ids"]);
        let forced: Vec<Option<u32>> = recorded["steps"]
            .as_array()
            .unwrap()
            .iter()
            .map(|step| (step["id"] != step["argmax"]).then(|| step["id"].as_u64().unwrap() as u32))
            .collect();
        let input = self.prompts[idx].clone();
        let sequence = self.model.begin(&input);
        let found = self.model.greedy(sequence, start, expect.len(), |step| forced[step]);
        assert_eq!(found, expect, "{name}: prompt {idx}");
        self.model.inner.release(sequence);
    }

    /// Logits and hidden states of `input`, the hidden ones recorded under `array`.
    fn check_rows(&mut self, name: &str, idx: usize, input: &[u32], array: &str) {
        for (wanted, array) in [(Wanted::AllLogits, "logits"), (Wanted::Hidden, array)] {
            let sequence = self.model.begin(&self.prompts[idx].clone());
            let rows = self.model.step(sequence, input, 0, wanted);
            let expect = self.array(array, idx);
            let (found, tolerance) =
                if array == "logits" { (rows.logits, LOGITS) } else { (rows.hidden, HIDDEN) };
            assert_close(&format!("{name} {array} {idx}"), &found, &expect, tolerance);
            self.model.inner.release(sequence);
        }
    }
}

fn check_decoder(name: &str) {
    let mut fixture = open(name);
    assert_eq!(fixture.model.info.kind, ModelKind::Decoder);
    for idx in 0..fixture.prompts.len() {
        let prompt = fixture.prompts[idx].clone();
        fixture.check_rows(name, idx, &prompt, "last_hidden_state");
        fixture.check_greedy(name, idx, &prompt);
    }
    assert_eq!(fixture.model.inner.n_sequences(), 0);
}

fn check_encoder_decoder(name: &str) {
    let mut fixture = open(name);
    assert_eq!(fixture.model.info.kind, ModelKind::EncoderDecoder);
    for idx in 0..fixture.prompts.len() {
        let prompt = fixture.prompts[idx].clone();
        let decoder_ids = ids(&fixture.reference.json["forward"][idx]["decoder_input_ids"]);
        let sequence = fixture.model.name();
        let encoded = fixture.model.encode(sequence, &prompt, Wanted::Hidden);
        fixture.model.inner.release(sequence);
        let expect = fixture.array("encoder_last_hidden_state", idx);
        assert_close(&format!("{name} encoder {idx}"), &encoded.hidden, &expect, HIDDEN);
        fixture.check_rows(name, idx, &decoder_ids, "decoder_last_hidden_state");
        fixture.check_greedy(name, idx, &decoder_ids[..1]);
    }
    assert_eq!(fixture.model.inner.n_sequences(), 0);
}

/// What feature extraction reads of a model that makes its own decoder input.
fn check_features(name: &str, decoder_input: impl Fn(&[u32]) -> Vec<u32>) {
    let mut fixture = open(name);
    for idx in 0..fixture.prompts.len() {
        let prompt = fixture.prompts[idx].clone();
        let sequence = fixture.model.begin(&prompt);
        let rows = fixture.model.step(sequence, &decoder_input(&prompt), 0, Wanted::Hidden);
        let expect = fixture.array("feature_extraction", idx);
        assert_close(&format!("{name} features {idx}"), &rows.hidden, &expect, HIDDEN);
        fixture.model.inner.release(sequence);
    }
}

#[test]
fn feature_extraction_shifts_the_input() {
    check_features("bart", |prompt| [&[2], &prompt[..prompt.len() - 1]].concat());
    check_features("mbart", |prompt| {
        [&prompt[prompt.len() - 1..], &prompt[..prompt.len() - 1]].concat()
    });
}

fn check_encoder(name: &str) {
    let mut fixture = open(name);
    assert_eq!(fixture.model.info.kind, ModelKind::Encoder);
    let prompts = fixture.prompts.clone();
    for (idx, prompt) in prompts.iter().enumerate() {
        let sequence = fixture.model.name();
        let rows = fixture.model.step(sequence, prompt, 0, Wanted::Hidden);
        let expect = fixture.array("last_hidden_state", idx);
        assert_close(&format!("{name} {idx}"), &rows.hidden, &expect, HIDDEN);
        let forward = &fixture.reference.json["forward"][idx];
        for (wanted, key) in [
            (Wanted::PooledFirst, "cls"),
            (Wanted::PooledMean, "mean_pooled"),
            (Wanted::PooledHead, "pooler_output"),
        ] {
            let Some(expect) = forward[key].as_array() else {
                assert_eq!((wanted, fixture.model.info.has_pooler), (Wanted::PooledHead, false));
                continue;
            };
            let expect: Vec<f32> = expect.iter().map(|x| x.as_f64().unwrap() as f32).collect();
            let rows = fixture.model.step(sequence, prompt, 0, wanted);
            assert_close(&format!("{name} {key} {idx}"), &rows.hidden, &expect, HIDDEN);
        }
    }
    assert_eq!(fixture.model.inner.n_sequences(), 0, "an encoder keeps nothing");
}

macro_rules! fixtures {
    ($($check:ident: $($name:ident),*;)*) => {
        $($(
            #[test]
            fn $name() {
                $check(stringify!($name));
            }
        )*)*

        #[test]
        fn every_folder_is_tested() {
            let names = [$($(stringify!($name)),*),*];
            for entry in std::fs::read_dir(workspace("tests/fixtures")).unwrap() {
                let path = entry.unwrap().path();
                let name = path.file_name().unwrap().to_str().unwrap();
                let is_model = path.join("config.json").exists();
                assert!(!is_model || names.contains(&name), "{name} is not tested");
            }
        }
    };
}

fixtures! {
    check_decoder: bloom, falcon, gemma, gemma2, gemma3, gpt2, gpt_neo, gpt_neox, gptj, llama3_rope,
        llama_gqa, llama_mha, mistral, mixtral, opt, phi, phi3, qwen2, qwen3;
    check_encoder_decoder: bart, flan_t5, marian, mbart, pegasus, t5;
    check_encoder: bert, deberta_v2, distilbert, mpnet, roberta;
}

#[test]
fn a_batch_of_different_lengths_equals_one_by_one() {
    let mut fixture = open("bert");
    let prompts = fixture.prompts.clone();
    let parts: Vec<Part<'_>> = prompts
        .iter()
        .map(|tokens| Part {
            sequence: fixture.model.name(),
            tokens,
            position: 0,
            wanted: Wanted::Hidden,
        })
        .collect();
    let rows = fixture.model.forward(&parts);
    let expect: Vec<f32> =
        (0..prompts.len()).flat_map(|idx| fixture.array("last_hidden_state", idx)).collect();
    assert_close("bert batch", &rows.hidden, &expect, HIDDEN);
}
