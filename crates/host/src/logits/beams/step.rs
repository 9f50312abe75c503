//! One step of a beam search.

use drivetrain_engine::{EngineError, TokenId};

use super::finished::{End, Finished};
use super::select::{Best, Candidate, Urn};
use super::{Beam, BeamSearch, EarlyStopping, Group, NEVER, Row};
use crate::FinishReason;
use crate::logits::{DrawKey, LogSoftmax, Scratch};
use crate::text::StopWatch;

/// Memory that steps use again and again.
#[derive(Clone, Debug, Default)]
pub(super) struct Workbench {
    best: Best,
    urn: Urn,
    /// Best first, or as they were drawn.
    candidates: Vec<Candidate>,
    /// What is known of each candidate's end.
    looks: Vec<Look>,
    /// Candidates' scores and places, best first.
    ranking: Vec<(f32, usize)>,
    /// The same of those that go on, with what ending costs.
    next: Vec<(f32, usize)>,
    /// The beams before the step.
    beams: Vec<Beam>,
    /// A row as one group sees it.
    row_scores: Vec<f32>,
    /// What beams of earlier groups have chosen in this step.
    said: Vec<TokenId>,
    /// Belong to the next rows.
    watches: Vec<Option<StopWatch>>,
    /// Memory for the next rows.
    spare_rows: Vec<Row>,
    made_rows: Vec<Row>,
}

#[derive(Clone, Debug, Default)]
struct Look {
    is_known: bool,
    end: Option<End>,
    /// The row's, past the candidate's token.
    watch: Option<StopWatch>,
}

impl BeamSearch {
    pub(super) fn step_groups(
        &mut self,
        groups: &mut [Group],
        logits: &mut [f32],
        scratch: &mut Scratch,
    ) -> Result<(), EngineError> {
        let n_rows = self.rows.len();
        let n_logits = logits.len().checked_div(n_rows).unwrap_or(0);
        if n_logits == 0 || logits.len() != n_rows * n_logits {
            let message = format!("{} logits for {n_rows} rows of beams", logits.len());
            return Err(EngineError::internal(message));
        }
        for row in logits.chunks_exact_mut(n_logits) {
            log_softmax(row)?;
        }
        self.next_rows.clear();
        self.bench.said.clear();
        self.bench.watches.clear();
        if let [group] = &mut *groups {
            self.bench.beams.clone_from(&group.beams);
            self.pick(logits, n_logits, scratch);
            self.settle(group);
        } else {
            for group in groups.iter_mut().filter(|group| !group.is_done) {
                self.bench.beams.clone_from(&group.beams);
                self.pick_in_group(logits, n_logits, scratch);
                self.settle_in_group(group);
            }
        }
        self.make_rows();
        Ok(())
    }

    /// Finds the candidates of all beams.
    fn pick(&mut self, scores: &mut [f32], n_logits: usize, scratch: &mut Scratch) {
        for (row, scores) in self.rows.iter().zip(scores.chunks_exact_mut(n_logits)) {
            self.rules.apply(&row.ids, scores, scratch);
            if let Some(sampling) = &self.params.sampling {
                sampling.filter(scores, scratch);
            }
        }
        let row = |beam: &Beam| scores.chunks_exact(n_logits).nth(beam.row).unwrap_or_default();
        let n = self.n_candidates();
        let position = self.n_new() as u64;
        let bench = &mut self.bench;
        let is_drawn = self.params.sampling.is_some();
        if is_drawn {
            bench.urn.begin();
            for (idx, beam) in bench.beams.iter().enumerate() {
                bench.urn.put_row(idx, beam.score, row(beam));
            }
            let key = DrawKey { seed: self.params.seed, choice: 0, position };
            bench.urn.draw(n, key, &mut bench.candidates);
            if bench.candidates.len() >= n {
                return;
            }
        }
        bench.best.begin(n);
        for (idx, beam) in bench.beams.iter().enumerate() {
            bench.best.offer_row(idx, beam.score, row(beam));
        }
        if is_drawn {
            bench.best.top_up(n, &mut bench.candidates);
        } else {
            bench.best.take(&mut bench.candidates);
        }
    }

    /// Finds the candidates of a group's beams, which pay for what earlier groups have said.
    fn pick_in_group(&mut self, scores: &[f32], n_logits: usize, scratch: &mut Scratch) {
        let n = self.n_candidates();
        let bench = &mut self.bench;
        bench.best.begin(n);
        for (row_idx, (row, scores)) in
            self.rows.iter().zip(scores.chunks_exact(n_logits)).enumerate()
        {
            if !bench.beams.iter().any(|beam| beam.row == row_idx) {
                continue;
            }
            bench.row_scores.clear();
            bench.row_scores.extend_from_slice(scores);
            for (place, &token) in bench.said.iter().enumerate() {
                let is_first = !bench.said.iter().take(place).any(|said| *said == token);
                let n_said = bench.said.iter().filter(|said| **said == token).count();
                if let Some(score) = bench.row_scores.get_mut(token as usize).filter(|_| is_first) {
                    *score -= self.params.diversity_penalty * n_said as f32;
                }
            }
            self.rules.apply(&row.ids, &mut bench.row_scores, scratch);
            for (idx, beam) in bench.beams.iter().enumerate() {
                if beam.row == row_idx {
                    bench.best.offer_row(idx, beam.score, &bench.row_scores);
                }
            }
        }
        bench.best.take(&mut bench.candidates);
    }

    fn n_candidates(&self) -> usize {
        (1 + self.rules.eos.len()).max(2).saturating_mul(self.bench.beams.len())
    }

    /// Makes the next beams and finished texts of the candidates.
    fn settle(&mut self, group: &mut Group) {
        self.forget_looks();
        let n = group.n_beams;
        let ends_all = self.rank_next(n);
        for place in 0..n.min(self.bench.candidates.len()) {
            let Some(end) = self.look(place, true) else { continue };
            let Some(&Candidate { score, token, .. }) = self.bench.candidates.get(place) else {
                continue;
            };
            let score = score / self.penalty(self.n_new() + 1) as f32;
            if group.finished.is_full() || score > NEVER {
                self.add_finished(&mut group.finished, f64::from(score), (place, token), end);
            }
        }
        group.beams.clear();
        for at in 0..self.bench.next.len() {
            if let Some(&(score, place)) = self.bench.next.get(at) {
                group.beams.extend(self.next_beam(place, score));
            }
        }
        let best = group.beams.first().map_or(f32::NEG_INFINITY, |beam| beam.score);
        let best_possible = best / self.penalty(self.hoped_len()) as f32;
        let worst = group.finished.worst().map_or(NEVER, |worst| worst as f32);
        let can_improve = best_possible > worst;
        let is_enough =
            self.params.early_stopping == EarlyStopping::Immediate && group.finished.is_full();
        group.is_done = !can_improve || is_enough || ends_all;
    }

    /// Finds the `n` best of the candidates, where those that end lose [`NEVER`]; whether all
    /// end.
    fn rank_next(&mut self, n: usize) -> bool {
        let bench = &mut self.bench;
        bench.ranking.clear();
        bench.next.clear();
        let scores = bench.candidates.iter().map(|candidate| candidate.score);
        bench.ranking.extend(scores.zip(0..));
        sort(&mut bench.ranking);
        let mut n_open = 0;
        for at in 0..self.bench.ranking.len() {
            let Some(&(score, place)) = self.bench.ranking.get(at) else { break };
            let is_end = self.look(place, true).is_some();
            self.bench.next.push((if is_end { score + NEVER } else { score }, place));
            n_open += usize::from(!is_end);
            // What comes after has no higher score, whether it ends or not.
            if n_open == n {
                break;
            }
        }
        sort(&mut self.bench.next);
        self.bench.next.truncate(n);
        n_open == 0
    }

    fn settle_in_group(&mut self, group: &mut Group) {
        self.forget_looks();
        group.beams.clear();
        let n_new = self.n_new() + 1;
        for place in 0..self.bench.candidates.len() {
            let Some(&Candidate { score, token, .. }) = self.bench.candidates.get(place) else {
                break;
            };
            match self.look(place, false) {
                Some(end) if place < group.n_beams => {
                    let score = f64::from(score) / self.penalty(n_new);
                    self.add_finished(&mut group.finished, score, (place, token), end);
                }
                Some(_) => {}
                None => {
                    group.beams.extend(self.next_beam(place, score));
                    self.bench.said.push(token);
                }
            }
            if group.beams.len() == group.n_beams {
                break;
            }
        }
        let best = self.bench.candidates.first().map_or(NEVER, |candidate| candidate.score);
        let best_possible = f64::from(best) / self.penalty(self.hoped_len());
        let is_enough = group.finished.worst().is_some_and(|worst| {
            self.params.early_stopping == EarlyStopping::Immediate || worst >= best_possible
        });
        group.is_done = is_enough || group.beams.is_empty();
    }

    /// The number of new tokens that scores to come are measured at.
    fn hoped_len(&self) -> usize {
        let Self { params, rules, .. } = self;
        let is_longest =
            params.early_stopping == EarlyStopping::Never && params.length_penalty > 0.0;
        match is_longest {
            true => rules.max_length.saturating_sub(rules.n_prompt),
            false => self.n_new() + 1,
        }
    }

    fn forget_looks(&mut self) {
        self.bench.looks.clear();
        self.bench.looks.resize_with(self.bench.candidates.len(), Look::default);
    }

    /// How the candidate at `place` ends, if it does; the length only counts if `ends_by_length`.
    fn look(&mut self, place: usize, ends_by_length: bool) -> Option<End> {
        let candidate = self.bench.candidates.get(place)?;
        let look = self.bench.looks.get_mut(place)?;
        if look.is_known {
            return look.end;
        }
        let row = self.rows.get(self.bench.beams.get(candidate.beam)?.row)?;
        look.is_known = true;
        if self.rules.eos.contains(&candidate.token) {
            look.end = Some(End::of(FinishReason::EndToken));
            return look.end;
        }
        look.watch.clone_from(&row.watch);
        let stop = look.watch.as_mut().and_then(|watch| watch.push(candidate.token));
        let is_full = ends_by_length && row.ids.len() + 1 >= self.rules.max_length;
        look.end = match stop {
            Some(stop) => Some(End { finish: FinishReason::Stop, stop: Some(stop) }),
            None => is_full.then_some(End::of(FinishReason::Length)),
        };
        look.end
    }

    fn add_finished(
        &self,
        finished: &mut Finished,
        score: f64,
        (place, token): (usize, TokenId),
        end: End,
    ) {
        let candidate = self.bench.candidates.get(place);
        let beam = candidate.and_then(|candidate| self.bench.beams.get(candidate.beam));
        if let Some(row) = beam.and_then(|beam| self.rows.get(beam.row)) {
            let ids = row.ids.get(self.rules.n_prompt..).unwrap_or_default();
            finished.add(score, ids, Some(token), end);
        }
    }

    /// The beam that the candidate at `place` becomes, on a row of its own unless a copy has one.
    fn next_beam(&mut self, place: usize, score: f32) -> Option<Beam> {
        let candidate = self.bench.candidates.get(place)?;
        let parent = self.bench.beams.get(candidate.beam)?.row;
        let wanted = (parent, candidate.token);
        let known = self.next_rows.iter().position(|row| *row == wanted);
        let row = known.unwrap_or_else(|| {
            self.next_rows.push(wanted);
            let look = self.bench.looks.get_mut(place);
            self.bench.watches.push(look.and_then(|look| look.watch.take()));
            self.next_rows.len() - 1
        });
        Some(Beam { row, score })
    }

    fn make_rows(&mut self) {
        let bench = &mut self.bench;
        let mut made = std::mem::take(&mut bench.made_rows);
        for (&(parent, token), watch) in self.next_rows.iter().zip(&mut bench.watches) {
            let mut row = bench.spare_rows.pop().unwrap_or_default();
            row.ids.clear();
            if let Some(parent) = self.rows.get(parent) {
                row.ids.extend_from_slice(&parent.ids);
            }
            row.ids.push(token);
            row.watch = watch.take();
            made.push(row);
        }
        std::mem::swap(&mut self.rows, &mut made);
        bench.spare_rows.append(&mut made);
        bench.made_rows = made;
    }
}

/// Best first; of equals, the one that came first.
fn sort(ranking: &mut [(f32, usize)]) {
    ranking.sort_unstable_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
}

fn log_softmax(row: &mut [f32]) -> Result<(), EngineError> {
    let softmax = LogSoftmax::of(row);
    if !softmax.at(0.0).is_finite() {
        let n_nan = row.iter().filter(|logit| logit.is_nan()).count();
        return Err(EngineError::internal(format!(
            "{n_nan} of the {} logits of a beam are not numbers, or all are infinite: the weights \
             are damaged, or the engine computes past the range of its dtype",
            row.len()
        )));
    }
    row.iter_mut().for_each(|logit| *logit = softmax.at(*logit));
    Ok(())
}
