//! Products of every precision and instruction set against plain loops.

use std::num::NonZeroUsize;

use half::{bf16, f16};

use crate::matmul_reference as reference;
use crate::random::Random;
use drivetrain_kernels::testing::SHARED;
use drivetrain_kernels::{
    Activation, Cpu, Epilogue, Isa, Matrix, Pool, Precision, Residual, Scratch, Source,
};

const ALL: [Precision; 5] =
    [Precision::F32, Precision::F16, Precision::Bf16, Precision::Int8, Precision::Int8Weights];

fn pool(n_threads: usize) -> Pool {
    Pool::new(NonZeroUsize::new(n_threads).unwrap()).unwrap()
}

fn multiply(matrix: &Matrix, pool: &Pool, x: &[f32], epilogue: &Epilogue<'_>) -> Vec<f32> {
    let n_rows = x.len() / matrix.n_in();
    let mut y = vec![f32::NAN; n_rows * matrix.n_out()];
    let mut scratch = Scratch::with_capacity(matrix.scratch_bytes(n_rows, pool.n_threads()));
    matrix.multiply(pool, x, &mut y, epilogue, &mut scratch).unwrap();
    y
}

/// Rounding of a sum of `n` products of numbers below 1, in f32: each addition loses half a unit of
/// what was summed so far, and errors are as random as roundings are. Four times that.
fn tolerance(n: usize) -> f64 {
    4.0 * f64::from(f32::EPSILON) * (n as f64)
}

fn assert_close(what: &str, found: &[f32], wanted: &[f64], tolerance: f64) {
    assert_eq!(found.len(), wanted.len());
    for (idx, (found, wanted)) in found.iter().zip(wanted).enumerate() {
        let error = (f64::from(*found) - wanted).abs();
        assert!(error <= tolerance, "{what}: element {idx} is {found}, not {wanted}");
    }
}

/// What a product gives by plain loops, with weights and activations as the precision holds them.
fn expected(x: &[f32], weights: &[f32], n_in: usize, precision: Precision) -> Vec<f64> {
    let held: Vec<f32> =
        weights.chunks(n_in).flat_map(|row| reference::held(row, precision)).collect();
    let x: Vec<f32> = match precision {
        Precision::Int8 => {
            x.chunks(n_in).flat_map(|row| row.chunks(SHARED)).flat_map(reference::bytes).collect()
        }
        _ => x.to_vec(),
    };
    reference::product(&x, &held, n_in)
}

#[test]
fn products_are_those_of_plain_loops() {
    let mut random = Random::new(1);
    let sizes = [(1, 1, 1), (1, 33, 17), (2, 16, 300), (3, 70, 64), (5, 7, 9), (6, 64, 257)];
    let larger = [(7, 100, 31), (14, 32, 520), (15, 129, 40), (29, 40, 130), (150, 50, 70)];
    for (n_rows, n_out, n_in) in sizes.into_iter().chain(larger) {
        let x = random.floats(n_rows * n_in);
        let weights = random.floats(n_out * n_in);
        for precision in ALL {
            let wanted = expected(&x, &weights, n_in, precision);
            for isa in crate::available() {
                for n_threads in [1, 3] {
                    let pool = pool(n_threads);
                    let source = [Source::F32(&weights)];
                    let matrix =
                        Matrix::pack(Cpu { isa, pool: &pool }, &source, n_in, precision).unwrap();
                    let found = multiply(&matrix, &pool, &x, &Epilogue::default());
                    let what = format!("{isa} {precision:?} {n_rows}x{n_out}x{n_in}");
                    assert_close(&what, &found, &wanted, tolerance(n_in));
                }
            }
        }
    }
}

#[test]
fn a_row_has_the_same_bits_in_any_batch() {
    let mut random = Random::new(2);
    let (n_out, n_in, most) = (83, 601, 40);
    let x = random.floats(most * n_in);
    let weights = random.floats(n_out * n_in);
    for (isa, precision) in crate::available().flat_map(|isa| ALL.map(|p| (isa, p))) {
        let (one, two) = (pool(1), pool(2));
        let matrix =
            Matrix::pack(Cpu { isa, pool: &one }, &[Source::F32(&weights)], n_in, precision)
                .unwrap();
        let all = multiply(&matrix, &one, &x, &Epilogue::default());
        for n_rows in [1, 2, 3, 4, 5, 7, 13, 39] {
            for pool in [&one, &two] {
                let some = multiply(&matrix, pool, &x[..n_rows * n_in], &Epilogue::default());
                assert!(some == all[..n_rows * n_out], "{isa} {precision:?}, {n_rows} rows");
            }
        }
    }
}

#[test]
fn epilogues_do_what_they_say() {
    let mut random = Random::new(3);
    let (n_rows, n_out, n_in) = (5, 45, 24);
    let x = random.floats(n_rows * n_in);
    let weights = random.floats(n_out * n_in);
    let other = random.floats(n_out * n_in);
    let bias = random.floats(2 * n_out);
    let residual = random.floats(n_rows * n_out);
    let factor = random.floats(n_rows * n_out);
    let additions = random.floats(n_rows * 2 * n_out);
    let (of_gate, of_other): (Vec<&[f32]>, Vec<&[f32]>) =
        additions.chunks_exact(2 * n_out).map(|row| row.split_at(n_out)).unzip();
    let (of_gate, of_other) = (of_gate.concat(), of_other.concat());
    let all = [
        Activation::None,
        Activation::Relu,
        Activation::Gelu,
        Activation::GeluTanh,
        Activation::QuickGelu,
        Activation::Silu,
        Activation::Tanh,
        Activation::ReluSquared,
        Activation::Sigmoid,
    ];
    let (gate, plain) =
        (reference::product(&x, &weights, n_in), reference::product(&x, &other, n_in));
    let pool = pool(2);
    for (isa, activation) in crate::available().flat_map(|isa| all.map(|a| (isa, a))) {
        let at = |idx: usize| {
            let sum = gate[idx] + f64::from(bias[idx % n_out]) + f64::from(of_gate[idx]);
            reference::activation(activation, sum)
        };
        let add = |idx: usize| f64::from(residual[idx]);
        let epilogue = Epilogue {
            bias: Some(&bias[..n_out]),
            addition: Some(&of_gate),
            activation,
            scale: 0.5,
            factor: Some(&factor),
            residual: Residual::Add(&residual),
        };
        let one =
            Matrix::pack(Cpu { isa, pool: &pool }, &[Source::F32(&weights)], n_in, Precision::F32);
        let found = multiply(&one.unwrap(), &pool, &x, &epilogue);
        let wanted: Vec<f64> =
            (0..found.len()).map(|i| at(i) * 0.5 * f64::from(factor[i]) + add(i)).collect();
        assert_close(&format!("{isa} {activation:?}"), &found, &wanted, 1e-5);

        let (gate, other) = (Source::F32(&weights), Source::F32(&other));
        let shape = (n_in, Precision::F32);
        let gated = Matrix::pack_gated(Cpu { isa, pool: &pool }, gate, other, shape).unwrap();
        let epilogue = Epilogue {
            bias: Some(&bias),
            addition: Some(&additions),
            residual: Residual::Output,
            ..epilogue
        };
        let mut found = residual.clone();
        let mut scratch = Scratch::with_capacity(gated.scratch_bytes(n_rows, 2));
        gated.multiply(&pool, &x, &mut found, &epilogue, &mut scratch).unwrap();
        let up = |idx: usize| plain[idx] + f64::from(bias[n_out + idx % n_out] + of_other[idx]);
        let wanted: Vec<f64> =
            (0..found.len()).map(|i| at(i) * up(i) * 0.5 * f64::from(factor[i]) + add(i)).collect();
        assert_close(&format!("{isa} gated {activation:?}"), &found, &wanted, 1e-5);
    }
}

#[test]
fn sources_are_stacked_and_may_be_of_16_bits() {
    let mut random = Random::new(4);
    let n_in = 21;
    let first: Vec<f16> = random.floats(20 * n_in).into_iter().map(f16::from_f32).collect();
    let second: Vec<bf16> = random.floats(15 * n_in).into_iter().map(bf16::from_f32).collect();
    let mut all: Vec<f32> = first.iter().map(|x| x.to_f32()).collect();
    all.extend(second.iter().map(|x| x.to_f32()));
    let x = random.floats(3 * n_in);
    let wanted = reference::product(&x, &all, n_in);
    let pool = pool(2);
    for isa in crate::available() {
        let sources = [Source::F16(&first), Source::Bf16(&second)];
        let matrix =
            Matrix::pack(Cpu { isa, pool: &pool }, &sources, n_in, Precision::F32).unwrap();
        assert_eq!(matrix.n_out(), 35);
        assert_close(
            isa.name(),
            &multiply(&matrix, &pool, &x, &Epilogue::default()),
            &wanted,
            1e-5,
        );
    }
}

#[test]
fn what_is_not_finite_stays_in_its_row() {
    let n_in = 40;
    let pool = pool(1);
    let weights = vec![0.5; 3 * n_in];
    for (isa, precision) in crate::available().flat_map(|isa| ALL.map(|p| (isa, p))) {
        let matrix =
            Matrix::pack(Cpu { isa, pool: &pool }, &[Source::F32(&weights)], n_in, precision)
                .unwrap();
        for bad in [f32::NAN, f32::INFINITY] {
            let mut x = vec![1.0; 4 * n_in];
            x[n_in + 7] = bad;
            let y = multiply(&matrix, &pool, &x, &Epilogue::default());
            assert!(y[3..6].iter().all(|y| !y.is_finite()), "{isa} {precision:?} {bad}: {y:?}");
            let rest = y[..3].iter().chain(&y[6..]);
            assert!(rest.copied().all(|y| (y - 20.0).abs() < 1e-3), "{isa} {precision:?}: {y:?}");
        }
    }
}

#[test]
fn bytes_reach_their_extremes() {
    let n_in = 1030;
    let pool = pool(1);
    let weights: Vec<f32> = (0..2 * n_in).map(|idx| if idx < n_in { 1.0 } else { -1.0 }).collect();
    for isa in crate::available() {
        let source = [Source::F32(&weights)];
        let matrix =
            Matrix::pack(Cpu { isa, pool: &pool }, &source, n_in, Precision::Int8).unwrap();
        let x: Vec<f32> = (0..2 * n_in).map(|idx| if idx < n_in { -3.0 } else { 3.0 }).collect();
        let y = multiply(&matrix, &pool, &x, &Epilogue::default());
        let n = n_in as f32 * 3.0;
        for (y, wanted) in y.iter().zip([-n, n, n, -n]) {
            assert!((y - wanted).abs() < 1e-2, "{isa}: {y}, not {wanted}");
        }
    }
}

#[test]
fn wrong_sizes_are_refused() {
    let pool = pool(1);
    let (isa, weights) = (Isa::detect(), vec![0.0; 12]);
    let error = Matrix::pack(Cpu { isa, pool: &pool }, &[Source::F32(&weights)], 5, Precision::F32);
    let message = error.unwrap_err().to_string();
    assert_eq!(message, "a matrix of weights has 12 elements where 10 are wanted");
    let matrix =
        Matrix::pack(Cpu { isa, pool: &pool }, &[Source::F32(&weights)], 4, Precision::F32)
            .unwrap();
    let mut scratch = Scratch::with_capacity(0);
    let mut y = [0.0; 6];
    let mut refuse = |x: &[f32], epilogue: &Epilogue<'_>| {
        matrix.multiply(&pool, x, &mut y, epilogue, &mut scratch).unwrap_err().to_string()
    };
    let none = Epilogue::default();
    assert_eq!(refuse(&[0.0; 7], &none), "the activations has 7 elements where 4 are wanted");
    assert_eq!(refuse(&[0.0; 4], &none), "the output has 6 elements where 3 are wanted");
    let bias = Epilogue { bias: Some(&[0.0; 2]), ..none };
    assert_eq!(refuse(&[0.0; 8], &bias), "the bias has 2 elements where 3 are wanted");
    assert!(refuse(&[0.0; 8], &none).starts_with("scratch memory of 64 bytes where"));
}

#[test]
fn other_weights_are_packed_into_the_same_memory() {
    let mut random = Random::new(12);
    let (isa, pool) = (Isa::detect(), pool(2));
    let cpu = Cpu { isa, pool: &pool };
    let (n_out, n_in) = (37, 45);
    let (first, second) = (random.floats(n_out * n_in), random.floats(n_out * n_in));
    let x = random.floats(3 * n_in);
    for precision in ALL {
        let pack = |of: &[f32]| Matrix::pack(cpu, &[Source::F32(of)], n_in, precision).unwrap();
        let mut matrix = pack(&first);
        let (above, below) = second.split_at(10 * n_in);
        matrix.repack(&pool, &[Source::F32(above), Source::F32(below)]).unwrap();
        let wanted = multiply(&pack(&second), &pool, &x, &Epilogue::default());
        assert_eq!(multiply(&matrix, &pool, &x, &Epilogue::default()), wanted, "{precision:?}");
        let error = matrix.repack(&pool, &[Source::F32(above)]).unwrap_err();
        assert!(error.to_string().contains("the rows to pack"), "{error}");
    }
}
