//! Micro-batches over several devices (GPipe, <https://arxiv.org/abs/1811.06965>).
//!
//! A stage is a run of layers on one device. Where a batch has rows enough, it is cut into micro-batches
//! that go through the stages one behind the other: while one is in the second stage, the next is in the
//! first. A stage takes them in their order, so that a long prompt may be cut, too: its later part finds
//! the keys of the earlier one. Few rows stay together, since each pass reads all weights.

use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use candle_core::{Result, Tensor};
use drivetrain_engine::{Batch, Segment};
use drivetrain_execution::Planned;

use crate::stack::PlacedLayer;

/// Rows of a micro-batch, at least: with fewer, memory decides how long a layer takes, not rows.
const FEWEST_ROWS: usize = 64;

/// Micro-batches for each stage, at most: of `m` a stage idles for `stages - 1` of `m + stages - 1` turns.
const PER_STAGE: usize = 4;

/// Whether a batch may have rows enough to be cut at all.
pub(crate) fn is_large(planned: &[Planned]) -> bool {
    planned.iter().map(|segment| segment.n).sum::<usize>() >= 2 * FEWEST_ROWS
}

/// Runs of layers on one device.
pub(crate) fn stages(layers: &[PlacedLayer]) -> Vec<Range<usize>> {
    let mut stages = Vec::new();
    let mut first = 0;
    for run in layers.chunk_by(|a, b| Arc::ptr_eq(&a.executor, &b.executor)) {
        stages.push(first..first + run.len());
        first += run.len();
    }
    stages
}

/// Part of a batch.
#[derive(Debug, Default)]
pub(crate) struct MicroBatch {
    /// Over the whole batch's tokens.
    pub(crate) segments: Vec<Segment>,
    /// The same with rows of its own.
    pub(crate) planned: Vec<Planned>,
    n_rows: usize,
}

/// Cuts a batch for so many stages; one part if that is better. `may_split` says whether rows of one
/// sequence may come one after the other.
pub(crate) fn micro_batches(
    batch: &Batch<'_>,
    planned: &[Planned],
    n_stages: usize,
    may_split: bool,
) -> Vec<MicroBatch> {
    let n_rows: usize = planned.iter().map(|segment| segment.n).sum();
    let n_parts = (n_rows / FEWEST_ROWS).min(n_stages * PER_STAGE);
    if n_stages < 2 || n_parts < 2 || batch.raw_segments().len() != planned.len() {
        return Vec::new();
    }
    let most = n_rows.div_ceil(n_parts);
    let mut parts = vec![MicroBatch::default()];
    // The part that a whole sequence belongs to is the one that its middle would be in.
    let (mut n_before, mut number) = (0, 0);
    for (segment, planned) in batch.raw_segments().iter().zip(planned) {
        let own = (n_before + planned.n / 2) * n_parts / n_rows;
        let begins = !may_split && own > number && n_before > 0;
        (n_before, number) = (n_before + planned.n, own);
        let mut done = 0;
        while done < planned.n {
            let is_full = may_split && parts.last().is_none_or(|part| part.n_rows >= most);
            if is_full || begins {
                parts.push(MicroBatch::default());
            }
            let Some(part) = parts.last_mut() else { break };
            let left = planned.n - done;
            let n = if may_split { left.min(most - part.n_rows) } else { left };
            part.segments.push(Segment {
                first_token: segment.first_token + done as u32,
                n_tokens: n as u32,
                position: segment.position + done as u32,
                ..*segment
            });
            part.planned.push(Planned {
                first_row: part.n_rows,
                n,
                position: planned.position + done,
                ..*planned
            });
            part.n_rows += n;
            done += n;
        }
    }
    parts
}

/// Whose turn it is at each stage.
#[derive(Debug)]
struct Turns {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    /// The micro-batch that each stage takes next.
    next: Vec<usize>,
    has_failed: bool,
}

/// A micro-batch on its way. Dropped before its end, it stops the others.
struct Ticket<'a> {
    turns: &'a Turns,
    number: usize,
    is_done: bool,
}

impl Turns {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ticket<'_> {
    /// Does `work` when it is this one's turn; nothing, where another one has failed.
    fn at(&self, stage: usize, work: impl FnOnce() -> Result<Tensor>) -> Result<Option<Tensor>> {
        let mut state = self.turns.lock();
        while !state.has_failed && state.next.get(stage).is_some_and(|next| *next < self.number) {
            state = self.turns.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if state.has_failed {
            return Ok(None);
        }
        drop(state);
        let done = work()?;
        if let Some(next) = self.turns.lock().next.get_mut(stage) {
            *next += 1;
        }
        self.turns.changed.notify_all();
        Ok(Some(done))
    }
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        if !self.is_done {
            self.turns.lock().has_failed = true;
            self.turns.changed.notify_all();
        }
    }
}

/// Takes `inputs` through the stages and returns what comes of each: `work(number, stage, rows)` computes
/// a stage for a micro-batch.
///
/// # Errors
/// The first that `work` returns.
pub(crate) fn run(
    n_stages: usize,
    inputs: Vec<Tensor>,
    work: impl Fn(usize, usize, Tensor) -> Result<Tensor> + Sync,
) -> Result<Vec<Tensor>> {
    let turns = Turns {
        state: Mutex::new(State { next: vec![0; n_stages], has_failed: false }),
        changed: Condvar::new(),
    };
    let (turns, work) = (&turns, &work);
    let done: Vec<Result<Option<Tensor>>> = std::thread::scope(|scope| {
        let spawned: Vec<_> = inputs
            .into_iter()
            .enumerate()
            .map(|(number, input)| {
                scope.spawn(move || {
                    let mut ticket = Ticket { turns, number, is_done: false };
                    let mut rows = input;
                    for stage in 0..n_stages {
                        match ticket.at(stage, || work(number, stage, rows))? {
                            Some(done) => rows = done,
                            None => return Ok(None),
                        }
                    }
                    ticket.is_done = true;
                    Ok(Some(rows))
                })
            })
            .collect();
        let joined = spawned
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        joined.collect()
    });
    // Who was stopped has nothing, and whoever stopped it an error.
    let done: Result<Vec<Option<Tensor>>> = done.into_iter().collect();
    Ok(done?.into_iter().flatten().collect())
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, bail};
    use drivetrain_engine::{AdapterId, SeqId, Wanted};

    use super::*;

    fn segment(id: u64, first_token: u32, n_tokens: u32, position: u32) -> (Segment, Planned) {
        let (sequence, wanted, adapter) = (SeqId(id), Wanted::LastLogits, AdapterId::NONE);
        let segment = Segment { sequence, first_token, n_tokens, position, wanted, adapter };
        let planned = Planned {
            sequence,
            first_row: first_token as usize,
            n: n_tokens as usize,
            position: position as usize,
            wanted,
            adapter,
            newborn: position == 0,
        };
        (segment, planned)
    }

    fn cut(sizes: &[u32], n_stages: usize, may_split: bool) -> Vec<MicroBatch> {
        let mut first = 0;
        let mut both = Vec::new();
        for (idx, n) in sizes.iter().enumerate() {
            both.push(segment(idx as u64, first, *n, 3));
            first += n;
        }
        let (segments, planned): (Vec<_>, Vec<_>) = both.into_iter().unzip();
        let tokens = vec![0; first as usize];
        let batch = Batch::new(&segments, &tokens, &[]).unwrap();
        micro_batches(&batch, &planned, n_stages, may_split)
    }

    #[test]
    fn every_row_is_in_one_part_in_order() {
        for (sizes, n_stages) in
            [(vec![128, 1, 1, 70], 2), (vec![2000], 3), (vec![60; 20], 4), (vec![1; 300], 2)]
        {
            for may_split in [true, false] {
                let parts = cut(&sizes, n_stages, may_split);
                let mut found: Vec<(u64, u32, u32)> = Vec::new();
                for part in &parts {
                    let mut row = 0;
                    for (segment, planned) in part.segments.iter().zip(&part.planned) {
                        assert_eq!(planned.first_row, row);
                        assert_eq!(planned.position as u32, segment.position);
                        row += planned.n;
                        found.push((segment.sequence.0, segment.position - 3, segment.n_tokens));
                    }
                    assert!(row > 0 && row == part.n_rows);
                }
                let mut expect = (0, 0);
                for (sequence, at, n) in found {
                    assert_eq!((sequence, at), expect);
                    let size = sizes[sequence as usize];
                    assert!(may_split || n == size);
                    expect = if at + n == size { (sequence + 1, 0) } else { (sequence, at + n) };
                }
                assert_eq!(expect, (sizes.len() as u64, 0));
                assert!(parts.len() <= n_stages * PER_STAGE + 1);
            }
        }
        assert_eq!(cut(&[2000], 2, true).len(), 8);
        assert_eq!(cut(&[2000], 2, false).len(), 1);
    }

    #[test]
    fn few_rows_and_one_device_stay_whole() {
        assert!(cut(&[100], 2, true).is_empty());
        assert!(cut(&[1; 32], 4, true).is_empty());
        assert!(cut(&[1000, 1000], 1, true).is_empty());
    }

    #[test]
    fn stages_take_micro_batches_in_order_and_at_once() {
        let seen = Mutex::new(Vec::new());
        let inputs = (0..4).map(|x| Tensor::new(&[x as f32], &Device::Cpu).unwrap()).collect();
        // The first stage waits for the second one to be at work on what it had before.
        let (busy, freed) = (Mutex::new(0), Condvar::new());
        let out = run(2, inputs, |number, stage, rows| {
            seen.lock().unwrap().push((stage, number));
            if stage == 1 {
                *busy.lock().unwrap() = number + 1;
                freed.notify_all();
            } else if number > 1 {
                let mut begun = busy.lock().unwrap();
                while *begun < number - 1 {
                    begun = freed.wait(begun).unwrap();
                }
            }
            rows + 1.0
        });
        let out: Vec<f32> = out.unwrap().iter().map(|x| x.to_vec1::<f32>().unwrap()[0]).collect();
        assert_eq!(out, [2.0, 3.0, 4.0, 5.0]);
        let seen = seen.into_inner().unwrap();
        for stage in 0..2 {
            let own: Vec<usize> =
                seen.iter().filter(|(s, _)| *s == stage).map(|(_, number)| *number).collect();
            assert_eq!(own, [0, 1, 2, 3]);
        }
    }

    #[test]
    fn a_failure_ends_all_of_them() {
        let inputs = (0..5).map(|x| Tensor::new(&[x as f32], &Device::Cpu).unwrap()).collect();
        let error = run(3, inputs, |number, stage, rows| match (number, stage) {
            (2, 1) => bail!("the second stage broke"),
            _ => Ok(rows),
        });
        assert!(error.unwrap_err().to_string().contains("the second stage broke"));
    }
}
