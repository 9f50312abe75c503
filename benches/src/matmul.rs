//! Linear layers of BART-large, SmolLM2-135M and Llama-3.2-1B.

use drivetrain_kernels::{Cpu, Epilogue, Isa, Matrix, Pool, Precision, Scratch, Source, peak};

use crate::timing::{best, rate};

/// Name, `n_out`, `n_in`.
const SHAPES: [(&str, usize, usize); 9] = [
    ("bart.attention", 1024, 1024),
    ("bart.up", 4096, 1024),
    ("bart.down", 1024, 4096),
    ("smol.attention", 576, 576),
    ("smol.up", 1536, 576),
    ("smol.head", 49152, 576),
    ("llama.attention", 2048, 2048),
    ("llama.up", 8192, 2048),
    ("llama.head", 128_256, 2048),
];

const PRECISIONS: [Precision; 5] =
    [Precision::F32, Precision::F16, Precision::Bf16, Precision::Int8, Precision::Int8Weights];

const ROUNDS: usize = 12;

/// Memory that no cache holds: 256 MiB.
const BEYOND: usize = 64 << 20;

pub(crate) fn run(isa: Isa, pool: &Pool, filter: &str) -> anyhow::Result<()> {
    let beyond = vec![1.0_f32; BEYOND];
    for (name, n_out, n_in) in SHAPES {
        for precision in PRECISIONS {
            let what = format!("{name} {precision:?}");
            if !what.contains(filter) {
                continue;
            }
            let weights: Vec<f32> = (0..n_out * n_in).map(number).collect();
            let matrix =
                Matrix::pack(Cpu { isa, pool }, &[Source::F32(&weights)], n_in, precision)?;
            let case = Case { what, isa, pool, matrix, weights };
            let many = if n_out > 10_000 { vec![1] } else { vec![512] };
            for n_rows in [1, 8].into_iter().chain(many) {
                case.check(n_rows)?;
                if n_rows > 8 { case.arithmetic(n_rows)? } else { case.memory(n_rows, &beyond)? }
            }
        }
    }
    Ok(())
}

/// From -1 to 1, and never the same in a row.
fn number(idx: usize) -> f32 {
    ((idx.wrapping_mul(2_654_435_761) >> 8) % 2001) as f32 / 1000.0 - 1.0
}

struct Case<'a> {
    what: String,
    isa: Isa,
    pool: &'a Pool,
    matrix: Matrix,
    weights: Vec<f32>,
}

impl Case<'_> {
    fn buffers(&self, n_rows: usize) -> (Vec<f32>, Vec<f32>, Scratch) {
        let x = (0..n_rows * self.matrix.n_in()).map(|idx| number(idx + 7)).collect();
        let y = vec![0.0; n_rows * self.matrix.n_out()];
        let n_bytes = self.matrix.scratch_bytes(n_rows, self.pool.n_threads());
        (x, y, Scratch::with_capacity(n_bytes))
    }

    /// A few elements against plain sums.
    fn check(&self, n_rows: usize) -> anyhow::Result<()> {
        let (x, mut y, mut scratch) = self.buffers(n_rows);
        self.matrix.multiply(self.pool, &x, &mut y, &Epilogue::default(), &mut scratch)?;
        let (n_in, n_out) = (self.matrix.n_in(), self.matrix.n_out());
        for idx in (0..y.len()).step_by(y.len() / 97 + 1) {
            let x = &x[idx / n_out * n_in..][..n_in];
            let w = &self.weights[idx % n_out * n_in..][..n_in];
            let exact: f32 = x.iter().zip(w).map(|(x, w)| x * w).sum();
            let scale = (n_in as f32).sqrt();
            anyhow::ensure!(
                (y[idx] - exact).abs() < 0.02 * scale,
                "{}: element {idx} is {}, not {exact}",
                self.what,
                y[idx]
            );
        }
        Ok(())
    }

    /// Seconds of one product, and of the yardstick in the same rounds.
    fn time(&self, n_rows: usize, mut peak: impl FnMut() -> f64) -> anyhow::Result<(f64, f64)> {
        let (x, mut y, mut scratch) = self.buffers(n_rows);
        let epilogue = Epilogue::default();
        let mut failure = None;
        let (mut seconds, mut most) = (f64::MAX, 0.0_f64);
        for _ in 0..ROUNDS {
            let of_round = best(self.pool.n_threads(), 3, || {
                let done = self.matrix.multiply(self.pool, &x, &mut y, &epilogue, &mut scratch);
                failure = done.err();
            });
            seconds = seconds.min(of_round);
            most = most.max(peak());
        }
        failure.map_or(Ok((seconds, most)), |error| Err(error.into()))
    }

    fn arithmetic(&self, n_rows: usize) -> anyhow::Result<()> {
        let is_int = self.matrix.precision() == Precision::Int8;
        let measure = if is_int { peak::byte_operations } else { peak::float_operations };
        let (seconds, peak) =
            self.time(n_rows, || rate(self.pool, || measure(self.isa, self.pool)))?;
        let n = 2.0 * (n_rows * self.matrix.n_out() * self.matrix.n_in()) as f64;
        self.print(n_rows, (seconds, n / seconds, peak), "GOP/s");
        Ok(())
    }

    fn memory(&self, n_rows: usize, beyond: &[f32]) -> anyhow::Result<()> {
        // As much memory as the weights take, so that it's in the same cache.
        let n = (self.matrix.n_bytes() / 4).clamp(1024, beyond.len());
        let read = || {
            let read = || peak::read(self.isa, self.pool, &beyond[..n]);
            (0..3).map(move |_| rate(self.pool, read))
        };
        let (seconds, peak) = self.time(n_rows, || read().fold(0.0, f64::max))?;
        self.print(n_rows, (seconds, self.matrix.n_bytes() as f64 / seconds, peak), "GB/s");
        Ok(())
    }

    fn print(&self, n_rows: usize, (seconds, rate, peak): (f64, f64, f64), unit: &str) {
        println!(
            "{:24} {n_rows:4} rows {:9.1} us {:7.1} {unit}, {:3.0} % of {:.1}",
            self.what,
            seconds * 1e6,
            rate / 1e9,
            rate / peak * 100.0,
            peak / 1e9
        );
    }
}
