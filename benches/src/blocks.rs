//! Linear layers of SmolLM2-135M and Llama-3.2-1B from GGML's blocks.

use drivetrain_kernels::{BlockFormat, BlockMatrix, Cpu, Epilogue, Scratch, peak};

use crate::timing::{best, rate};

/// Name, `n_out`, `n_in`.
const SHAPES: [(&str, usize, usize); 4] = [
    ("smol.down", 576, 1536),
    ("llama.attention", 2048, 2048),
    ("llama.up", 8192, 2048),
    ("llama.head", 128_256, 2048),
];

const FORMATS: [BlockFormat; 5] = [
    BlockFormat::Q8Zero,
    BlockFormat::Q4Zero,
    BlockFormat::Q4K,
    BlockFormat::Q5K,
    BlockFormat::Q6K,
];

const ROUNDS: usize = 12;

pub(crate) fn run(cpu: Cpu<'_>, filter: &str) -> anyhow::Result<()> {
    for (name, n_out, n_in) in SHAPES {
        for format in FORMATS {
            let what = format!("{name} {format:?}");
            if !what.contains(filter) {
                continue;
            }
            // Bytes that are small numbers as scales, too.
            let n_bytes = n_out * n_in / format.block_len() * format.block_bytes();
            let bytes: Vec<u8> = (0..n_bytes).map(|idx| (idx * 7 % 23) as u8).collect();
            let matrix = BlockMatrix::new(format, &bytes, n_in)?;
            let many = if n_out > 10_000 { vec![1, 8] } else { vec![1, 8, 512] };
            for n_rows in many {
                one(cpu, &what, &matrix, n_rows)?;
            }
        }
    }
    Ok(())
}

fn one(cpu: Cpu<'_>, what: &str, matrix: &BlockMatrix<'_>, n_rows: usize) -> anyhow::Result<()> {
    let n_threads = cpu.pool.n_threads();
    // Equal rows, so that equal results are a check.
    let x: Vec<f32> =
        (0..n_rows * matrix.n_in()).map(|idx| (idx % matrix.n_in() % 13) as f32 - 6.0).collect();
    let mut y = vec![0.0; n_rows * matrix.n_out()];
    let mut scratch = Scratch::with_capacity(matrix.scratch_bytes(n_rows, n_threads));
    let epilogue = Epilogue::default();
    matrix.multiply(cpu, &x, &mut y, &epilogue, &mut scratch)?;
    let rows = y.chunks_exact(matrix.n_out());
    anyhow::ensure!(rows.clone().all(|row| row == &y[..matrix.n_out()]), "{what}: rows differ");
    anyhow::ensure!(y.iter().all(|y| y.is_finite()), "{what}: not finite");
    let memory = vec![1.0_f32; matrix.n_bytes() / 4];
    // Few rows are held against memory, many against the multipliers.
    let is_few = n_rows <= 8;
    let measure = || match is_few {
        true => peak::read(cpu.isa, cpu.pool, &memory),
        false => peak::byte_operations(cpu.isa, cpu.pool),
    };
    let (mut seconds, mut peak, mut failure) = (f64::MAX, 0.0_f64, None);
    for _ in 0..ROUNDS {
        let of_round = best(n_threads, 3, || {
            failure = matrix.multiply(cpu, &x, &mut y, &epilogue, &mut scratch).err();
        });
        seconds = seconds.min(of_round);
        for _ in 0..3 {
            peak = peak.max(rate(cpu.pool, measure));
        }
    }
    let (work, unit) = match is_few {
        true => (matrix.n_bytes() as f64, "GB/s"),
        false => (2.0 * (n_rows * matrix.n_out() * matrix.n_in()) as f64, "GOP/s"),
    };
    let reached = work / seconds;
    println!(
        "{what:24} {n_rows:4} rows {:9.1} us {:7.1} {unit}, {:3.0} % of {:.1}",
        seconds * 1e6,
        reached / 1e9,
        reached / peak * 100.0,
        peak / 1e9
    );
    failure.map_or(Ok(()), |error| Err(error.into()))
}
