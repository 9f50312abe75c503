//! Beam search as the host does it: forks for the beams that live on, releases for the others.

use std::time::Instant;

use drivetrain_benches::protocol::{Command, Done};
use drivetrain_engine::{EngineError, SeqId, TokenId};

use crate::session::{Piece, Session};

/// A beam: its sequence, the sum of its log probabilities, and its tokens.
#[derive(Clone, Debug)]
struct Beam {
    sequence: SeqId,
    score: f32,
    tokens: Vec<TokenId>,
}

/// A beam's continuation.
#[derive(Clone, Copy, Debug)]
struct Next {
    parent: usize,
    token: TokenId,
    score: f32,
}

/// Generates for one input after the other; all beams of one input are one batch.
pub(crate) fn generate(
    session: &mut Session,
    command: &Command,
    sequences: &[SeqId],
) -> Result<Done, EngineError> {
    let started = Instant::now();
    let mut tokens = Vec::with_capacity(sequences.len());
    let firsts = session.begin(&command.ids, sequences, &command.decoder_start)?;
    for (first, sequence) in firsts.iter().zip(sequences) {
        // The caller releases the sequence that it named, so the beams are forks of it.
        let piece = Piece { sequence: *sequence, position: 0, tokens: first };
        let root = Beam { sequence: *sequence, score: 0.0, tokens: Vec::new() };
        let logits = session.last_logits(&[piece])?;
        let nexts = best(logits, &[root.score], command);
        let mut beams = Vec::with_capacity(command.n_beams);
        for next in nexts {
            let name = session.name();
            session.fork(*sequence, name, first.len())?;
            beams.push(Beam { sequence: name, score: next.score, tokens: vec![next.token] });
        }
        for n in 1..command.n_new {
            beams = step(session, beams, first.len() + n - 1, command)?;
        }
        beams.iter().for_each(|beam| session.release(beam.sequence));
        tokens.push(beams.swap_remove(0).tokens);
    }
    Ok(Done { seconds: started.elapsed().as_secs_f64(), values: Vec::new(), tokens })
}

/// The beams a token later; the best one first.
fn step(
    session: &mut Session,
    beams: Vec<Beam>,
    position: usize,
    command: &Command,
) -> Result<Vec<Beam>, EngineError> {
    fn piece(beam: &Beam, position: usize) -> Piece<'_> {
        let Beam { sequence, tokens, .. } = beam;
        Piece { sequence: *sequence, position, tokens: &tokens[tokens.len() - 1..] }
    }
    let pieces: Vec<Piece<'_>> = beams.iter().map(|beam| piece(beam, position)).collect();
    let scores: Vec<f32> = beams.iter().map(|beam| beam.score).collect();
    let nexts = best(session.last_logits(&pieces)?, &scores, command);
    let mut is_taken = vec![false; beams.len()];
    let mut grown = Vec::with_capacity(nexts.len());
    for next in nexts {
        let parent = &beams[next.parent];
        let sequence = if std::mem::replace(&mut is_taken[next.parent], true) {
            let name = session.name();
            session.fork(parent.sequence, name, position + 1)?;
            name
        } else {
            parent.sequence
        };
        let mut tokens = parent.tokens.clone();
        tokens.push(next.token);
        grown.push(Beam { sequence, score: next.score, tokens });
    }
    let dead = beams.iter().zip(is_taken).filter(|(_, is_taken)| !is_taken);
    dead.for_each(|(beam, _)| session.release(beam.sequence));
    Ok(grown)
}

/// The best continuations of all beams together, as many as there are beams, best first. Row `i` of
/// `logits` belongs to the beam whose score is `scores[i]`.
fn best(logits: &[f32], scores: &[f32], command: &Command) -> Vec<Next> {
    let width = logits.len() / scores.len();
    let mut best: Vec<Next> = Vec::with_capacity(command.n_beams + 1);
    for (parent, (row, score)) in logits.chunks_exact(width).zip(scores).enumerate() {
        let shift = score - log_sum_exp(row);
        for (token, logit) in row.iter().enumerate() {
            let score = shift + logit;
            let is_full = best.len() == command.n_beams;
            let is_worse = is_full && best.last().is_some_and(|last| score <= last.score);
            if is_worse || token == command.eos as usize {
                continue;
            }
            let at = best.partition_point(|other| other.score >= score);
            best.insert(at, Next { parent, token: token as TokenId, score });
            best.truncate(command.n_beams);
        }
    }
    best
}

fn log_sum_exp(row: &[f32]) -> f32 {
    let most = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    most + row.iter().map(|logit| (logit - most).exp()).sum::<f32>().ln()
}

#[cfg(test)]
mod tests {
    use drivetrain_benches::Task;

    use super::*;

    #[test]
    fn the_best_continuations_come_of_all_beams() {
        let command = Command {
            task: Task::Generate,
            ids: Vec::new(),
            n_new: 1,
            n_beams: 2,
            eos: 0,
            decoder_start: 0,
            wants_output: false,
        };
        let found = best(&[9.0, 1.0, 0.0, 0.0, 0.0, 2.0], &[0.0, 0.0], &command);
        let of = |next: &Next| (next.parent, next.token);
        // The first row's mass is on the token that is never chosen.
        assert_eq!(found.iter().map(of).collect::<Vec<_>>(), [(1, 2), (1, 1)]);
        assert!((log_sum_exp(&[0.0, 0.0]) - 2.0_f32.ln()).abs() < 1e-6);
    }
}
