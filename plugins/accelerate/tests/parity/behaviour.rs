//! What the trait promises beyond numbers: segments, forks, truncation, errors, capacity.

use drivetrain_engine::{ErrorKind, SeqId, Wanted};

use crate::support::{LOGITS, Model, Part, assert_close, try_load, workspace};

fn model(name: &str) -> Model {
    Model::load(&workspace("tests/fixtures").join(name))
}

/// Tokens that every fixture's vocabulary has.
fn tokens(n: usize, salt: u32) -> Vec<u32> {
    (0..n as u32).map(|i| 5 + (i * 37 + salt * 11) % 300).collect()
}

/// Equal but for the order of sums, relative to the largest value.
fn is_same(what: &str, found: &[f32], expect: &[f32]) {
    let largest = expect.iter().fold(1.0f32, |largest, x| largest.max(x.abs()));
    assert_close(what, found, expect, 2e-5 * largest);
}

#[test]
fn chunks_equal_the_whole() {
    for name in ["gpt2", "llama_gqa", "llama3_rope", "bart"] {
        let mut model = model(name);
        let (input, prompt) = (tokens(9, 1), tokens(90, 2));
        let sequence = model.begin(&input);
        let whole = model.step(sequence, &prompt, 0, Wanted::AllLogits).logits;
        for chunk in [1, 7, 63, 64, 65] {
            let sequence = model.begin(&input);
            let mut found = Vec::new();
            for (idx, part) in prompt.chunks(chunk).enumerate() {
                let rows = model.step(sequence, part, idx * chunk, Wanted::AllLogits);
                found.extend(rows.logits);
            }
            is_same(&format!("{name} in chunks of {chunk}"), &found, &whole);
        }
    }
}

#[test]
fn mixed_batches_equal_one_by_one() {
    for name in ["gpt2", "llama_gqa", "bart"] {
        let mut model = model(name);
        let prompts = [tokens(3, 1), tokens(70, 2), tokens(1, 3), tokens(20, 4)];
        let expect: Vec<f32> = prompts
            .iter()
            .flat_map(|prompt| {
                let sequence = model.begin(prompt);
                model.step(sequence, prompt, 0, Wanted::LastLogits).logits
            })
            .collect();
        // The second and fourth have most of their tokens cached already.
        let sequences: Vec<SeqId> = prompts.iter().map(|prompt| model.begin(prompt)).collect();
        let cached = [0, 68, 0, 15];
        for idx in [1, 3] {
            let sequence = sequences[idx];
            model.step(sequence, &prompts[idx][..cached[idx]], 0, Wanted::Nothing);
        }
        let parts: Vec<Part<'_>> = (0..4)
            .map(|idx| Part {
                sequence: sequences[idx],
                tokens: &prompts[idx][cached[idx]..],
                position: cached[idx],
                wanted: Wanted::LastLogits,
            })
            .collect();
        is_same(name, &model.forward(&parts).logits, &expect);
    }
}

#[test]
fn forks_and_truncated_sequences_go_their_own_way() {
    for name in ["gpt2", "bart"] {
        let mut model = model(name);
        let prompt = tokens(80, 1);
        for len in [0usize, 1, 63, 64, 65, 80] {
            let from = model.begin(&prompt);
            model.step(from, &prompt, 0, Wanted::Nothing);
            let to = model.name();
            model.inner.fork(from, to, len as u32).unwrap();
            let (tail, other) = (tokens(5, 7), tokens(5, 8));
            // Whoever writes first must not show in the other.
            let forked = model.step(to, &tail, len, Wanted::AllLogits).logits;
            let went_on = model.step(from, &other, 80, Wanted::AllLogits).logits;
            model.inner.truncate(from, len as u32).unwrap();
            let cut = model.step(from, &tail, len, Wanted::AllLogits).logits;

            let fresh = model.begin(&prompt);
            let whole: Vec<u32> = prompt[..len].iter().chain(&tail).copied().collect();
            let logits = model.step(fresh, &whole, 0, Wanted::AllLogits).logits;
            let expect = &logits[len * model.info.n_logits as usize..];
            is_same(&format!("{name} forked at {len}"), &forked, expect);
            is_same(&format!("{name} truncated to {len}"), &cut, expect);

            let fresh = model.begin(&prompt);
            let whole: Vec<u32> = prompt.iter().chain(&other).copied().collect();
            let logits = model.step(fresh, &whole, 0, Wanted::AllLogits).logits;
            let expect = &logits[80 * model.info.n_logits as usize..];
            is_same(&format!("{name} went on beside a fork at {len}"), &went_on, expect);
        }
    }
}

#[test]
fn an_error_leaves_every_sequence_as_it_was() {
    for name in ["gpt2", "bart"] {
        let mut model = model(name);
        let prompt = tokens(10, 1);
        let known = model.begin(&prompt);
        let expect = model.step(known, &prompt, 0, Wanted::LastLogits).logits;
        model.inner.truncate(known, 9).unwrap();
        let n_before = model.inner.n_sequences();
        let stranger = model.name();
        let vocab = model.info.vocab;
        let long = vec![5; model.info.max_positions as usize + 1];
        let bad: [(&[u32], usize, SeqId, Wanted); 6] = [
            (&[vocab], 0, stranger, Wanted::Nothing),
            (&[5], 3, stranger, Wanted::Nothing),
            (&[5], 3, known, Wanted::Nothing),
            (&long, 0, stranger, Wanted::Nothing),
            (&[5], 0, stranger, Wanted::PooledHead),
            (&[5], 9, known, Wanted::Nothing),
        ];
        for (tokens, position, sequence, wanted) in bad {
            // Each comes behind a good segment of the sequence that is known.
            let good = Part {
                sequence: known,
                tokens: &prompt[9..],
                position: 9,
                wanted: Wanted::Nothing,
            };
            let parts = [good, Part { sequence, tokens, position, wanted }];
            let error = model.try_run(false, &parts, &[]).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::BadInput, "{error}");
            assert_eq!(model.inner.n_sequences(), n_before);
        }
        let found = model.step(known, &prompt[9..], 9, Wanted::LastLogits).logits;
        is_same(name, &found, &expect);
    }
}

#[test]
fn a_batch_without_segments_does_nothing() {
    for name in ["gpt2", "bart", "bert"] {
        assert_eq!(model(name).forward(&[]), Default::default());
    }
    assert_eq!(model("bart").try_run(true, &[], &[]).unwrap(), Default::default());
}

#[test]
fn names_that_are_taken_or_unknown_are_refused() {
    let mut model = model("bart");
    let prompt = tokens(4, 1);
    let known = model.begin(&prompt);
    let stranger = model.name();
    let fails = |result: Result<(), drivetrain_engine::EngineError>| {
        assert_eq!(result.unwrap_err().kind(), ErrorKind::BadInput);
    };
    fails(model.inner.fork(stranger, SeqId(900), 0));
    fails(model.inner.fork(known, known, 0));
    fails(model.inner.fork(known, stranger, 1));
    fails(model.inner.truncate(stranger, 0));
    fails(model.inner.truncate(known, 1));
    let again = Part { sequence: known, tokens: &prompt, position: 0, wanted: Wanted::Nothing };
    fails(model.try_run(true, &[again], &[]).map(drop));
    let not_encoded = Part { sequence: stranger, ..again };
    fails(model.try_run(false, &[not_encoded], &[]).map(drop));
    let logits = Part { sequence: stranger, wanted: Wanted::LastLogits, ..again };
    fails(model.try_run(true, &[logits], &[]).map(drop));
    model.inner.release(stranger);
    assert_eq!(model.inner.n_sequences(), 1);
}

#[test]
fn no_more_sequences_live_than_the_model_says() {
    let dir = workspace("tests/fixtures/gpt2");
    let inner = try_load(&dir, &[("max_rolling_batch_size", "2")]).unwrap();
    let mut model = Model::load(&dir);
    model.inner = inner;
    let n_most = model.inner.info().max_sequences as usize;
    for _ in 0..n_most {
        let sequence = model.name();
        model.step(sequence, &[5], 0, Wanted::Nothing);
    }
    let sequence = model.name();
    let part = Part { sequence, tokens: &[5], position: 0, wanted: Wanted::Nothing };
    let error = model.try_run(false, &[part], &[]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::OutOfMemory);
    assert!(error.message().contains("max_rolling_batch_size"), "{error}");
    assert_eq!(model.inner.n_sequences(), n_most);
}

#[test]
fn every_thread_count_gives_the_same() {
    let mut expect = Vec::new();
    let dir = workspace("tests/fixtures/llama_gqa");
    for _ in 0..2 {
        let mut model = Model::load(&dir);
        let sequence = model.name();
        let logits = model.step(sequence, &tokens(50, 3), 0, Wanted::AllLogits).logits;
        if expect.is_empty() {
            expect = logits;
        } else {
            assert_close("a second load", &logits, &expect, LOGITS / 1e3);
        }
    }
}
