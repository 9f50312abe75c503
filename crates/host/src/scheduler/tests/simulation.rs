//! Random schedules: arrivals, lengths, capacities, cancellations, deadlines, poison.

use proptest::prelude::*;

use super::groups::{beams, looking_up, sampled};
use super::*;

#[derive(Clone, Debug)]
struct Arrival {
    at: usize,
    works: Vec<Work>,
    priority: i32,
    cancelled_at: Option<usize>,
    limit_ms: Option<u64>,
    /// Turns at which its reader takes nothing.
    slow: std::ops::Range<usize>,
    is_poisoned: bool,
}

/// Tokens that often begin alike.
fn tokens() -> impl Strategy<Value = Vec<u32>> {
    let head = prop::sample::select(vec![0_usize, 3, 8, 12]);
    (head, prop::collection::vec(1..4_u32, 1..12))
        .prop_map(|(n, rest)| (1..=n as u32).chain(rest).collect())
}

#[derive(Clone, Copy, Debug)]
enum How {
    Hidden,
    Greedy,
    Scored,
    LookedUp(usize),
    Choices(usize, u64),
    Beams(usize),
}

fn how() -> impl Strategy<Value = How> {
    prop_oneof![
        2 => Just(How::Hidden),
        3 => Just(How::Greedy),
        1 => Just(How::Scored),
        2 => (1..5_usize).prop_map(How::LookedUp),
        2 => (1..4_usize, 0..9_u64).prop_map(|(n, seed)| How::Choices(n, seed)),
        2 => (1..4_usize).prop_map(How::Beams),
    ]
}

fn work(kind: ModelKind) -> impl Strategy<Value = Work> {
    let adapter = prop::sample::select(vec![0_u32, 0, 1, 2]);
    (tokens(), tokens(), 1..25_usize, how(), adapter).prop_map(
        move |(tokens, encoder, max_new, how, adapter)| {
            let encoder = if kind == ModelKind::EncoderDecoder { encoder } else { Vec::new() };
            let plain = generate(&encoder, &tokens, max_new);
            let mut work = match how {
                How::Hidden => Work { encoder, ..Work::hidden(tokens, Vec::new()) },
                _ if kind == ModelKind::Encoder => Work::hidden(tokens, Vec::new()),
                How::Greedy => plain,
                How::Scored => {
                    let mut work = plain;
                    if let Goal::Generate(generate) = &mut work.goal {
                        generate.report = Report { logprobs: true, n_top: 2, prompt: Some(1) };
                    }
                    work
                }
                How::LookedUp(n) => looking_up(plain, n),
                How::Choices(n, seed) => sampled(plain, n, seed),
                How::Beams(n) => beams(generate(&encoder, &tokens, max_new.min(8)), n),
            };
            work.adapter = AdapterId(adapter);
            work
        },
    )
}

fn arrival(kind: ModelKind) -> impl Strategy<Value = Arrival> {
    (
        0..40_usize,
        prop::collection::vec(work(kind), 1..4),
        prop::option::weighted(0.2, 0..60_usize),
        prop::option::weighted(0.2, 0..40_u64),
        prop::bool::weighted(0.1),
        (-1..2_i32, 0..30_usize, prop::sample::select(vec![0_usize, 0, 7])),
    )
        .prop_map(
            |(at, mut works, cancelled_at, limit_ms, is_poisoned, (priority, from, n))| {
                let slow = from..from + n;
                if is_poisoned {
                    works[0].tokens.push(POISON);
                    if let Goal::Generate(generate) = &mut works[0].goal {
                        let rules = &mut generate.rules;
                        rules.n_prompt += 1;
                        rules.max_length += 1;
                    }
                }
                Arrival { at, works, priority, cancelled_at, limit_ms, slow, is_poisoned }
            },
        )
}

fn schedule() -> impl Strategy<Value = (Limits, Vec<Arrival>)> {
    let kinds = prop::sample::select(vec![
        ModelKind::Decoder,
        ModelKind::EncoderDecoder,
        ModelKind::Encoder,
    ]);
    kinds.prop_flat_map(|kind| {
        let figures = (
            (3..7_u32, 0..5_u32),
            200..320_u64,
            25..80_u64,
            26..64_u32,
            1..8_u32,
            1..40_u32,
            prop::bool::weighted(0.8),
        );
        (figures, prop::collection::vec(arrival(kind), 1..12)).prop_map(
            move |(((n_seqs, more), kv, cross, batch, block, step, keeps), arrivals)| {
                let info = TokenModelInfo {
                    max_sequences: n_seqs + more,
                    kv_capacity_tokens: kv,
                    cross_capacity_tokens: cross,
                    max_batch_tokens: batch,
                    kv_block_tokens: block,
                    ..info(kind)
                };
                let mut limits = Limits::new(info, n_seqs, Some(step));
                limits.policy.keeps_prefixes = keeps;
                (limits, arrivals)
            },
        )
    })
}

fn simulate(limits: Limits, arrivals: &[Arrival]) {
    let mut bench = Bench::new(limits.info, 64);
    bench.scheduler = Scheduler::new("bench", limits);
    let mut watches: Vec<Option<Watch>> = vec![None; arrivals.len()];
    for turn in 0..4000 {
        for (arrival, watch) in arrivals.iter().zip(&mut watches) {
            if arrival.at == turn {
                let limit = Duration::from_millis(arrival.limit_ms.unwrap_or(1_000_000));
                bench.priority = arrival.priority;
                *watch = Some(bench.push_until(arrival.works.clone(), limit));
            }
            if let Some(watch) = &watch {
                watch.lock().unwrap().has_no_room = arrival.slow.contains(&turn);
            }
            if let (Some(watch), true) = (&watch, arrival.cancelled_at == Some(turn)) {
                watch.lock().unwrap().is_closed = true;
            }
        }
        bench.step();
        if turn > 64 && bench.scheduler.is_idle() {
            break;
        }
    }
    bench.check_clean();
    for (arrival, watch) in arrivals.iter().zip(&watches) {
        let watch = watch.as_ref().unwrap();
        let seen = watch.lock().unwrap();
        assert!(seen.is_dropped);
        let n_done = seen.outcomes.iter().flatten().count();
        let is_done = n_done == arrival.works.len();
        match &seen.errors[..] {
            [] => assert!(is_done || seen.is_closed, "{seen:?}"),
            [HostError::Timeout { .. }] => assert!(arrival.limit_ms.is_some() && !is_done),
            [HostError::Engine(_)] => assert!(arrival.is_poisoned && !is_done),
            _ => panic!("{seen:?}"),
        }
        for (work, outcome) in arrival.works.iter().zip(&seen.outcomes) {
            if let Some(outcome) = outcome {
                assert_eq!(*outcome, expected(work));
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 10_000, ..ProptestConfig::default() })]

    /// Nothing is lost, nothing ends twice, no capacity is exceeded, everything is released, and
    /// what a sequence says does not depend on its company.
    #[test]
    fn any_schedule_keeps_the_invariants((limits, arrivals) in schedule()) {
        simulate(limits, &arrivals);
    }
}
