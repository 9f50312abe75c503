//! The most that the machine can do, as work for a bench to time.

use std::hint::black_box;
use std::sync::Mutex;

use crate::isa::Isa;
use crate::pool::{Pool, part};
use crate::vector::{Arithmetic, Simd};

/// Chains of dependent operations: more than latency times throughput of any machine.
const CHAINS: usize = 12;

/// Operations of each chain in one measurement, 20 million: some milliseconds.
const N: usize = 1 << 20;

struct Floats;

impl Arithmetic for Floats {
    /// Floating-point operations.
    type Output = f64;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f64 {
        let (a, b) = (s.splat(black_box(0.999)), s.splat(black_box(0.001)));
        let mut chains = [s.splat(black_box(1.0)); CHAINS];
        for _ in 0..N {
            for chain in &mut chains {
                *chain = s.fma(*chain, a, b);
            }
        }
        let sum = chains.iter().fold(s.splat(0.0), |sum, chain| s.add(sum, *chain));
        black_box(s.sum(sum));
        (2 * N * CHAINS * S::LANES) as f64
    }
}

struct Bytes;

impl Arithmetic for Bytes {
    /// Operations on bytes.
    type Output = f64;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f64 {
        // Every product differs from the others, or the compiler would multiply once for all of them.
        let bytes: [i8; 64 + CHAINS] = std::array::from_fn(|idx| black_box(idx as i8));
        // SAFETY: a vector has at most 64 bytes.
        let weights: [S::Packed; CHAINS] =
            std::array::from_fn(|idx| unsafe { s.load_bytes(bytes[idx..].as_ptr()) });
        let mut chains = [s.splat_int(0); CHAINS];
        for step in 0..N {
            for (chain, weights) in chains.iter_mut().zip(weights) {
                *chain = s.join(*chain, weights, step as u32);
            }
        }
        let sum = chains.iter().fold(s.splat(0.0), |sum, chain| s.add(sum, s.to_float(*chain)));
        black_box(s.sum(sum));
        (2 * N * CHAINS * S::LANES * S::GROUP) as f64
    }
}

struct Read<'a>(&'a [f32]);

impl Arithmetic for Read<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let mut sums = [s.splat(0.0); 8];
        for chunk in self.0.chunks_exact(8 * S::LANES) {
            for (idx, sum) in sums.iter_mut().enumerate() {
                // SAFETY: the chunk has eight vectors.
                let values = unsafe { s.load(chunk.as_ptr().add(idx * S::LANES)) };
                *sum = s.add(*sum, values);
            }
        }
        let sum = sums.iter().fold(s.splat(0.0), |sum, one| s.add(sum, *one));
        black_box(s.sum(sum));
    }
}

/// Fused multiplications and additions of f32 on all threads of `pool`; returns how many operations.
pub fn float_operations(isa: Isa, pool: &Pool) -> f64 {
    operations(pool, || isa.run(Floats))
}

/// Multiplications and additions of bytes on all threads of `pool`; returns how many operations.
pub fn byte_operations(isa: Isa, pool: &Pool) -> f64 {
    operations(pool, || isa.run_bytes(Bytes))
}

fn operations(pool: &Pool, work: impl Fn() -> f64 + Sync) -> f64 {
    let total = Mutex::new(0.0);
    pool.run(|_, _| {
        let n = work();
        if let Ok(mut total) = total.lock() {
            *total += n;
        }
    });
    total.into_inner().unwrap_or(0.0)
}

/// Reads `memory`, each thread of `pool` its part; returns how many bytes.
pub fn read(isa: Isa, pool: &Pool, memory: &[f32]) -> f64 {
    pool.run(|thread_idx, n_threads| {
        isa.run(Read(&memory[part(memory.len(), 1024, thread_idx, n_threads)]));
    });
    size_of_val(memory) as f64
}
