//! The shipped model: all held-out words.

use drivetrain_artifacts::{ModelDir, SpecialTokens, DecodeSpecial, Tokenizer, UnpackOptions};
use drivetrain_engine::Wanted;

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
    let tokenizer =
        Tokenizer::read(&ModelDir::open(&dir, &UnpackOptions::default()).unwrap()).unwrap();
    let mut model = Model::load(&dir);
    // Batches of 25 words decode together, as they would in a server.
    for rows in rows.chunks(25) {
        let mut running = Vec::new();
        for row in rows {
            let ids = tokenizer.encode(row[0], SpecialTokens::Add).unwrap().ids;
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
            let text = tokenizer.decode(ids, DecodeSpecial::Skip).unwrap();
            assert_eq!(text, row[2], "{}", row[0]);
            model.inner.release(*sequence);
        }
    }
}
