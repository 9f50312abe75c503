//! Inputs that a task's head judges, in chunks and in company.

use drivetrain_engine::{AdapterId, HeadKind, ModelKind, TokenModelInfo, Wanted};

use super::*;

fn judged(tokens: &[u32], wanted: Wanted, kept: Option<&[u32]>) -> Work {
    let goal = Goal::Logits { wanted, kept: kept.map(Into::into) };
    Work {
        encoder: Vec::new(),
        tokens: tokens.to_vec(),
        token_types: Vec::new(),
        goal,
        adapter: AdapterId::NONE,
    }
}

#[test]
fn rows_of_logits_are_all_there_however_they_are_cut() {
    let text: Vec<u32> = (1..40).map(|n| 1 + n * 7 % 30).collect();
    for kind in [ModelKind::Decoder, ModelKind::Encoder, ModelKind::EncoderDecoder] {
        for step_tokens in [1, 5, 64] {
            let head = HeadKind::TokenClassification;
            let info = TokenModelInfo { head, n_logits: VOCAB, ..info(kind) };
            let mut bench = Bench::new(info, step_tokens);
            let mut works = vec![
                judged(&text, Wanted::AllLogits, None),
                judged(&text, Wanted::AllLogits, Some(&[0, 4, 38])),
                judged(&text, Wanted::SequenceLogits, None),
                judged(&text[..1], Wanted::SequenceLogits, None),
                judged(&text[..3], Wanted::AllLogits, None),
            ];
            if kind == ModelKind::EncoderDecoder {
                works.iter_mut().for_each(|work| work.encoder = vec![3, 9, 2]);
            } else if kind == ModelKind::Decoder {
                works.push(generate(&[], &text[..9], 7));
            }
            let watch = bench.push(works.clone());
            bench.run();
            check_done(&watch, &works);
            bench.check_clean();
        }
    }
}
