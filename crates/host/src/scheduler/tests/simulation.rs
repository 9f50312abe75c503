//! Random schedules: arrivals, lengths, capacities, cancellations, deadlines, poison.

use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug)]
struct Arrival {
    at: usize,
    works: Vec<Work>,
    cancelled_at: Option<usize>,
    limit_ms: Option<u64>,
    is_poisoned: bool,
}

fn work(kind: ModelKind) -> impl Strategy<Value = Work> {
    let tokens = prop::collection::vec(1..30_u32, 1..20);
    let encoder = prop::collection::vec(1..30_u32, 1..20);
    (tokens, encoder, 1..25_usize, prop::bool::weighted(0.3)).prop_map(
        move |(tokens, encoder, max_new, is_hidden)| {
            let encoder = if kind == ModelKind::EncoderDecoder { encoder } else { Vec::new() };
            if is_hidden || kind == ModelKind::Encoder {
                Work { encoder, ..Work::hidden(tokens, Vec::new()) }
            } else {
                generate(&encoder, &tokens, max_new)
            }
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
    )
        .prop_map(|(at, mut works, cancelled_at, limit_ms, is_poisoned)| {
            if is_poisoned {
                works[0].tokens.push(POISON);
                if let Goal::Generate(generate) = &mut works[0].goal {
                    let rules = &mut generate.rules;
                    rules.n_prompt += 1;
                    rules.max_length += 1;
                }
            }
            Arrival { at, works, cancelled_at, limit_ms, is_poisoned }
        })
}

fn schedule() -> impl Strategy<Value = (TokenModelInfo, u32, Vec<Arrival>)> {
    let kinds = prop::sample::select(vec![
        ModelKind::Decoder,
        ModelKind::EncoderDecoder,
        ModelKind::Encoder,
    ]);
    kinds.prop_flat_map(|kind| {
        let figures = (1..6_u32, 48..120_u64, 20..60_u64, 21..64_u32, 1..8_u32, 1..40_u32);
        (figures, prop::collection::vec(arrival(kind), 1..12)).prop_map(
            move |((n_seqs, kv, cross, batch, block, step), arrivals)| {
                let info = TokenModelInfo {
                    max_sequences: n_seqs,
                    kv_capacity_tokens: kv,
                    cross_capacity_tokens: cross,
                    max_batch_tokens: batch,
                    kv_block_tokens: block,
                    ..info(kind)
                };
                (info, step, arrivals)
            },
        )
    })
}

fn simulate(info: TokenModelInfo, step_tokens: u32, arrivals: &[Arrival]) {
    let mut bench = Bench::new(info, step_tokens);
    let mut watches: Vec<Option<Watch>> = vec![None; arrivals.len()];
    for turn in 0..4000 {
        for (arrival, watch) in arrivals.iter().zip(&mut watches) {
            if arrival.at == turn {
                let limit = Duration::from_millis(arrival.limit_ms.unwrap_or(1_000_000));
                *watch = Some(bench.push_until(arrival.works.clone(), limit));
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
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    /// Nothing is lost, nothing ends twice, no capacity is exceeded, everything is released, and
    /// what a sequence says does not depend on its company.
    #[test]
    fn any_schedule_keeps_the_invariants((info, step, arrivals) in schedule()) {
        simulate(info, step, &arrivals);
    }
}
