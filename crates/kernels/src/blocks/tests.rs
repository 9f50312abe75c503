//! Every format and instruction set against the elements one by one.

use std::num::NonZeroUsize;

use half::f16;

use crate::blocks_reference as reference;
use crate::random::Random;
use drivetrain_kernels::{
    Activation, BlockFormat, BlockMatrix, Cpu, Epilogue, Pool, Residual, Scratch, Source,
};

const ALL: [BlockFormat; 10] = [
    BlockFormat::Q8Zero,
    BlockFormat::Q4Zero,
    BlockFormat::Q4One,
    BlockFormat::Q5Zero,
    BlockFormat::Q5One,
    BlockFormat::Q4K,
    BlockFormat::Q5K,
    BlockFormat::Q6K,
    BlockFormat::Group4,
    BlockFormat::Group8,
];

/// Any bits are a block, once its scales are numbers.
fn blocks(random: &mut Random, format: BlockFormat, n: usize) -> Vec<u8> {
    let mut bytes: Vec<u8> =
        (0..n * format.block_bytes()).map(|_| (random.bits() >> 24) as u8).collect();
    for block in bytes.chunks_exact_mut(format.block_bytes()) {
        let at = match format {
            BlockFormat::Q6K => vec![208],
            BlockFormat::Q4One | BlockFormat::Q5One | BlockFormat::Q4K | BlockFormat::Q5K => {
                vec![0, 2]
            }
            _ => vec![0],
        };
        for at in at {
            let scale = f16::from_f32(random.float() * 0.01).to_le_bytes();
            block[at..at + 2].copy_from_slice(&scale);
        }
        if format == BlockFormat::Group4 {
            block[2] %= 16;
        }
    }
    bytes
}

fn elements(format: BlockFormat, bytes: &[u8]) -> Vec<f64> {
    let blocks = bytes.chunks_exact(format.block_bytes());
    let all =
        |block| (0..format.block_len()).map(move |idx| reference::element(format, block, idx));
    blocks.flat_map(all).collect()
}

fn multiply(
    cpu: Cpu<'_>,
    matrix: &BlockMatrix<'_>,
    x: &[f32],
    epilogue: &Epilogue<'_>,
) -> Vec<f32> {
    let n_rows = x.len() / matrix.n_in();
    let mut y = vec![f32::NAN; n_rows * matrix.n_out()];
    let mut scratch = Scratch::with_capacity(matrix.scratch_bytes(n_rows, cpu.pool.n_threads()));
    matrix.multiply(cpu, x, &mut y, epilogue, &mut scratch).unwrap();
    y
}

#[test]
fn products_are_those_of_the_elements() {
    let mut random = Random::new(12);
    for format in ALL {
        for (n_rows, n_out, n_blocks) in [(1, 1, 1), (2, 45, 1), (3, 7, 2), (9, 33, 3)] {
            let n_in = n_blocks * format.block_len();
            // One byte further, so that nothing is aligned.
            let bytes = blocks(&mut random, format, n_out * n_blocks);
            let moved: Vec<u8> = std::iter::once(0).chain(bytes.iter().copied()).collect();
            let weights = elements(format, &bytes);
            let x = random.floats(n_rows * n_in);
            // Activations as they are rounded: to 127 steps of the largest of 32.
            let rounded = x.chunks_exact(32).flat_map(|group| {
                let largest = group.iter().fold(0.0_f32, |largest, x| largest.max(x.abs()));
                let scale = f64::from(largest / 127.0);
                group
                    .iter()
                    .map(move |x| f64::from((x * (127.0 / largest)).round_ties_even()) * scale)
            });
            let rounded: Vec<f64> = rounded.collect();
            let bias = random.floats(n_out);
            let epilogue = Epilogue {
                bias: Some(&bias),
                addition: None,
                activation: Activation::Relu,
                scale: 2.0,
                factor: None,
                residual: Residual::None,
            };
            for isa in crate::available() {
                for n_threads in [1, 3] {
                    let pool = Pool::new(NonZeroUsize::new(n_threads).unwrap()).unwrap();
                    let matrix = BlockMatrix::new(format, &moved[1..], n_in).unwrap();
                    let found = multiply(Cpu { isa, pool: &pool }, &matrix, &x, &epilogue);
                    for (idx, found) in found.iter().enumerate() {
                        let (row, column) = (idx / n_out, idx % n_out);
                        let (x, w) = (&rounded[row * n_in..], &weights[column * n_in..]);
                        let pairs = x[..n_in].iter().zip(w);
                        let size: f64 = pairs.clone().map(|(x, w)| (x * w).abs()).sum();
                        let dot: f64 = pairs.map(|(x, w)| x * w).sum();
                        let wanted = (dot + f64::from(bias[column])).max(0.0) * 2.0;
                        let error = (f64::from(*found) - wanted).abs();
                        // Least values of up to 63 steps are taken from sums that are larger than them.
                        let tolerance = 1e-5 * size + 1e-5;
                        assert!(error < tolerance, "{isa} {format:?} {idx}: {found}, {wanted}");
                    }
                }
            }
        }
    }
}

/// Weights and activations of the largest size and one sign: sums of 16 bits come near to their bounds.
#[test]
fn the_largest_sums_do_not_wrap() {
    let pool = Pool::new(NonZeroUsize::MIN).unwrap();
    for format in ALL {
        for fill in [0, 0x7f, 0x80, 0xff] {
            let mut block = vec![fill; format.block_bytes()];
            let (scales, scale) = match format {
                BlockFormat::Q4K | BlockFormat::Q5K => (4..16, 0xff),
                BlockFormat::Q6K => (192..208, 0x80),
                BlockFormat::Group4 | BlockFormat::Group8 => (2..3, 15),
                _ => (0..0, 0),
            };
            block[scales].fill(scale);
            let at = if format == BlockFormat::Q6K { 208 } else { 0 };
            block[at..at + 2].copy_from_slice(&f16::from_f32(0.01).to_le_bytes());
            if matches!(
                format,
                BlockFormat::Q4One | BlockFormat::Q5One | BlockFormat::Q4K | BlockFormat::Q5K
            ) {
                block[2..4].copy_from_slice(&f16::from_f32(0.02).to_le_bytes());
            }
            let n_in = format.block_len();
            let wanted: f64 = elements(format, &block).iter().sum();
            let size: f64 = elements(format, &block).iter().map(|x| x.abs()).sum();
            let bytes = block.repeat(9);
            let matrix = BlockMatrix::new(format, &bytes, n_in).unwrap();
            for (isa, sign) in crate::available().flat_map(|isa| [(isa, 1.0_f32), (isa, -1.0)]) {
                for n_rows in [1, 7] {
                    let x = vec![sign; n_rows * n_in];
                    for y in multiply(Cpu { isa, pool: &pool }, &matrix, &x, &Epilogue::default()) {
                        let error = (f64::from(y * sign) - wanted).abs();
                        let what = format!("{isa} {format:?} {fill} {sign} {n_rows}");
                        assert!(error < 1e-5 * size + 1e-5, "{what}: {y}, not {wanted}");
                    }
                }
            }
        }
    }
}

#[test]
fn a_row_has_the_same_bits_in_any_batch() {
    let mut random = Random::new(13);
    let pools = [1, 2].map(|n| Pool::new(NonZeroUsize::new(n).unwrap()).unwrap());
    // More than a piece, and more rows than a tile.
    let (n_out, n_in, most) = (46, 2304, 133);
    for format in ALL {
        let bytes = blocks(&mut random, format, n_out * n_in / format.block_len());
        let matrix = BlockMatrix::new(format, &bytes, n_in).unwrap();
        let x = random.floats(most * n_in);
        for isa in crate::available() {
            let none = Epilogue::default();
            let all = multiply(Cpu { isa, pool: &pools[0] }, &matrix, &x, &none);
            for n_rows in (1..9).chain([31, 129]) {
                let some =
                    multiply(Cpu { isa, pool: &pools[1] }, &matrix, &x[..n_rows * n_in], &none);
                assert!(some == all[..n_rows * n_out], "{isa} {format:?} {n_rows}");
            }
            // The last row alone, too: it was the odd one of its tile.
            let last =
                multiply(Cpu { isa, pool: &pools[0] }, &matrix, &x[(most - 1) * n_in..], &none);
            assert!(last == all[(most - 1) * n_out..], "{isa} {format:?}");
        }
    }
}

/// Nothing is rounded: the elements are the numbers less the zero, times the scale.
#[test]
fn groups_are_blocks_to_the_last_bit() {
    let mut random = Random::new(15);
    for (format, most) in [(BlockFormat::Group4, 16), (BlockFormat::Group8, 256)] {
        for zero in [0, 7, most - 1] {
            let scale = f16::from_f32(random.float() * 0.1);
            let numbers: [u8; 32] = std::array::from_fn(|_| (random.bits() >> 8) as u8);
            let numbers = numbers.map(|number| (u32::from(number) % most) as u8);
            let mut block = vec![0; format.block_bytes()];
            format.put_group(scale, zero as u8, &numbers, &mut block).unwrap();
            for (found, number) in elements(format, &block).iter().zip(numbers) {
                let steps = f64::from(number) - f64::from(zero);
                assert_eq!(*found, steps * scale.to_f64(), "{format:?} {zero}");
            }
        }
    }
    let error = BlockFormat::Q4K.put_group(f16::ONE, 0, &[0; 32], &mut [0; 144]).unwrap_err();
    assert!(error.to_string().contains("G4 or G8"), "{error}");
    let error = BlockFormat::Group4.put_group(f16::ONE, 0, &[0; 32], &mut [0; 20]).unwrap_err();
    assert!(error.to_string().contains("has 20 elements where 19 are wanted"), "{error}");
}

/// Rounding to nearest costs at most half a step. Weights that lie on a grid come back; others lose no
/// more than by the plainest rounding, and with 4 bits by the tenth less.
#[test]
fn weights_are_encoded_to_near_blocks() {
    let mut random = Random::new(14);
    let pool = Pool::new(NonZeroUsize::new(2).unwrap()).unwrap();
    let (n_out, n_in) = (70, 96);
    // A sum of three is nearly normal, as weights are.
    let normal = |random: &mut Random| random.float() + random.float() + random.float();
    let first: Vec<f32> = (0..n_out * n_in).map(|_| normal(&mut random)).collect();
    let second: Vec<f16> = random.floats(3 * n_in).into_iter().map(f16::from_f32).collect();
    let sources = [Source::F32(&first), Source::F16(&second)];
    let weights: Vec<f32> =
        first.iter().copied().chain(second.iter().map(|x| x.to_f32())).collect();
    for format in [BlockFormat::Q8Zero, BlockFormat::Q4One] {
        let matrix = BlockMatrix::encode(format, &pool, &sources, n_in).unwrap();
        assert_eq!((matrix.n_out(), matrix.n_in()), (n_out + 3, n_in));
        let decoded = elements(format, matrix.bytes());
        let (mut found, mut plain) = (0.0, 0.0);
        for (decoded, values) in decoded.chunks_exact(32).zip(weights.chunks_exact(32)) {
            let (low, high) = values
                .iter()
                .fold((f32::MAX, f32::MIN), |(low, high), x| (low.min(*x), high.max(*x)));
            let (step, start) = match format {
                BlockFormat::Q8Zero => (low.abs().max(high.abs()) / 127.0, 0.0),
                _ => ((high - low) / 15.0, low),
            };
            for (decoded, x) in decoded.iter().zip(values) {
                let rounded = ((x - start) / step).round_ties_even() * step + start;
                plain += f64::from(rounded - x).powi(2);
                found += (decoded - f64::from(*x)).powi(2);
                // What is clipped loses more than half a step.
                assert!((decoded - f64::from(*x)).abs() < f64::from(step) * 1.1, "{format:?}");
            }
        }
        let most = if format == BlockFormat::Q8Zero { 1.01 } else { 0.9 };
        assert!(found < most * plain, "{format:?}: {found} of {plain}");
        // What was decoded lies on the grid.
        let grid: Vec<f32> = decoded.iter().map(|x| *x as f32).collect();
        let again = BlockMatrix::encode(format, &pool, &[Source::F32(&grid)], n_in).unwrap();
        for (again, x) in elements(format, again.bytes()).iter().zip(&decoded) {
            assert!((again - x).abs() < 2e-3 * x.abs().max(0.05), "{format:?}: {again}, not {x}");
        }
    }
    let error = BlockMatrix::encode(BlockFormat::Q8Zero, &pool, &sources, 31).unwrap_err();
    assert!(error.to_string().starts_with("the number of columns is 31"), "{error}");
    let error = BlockMatrix::encode(BlockFormat::Q4Zero, &pool, &sources, n_in).unwrap_err();
    assert!(error.to_string().contains("Q8_0 (8) or Q4_1 (4)"), "{error}");
}

#[test]
fn what_does_not_fit_is_refused_and_nan_is_seen() {
    let error = BlockMatrix::new(BlockFormat::Q4K, &[0; 144], 128).unwrap_err().to_string();
    let wanted = "the number of columns is 128, and should be a multiple of the block's 32 or 256 \
                  elements";
    assert_eq!(error, wanted);
    let error = BlockMatrix::new(BlockFormat::Q8Zero, &[0; 67], 32).unwrap_err().to_string();
    assert_eq!(error, "a matrix of blocks, in bytes, has 67 elements where 34 are wanted");
    let pool = Pool::new(NonZeroUsize::MIN).unwrap();
    let bytes = vec![1; 34 * 2];
    let matrix = BlockMatrix::new(BlockFormat::Q8Zero, &bytes, 64).unwrap();
    let mut x = vec![1.0; 128];
    x[3] = f32::NAN;
    for isa in crate::available() {
        let y = multiply(Cpu { isa, pool: &pool }, &matrix, &x, &Epilogue::default());
        assert!(y[0].is_nan() && y[1].is_finite(), "{isa}: {y:?}");
    }
}
