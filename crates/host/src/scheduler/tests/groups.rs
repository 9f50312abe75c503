//! Choices, beams, kept prefixes, looked-up tokens, preemption, priorities.

use super::*;
use crate::logits::{EarlyStopping, LogSoftmax, Sampling};

/// `n` choices drawn from the logits.
pub(super) fn sampled(mut work: Work, n: usize, seed: u64) -> Work {
    if let Goal::Generate(generate) = &mut work.goal {
        let sampling = Sampling { temperature: Some(2.0), min_kept: 1, ..Sampling::default() };
        generate.search = Search::Sample { sampling, seed, n };
    }
    work
}

/// A beam search of `n_beams`.
pub(super) fn beams(mut work: Work, n_beams: usize) -> Work {
    if let Goal::Generate(generate) = &mut work.goal {
        generate.search = Search::Beams(Box::new(BeamParams {
            n_beams,
            n_return: n_beams,
            length_penalty: 1.0,
            early_stopping: EarlyStopping::Heuristic,
            n_groups: 1,
            diversity_penalty: 0.0,
            sampling: None,
            seed: 0,
        }));
    }
    work
}

pub(super) fn looking_up(mut work: Work, n: usize) -> Work {
    if let Goal::Generate(generate) = &mut work.goal {
        (generate.n_lookup, generate.lookup_ngram) = (n, 2);
    }
    work
}

#[test]
fn choices_and_beams_equal_those_computed_alone() {
    for kind in [ModelKind::Decoder, ModelKind::EncoderDecoder] {
        let encoder: &[u32] = if kind == ModelKind::Decoder { &[] } else { &[5, 6, 7] };
        let works = vec![
            sampled(generate(encoder, &[3, 4, 5, 6, 7], 20), 3, 7),
            beams(generate(encoder, &[3, 4], 9), 4),
            generate(encoder, &[3, 4, 5, 6, 7], 20),
        ];
        let mut bench = Bench::new(info(kind), 5);
        let watch = bench.push(works.clone());
        bench.run();
        check_done(&watch, &works);
        bench.check_clean();
    }
}

#[test]
fn a_prompt_like_one_before_skips_what_is_kept() {
    for kind in [ModelKind::Decoder, ModelKind::EncoderDecoder] {
        let encoder: &[u32] = if kind == ModelKind::Decoder { &[] } else { &[5, 6, 7] };
        let mut bench = Bench::of(kind);
        let works = vec![generate(encoder, &[1, 2, 3, 4, 5, 6, 7, 8, 9], 12)];
        let watch = bench.push(works.clone());
        bench.run();
        check_done(&watch, &works);
        let n_encodes = bench.model.book.lock().unwrap().n_encodes;
        let again = vec![generate(encoder, &[1, 2, 3, 4, 5, 6, 7, 8, 1], 12)];
        let watch = bench.push(again.clone());
        bench.run();
        check_done(&watch, &again);
        assert_eq!(bench.scheduler.tally().prefix_tokens, 8);
        assert_eq!(bench.model.book.lock().unwrap().n_encodes, n_encodes);
        bench.check_clean();
        // Another encoder input shares nothing.
        if kind == ModelKind::EncoderDecoder {
            let other = vec![generate(&[5, 6, 8], &[1, 2, 3, 4, 5, 6, 7, 8, 1], 12)];
            let watch = bench.push(other.clone());
            bench.run();
            check_done(&watch, &other);
            bench.check_clean();
        }
    }
}

#[test]
fn prefixes_are_not_kept_where_the_operator_says_so() {
    let mut bench = Bench::of(ModelKind::Decoder);
    bench.scheduler.limits.policy.keeps_prefixes = false;
    bench.push(vec![generate(&[], &[1; 20], 12)]);
    bench.run();
    assert_eq!(bench.model.n_sequences(), 0);
    bench.check_clean();
}

#[test]
fn looked_up_tokens_change_nothing_but_the_number_of_passes() {
    // The engine's next token depends on everything before, so a text that says what it said
    // before is made by looking its own answer up: the prompt holds it.
    let plain = generate(&[], &[3, 4, 5], 30);
    let Outcome::Generated(choices) = expected(&plain) else { panic!() };
    let n_new = choices[0].ids.len();
    let mut passes = Vec::new();
    for n in [0, 1, 5] {
        let mut bench = Bench::of(ModelKind::Decoder);
        let works = vec![looking_up(plain.clone(), n)];
        let watch = bench.push(works.clone());
        bench.run();
        check_done(&watch, &works);
        bench.check_clean();
        let tally = bench.scheduler.tally();
        assert!(tally.n_agreed <= tally.n_proposed);
        let n_forwards = bench.model.book.lock().unwrap().n_forwards;
        assert_eq!(n_forwards + tally.n_agreed as usize, n_new);
        passes.push(n_forwards);
    }
    assert_eq!(passes[0], n_new);
}

#[test]
fn a_sequence_that_finds_no_room_goes_back_and_says_the_same() {
    let mut small = info(ModelKind::Decoder);
    (small.kv_capacity_tokens, small.max_positions) = (180, 170);
    let mut bench = Bench::new(small, 64);
    let works: Vec<Vec<Work>> =
        (1..5).map(|n| vec![sampled(generate(&[], &[n, 2], 160), 1, 3)]).collect();
    let no_end = |mut works: Vec<Work>| {
        if let Goal::Generate(generate) = &mut works[0].goal {
            generate.rules.eos = [].into();
        }
        works
    };
    let works: Vec<Vec<Work>> = works.into_iter().map(no_end).collect();
    let watches: Vec<Watch> = works.iter().map(|works| bench.push(works.clone())).collect();
    bench.run();
    for (watch, works) in watches.iter().zip(&works) {
        check_done(watch, works);
    }
    assert!(bench.scheduler.tally().n_preempted > 0);
    bench.check_clean();
}

#[test]
fn the_prompts_scores_are_those_of_its_tokens() {
    let mut bench = Bench::new(info(ModelKind::Decoder), 3);
    let tokens = [3, 1, 4, 1, 5, 9, 2, 6];
    let mut work = generate(&[], &tokens, 4);
    if let Goal::Generate(generate) = &mut work.goal {
        generate.report.prompt = Some(2);
    }
    for _ in 0..2 {
        let watch = bench.push(vec![work.clone()]);
        bench.run();
        check_done(&watch, &[work.clone()]);
        let seen = watch.lock().unwrap();
        assert_eq!(seen.prompts[0].len(), tokens.len() - 1);
        for (idx, own) in seen.prompts[0].iter().enumerate() {
            let mut logits = vec![0.0; VOCAB as usize];
            fill_logits(&[], &tokens[..=idx], &mut logits);
            let next = tokens[idx + 1];
            assert_eq!(own.id, next);
            let expect = LogSoftmax::of(&logits).at(logits[next as usize]);
            assert!((own.logprob - expect).abs() < 1e-6);
        }
    }
    bench.check_clean();
}

#[test]
fn the_urgent_come_first() {
    let mut small = info(ModelKind::Decoder);
    small.max_sequences = 1;
    let mut bench = Bench::new(small, 64);
    let work = || vec![Work::hidden(vec![1, 2], Vec::new())];
    let usual = [bench.push(work()), bench.push(work())];
    bench.priority = 5;
    let urgent = bench.push(work());
    bench.step();
    let is_done = |watch: &Watch| watch.lock().unwrap().outcomes[0].is_some();
    assert!(is_done(&urgent) && !usual.iter().any(is_done));
    bench.run();
    bench.check_clean();
}

#[test]
fn an_encoder_waits_for_company_as_long_as_it_may() {
    let mut bench = Bench::of(ModelKind::Encoder);
    let policy = Policy { batch_size: 3, max_delay: Duration::from_millis(5), ..Policy::default() };
    bench.scheduler.limits.policy = policy;
    let work = || vec![Work::hidden(vec![1, 2], Vec::new())];
    bench.push(work());
    for _ in 0..4 {
        assert_eq!(bench.step(), Step::default());
    }
    assert_eq!(bench.step().forward.n_made, 1, "the delay is over");
    assert!(bench.scheduler.is_idle());
    (0..3).for_each(|_| drop(bench.push(work())));
    assert_eq!(bench.step().forward, Calls { n_made: 1, n_good: 3, n_blamed: 0 });
    bench.check_clean();
}

#[test]
fn a_choice_that_fails_leaves_the_rows_behind_it_to_others() {
    let mut bench = Bench::of(ModelKind::Decoder);
    // Both choices say the token after which the engine's logits are no numbers.
    let mut guilty = sampled(generate(&[], &[3, 4], 8), 2, 1);
    if let Goal::Generate(generate) = &mut guilty.goal {
        generate.rules.logit_bias = [(NAN, 1000.0)].into();
    }
    let innocent = vec![generate(&[], &[5, 6], 8)];
    let watches = [bench.push(vec![guilty]), bench.push(innocent.clone())];
    bench.run();
    assert!(matches!(&errors(&watches[0])[..], [HostError::Engine(_)]));
    check_done(&watches[1], &innocent);
    bench.check_clean();
}

#[test]
fn more_sequences_than_run_at_once_are_refused() {
    let limits = Limits::new(info(ModelKind::Decoder), 4, None);
    let work = generate(&[], &[1, 2], 5);
    assert!(limits.check(&sampled(work.clone(), 4, 0)).is_ok());
    assert!(limits.check(&sampled(work.clone(), 5, 0)).is_err());
    assert!(limits.check(&beams(work, 5)).is_err());
}
