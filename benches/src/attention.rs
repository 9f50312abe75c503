//! Attention of BART-large, SmolLM2-135M and Llama-3.2-1B.

use drivetrain_kernels::{
    Attention, Cpu, Heads, KvCache, KvPrecision, KvShape, Mask, PositionBias, Segment,
    TOKENS_PER_BLOCK, peak,
};

use crate::timing::{best, rate};

/// Name, heads of queries, heads of keys, elements of a head.
const SHAPES: [(&str, usize, usize, usize); 3] =
    [("bart", 16, 16, 64), ("smol", 9, 3, 64), ("llama", 32, 8, 64)];

/// Rows, keys.
const SIZES: [(usize, usize); 3] = [(1, 512), (1, 4096), (512, 512)];

const PRECISIONS: [KvPrecision; 3] = [KvPrecision::F32, KvPrecision::F16, KvPrecision::Int8];

const ROUNDS: usize = 12;

pub(crate) fn run(cpu: Cpu<'_>, filter: &str) -> anyhow::Result<()> {
    for (name, n_heads, n_kv_heads, head_dim) in SHAPES {
        for precision in PRECISIONS {
            for (n_rows, n_keys) in SIZES {
                let what = format!("{name}.softmax {precision:?}");
                if !what.contains(filter) {
                    continue;
                }
                let shape =
                    KvShape { n_blocks: n_keys.div_ceil(TOKENS_PER_BLOCK), n_kv_heads, head_dim };
                let case = Case { what, cpu, n_heads, shape, precision, n_rows, n_keys };
                case.time()?;
            }
        }
    }
    Ok(())
}

struct Case<'a> {
    what: String,
    cpu: Cpu<'a>,
    n_heads: usize,
    shape: KvShape,
    precision: KvPrecision,
    n_rows: usize,
    n_keys: usize,
}

impl Case<'_> {
    /// Every row sees all keys: what is counted is all that is needed.
    fn time(&self) -> anyhow::Result<()> {
        let number = |idx: usize| (idx.wrapping_mul(2_654_435_761) >> 8) as f32 % 7.0 / 7.0 - 0.5;
        let width = self.shape.n_kv_heads * self.shape.head_dim;
        let blocks: Vec<u32> = (0..self.shape.n_blocks as u32).collect();
        let segment = |n_rows, n_keys| Segment {
            first_row: 0,
            n_rows,
            first_position: n_keys - n_rows,
            n_keys,
            blocks: &blocks,
        };
        let mut cache = KvCache::new(self.shape, self.precision)?;
        let keys: Vec<f32> = (0..self.n_keys * width).map(number).collect();
        let keys = Heads { rows: &keys, stride: width, first_column: 0 };
        cache.append(self.cpu, &[segment(self.n_keys, self.n_keys)], keys, keys)?;
        let width = self.n_heads * self.shape.head_dim;
        let queries: Vec<f32> = (0..self.n_rows * width).map(number).collect();
        let queries = Heads { rows: &queries, stride: width, first_column: 0 };
        let mut output = vec![0.0; self.n_rows * width];
        let attention = Attention {
            n_heads: self.n_heads,
            scale: 0.125,
            mask: Mask::Full,
            soft_cap: None,
            bias: PositionBias::None,
        };
        let segments = [segment(self.n_rows, self.n_keys)];
        let Cpu { isa, pool } = self.cpu;
        let (mut seconds, mut most) = (f64::MAX, 0.0_f64);
        for _ in 0..ROUNDS {
            let mut failure = None;
            let of_round = best(pool.n_threads(), 3, || {
                let done = attention.apply(self.cpu, &cache, &segments, queries, &mut output);
                failure = done.err();
            });
            failure.map_or(Ok(()), Err)?;
            seconds = seconds.min(of_round);
            most = most.max(rate(pool, || peak::float_operations(isa, pool)));
        }
        let achieved = 4.0 * (self.n_rows * width * self.n_keys) as f64 / seconds;
        println!(
            "{:24} {:4} rows {:5} keys {:9.1} us {:7.1} GOP/s, {:3.0} % of {:.1}",
            self.what,
            self.n_rows,
            self.n_keys,
            seconds * 1e6,
            achieved / 1e9,
            achieved / most * 100.0,
            most / 1e9
        );
        Ok(())
    }
}
