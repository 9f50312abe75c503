//! Rows of tables of each type.

use std::num::NonZeroUsize;

use half::{bf16, f16};

use drivetrain_kernels::{Cpu, Gather, Isa, Onto, Pool, Source};

#[test]
fn rows_are_those_of_the_table() {
    let pool = Pool::new(NonZeroUsize::new(2).unwrap()).unwrap();
    let cpu = Cpu { isa: Isa::detect(), pool: &pool };
    let (vocab, dim) = (50, 37);
    let table: Vec<f32> = (0..vocab * dim).map(|idx| idx as f32 / 8.0).collect();
    // Whole numbers of up to 8 bits are exact in each type.
    let table: Vec<f32> = table.iter().map(|x| x.floor() % 128.0).collect();
    let halves: Vec<f16> = table.iter().map(|x| f16::from_f32(*x)).collect();
    let brains: Vec<bf16> = table.iter().map(|x| bf16::from_f32(*x)).collect();
    let ids: Vec<u32> = (0..600).map(|idx| idx * 7 % 50).collect();
    for source in [Source::F32(&table), Source::F16(&halves), Source::Bf16(&brains)] {
        for onto in [Onto::Nothing, Onto::Output] {
            let gather = Gather { table: source, dim, scale: 2.0, onto };
            let mut output = vec![1.0; ids.len() * dim];
            gather.apply(cpu, &ids, &mut output).unwrap();
            let base = if onto == Onto::Output { 1.0 } else { 0.0 };
            for (row, id) in output.chunks(dim).zip(&ids) {
                let wanted = &table[*id as usize * dim..][..dim];
                assert!(row.iter().zip(wanted).all(|(y, x)| *y == x * 2.0 + base));
            }
        }
    }
}

#[test]
fn an_id_beyond_the_table_is_refused() {
    let pool = Pool::new(NonZeroUsize::MIN).unwrap();
    let cpu = Cpu { isa: Isa::detect(), pool: &pool };
    let gather = Gather { table: Source::F32(&[0.0; 12]), dim: 4, scale: 1.0, onto: Onto::Nothing };
    let error = gather.apply(cpu, &[2, 3], &mut [0.0; 8]).unwrap_err().to_string();
    assert_eq!(error, "an id is 3, and should be a row of the table");
}
