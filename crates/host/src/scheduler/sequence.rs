//! A sequence on its way through the scheduler.

use drivetrain_engine::{EngineError, Segment, SeqId, TokenId, Wanted};

use crate::FinishReason;
use crate::logits::{Rules, Scratch, arg_max};
use crate::scheduler::capacity::Cache;
use crate::scheduler::pass::Piece;
use crate::scheduler::work::{Choice, Goal, Outcome, Work};

/// A sequence, waiting or running.
#[derive(Debug)]
pub(crate) struct Sequence {
    pub(crate) id: SeqId,
    pub(crate) job: u64,
    pub(crate) item: usize,
    /// The round it waits for.
    pub(crate) round: u64,
    /// The cache set aside for it.
    pub(crate) needs: Cache,
    /// Whether the engine may hold something for it, so that it has to be released.
    pub(crate) is_born: bool,
    encoder: Vec<TokenId>,
    /// The decoder's tokens: given ones, then new ones.
    tokens: Vec<TokenId>,
    token_types: Vec<u32>,
    /// Tokens the engine has seen.
    n_done: usize,
    state: State,
    pub(crate) outcome: Option<Outcome>,
}

#[derive(Debug)]
enum State {
    Hidden { wanted: Wanted, values: Vec<f32> },
    Generate { rules: Rules },
}

impl Sequence {
    pub(crate) fn new(id: SeqId, job: u64, item: usize, needs: Cache, work: Work) -> Self {
        let state = match work.goal {
            Goal::Hidden(wanted) => State::Hidden { wanted, values: Vec::new() },
            Goal::Generate(generate) => State::Generate { rules: generate.rules },
        };
        Self {
            id,
            job,
            item,
            round: 0,
            needs,
            is_born: false,
            encoder: work.encoder,
            tokens: work.tokens,
            token_types: work.token_types,
            n_done: 0,
            state,
            outcome: None,
        }
    }

    /// Tokens the encoder has still to read.
    pub(crate) fn n_to_encode(&self) -> usize {
        self.encoder.len()
    }

    /// Tokens the engine has still to see.
    pub(crate) fn n_to_run(&self) -> usize {
        self.tokens.len() - self.n_done
    }

    /// Whether its prompt is through and it goes token by token.
    pub(crate) fn is_decoding(&self) -> bool {
        matches!(self.state, State::Generate { .. }) && self.n_done > 0 && self.n_to_run() == 1
    }

    /// What the encoder is to read.
    pub(crate) fn encode_piece(&self) -> Piece<'_> {
        Piece {
            sequence: self.id,
            tokens: &self.encoder,
            token_types: &[],
            position: 0,
            wanted: Wanted::Nothing,
        }
    }

    /// The next `n_tokens` of what is to run, at least one and no more than there are.
    pub(crate) fn piece(&self, n_tokens: usize) -> Piece<'_> {
        let range = self.n_done..self.n_done + n_tokens;
        let wanted = match self.state {
            State::Hidden { wanted, .. } => wanted,
            State::Generate { .. } if range.end == self.tokens.len() => Wanted::LastLogits,
            State::Generate { .. } => Wanted::Nothing,
        };
        Piece {
            sequence: self.id,
            tokens: self.tokens.get(range.clone()).unwrap_or_default(),
            token_types: self.token_types.get(range).unwrap_or_default(),
            position: self.n_done as u32,
            wanted,
        }
    }

    /// The encoder has read.
    pub(crate) fn encoded(&mut self) {
        self.encoder = Vec::new();
    }

    /// The engine has run `segment` and left these rows; a new token is returned.
    ///
    /// # Errors
    /// `Internal` if the logits are no numbers.
    pub(crate) fn advance(
        &mut self,
        segment: &Segment,
        rows: (&mut [f32], &mut [f32]),
        scratch: &mut Scratch,
    ) -> Result<Option<TokenId>, EngineError> {
        let (logits, hidden) = rows;
        self.n_done += segment.n_tokens as usize;
        let is_through = self.n_to_run() == 0;
        match &mut self.state {
            State::Hidden { values, .. } => {
                if values.is_empty() && !is_through {
                    values.reserve_exact(
                        hidden.len() / segment.n_tokens as usize * self.tokens.len(),
                    );
                }
                values.extend_from_slice(hidden);
                if is_through {
                    let values = std::mem::take(values);
                    self.outcome = Some(Outcome::Hidden { n_rows: self.n_done, values });
                }
                Ok(None)
            }
            State::Generate { .. } if !is_through => Ok(None),
            State::Generate { rules } => {
                let n_nan = logits.iter().filter(|score| score.is_nan()).count();
                if n_nan > 0 || logits.is_empty() {
                    return Err(EngineError::internal(format!(
                        "{n_nan} of the {} logits after {} tokens are not numbers: the weights are \
                         damaged, or the engine computes past the range of its dtype",
                        logits.len(),
                        self.n_done
                    )));
                }
                rules.apply(&self.tokens, logits, scratch);
                let Some(id) = arg_max(logits) else {
                    return Err(EngineError::internal("the logits processors made no numbers"));
                };
                let is_end = rules.eos.contains(&id);
                let is_full = self.tokens.len() + 1 >= rules.max_length;
                self.tokens.push(id);
                if is_end {
                    self.finish(FinishReason::EndToken);
                } else if is_full {
                    self.finish(FinishReason::Length);
                }
                Ok(Some(id))
            }
        }
    }

    /// Ends a generation with what there is; `false` for work that is worth nothing in part.
    pub(crate) fn cut_off(&mut self) -> bool {
        if self.outcome.is_some() {
            return true;
        }
        let generates = matches!(self.state, State::Generate { .. });
        if generates {
            self.finish(FinishReason::Shutdown);
        }
        generates
    }

    fn finish(&mut self, finish: FinishReason) {
        if let State::Generate { rules } = &self.state {
            let n_prompt = rules.n_prompt.min(self.tokens.len());
            let ids = self.tokens.split_off(n_prompt);
            let choice = Choice { ids, finish, stop: None, score: None, logprob: 0.0 };
            self.outcome = Some(Outcome::Generated(vec![choice]));
        }
    }
}
