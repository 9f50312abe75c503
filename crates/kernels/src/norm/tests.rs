//! Every formula and instruction set against f64.

use std::num::NonZeroUsize;

use crate::norm_reference as reference;
use crate::random::Random;
use drivetrain_kernels::{Cpu, Isa, Norm, NormKind, NormRows, Pool};

#[test]
fn rows_are_normalised() {
    let mut random = Random::new(5);
    let pool = Pool::new(NonZeroUsize::new(2).unwrap()).unwrap();
    for (n_rows, dim) in [(1, 1), (3, 7), (2, 16), (5, 33), (40, 576), (9, 1021)] {
        let x: Vec<f32> = random.floats(n_rows * dim).iter().map(|x| x * 3.0 + 0.5).collect();
        let add = random.floats(n_rows * dim);
        let (weight, bias) = (random.floats(dim), random.floats(dim));
        for kind in [NormKind::Layer, NormKind::Rms, NormKind::RmsPlusOne] {
            for isa in crate::available() {
                for (bias, add) in [(None, None), (Some(&bias[..]), Some(&add[..]))] {
                    let norm = Norm { kind, weight: &weight, bias, epsilon: 1e-5 };
                    let (mut sum, mut output) = (vec![0.0; x.len()], vec![0.0; x.len()]);
                    let rows = NormRows { x: &x, add, sum: Some(&mut sum), output: &mut output };
                    norm.apply(Cpu { isa, pool: &pool }, rows).unwrap();
                    for (row, found) in output.chunks(dim).enumerate() {
                        let exact: Vec<f64> = (row * dim..(row + 1) * dim)
                            .map(|at| f64::from(x[at] + add.map_or(0.0, |add| add[at])))
                            .collect();
                        let wanted = reference::normalise(&norm, &exact);
                        for (idx, (found, wanted)) in found.iter().zip(&wanted).enumerate() {
                            assert!(f64::from(sum[row * dim + idx]) == exact[idx]);
                            let error = (f64::from(*found) - wanted).abs();
                            // With one element everything but the bias cancels.
                            let tolerance =
                                if dim == 1 { 1e-3 } else { 2e-6 * wanted.abs() + 3e-6 };
                            assert!(error < tolerance, "{isa} {kind:?} {dim}: {found}, {wanted}");
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn other_sizes_are_refused() {
    let pool = Pool::new(NonZeroUsize::MIN).unwrap();
    let cpu = Cpu { isa: Isa::detect(), pool: &pool };
    let norm = Norm { kind: NormKind::Rms, weight: &[1.0; 4], bias: None, epsilon: 1e-5 };
    let rows = NormRows { x: &[0.0; 7], add: None, sum: None, output: &mut [0.0; 7] };
    let error = norm.apply(cpu, rows).unwrap_err().to_string();
    assert_eq!(error, "the rows has 7 elements where 4 are wanted");
}
