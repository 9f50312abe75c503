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

    /// The greedy continuation of a prompt, with the tokens that the generation config forces.
    fn check_greedy(&mut self, idx: usize, start: &[u32]) {
        let expect = ids(&self.reference.json["greedy"][idx]["new_ids"]);
        let config = self.reference.json["generation_config"].clone();
        let token = |key: &str| config[key].as_u64().map(|id| id as u32);
        let (bos, eos) = (token("forced_bos_token_id"), token("forced_eos_token_id"));
        let (n, input) = (expect.len(), self.prompts[idx].clone());
        let sequence = self.model.begin(&input);
        let found = self.model.greedy(sequence, start, n, |step| match step {
            0 => bos,
            _ if step == 15 => eos,
            _ => None,
        });
        assert_eq!(found, expect, "prompt {idx}");
        self.model.inner.release(sequence);
    }
}

fn check_decoder(name: &str) {
    let mut fixture = open(name);
    assert_eq!(fixture.model.info.kind, ModelKind::Decoder);
    for idx in 0..fixture.prompts.len() {
        let prompt = fixture.prompts[idx].clone();
        for (wanted, array) in
            [(Wanted::AllLogits, "logits"), (Wanted::Hidden, "last_hidden_state")]
        {
            let sequence = fixture.model.name();
            let rows = fixture.model.step(sequence, &prompt, 0, wanted);
            let expect = fixture.array(array, idx);
            let (found, tolerance) =
                if array == "logits" { (rows.logits, LOGITS) } else { (rows.hidden, HIDDEN) };
            assert_close(&format!("{name} {array} {idx}"), &found, &expect, tolerance);
            fixture.model.inner.release(sequence);
        }
        fixture.check_greedy(idx, &prompt);
    }
    assert_eq!(fixture.model.inner.n_sequences(), 0);
}

#[test]
fn gpt2() {
    check_decoder("gpt2");
}

#[test]
fn llama_mha() {
    check_decoder("llama_mha");
}

#[test]
fn llama_gqa() {
    check_decoder("llama_gqa");
}

#[test]
fn llama3_rope() {
    check_decoder("llama3_rope");
}

#[test]
fn bart() {
    let mut fixture = open("bart");
    assert_eq!(fixture.model.info.kind, ModelKind::EncoderDecoder);
    for idx in 0..fixture.prompts.len() {
        let prompt = fixture.prompts[idx].clone();
        let decoder_ids = ids(&fixture.reference.json["forward"][idx]["decoder_input_ids"]);
        let shifted: Vec<u32> =
            std::iter::once(2).chain(prompt[..prompt.len() - 1].iter().copied()).collect();
        let sequence = fixture.model.name();
        let encoded = fixture.model.encode(sequence, &prompt, Wanted::Hidden);
        let expect = fixture.array("encoder_last_hidden_state", idx);
        assert_close("encoder", &encoded.hidden, &expect, HIDDEN);
        for (input, wanted, array) in [
            (&decoder_ids, Wanted::AllLogits, "logits"),
            (&decoder_ids, Wanted::Hidden, "decoder_last_hidden_state"),
            (&shifted, Wanted::Hidden, "feature_extraction"),
        ] {
            let rows = fixture.model.step(sequence, input, 0, wanted);
            let expect = fixture.array(array, idx);
            let (found, tolerance) =
                if array == "logits" { (rows.logits, LOGITS) } else { (rows.hidden, HIDDEN) };
            assert_close(&format!("bart {array} {idx}"), &found, &expect, tolerance);
            fixture.model.inner.truncate(sequence, 0).unwrap();
        }
        fixture.model.inner.release(sequence);
        fixture.check_greedy(idx, &[2]);
    }
    assert_eq!(fixture.model.inner.n_sequences(), 0);
}

#[test]
fn bert() {
    let mut fixture = open("bert");
    assert_eq!(fixture.model.info.kind, ModelKind::Encoder);
    let prompts = fixture.prompts.clone();
    for (idx, prompt) in prompts.iter().enumerate() {
        let sequence = fixture.model.name();
        let rows = fixture.model.step(sequence, prompt, 0, Wanted::Hidden);
        let expect = fixture.array("last_hidden_state", idx);
        assert_close(&format!("bert {idx}"), &rows.hidden, &expect, HIDDEN);
        let forward = &fixture.reference.json["forward"][idx];
        for (wanted, key) in [
            (Wanted::PooledFirst, "cls"),
            (Wanted::PooledMean, "mean_pooled"),
            (Wanted::PooledHead, "pooler_output"),
        ] {
            let expect: Vec<f32> = forward[key]
                .as_array()
                .unwrap()
                .iter()
                .map(|x| x.as_f64().unwrap() as f32)
                .collect();
            let rows = fixture.model.step(sequence, prompt, 0, wanted);
            assert_close(&format!("bert {key} {idx}"), &rows.hidden, &expect, HIDDEN);
        }
    }
    assert_eq!(fixture.model.inner.n_sequences(), 0, "an encoder keeps nothing");
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
