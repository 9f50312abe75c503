//! A batch, checked against the model and its sequences before anything is touched.

use std::collections::HashSet;

use drivetrain_engine::{
    AdapterId, Batch, EngineError, HeadKind, ModelKind, SegmentView, SeqId, TokenModelInfo, Wanted,
};

use crate::cache::Cache;

/// A segment that can be run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Planned {
    pub(crate) sequence: SeqId,
    /// Its first row in the batch's matrix.
    pub(crate) first_row: usize,
    /// Its rows.
    pub(crate) n: usize,
    /// Position of the first row.
    pub(crate) position: usize,
    pub(crate) wanted: Wanted,
    /// The adapter it goes through.
    pub(crate) adapter: AdapterId,
    /// Whether its sequence begins with it.
    pub(crate) newborn: bool,
}

/// Rows of a stack's tables.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tables {
    pub(crate) n_tokens: u32,
    pub(crate) n_token_types: u32,
}

/// What a batch may refer to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Held<'a> {
    pub(crate) cache: &'a Cache,
    pub(crate) adapters: &'a HashSet<AdapterId>,
}

/// Which call a batch is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Call {
    Encode,
    Forward,
}

/// Checks `batch` and lays its segments out one after the other.
///
/// # Errors
/// `BadInput` that names the sequence and what is wrong with its segment.
pub(crate) fn plan(
    batch: &Batch<'_>,
    call: Call,
    info: &TokenModelInfo,
    tables: Tables,
    held: Held<'_>,
) -> Result<Vec<Planned>, EngineError> {
    let mut seen = HashSet::new();
    let mut planned = Vec::with_capacity(batch.segments().len());
    let mut first_row = 0;
    for segment in batch.segments() {
        if !seen.insert(segment.sequence) {
            return Err(bad(&segment, "appears twice in a batch"));
        }
        check_tokens(&segment, tables)?;
        check_wanted(&segment, call, info)?;
        if segment.adapter != AdapterId::NONE && !held.adapters.contains(&segment.adapter) {
            return Err(bad(&segment, "goes through an adapter that is not loaded"));
        }
        let newborn = check_place(&segment, call, info, held.cache)?;
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
    if first_row > info.max_batch_tokens as usize {
        return Err(EngineError::bad_input(format!(
            "the batch has {first_row} tokens; this model takes at most {}",
            info.max_batch_tokens
        )));
    }
    Ok(planned)
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
    cache: &Cache,
) -> Result<bool, EngineError> {
    let known = cache.len(segment.sequence);
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
