//! Sums and columns of several ranks against plain loops, and ranks that don't agree.

use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use crate::random::Random;
use drivetrain_kernels::testing::LONG;
use drivetrain_kernels::{Cpu, Isa, KernelError, Member, Onto, Pool, Team};

fn n(n: usize) -> NonZeroUsize {
    NonZeroUsize::new(n).unwrap()
}

/// A rank, its threads, and what it has in the end.
struct State {
    member: Member,
    pool: Pool,
    found: Vec<f32>,
    outcome: Result<(), KernelError>,
}

/// What each rank does, on threads of their own.
fn run(
    n_ranks: usize,
    capacity: usize,
    work: impl Fn(Cpu<'_>, &mut Member, &mut Vec<f32>) -> Result<(), KernelError> + Sync,
) -> Vec<State> {
    let team = Team::new(n(n_ranks)).unwrap();
    let isa = Isa::choose(None).unwrap();
    let of = |member| State {
        member,
        pool: Pool::new(n(2)).unwrap(),
        found: Vec::new(),
        outcome: Ok(()),
    };
    let mut states: Vec<State> = Member::group(n(n_ranks), capacity).into_iter().map(of).collect();
    team.each(&mut states, |_, state| {
        let State { member, pool, found, outcome } = state;
        *outcome = work(Cpu { isa, pool }, member, found);
    });
    states
}

fn values(seed: u64, len: usize) -> Vec<f32> {
    let mut random = Random::new(seed);
    (0..len).map(|_| random.float()).collect()
}

#[test]
fn sums_are_chains_in_the_order_of_the_ranks() {
    for n_ranks in 1..=5 {
        for len in [1, 15, 64, 1003, LONG - 1, LONG, LONG + 37] {
            let states = run(n_ranks, LONG + 64, |cpu, member, found| {
                *found = vec![0.5; len];
                // Several in a row: memories are used in turn.
                for round in 0..3 {
                    let own = values((round * n_ranks + member.rank()) as u64, len);
                    member.partial(len)?.copy_from_slice(&own);
                    member.sum(cpu, found, Onto::Output)?;
                }
                let own = values(member.rank() as u64, len);
                member.partial(len)?.copy_from_slice(&own);
                member.sum(cpu, found, if len == 64 { Onto::Nothing } else { Onto::Output })
            });
            let mut expect = vec![0.5_f32; len];
            for round in [0, 1, 2, 0] {
                let of = |rank| values((round * n_ranks + rank) as u64, len);
                let mut sum = of(0);
                for rank in 1..n_ranks {
                    sum.iter_mut().zip(of(rank)).for_each(|(sum, x)| *sum += x);
                }
                expect.iter_mut().zip(&sum).for_each(|(y, x)| *y += x);
                if len == 64 {
                    expect = sum;
                }
            }
            for state in states {
                state.outcome.unwrap();
                assert!(state.found == expect, "{n_ranks} ranks, {len} elements");
            }
        }
    }
}

#[test]
fn columns_come_side_by_side() {
    let widths = [5, 0, 17, 1];
    let states = run(4, 64 * 17, |cpu, member, found| {
        let (rank, width) = (member.rank(), widths[member.rank()]);
        let partial = member.partial(64 * width)?;
        for (idx, value) in partial.iter_mut().enumerate() {
            *value = (1000 * rank + idx) as f32;
        }
        *found = vec![0.0; if rank == 0 { 64 * 23 } else { 0 }];
        member.gather(cpu, (64, width), (rank == 0).then_some(found))
    });
    let mut expect = Vec::new();
    for row in 0..64 {
        for (rank, width) in widths.iter().enumerate() {
            expect.extend((0..*width).map(|column| (1000 * rank + row * width + column) as f32));
        }
    }
    assert_eq!(states[0].found, expect);
    assert!(states.iter().all(|state| state.outcome.is_ok()));
}

#[test]
fn ranks_that_do_not_agree_are_told() {
    let states = run(3, 100, |cpu, member, found| {
        *found = vec![0.0; if member.rank() == 1 { 7 } else { 8 }];
        member.sum(cpu, found, Onto::Nothing)?;
        member.sum(cpu, found, Onto::Nothing)
    });
    assert!(states.iter().all(|state| state.outcome.is_err()));
    let states = run(2, 100, |cpu, member, found| {
        *found = vec![0.0; 8];
        match member.rank() {
            0 => member.sum(cpu, found, Onto::Nothing),
            _ => member.gather(cpu, (1, 8), None),
        }
    });
    assert!(states.iter().all(|state| state.outcome.is_err()));
}

#[test]
fn nobody_waits_for_a_rank_that_gave_up() {
    for quitter in 0..3 {
        let mut states = run(3, 100, |cpu, member, found| {
            *found = vec![0.0; 8];
            member.sum(cpu, found, Onto::Nothing)?;
            if member.rank() == quitter {
                member.abandon();
                return Ok(());
            }
            member.sum(cpu, found, Onto::Nothing)
        });
        for (rank, state) in states.iter_mut().enumerate() {
            let gave_up = matches!(state.outcome, Err(KernelError::Abandoned));
            assert_eq!(gave_up, rank != quitter);
            assert!(state.member.partial(1).is_err());
        }
    }
}

#[test]
fn what_is_larger_than_the_memory_is_refused() {
    let states = run(2, 8, |cpu, member, found| {
        assert!(member.partial(9).is_err());
        *found = vec![0.0; 9];
        member.sum(cpu, found, Onto::Nothing)
    });
    assert!(states.iter().all(|state| state.outcome.is_err()));
}

#[test]
fn a_team_runs_pools_inside() {
    let team = Team::new(n(3)).unwrap();
    let mut pools: Vec<(Pool, usize)> = (0..3).map(|_| (Pool::new(n(2)).unwrap(), 0)).collect();
    for _ in 0..200 {
        team.each(&mut pools, |_, (pool, count)| {
            let called = AtomicUsize::new(0);
            pool.run(|_, n_threads| {
                assert_eq!(n_threads, 2);
                called.fetch_add(1, Relaxed);
            });
            *count += called.into_inner();
        });
    }
    assert!(pools.iter().all(|(_, count)| *count == 400));
}
