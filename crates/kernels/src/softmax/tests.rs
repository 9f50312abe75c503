//! Rows against the formula in f64.

use std::num::NonZeroUsize;

use crate::random::Random;
use drivetrain_kernels::{Cpu, Pool, softmax};

#[test]
fn rows_sum_to_one_in_the_right_shares() {
    let mut random = Random::new(6);
    let pool = Pool::new(NonZeroUsize::new(2).unwrap()).unwrap();
    for (n_rows, dim) in [(1, 1), (3, 5), (2, 16), (4, 77), (20, 1000)] {
        let x: Vec<f32> = random.floats(n_rows * dim).iter().map(|x| x * 20.0).collect();
        for isa in crate::available() {
            let mut found = x.clone();
            softmax(Cpu { isa, pool: &pool }, &mut found, dim).unwrap();
            for (row, found) in x.chunks(dim).zip(found.chunks(dim)) {
                let most = row.iter().copied().fold(f32::MIN, f32::max);
                let exps = row.iter().map(|x| f64::from(x - most).exp());
                let total: f64 = exps.clone().sum();
                for (found, exp) in found.iter().zip(exps) {
                    let wanted = exp / total;
                    let error = (f64::from(*found) - wanted).abs();
                    assert!(error <= 3e-6 * wanted + 1e-30, "{isa} {dim}: {found}, {wanted}");
                }
            }
        }
    }
}

#[test]
fn extremes() {
    let pool = Pool::new(NonZeroUsize::MIN).unwrap();
    for isa in crate::available() {
        let cpu = Cpu { isa, pool: &pool };
        let mut none = [f32::NEG_INFINITY; 19];
        softmax(cpu, &mut none, 19).unwrap();
        assert_eq!(none, [0.0; 19], "{isa}");
        let mut one = [f32::NEG_INFINITY; 19];
        one[17] = -3e38;
        softmax(cpu, &mut one, 19).unwrap();
        assert_eq!((one[17], one[0]), (1.0, 0.0), "{isa}");
        let mut bad = [1.0; 19];
        bad[3] = f32::NAN;
        softmax(cpu, &mut bad, 19).unwrap();
        assert!(bad.iter().all(|x| x.is_nan()), "{isa}: {bad:?}");
    }
}
