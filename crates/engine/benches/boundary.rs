//! What the engine boundary costs: a call, and a batch of 32 segments, direct and through the ABI.
//! The difference is to stay under 1 µs.

#[path = "../tests/null/mod.rs"]
mod null;

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use drivetrain_engine::{Batch, Outputs, SeqId};

fn boundary(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("boundary");
    for (name, mut model) in null::both() {
        group.bench_function(BenchmarkId::new("truncate", name), |bencher| {
            bencher.iter(|| model.truncate(black_box(SeqId(1)), black_box(1)));
        });
        for n_segments in [1, null::N_SEGMENTS] {
            let (segments, tokens) = null::steps(n_segments);
            let batch = Batch::new(&segments, &tokens, &[]).expect("the batch is right");
            let mut logits = vec![0.0; n_segments as usize * null::N_LOGITS];
            let mut step = |batch: &Batch<'_>| {
                let mut out = Outputs::new(&mut logits, null::N_LOGITS, &mut [], 0);
                model.forward(batch, &mut out).expect("it runs");
                logits[(n_segments as usize - 1) * null::N_LOGITS]
            };
            assert_eq!(step(&batch), (n_segments - 1) as f32, "the result is checked first");
            group.bench_function(BenchmarkId::new(format!("forward of {n_segments}"), name), |b| {
                b.iter(|| step(black_box(&batch)));
            });
        }
    }
    group.finish();
}

criterion_group!(benches, boundary);
criterion_main!(benches);
