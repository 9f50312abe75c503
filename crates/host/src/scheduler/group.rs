//! An input on its way through the scheduler, with the engine's sequences that work on it.

use drivetrain_engine::{AdapterId, SeqId, TokenId, Wanted};

use super::capacity::{Cache, Needs};
use super::choose::Chosen;
use super::pass::{Piece, Rows};
use super::prefix::PrefixKey;
use super::work::{Choice, Generate, Goal, Outcome, Scored, Search, Work};
use crate::FinishReason;
use crate::constraint::Constraint;
use crate::logits::BeamSearch;
use crate::text::StopWatch;

/// New tokens that a row has memory for when it begins to decode, if it may have as many.
const TOKENS_RESERVED: usize = 1024;

/// The place of a group in the queue: lower ones come first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Order {
    /// The job's priority, negated.
    pub(crate) urgency: i64,
    /// The round it waits for.
    pub(crate) round: u64,
    /// When it came, counted over all groups.
    pub(crate) arrival: u64,
}

/// An input, waiting or running.
#[derive(Debug)]
pub(crate) struct Group {
    pub(crate) job: u64,
    pub(crate) item: usize,
    pub(crate) order: Order,
    /// The cache set aside for it, beside what it shares with `base`.
    pub(crate) held: Cache,
    /// The kept prefix that it grew from, pinned.
    pub(crate) base: Option<PrefixKey>,
    /// Tokens in whole blocks that it shares with `base`.
    pub(crate) n_shared: usize,
    pub(crate) encoder: Vec<TokenId>,
    /// The adapter it goes through.
    pub(crate) adapter: AdapterId,
    pub(crate) is_encoded: bool,
    /// Whether the engine has seen all of its prompt, after which it goes token by token.
    pub(crate) is_through: bool,
    pub(crate) token_types: Vec<u32>,
    /// The engine's sequences: one until the prompt is through, then one for each choice that has
    /// not ended or each row of beams.
    pub(crate) rows: Vec<Row>,
    pub(crate) state: State,
    /// Log-probabilities of the prompt, while they are gathered.
    pub(crate) prompt_scores: Vec<(Scored, Vec<Scored>)>,
    /// Whether those are told.
    pub(crate) has_told_prompt: bool,
    /// Whether it has been counted as started.
    pub(crate) has_started: bool,
    pub(crate) outcome: Option<Outcome>,
}

/// One sequence of the engine.
#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) id: SeqId,
    /// Whether the engine may hold something for it, so that it has to be released.
    pub(crate) is_born: bool,
    /// Tokens the engine has seen.
    pub(crate) n_done: usize,
    /// The decoder's tokens from position `first` on: given ones, new ones, proposed ones.
    pub(crate) tokens: Vec<TokenId>,
    pub(crate) first: usize,
    /// How many of the last tokens are only proposed.
    pub(crate) n_proposed: usize,
    /// Which choice it is.
    pub(crate) choice: usize,
    pub(crate) stops: Option<StopWatch>,
    pub(crate) constraint: Option<Constraint>,
    /// The sum of the new tokens' log-probabilities, where they are asked for.
    pub(crate) logprob: f64,
    /// Set when its choice has ended: the row goes at the end of the step.
    pub(crate) has_ended: bool,
}

/// What becomes of a group.
#[derive(Debug)]
pub(crate) enum State {
    Rows(Gathered),
    Tokens(Box<Choices>),
    Beams { generate: Box<Generate>, search: Box<BeamSearch> },
}

/// Rows that a group leaves, gathered over its pieces.
#[derive(Debug)]
pub(crate) struct Gathered {
    pub(crate) wanted: Wanted,
    /// The rows that are kept; `None` for all.
    kept: Option<Box<[u32]>>,
    n_rows: usize,
    values: Vec<f32>,
}

impl Gathered {
    fn new(wanted: Wanted, kept: Option<Box<[u32]>>) -> Self {
        Self { wanted, kept, n_rows: 0, values: Vec::new() }
    }

    /// Whether the rows are logits, one for each token.
    pub(crate) fn wants_all_logits(&self) -> bool {
        self.wanted == Wanted::AllLogits
    }

    /// Takes what a piece left whose first token is at `position`, of a text of `n_tokens`.
    pub(crate) fn take(&mut self, (position, n): (usize, usize), n_tokens: usize, rows: &Rows<'_>) {
        let from = if self.is_logits() { &*rows.logits } else { &*rows.hidden };
        if let Some(kept) = &self.kept {
            let width = from.len() / n.max(1);
            for idx in kept.iter().map(|idx| *idx as usize) {
                let own = idx.checked_sub(position).filter(|own| *own < n);
                let row = own.and_then(|own| from.get(own * width..(own + 1) * width));
                self.values.extend_from_slice(row.unwrap_or_default());
                self.n_rows += usize::from(row.is_some());
            }
            return;
        }
        if self.values.is_empty() && n < n_tokens {
            self.values.reserve_exact(from.len() / n.max(1) * n_tokens);
        }
        self.values.extend_from_slice(from);
        self.n_rows += n;
    }

    fn is_logits(&self) -> bool {
        matches!(self.wanted, Wanted::AllLogits | Wanted::SequenceLogits)
    }

    /// What became of the group.
    pub(crate) fn outcome(&mut self) -> Outcome {
        let values = std::mem::take(&mut self.values);
        match (self.is_logits(), self.wanted) {
            (true, Wanted::SequenceLogits) => Outcome::Logits { n_rows: 1, values },
            (true, _) => Outcome::Logits { n_rows: self.n_rows, values },
            (false, Wanted::Hidden) => Outcome::Hidden { n_rows: self.n_rows, values },
            (false, _) => Outcome::Hidden { n_rows: 1, values },
        }
    }
}

/// Choices of one prompt that go their own ways.
#[derive(Debug)]
pub(crate) struct Choices {
    pub(crate) generate: Generate,
    /// Those that have ended.
    pub(crate) ended: Vec<Option<Choice>>,
    /// Whether the prompt has been through, and each choice has its row.
    pub(crate) is_forked: bool,
}

impl Group {
    pub(crate) fn new(id: SeqId, job: u64, item: usize, work: Work) -> Self {
        let mut row = Row::new(id, work.tokens);
        let state = match work.goal {
            Goal::Hidden(wanted) => State::Rows(Gathered::new(wanted, None)),
            Goal::Logits { wanted, kept } => State::Rows(Gathered::new(wanted, kept)),
            Goal::Generate(generate) => match generate.search.clone() {
                Search::Beams(params) => {
                    let stops = generate.stops.as_ref();
                    let search =
                        BeamSearch::new(*params, generate.rules.clone(), &row.tokens, stops);
                    State::Beams { generate, search: Box::new(search) }
                }
                search => {
                    let n = if let Search::Sample { n, .. } = search { n.max(1) } else { 1 };
                    row.stops = generate.stops.clone();
                    row.constraint = generate.constraint.clone();
                    State::Tokens(Box::new(Choices {
                        generate: *generate,
                        ended: vec![None; n],
                        is_forked: n == 1,
                    }))
                }
            },
        };
        Self {
            job,
            item,
            order: Order::default(),
            held: Cache::default(),
            base: None,
            n_shared: 0,
            encoder: work.encoder,
            adapter: work.adapter,
            is_encoded: false,
            is_through: false,
            token_types: work.token_types,
            rows: vec![row],
            state,
            prompt_scores: Vec::new(),
            has_told_prompt: false,
            has_started: false,
            outcome: None,
        }
    }

    /// Nothing, in the place of a group that is being worked on.
    pub(crate) fn hollow() -> Self {
        Self {
            job: u64::MAX,
            item: 0,
            order: Order::default(),
            held: Cache::default(),
            base: None,
            n_shared: 0,
            encoder: Vec::new(),
            adapter: AdapterId::NONE,
            is_encoded: false,
            is_through: false,
            token_types: Vec::new(),
            rows: Vec::new(),
            state: State::Rows(Gathered::new(Wanted::Nothing, None)),
            prompt_scores: Vec::new(),
            has_told_prompt: false,
            has_started: false,
            outcome: None,
        }
    }

    /// What its cache depends on.
    pub(crate) fn needs(&self) -> Needs {
        let n_tokens = self.rows.first().map_or(0, Row::len);
        let (n_prompt, n_most) = match self.generate() {
            None => (n_tokens, n_tokens),
            Some(generate) => {
                let rules = &generate.rules;
                (rules.n_prompt, rules.max_length.saturating_sub(1).max(n_tokens))
            }
        };
        let n_encoder = self.encoder.len();
        Needs { n_encoder, n_prompt, n_most, n_rows: self.most_rows() }
    }

    /// Most sequences of the engine that it has at once.
    pub(crate) fn most_rows(&self) -> usize {
        match &self.state {
            State::Rows(_) => 1,
            State::Tokens(choices) => choices.ended.len(),
            State::Beams { search, .. } => search.max_rows(),
        }
    }

    /// Whether its cache may be taken back and computed again later.
    pub(crate) fn is_preemptible(&self) -> bool {
        matches!(self.state, State::Tokens(_)) && self.most_rows() == 1
    }

    pub(crate) fn generate(&self) -> Option<&Generate> {
        match &self.state {
            State::Rows(_) => None,
            State::Tokens(choices) => Some(&choices.generate),
            State::Beams { generate, .. } => Some(generate),
        }
    }

    /// Whether the engine may start from a kept prefix: all that is wanted is what follows.
    pub(crate) fn may_skip_prefix(&self) -> bool {
        let starts = self.rows.first().is_some_and(|row| row.n_done == 0);
        let wants_all = |generate: &Generate| generate.report.prompt.is_some();
        starts && self.generate().is_some_and(|g| self.has_told_prompt || !wants_all(g))
    }

    /// How many of the likeliest tokens are told at each place of the prompt, until they are.
    pub(crate) fn n_prompt_scores(&self) -> Option<usize> {
        self.generate()?.report.prompt.filter(|_| !self.has_told_prompt)
    }

    /// Tokens the encoder has still to read.
    pub(crate) fn n_to_encode(&self) -> usize {
        if self.is_encoded { 0 } else { self.encoder.len() }
    }

    /// What the encoder is to read.
    pub(crate) fn encode_piece(&self) -> Option<Piece<'_>> {
        Some(Piece {
            sequence: self.rows.first()?.id,
            tokens: &self.encoder,
            token_types: &[],
            position: 0,
            wanted: Wanted::Nothing,
            adapter: self.adapter,
        })
    }

    /// Whether its prompt is through and it goes token by token.
    pub(crate) fn is_decoding(&self) -> bool {
        self.is_through
    }

    /// The next `n_tokens` of what the row at `row_idx` is to run, at least one and no more than
    /// there are.
    pub(crate) fn piece(&self, row_idx: usize, n_tokens: usize) -> Option<Piece<'_>> {
        let row = self.rows.get(row_idx)?;
        let range = row.n_done..row.n_done + n_tokens;
        let wanted = match &self.state {
            // What a head says of a sequence it says at its end.
            State::Rows(Gathered { wanted: Wanted::SequenceLogits, .. })
                if range.end < row.len() =>
            {
                Wanted::Nothing
            }
            State::Rows(gathered) => gathered.wanted,
            _ if row.n_proposed > 0 || self.n_prompt_scores().is_some() => Wanted::AllLogits,
            _ if range.end == row.len() => Wanted::LastLogits,
            _ => Wanted::Nothing,
        };
        Some(Piece {
            sequence: row.id,
            tokens: row.tokens.get(range.start - row.first..range.end - row.first)?,
            token_types: self.token_types.get(range.clone()).unwrap_or_default(),
            position: range.start as u32,
            wanted,
            adapter: self.adapter,
        })
    }

    /// Ends a generation with what there is; `false` for work that is worth nothing in part.
    pub(crate) fn cut_off(&mut self) -> bool {
        if self.outcome.is_some() {
            return true;
        }
        match &mut self.state {
            State::Rows(_) => return false,
            State::Beams { search, .. } => {
                self.outcome = Some(Outcome::Generated(search.choices(true)));
            }
            State::Tokens(choices) => {
                let n_prompt = choices.generate.rules.n_prompt;
                for row in self.rows.iter_mut().filter(|row| !row.has_ended) {
                    let chosen = Chosen { finish: FinishReason::Shutdown, stop: None };
                    let ended = row.end(n_prompt, chosen);
                    if let Some(place) = choices.ended.get_mut(row.choice) {
                        *place = Some(ended);
                    }
                }
                let nothing = || Choice::empty(FinishReason::Shutdown);
                let ended = choices.ended.iter_mut().map(|c| c.take().unwrap_or_else(nothing));
                self.outcome = Some(Outcome::Generated(ended.collect()));
            }
        }
        true
    }

    /// Sets the outcome if all choices have ended.
    pub(crate) fn conclude(&mut self) {
        if let State::Tokens(choices) = &mut self.state
            && self.outcome.is_none()
            && choices.ended.iter().all(Option::is_some)
        {
            let ended = choices.ended.iter_mut().filter_map(Option::take);
            self.outcome = Some(Outcome::Generated(ended.collect()));
        }
    }
}

impl Row {
    /// A row of nothing but tokens.
    pub(crate) fn new(id: SeqId, tokens: Vec<TokenId>) -> Self {
        Self {
            id,
            is_born: false,
            n_done: 0,
            tokens,
            first: 0,
            n_proposed: 0,
            choice: 0,
            stops: None,
            constraint: None,
            logprob: 0.0,
            has_ended: false,
        }
    }

    /// A row that goes on from this one, as sequence `id`, with the same tokens.
    pub(crate) fn fork(&self, id: SeqId, choice: usize) -> Self {
        Self {
            id,
            is_born: true,
            n_done: self.n_done,
            tokens: self.tokens.clone(),
            first: self.first,
            n_proposed: 0,
            choice,
            stops: self.stops.clone(),
            constraint: self.constraint.clone(),
            logprob: self.logprob,
            has_ended: false,
        }
    }

    /// Makes room for the tokens to come, up to `max_length` in all, so that few steps take memory.
    pub(crate) fn reserve(&mut self, max_length: usize) {
        let n_to_come = max_length.saturating_sub(self.len()).min(TOKENS_RESERVED);
        self.tokens.reserve_exact(n_to_come);
    }

    /// Tokens of the sequence, proposed ones included.
    pub(crate) fn len(&self) -> usize {
        self.first + self.tokens.len()
    }

    /// Tokens the engine has still to see.
    pub(crate) fn n_to_run(&self) -> usize {
        self.len() - self.n_done
    }

    /// Drops the tokens that are only proposed.
    pub(crate) fn unpropose(&mut self) {
        let n = self.tokens.len() - self.n_proposed;
        self.tokens.truncate(n);
        self.n_proposed = 0;
    }

    /// Ends the row's choice: its new tokens, those after the first `n_prompt`.
    pub(crate) fn end(&mut self, n_prompt: usize, chosen: Chosen) -> Choice {
        self.unpropose();
        self.has_ended = true;
        let ids = self.tokens.get(n_prompt..).unwrap_or_default().to_vec();
        let Chosen { finish, stop } = chosen;
        Choice { ids, finish, stop, score: None, logprob: self.logprob }
    }
}
