//! A batch, checked against the model and its sequences before anything is touched.

use std::collections::HashSet;
use std::ops::Range;

use drivetrain_engine::{
    AdapterId, Batch, EngineError, HeadKind, ModelKind, SegmentView, SeqId, TokenModelInfo, Wanted,
};
use drivetrain_transformer::Stack;

/// A segment that can be run.
#[derive(Clone, Copy, Debug)]
pub struct Planned {
    /// The sequence.
    pub sequence: SeqId,
    /// Its first row in the batch's matrix.
    pub first_row: usize,
    /// Its rows.
    pub n: usize,
    /// Position of the first row.
    pub position: usize,
    /// What it leaves.
    pub wanted: Wanted,
    /// The adapter it goes through.
    pub adapter: AdapterId,
    /// Whether its sequence begins with it.
    pub newborn: bool,
}

impl Planned {
    /// The rows of the batch's matrix that its output is made of. `reads_first` is of the head: see
    /// [`HeadPlan::reads_first`](crate::HeadPlan::reads_first).
    pub fn needed(&self, reads_first: bool) -> Range<usize> {
        let (first, end) = (self.first_row, self.first_row + self.n);
        match self.wanted {
            Wanted::Nothing => first..first,
            Wanted::SequenceLogits if reads_first => first..first + 1,
            Wanted::LastLogits | Wanted::SequenceLogits | Wanted::PooledLast => end - 1..end,
            Wanted::PooledFirst | Wanted::PooledHead => first..first + 1,
            Wanted::AllLogits | Wanted::Hidden | Wanted::PooledMean | Wanted::PooledMax => {
                first..end
            }
        }
    }
}

/// Rows of a stack's tables.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tables {
    /// Of the token table.
    pub n_tokens: u32,
    /// Of the token type table.
    pub n_token_types: u32,
}

impl Tables {
    /// A stack's; none without a stack.
    pub fn of(stack: Option<&Stack>) -> Self {
        stack.map_or_else(Self::default, |stack| Self {
            n_tokens: stack.embedding.n_tokens,
            n_token_types: stack.embedding.n_token_types,
        })
    }
}

/// What knows the sequences that are alive.
pub trait Sequences {
    /// Cached tokens of a sequence.
    fn len_of(&self, sequence: SeqId) -> Option<usize>;
}

/// What a batch may refer to.
#[derive(Clone, Copy)]
pub struct Held<'a> {
    /// The sequences.
    pub sequences: &'a dyn Sequences,
    /// The adapters that are loaded.
    pub adapters: &'a HashSet<AdapterId>,
}

/// Which call a batch is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// The encoder's of an encoder-decoder model.
    Encode,
    /// Any other.
    Forward,
}

/// Checks `batch` and lays its segments out one after the other.
///
/// # Errors
/// `BadInput` that names the sequence and what is wrong with its segment.
pub fn plan(
    batch: &Batch<'_>,
    call: Call,
    info: &TokenModelInfo,
    tables: Tables,
    held: Held<'_>,
) -> Result<Vec<Planned>, EngineError> {
    let mut planned = Vec::with_capacity(batch.segments().len());
    plan_into(&mut planned, batch, (call, tables), info, held)?;
    Ok(planned)
}

/// [`plan`] into what is there already, so that nothing is allocated once it is large enough.
///
/// # Errors
/// As [`plan`].
pub fn plan_into(
    planned: &mut Vec<Planned>,
    batch: &Batch<'_>,
    (call, tables): (Call, Tables),
    info: &TokenModelInfo,
    held: Held<'_>,
) -> Result<(), EngineError> {
    planned.clear();
    let mut first_row = 0;
    for segment in batch.segments() {
        check_tokens(&segment, tables)?;
        check_wanted(&segment, call, info)?;
        if segment.adapter != AdapterId::NONE && !held.adapters.contains(&segment.adapter) {
            return Err(bad(&segment, "goes through an adapter that is not loaded"));
        }
        let newborn = check_place(&segment, call, info, held.sequences)?;
        let n = segment.tokens.len();
        planned.push(Planned {
            sequence: segment.sequence,
            first_row,
            n,
            position: segment.position as usize,
            wanted: segment.wanted,
            adapter: segment.adapter,
            newborn,
        });
        first_row += n;
    }
    check_distinct(planned)?;
    if first_row > info.max_batch_tokens as usize {
        return Err(EngineError::bad_input(format!(
            "the batch has {first_row} tokens; this model takes at most {}",
            info.max_batch_tokens
        )));
    }
    Ok(())
}

/// Whether each sequence has one segment: sorted for the look, and back.
fn check_distinct(planned: &mut [Planned]) -> Result<(), EngineError> {
    planned.sort_unstable_by_key(|segment| segment.sequence);
    let twice = planned.windows(2).find(|two| two[0].sequence == two[1].sequence);
    if let Some(two) = twice {
        let sequence = two[0].sequence.0;
        return Err(EngineError::bad_input(format!(
            "sequence {sequence} appears twice in a batch"
        )));
    }
    planned.sort_unstable_by_key(|segment| segment.first_row);
    Ok(())
}

fn bad(segment: &SegmentView<'_>, what: impl std::fmt::Display) -> EngineError {
    EngineError::bad_input(format!("sequence {} {what}", segment.sequence.0))
}

fn check_tokens(segment: &SegmentView<'_>, tables: Tables) -> Result<(), EngineError> {
    if let Some(token) = segment.tokens.iter().find(|token| **token >= tables.n_tokens) {
        let last = tables.n_tokens.saturating_sub(1);
        let what = format!("has token {token}; the model's vocabulary ends at {last}");
        return Err(bad(segment, what));
    }
    let n_types = tables.n_token_types.max(1);
    if let Some(token_type) = segment.token_types.iter().find(|t| **t >= n_types) {
        let what = format!("has token type {token_type}; this model knows {n_types}");
        return Err(bad(segment, what));
    }
    Ok(())
}

fn check_wanted(
    segment: &SegmentView<'_>,
    call: Call,
    info: &TokenModelInfo,
) -> Result<(), EngineError> {
    let missing = match segment.wanted {
        Wanted::LastLogits | Wanted::AllLogits if !info.head.is_per_token() => {
            Some("a model whose head, if it has one, makes none for single tokens")
        }
        Wanted::SequenceLogits if info.head != HeadKind::SequenceClassification => {
            Some("a whole sequence, which this model has no head for")
        }
        Wanted::LastLogits | Wanted::AllLogits | Wanted::SequenceLogits if call == Call::Encode => {
            Some("an encoder")
        }
        _ => None,
    };
    if let Some(from) = missing {
        return Err(bad(segment, format!("wants logits of {from}")));
    }
    if segment.wanted == Wanted::PooledHead && !info.has_pooler {
        return Err(bad(segment, "wants the output of a pooler, which this model does not have"));
    }
    Ok(())
}

/// Whether the segment begins its sequence.
fn check_place(
    segment: &SegmentView<'_>,
    call: Call,
    info: &TokenModelInfo,
    sequences: &dyn Sequences,
) -> Result<bool, EngineError> {
    let known = sequences.len_of(segment.sequence);
    let whole_inputs = call == Call::Encode || info.kind == ModelKind::Encoder;
    let limit = if call == Call::Encode { info.max_encoder_positions } else { info.max_positions };
    let end = segment.position as usize + segment.tokens.len();
    if end > limit as usize {
        return Err(bad(segment, format!("is {end} tokens long; this model takes {limit}")));
    }
    if whole_inputs {
        if segment.position != 0 {
            let what =
                format!("begins at position {}; an encoder takes whole inputs", segment.position);
            return Err(bad(segment, what));
        }
        if known.is_some() {
            return Err(bad(segment, "has been encoded before"));
        }
        return Ok(call == Call::Encode);
    }
    match known {
        Some(len) if len == segment.position as usize => Ok(false),
        Some(len) => {
            let what = format!("has {len} tokens; the segment says {}", segment.position);
            Err(bad(segment, what))
        }
        None if info.kind == ModelKind::EncoderDecoder => {
            Err(bad(segment, "is not known; encode its input first"))
        }
        None if segment.position == 0 => Ok(true),
        None => Err(bad(segment, format!("is not known at position {}", segment.position))),
    }
}
