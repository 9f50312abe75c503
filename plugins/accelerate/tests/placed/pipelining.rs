//! Batches that go through the devices in parts, against the same on one device.

use std::path::Path;

use drivetrain_engine::{ModelKind, SeqId, Wanted};
use serde_json::json;

use crate::maps::map_of;
use crate::support::{HIDDEN, LOGITS, Model, Part, assert_close, load_as_is, workspace};

/// Rows of several sequences, enough for parts; the lengths let parts end inside of sequences.
const LENGTHS: [usize; 9] = [70, 3, 61, 70, 33, 1, 70, 70, 50];

fn tokens(n: usize, salt: u32) -> Vec<u32> {
    (0..n as u32).map(|i| 5 + (i * 37 + salt * 11) % 300).collect()
}

/// All that a batch of all sequences leaves, and then one more token of each.
fn rows(model: &mut Model) -> Vec<f32> {
    let prompts: Vec<Vec<u32>> =
        LENGTHS.iter().enumerate().map(|(salt, n)| tokens(*n, salt as u32)).collect();
    let sequences: Vec<SeqId> = prompts.iter().map(|prompt| model.begin(prompt)).collect();
    let is_encoder = model.info.kind == ModelKind::Encoder;
    let wanted = if is_encoder { Wanted::Hidden } else { Wanted::AllLogits };
    let part = |(sequence, tokens, position)| Part { sequence, tokens, position, wanted };
    let all = prompts.iter().zip(&sequences).map(|(p, s)| part((*s, p.as_slice(), 0)));
    let first = model.forward(&all.collect::<Vec<_>>());
    let mut found = if is_encoder { first.hidden } else { first.logits };
    if !is_encoder {
        let next = prompts.iter().zip(&sequences).map(|(p, s)| part((*s, &[9], p.len())));
        found.extend(model.forward(&next.collect::<Vec<_>>()).logits);
    }
    sequences.into_iter().for_each(|sequence| model.inner.release(sequence));
    found
}

fn load(dir: &Path, options: &[(&str, &str)]) -> Model {
    Model::of(load_as_is(dir, None, options).unwrap_or_else(|error| panic!("{error}")))
}

#[test]
fn parts_of_a_batch_give_what_the_whole_gives() {
    for name in
        ["gpt2", "llama_gqa", "gemma3", "qwen3", "bloom", "bart", "t5", "bert", "deberta_v2"]
    {
        let dir = workspace("tests/fixtures").join(name);
        let two = |number: usize| (number % 2 == 1).then(|| json!(1));
        let map = map_of(&dir, &json!(0), &[], two);
        let mut whole = load(&dir, &[("dtype", "fp32")]);
        let options = [("device_map", map.as_str()), ("virtual_devices", "2"), ("dtype", "fp32")];
        let mut parted = load(&dir, &options);
        let most = if whole.info.kind == ModelKind::Encoder { HIDDEN } else { LOGITS };
        let expect = rows(&mut whole);
        assert!(expect.iter().all(|x| x.is_finite()));
        for _ in 0..3 {
            assert_close(name, &rows(&mut parted), &expect, most);
        }
        assert_eq!(parted.inner.n_sequences(), 0);
    }
}
