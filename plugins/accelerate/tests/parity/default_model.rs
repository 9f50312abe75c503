//! The shipped model: all held-out words.

use std::collections::HashMap;

use drivetrain_engine::Wanted;
use serde_json::Value;

use crate::support::{Model, Part, argmax, workspace};

/// Ids of the model's generation config.
const START: u32 = 2;
const BOS: u32 = 0;
const EOS: u32 = 2;
const MAX_LENGTH: usize = 64;

#[test]
fn all_200_held_out_words_come_out_as_recorded() {
    let dir = workspace("config/models/bart-g2p");
    let table = std::fs::read_to_string(dir.join("heldout_200.tsv")).unwrap();
    let rows: Vec<Vec<&str>> =
        table.lines().skip(1).map(|line| line.split('\t').collect()).collect();
    assert_eq!(rows.len(), 200);
    // Every letter of a word is a token of its own, and tokens are joined without spaces.
    let tokenizer = std::fs::read(dir.join("tokenizer.json")).unwrap();
    let tokenizer: Value = serde_json::from_slice(&tokenizer).unwrap();
    let vocab = tokenizer["model"]["vocab"].as_object().unwrap();
    let id_of = |token: &str| vocab[token].as_u64().unwrap() as u32;
    let tokens: HashMap<u32, &String> = vocab.keys().map(|token| (id_of(token), token)).collect();
    let mut model = Model::load(&dir);
    // Batches of 25 words decode together, as they would in a server.
    for rows in rows.chunks(25) {
        let mut running = Vec::new();
        for row in rows {
            let letters = row[0].chars().map(|letter| id_of(&letter.to_string()));
            let ids: Vec<u32> = std::iter::once(BOS).chain(letters).chain([EOS]).collect();
            running.push((model.begin(&ids), vec![START]));
        }
        for step in 0..MAX_LENGTH {
            let parts: Vec<Part<'_>> = running
                .iter()
                .filter(|(_, ids)| step == 0 || ids[step] != EOS)
                .map(|(sequence, ids)| Part {
                    sequence: *sequence,
                    tokens: &ids[step..],
                    position: step,
                    wanted: Wanted::LastLogits,
                })
                .collect();
            if parts.is_empty() {
                break;
            }
            let logits = model.forward(&parts).logits;
            let mut logits = logits.chunks_exact(model.info.n_logits as usize);
            for (_, ids) in &mut running {
                if step == 0 || ids[step] != EOS {
                    let best = argmax(logits.next().unwrap());
                    ids.push(if step == 0 { BOS } else { best });
                } else {
                    ids.push(EOS);
                }
            }
        }
        for (row, (sequence, ids)) in rows.iter().zip(&running) {
            let said = ids.iter().filter(|id| **id != BOS && **id != EOS);
            let text: String = said.map(|id| tokens[id].as_str()).collect();
            assert_eq!(text, row[2], "{}", row[0]);
            model.inner.release(*sequence);
        }
    }
}
