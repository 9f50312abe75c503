//! A model whose ranks are other processes: each call goes to all of them, the first one answers.

use std::cell::RefCell;
use std::collections::HashSet;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use drivetrain_engine::{
    AdapterId, Batch, EngineError, Outputs, SeqId, TokenModel, TokenModelInfo,
};
use drivetrain_fused::RankModel;

use super::links::Links;
use super::wire::{Fields, Frame, Kind, WireError};

/// The model.
pub(crate) struct RemoteModel {
    links: Links,
    info: TokenModelInfo,
    adapters: HashSet<AdapterId>,
    /// A call and a result; their memory is used for the next ones.
    buffers: RefCell<(Frame, Vec<u8>)>,
}

/// How a segment's wish is sent.
pub(crate) mod wishes {
    use drivetrain_engine::Wanted;

    const ALL: [Wanted; 10] = [
        Wanted::Nothing,
        Wanted::LastLogits,
        Wanted::AllLogits,
        Wanted::SequenceLogits,
        Wanted::Hidden,
        Wanted::PooledFirst,
        Wanted::PooledMean,
        Wanted::PooledMax,
        Wanted::PooledLast,
        Wanted::PooledHead,
    ];

    pub(crate) fn number(wanted: Wanted) -> u32 {
        ALL.iter().position(|known| *known == wanted).map_or(u32::MAX, |n| n as u32)
    }

    pub(crate) fn of(number: u32) -> Option<Wanted> {
        ALL.get(number as usize).copied()
    }
}

impl RemoteModel {
    pub(crate) fn new(links: Links, info: TokenModelInfo) -> Self {
        Self { links, info, adapters: HashSet::new(), buffers: RefCell::default() }
    }

    /// Sends a call that `write` finishes, and gives the first rank's result to `read`.
    fn call<T>(
        &self,
        kind: Kind,
        write: impl FnOnce(&mut Frame),
        read: impl FnOnce(&mut Fields<'_>) -> Result<T, WireError>,
    ) -> Result<T, EngineError> {
        let (frame, body) = &mut *self.buffers.borrow_mut();
        write(frame.begin(kind));
        self.links.send(frame.finished())?;
        self.links.result(0, body)?;
        self.answer(0, body, read)
    }

    /// What `rank` answered.
    fn answer<T>(
        &self,
        rank: usize,
        body: &[u8],
        read: impl FnOnce(&mut Fields<'_>) -> Result<T, WireError>,
    ) -> Result<T, EngineError> {
        let mut fields = Fields(body);
        let parse = || -> Result<Result<T, EngineError>, WireError> {
            if fields.u8()? != 0 {
                return Ok(Err(fields.error()?));
            }
            let value = read(&mut fields)?;
            fields.end()?;
            Ok(Ok(value))
        };
        parse().unwrap_or_else(|error| Err(self.links.lose(rank, &error)))
    }

    /// A batch through the model, or through its encoder.
    fn pass(
        &self,
        kind: Kind,
        batch: &Batch<'_>,
        out: &mut Outputs<'_>,
    ) -> Result<(), EngineError> {
        let write = |frame: &mut Frame| write_batch(frame, batch);
        self.call(kind, write, |fields| {
            let done = out.next_logits(batch.n_logits_rows()).map(|to| fields.numbers(to));
            let done = done.map(|read| {
                read?;
                Ok(out.next_hidden(batch.n_hidden_rows()).map(|to| fields.numbers(to)))
            });
            match done {
                Ok(Ok(Ok(Ok(())))) => Ok(Ok(())),
                Ok(Err(error)) | Ok(Ok(Ok(Err(error)))) => Err(error),
                Err(error) | Ok(Ok(Err(error))) => Ok(Err(error)),
            }
        })?
    }

    /// A call without an answer, which can't fail otherwise than by the loss of a rank; the next call
    /// tells of that.
    fn tell(&self, kind: Kind, write: impl FnOnce(&mut Frame)) {
        let (frame, _) = &mut *self.buffers.borrow_mut();
        write(frame.begin(kind));
        let _ = self.links.send(frame.finished());
    }

    /// The modules of an adapter that no rank computes, once all have loaded their parts.
    fn load_on_all(&self, adapter: AdapterId, dir: &Path) -> Result<Vec<String>, EngineError> {
        let dir = std::path::absolute(dir).unwrap_or_else(|_| dir.to_owned());
        let (frame, body) = &mut *self.buffers.borrow_mut();
        frame.begin(Kind::LoadAdapter).u32(adapter.0).text(dir.as_os_str().as_bytes());
        self.links.send(frame.finished())?;
        let mut left: Option<Vec<String>> = None;
        let mut failure = None;
        for rank in 0..self.links.n_ranks() {
            self.links.result(rank, body)?;
            match self.answer(rank, body, |fields| fields.strings()) {
                Ok(own) => match &mut left {
                    Some(left) => left.retain(|module| own.contains(module)),
                    None => left = Some(own),
                },
                Err(error) => _ = failure.get_or_insert(error),
            }
        }
        failure.map_or_else(|| Ok(left.unwrap_or_default()), Err)
    }
}

fn write_batch(frame: &mut Frame, batch: &Batch<'_>) {
    let (segments, tokens, types) = (batch.raw_segments(), batch.tokens(), batch.token_types());
    frame.u32(segments.len() as u32).u32(tokens.len() as u32).u32(types.len() as u32);
    for segment in segments {
        frame.u64(segment.sequence.0).u32(segment.first_token).u32(segment.n_tokens);
        frame.u32(segment.position).u32(wishes::number(segment.wanted)).u32(segment.adapter.0);
    }
    frame.numbers(tokens).numbers(types);
}

impl TokenModel for RemoteModel {
    fn info(&self) -> TokenModelInfo {
        self.info
    }

    fn encode(&mut self, batch: &Batch<'_>, out: &mut Outputs<'_>) -> Result<(), EngineError> {
        self.pass(Kind::Encode, batch, out)
    }

    fn forward(&mut self, batch: &Batch<'_>, out: &mut Outputs<'_>) -> Result<(), EngineError> {
        self.pass(Kind::Forward, batch, out)
    }

    fn fork(&mut self, from: SeqId, to: SeqId, len: u32) -> Result<(), EngineError> {
        self.call(Kind::Fork, |frame| _ = frame.u64(from.0).u64(to.0).u32(len), |_| Ok(()))
    }

    fn truncate(&mut self, sequence: SeqId, len: u32) -> Result<(), EngineError> {
        self.call(Kind::Truncate, |frame| _ = frame.u64(sequence.0).u32(len), |_| Ok(()))
    }

    fn release(&mut self, sequence: SeqId) {
        self.tell(Kind::Release, |frame| _ = frame.u64(sequence.0));
    }

    fn n_sequences(&self) -> usize {
        // After the loss of a rank there are none.
        self.call(Kind::Count, |_| (), |fields| fields.u64()).map_or(0, |n| n as usize)
    }

    fn load_adapter(&mut self, adapter: AdapterId, dir: &Path) -> Result<(), EngineError> {
        if adapter == AdapterId::NONE || self.adapters.contains(&adapter) {
            return Err(EngineError::bad_input(format!("adapter {} is taken", adapter.0)));
        }
        let loaded = self.load_on_all(adapter, dir);
        let end = loaded.and_then(|left| RankModel::refuse(&left));
        match &end {
            Ok(()) => _ = self.adapters.insert(adapter),
            // Some ranks may have it.
            Err(_) => self.tell(Kind::UnloadAdapter, |frame| _ = frame.u32(adapter.0)),
        }
        end
    }

    fn unload_adapter(&mut self, adapter: AdapterId) {
        if self.adapters.remove(&adapter) {
            self.tell(Kind::UnloadAdapter, |frame| _ = frame.u32(adapter.0));
        }
    }

    fn health(&mut self) -> Result<(), EngineError> {
        self.links.health()
    }
}
