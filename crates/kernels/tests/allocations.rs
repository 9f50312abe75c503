//! Once everything is reserved, kernels take no memory. The process is counted as a whole, workers
//! included, so nothing else may run in it: this test does without the usual harness and its threads.
#![allow(clippy::unwrap_used, reason = "a test ends where its ground gives way")]

use std::num::NonZeroUsize;

use alloc_tracker::{Allocator, Session};
use drivetrain_kernels::{
    Attention, BlockFormat, BlockMatrix, Cpu, Epilogue, Heads, Isa, KernelError, KvCache,
    KvPrecision, KvShape, Mask, Matrix, Norm, NormKind, NormRows, Pool, PositionBias, Precision,
    Scratch, Segment, Source, softmax,
};

#[global_allocator]
static ALLOCATOR: Allocator<std::alloc::System> = Allocator::system();

const DIM: usize = 64;

/// What a layer runs on.
struct Layer<'a> {
    cpu: Cpu<'a>,
    linear: Matrix,
    bytes: Matrix,
    blocks: BlockMatrix<'a>,
    cache: KvCache,
    scratch: Scratch,
}

impl Layer<'_> {
    fn step(&mut self, x: &mut [f32], y: &mut [f32]) -> Result<(), KernelError> {
        let (cpu, none) = (self.cpu, Epilogue::default());
        self.linear.multiply(cpu.pool, x, y, &none, &mut self.scratch)?;
        self.bytes.multiply(cpu.pool, y, x, &none, &mut self.scratch)?;
        self.blocks.multiply(cpu, x, y, &none, &mut self.scratch)?;
        let weight = [1.0; DIM];
        let norm = Norm { kind: NormKind::Rms, weight: &weight, bias: None, epsilon: 1e-5 };
        norm.apply(cpu, NormRows { x: y, add: None, sum: None, output: x })?;
        let n_rows = x.len() / DIM;
        let segment =
            Segment { first_row: 0, n_rows, first_position: 0, n_keys: n_rows, blocks: &[0] };
        let heads = Heads { rows: x, stride: DIM, first_column: 0 };
        self.cache.append(cpu, &[segment], heads, heads)?;
        let attention = Attention {
            n_heads: 4,
            scale: 0.25,
            mask: Mask::Causal,
            soft_cap: None,
            bias: PositionBias::None,
        };
        attention.apply(cpu, &self.cache, &[segment], heads, y)?;
        softmax(cpu, y, DIM)
    }
}

fn main() {
    let pool = Pool::new(NonZeroUsize::new(2).unwrap()).unwrap();
    let cpu = Cpu { isa: Isa::detect(), pool: &pool };
    let weights: Vec<f32> = (0..DIM * DIM).map(|idx| (idx % 17) as f32 / 17.0 - 0.5).collect();
    let source = [Source::F32(&weights)];
    let packed = |precision| Matrix::pack(cpu, &source, DIM, precision).unwrap();
    let blocks = vec![0; 34 * 2 * DIM];
    let shape = KvShape { n_blocks: 1, n_kv_heads: 4, head_dim: 16 };
    let mut layer = Layer {
        cpu,
        linear: packed(Precision::F32),
        bytes: packed(Precision::Int8),
        blocks: BlockMatrix::new(BlockFormat::Q8Zero, &blocks, DIM).unwrap(),
        cache: KvCache::new(shape, KvPrecision::F16).unwrap(),
        scratch: Scratch::with_capacity(0),
    };
    let needed = [
        layer.linear.scratch_bytes(9, 2),
        layer.bytes.scratch_bytes(9, 2),
        layer.blocks.scratch_bytes(9, 2),
    ];
    layer.scratch.reserve(needed.into_iter().max().unwrap());
    let (mut x, mut y) = (vec![0.5; 9 * DIM], vec![0.0; 9 * DIM]);
    let mut steps = |n: usize| {
        for n_rows in (0..n).map(|idx| idx % 9 + 1) {
            layer.step(&mut x[..n_rows * DIM], &mut y[..n_rows * DIM]).unwrap();
        }
    };
    steps(200);
    let session = Session::new().no_stdout().no_file();
    let operation = session.operation("steps");
    {
        let _span = operation.measure_process().iterations(1000);
        steps(1000);
    }
    let report = session.to_report();
    let counts = report.operations().map(|(_, counted)| counted.total_allocations_count());
    assert_eq!(counts.sum::<u64>(), 0, "allocations in 1,000 warm steps");
    println!("1,000 warm steps allocate nothing");
}
