//! The loaded model: what the host drives.

use std::collections::HashSet;
use std::num::NonZeroU32;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use candle_core::{Device, Tensor};
use drivetrain_engine::{
    AdapterId, Batch, EngineError, ModelKind, Outputs, SeqId, TokenModel, TokenModelInfo, Wanted,
    pool,
};
use drivetrain_execution::{Call, Held, Planned, Runs, Tables, available_bytes, model_error, plan};
use drivetrain_transformer::{Activation, Adapter, AdapterFiles, Architecture, AttentionPositions};

use crate::adapters::{Addition, Additions};
use crate::attention::KeyValues;
use crate::cache::{Cache, CrossKeyValues};
use crate::error;
use crate::executor::Executor;
use crate::file_rows::Reads;
use crate::head::Head;
use crate::layer::own_block;
use crate::linear::Linear;
use crate::rows::{self, with_values};
use crate::stack::StackWeights;
use crate::streaming::{Lent, Streamer, Unit};

/// A model of any kind.
pub(crate) struct CandleModel {
    pub(crate) info: TokenModelInfo,
    pub(crate) encoder_tables: Tables,
    pub(crate) decoder_tables: Tables,
    pub(crate) weights: ModelWeights,
    pub(crate) cache: Cache,
    /// What its adapters are held against.
    pub(crate) architecture: Architecture,
    /// The adapters that are loaded beside the weights.
    pub(crate) adapters: HashSet<AdapterId>,
    /// Highest rank of these.
    pub(crate) max_lora_rank: Option<NonZeroU32>,
    /// The device of what is around the layers.
    pub(crate) main: Arc<Executor>,
    /// Reads the weights that are not in memory, if there are any.
    pub(crate) streamer: Option<Streamer>,
    /// Of those that are multiplied with in their file.
    pub(crate) reads: Arc<Reads>,
    /// What the passes take of these.
    pub(crate) units: PassUnits,
}

/// What each kind of pass takes of the weights that are not in memory, in order.
#[derive(Debug, Default)]
pub(crate) struct PassUnits {
    /// Encoding.
    encode: Vec<Unit>,
    /// Any other.
    forward: Vec<Unit>,
    /// The same with logits.
    with_logits: Vec<Unit>,
}

impl PassUnits {
    pub(crate) fn of(weights: &ModelWeights) -> Self {
        let layers = |stack: &Option<StackWeights>, of_decoder: bool| -> Vec<Unit> {
            let layers = stack.iter().flat_map(|stack| &stack.layers).enumerate();
            let streamed = layers.filter(|(_, layer)| layer.is_streamed());
            streamed.map(|(idx, _)| Unit::Layer { of_decoder, idx }).collect()
        };
        let (encoder, decoder) = (layers(&weights.encoder, false), layers(&weights.decoder, true));
        let cross = decoder.iter().filter_map(|unit| match unit {
            Unit::Layer { idx, .. } => Some(Unit::CrossKeysValues { idx: *idx }),
            _ => None,
        });
        let encode = encoder.iter().copied().chain(cross).collect();
        let forward = if weights.decoder.is_some() { decoder } else { encoder };
        let head = weights.head.iter().flat_map(Head::pieces).copied();
        let with_logits = forward.iter().copied().chain(head).collect();
        Self { encode, forward, with_logits }
    }
}

/// The weights of a model.
#[derive(Debug)]
pub(crate) struct ModelWeights {
    pub(crate) encoder: Option<StackWeights>,
    pub(crate) decoder: Option<StackWeights>,
    pub(crate) head: Option<Head>,
    pub(crate) pooler: Option<Linear>,
}

impl ModelWeights {
    /// The layers that the CPU lends.
    pub(crate) fn lent(&self) -> Lent {
        let stacks = [(false, &self.encoder), (true, &self.decoder)];
        let layers = stacks.into_iter().flat_map(|(of_decoder, stack)| {
            let layers = stack.iter().flat_map(|stack| &stack.layers).enumerate();
            layers.map(move |(idx, layer)| ((of_decoder, idx), layer.lent().map(Arc::clone)))
        });
        layers.filter_map(|(place, layer)| Some((place, layer?))).collect()
    }
}

/// What a pass leaves, ahead of pooling: rows that some segment needs, in segment order.
struct Computed {
    /// `[n_rows, dim]` after the final norm; absent if no segment needs any.
    hidden: Option<Tensor>,
    /// `[n_logits_rows, n_logits]`.
    logits: Option<Tensor>,
    /// For each segment that wants it, the pooler's output `[1, dim]`, in order.
    pooled: Option<Tensor>,
}

impl TokenModel for CandleModel {
    fn info(&self) -> TokenModelInfo {
        self.info
    }

    fn encode(&mut self, batch: &Batch<'_>, out: &mut Outputs<'_>) -> Result<(), EngineError> {
        let (Some(encoder), Some(decoder)) = (&self.weights.encoder, &self.weights.decoder) else {
            return Err(EngineError::unsupported("this model has no encoder beside its decoder"));
        };
        let held = Held { sequences: &self.cache, adapters: &self.adapters };
        let planned = plan(batch, Call::Encode, &self.info, self.encoder_tables, held)?;
        if planned.is_empty() {
            return Ok(());
        }
        self.cache.check_sequences(planned.len())?;
        self.cache.check_cross_room(planned.iter().map(|segment| segment.n).sum())?;
        let streamer = self.streamer.as_ref();
        if let Some(streamer) = streamer {
            streamer.begin(&self.units.encode);
        }
        let in_parts = encoder.forward_in_parts(batch, &planned, None);
        let in_parts = in_parts.map_err(|error| self.failure(error))?;
        let (computed, born) = self
            .main
            .run(|| {
                let runs = Runs::of(&planned);
                let encoded = match in_parts {
                    Some(encoded) => encoded,
                    None => encoder.forward(batch, &planned, None, streamer)?,
                };
                let encoded = encoder.finish(&encoded, &runs)?;
                let born = cross_keys_values(decoder, &encoded, (&planned, &runs), streamer)?;
                let rows = self.weights.needed_rows(&planned);
                let hidden = rows::select(&encoded, &rows)?;
                let hidden = (!rows.is_empty()).then_some(hidden);
                let runs = runs.select(&rows);
                let outputs = self.weights.outputs(hidden, &planned, &runs, streamer)?;
                candle_core::Result::Ok((outputs, born))
            })
            .map_err(|error| self.failure(error))?;
        self.weights.write(&computed, &planned, out)?;
        self.cache.insert(born);
        Ok(())
    }

    fn forward(&mut self, batch: &Batch<'_>, out: &mut Outputs<'_>) -> Result<(), EngineError> {
        let tables = match self.info.kind {
            ModelKind::Encoder => self.encoder_tables,
            ModelKind::Decoder | ModelKind::EncoderDecoder => self.decoder_tables,
        };
        let held = Held { sequences: &self.cache, adapters: &self.adapters };
        let planned = plan(batch, Call::Forward, &self.info, tables, held)?;
        if planned.is_empty() {
            return Ok(());
        }
        let Some(decoder) = &self.weights.decoder else {
            let Some(encoder) = &self.weights.encoder else {
                return Err(EngineError::internal("a model without any stack"));
            };
            let computed = self.run(encoder, batch, &planned, None)?;
            return self.weights.write(&computed, &planned, out);
        };
        let done = self.cache.reserve(&planned).and_then(|()| {
            let computed = self.run(decoder, batch, &planned, Some(&self.cache))?;
            self.weights.write(&computed, &planned, out)
        });
        match done {
            Ok(()) => self.cache.commit(&planned),
            Err(_) => self.cache.roll_back(&planned),
        }
        done
    }

    fn fork(&mut self, from: SeqId, to: SeqId, len: u32) -> Result<(), EngineError> {
        self.cache.fork(from, to, len as usize)
    }

    fn truncate(&mut self, sequence: SeqId, len: u32) -> Result<(), EngineError> {
        self.cache.truncate(sequence, len as usize)
    }

    fn release(&mut self, sequence: SeqId) {
        self.cache.release(sequence);
    }

    fn n_sequences(&self) -> usize {
        self.cache.n_sequences()
    }

    fn load_adapter(&mut self, adapter: AdapterId, dir: &Path) -> Result<(), EngineError> {
        if adapter == AdapterId::NONE || self.adapters.contains(&adapter) {
            return Err(EngineError::bad_input(format!("adapter {} is taken", adapter.0)));
        }
        let files = AdapterFiles::open(dir).map_err(|error| model_error(&error))?;
        let read =
            Adapter::read(&files, &self.architecture).map_err(|error| model_error(&error))?;
        let rank = read.max_rank();
        if let Some(max) = self.max_lora_rank.filter(|max| rank > max.get() as usize) {
            return Err(EngineError::bad_input(format!(
                "the adapter has rank {rank}: option.max_lora_rank={max} allows no more"
            )));
        }
        check_room(&read)?;
        self.weights.add(adapter, &read)?;
        self.adapters.insert(adapter);
        Ok(())
    }

    fn unload_adapter(&mut self, adapter: AdapterId) {
        if self.adapters.remove(&adapter) {
            self.weights.remove(adapter);
        }
    }
}

impl CandleModel {
    /// A pass of a stack other than the encoder beside a decoder.
    fn run(
        &self,
        stack: &StackWeights,
        batch: &Batch<'_>,
        planned: &[Planned],
        cache: Option<&Cache>,
    ) -> Result<Computed, EngineError> {
        let streamer = self.streamer.as_ref();
        if let Some(streamer) = streamer {
            let says = |segment: &Planned| {
                use Wanted::{AllLogits, LastLogits, SequenceLogits};
                matches!(segment.wanted, LastLogits | AllLogits | SequenceLogits)
            };
            let has_logits = planned.iter().any(says);
            let units = if has_logits { &self.units.with_logits } else { &self.units.forward };
            streamer.begin(units);
        }
        let in_parts = stack.forward_in_parts(batch, planned, cache);
        let in_parts = in_parts.map_err(|error| self.failure(error))?;
        let run = || match in_parts {
            Some(x) => self.weights.finish(stack, &x, planned, streamer),
            None => self.weights.run(stack, batch, planned, (cache, streamer)),
        };
        self.main.run(run).map_err(|error| self.failure(error))
    }

    /// Why a pass failed.
    fn failure(&self, error: candle_core::Error) -> EngineError {
        let of_reader = self.streamer.as_ref().and_then(Streamer::failure);
        let of_reader = of_reader.or_else(|| self.reads.failure());
        of_reader.unwrap_or_else(|| error::compute(error))
    }
}

/// Refuses an adapter that would not fit.
fn check_room(adapter: &Adapter) -> Result<(), EngineError> {
    match available_bytes() {
        Some(available) if adapter.bytes() > available => Err(EngineError::out_of_memory(format!(
            "the adapter needs {} MiB, {} MiB are available",
            adapter.bytes() >> 20,
            available >> 20
        ))),
        _ => Ok(()),
    }
}

impl ModelWeights {
    /// Its matrices.
    fn linears_mut(&mut self) -> impl Iterator<Item = &mut Linear> {
        let stacks = self.encoder.iter_mut().chain(&mut self.decoder);
        stacks
            .flat_map(StackWeights::linears_mut)
            .chain(self.head.iter_mut().flat_map(Head::linears_mut))
            .chain(&mut self.pooler)
    }

    /// What adapters add to the token tables, with the tables' canonical modules.
    fn tables_mut(&mut self) -> impl Iterator<Item = (&'static str, &mut Additions)> {
        let encoder = self.encoder.iter_mut().map(|s| ("encoder.embedding.tokens", s));
        let decoder = self.decoder.iter_mut().map(|s| ("decoder.embedding.tokens", s));
        encoder.chain(decoder).map(|(module, stack)| (module, &mut stack.embedding.additions))
    }

    /// Adds `read` beside the weights; nothing is added if there is a part that can't be.
    fn add(&mut self, adapter: AdapterId, read: &Adapter) -> Result<(), EngineError> {
        let mut left: HashSet<&str> = read.modules().collect();
        for linear in self.linears_mut() {
            left.retain(|module| linear.modules().all(|own| own != *module));
        }
        let device = self.device();
        self.tables_mut().for_each(|(module, _)| left.retain(|other| *other != module));
        let stacks = self.encoder.iter().chain(&self.decoder);
        let shares = stacks.flat_map(|stack| &stack.layers).any(|layer| {
            let attention = &layer.weights.form().self_attention;
            matches!(attention.scoring.spec.positions, AttentionPositions::Disentangled(_))
                && attention.qkv.modules().any(|module| read.get(module).is_some())
        });
        if shares || !left.is_empty() {
            let mut names: Vec<&str> = left.into_iter().collect();
            names.sort_unstable();
            names.truncate(4);
            if shares {
                names.push("queries and keys of attention to distances");
            }
            return Err(EngineError::unsupported(format!(
                "the adapter changes {}, which is not computed beside the weights; merge it instead",
                names.join(", ")
            )));
        }
        let mut made = Vec::new();
        for linear in self.linears_mut() {
            made.push(linear.additions_of(read).map_err(error::compute)?);
        }
        let mut tables = Vec::new();
        for (module, _) in self.tables_mut() {
            let part = read.get(module).map(|part| Addition::new(0, part, &device));
            tables.push(part.transpose().map_err(error::compute)?);
        }
        for (linear, additions) in self.linears_mut().zip(made) {
            linear.additions_mut().insert(adapter, additions);
        }
        for ((_, table), addition) in self.tables_mut().zip(tables) {
            table.insert(adapter, addition.into_iter().collect());
        }
        Ok(())
    }

    fn remove(&mut self, adapter: AdapterId) {
        self.linears_mut().for_each(|linear| linear.additions_mut().remove(adapter));
        self.tables_mut().for_each(|(_, table)| table.remove(adapter));
    }

    /// Where the weights lie.
    fn device(&self) -> Device {
        let stack = self.encoder.as_ref().or(self.decoder.as_ref());
        stack.map_or(Device::Cpu, |stack| stack.device.clone())
    }

    fn run(
        &self,
        stack: &StackWeights,
        batch: &Batch<'_>,
        planned: &[Planned],
        (cache, streamer): (Option<&Cache>, Option<&Streamer>),
    ) -> candle_core::Result<Computed> {
        let x = stack.forward(batch, planned, cache, streamer)?;
        self.finish(stack, &x, planned, streamer)
    }

    /// What comes of the last layer's rows `x`.
    fn finish(
        &self,
        stack: &StackWeights,
        x: &Tensor,
        planned: &[Planned],
        streamer: Option<&Streamer>,
    ) -> candle_core::Result<Computed> {
        let rows = self.needed_rows(planned);
        let runs = Runs::of(planned).select(&rows);
        if rows.is_empty() {
            return self.outputs(None, planned, &runs, streamer);
        }
        let hidden = stack.finish(&rows::select(x, &rows)?, &runs)?;
        self.outputs(Some(hidden), planned, &runs, streamer)
    }

    /// The rows of the batch's matrix that a segment's output is made of.
    fn needed(&self, segment: &Planned) -> Range<u32> {
        let rows = segment.needed(self.head.as_ref().is_some_and(|head| head.plan.reads_first));
        rows.start as u32..rows.end as u32
    }

    fn needed_rows(&self, planned: &[Planned]) -> Vec<u32> {
        planned.iter().flat_map(|segment| self.needed(segment)).collect()
    }

    /// Head and pooler over the needed rows, which go through the adapters of `runs`.
    fn outputs(
        &self,
        hidden: Option<Tensor>,
        planned: &[Planned],
        runs: &Runs,
        streamer: Option<&Streamer>,
    ) -> candle_core::Result<Computed> {
        let Some(hidden) = hidden else {
            return Ok(Computed { hidden: None, logits: None, pooled: None });
        };
        let (mut logits_rows, mut pooled_rows) = (Vec::new(), Vec::new());
        let mut first = 0u32;
        for segment in planned {
            let n = self.needed(segment).len() as u32;
            match segment.wanted {
                Wanted::LastLogits | Wanted::AllLogits | Wanted::SequenceLogits => {
                    logits_rows.extend(first..first + n)
                }
                Wanted::PooledHead => pooled_rows.push(first),
                _ => {}
            }
            first += n;
        }
        let logits = match &self.head {
            Some(head) if !logits_rows.is_empty() => {
                let runs = runs.select(&logits_rows);
                let hidden = rows::select(&hidden, &logits_rows)?;
                Some(head.forward(&hidden, &runs, streamer)?)
            }
            _ => None,
        };
        let pooled = match &self.pooler {
            Some(pooler) if !pooled_rows.is_empty() => {
                let firsts = rows::select(&hidden, &pooled_rows)?;
                let runs = runs.select(&pooled_rows);
                Some(pooler.forward_activated(&firsts, Activation::Tanh, &runs)?)
            }
            _ => None,
        };
        Ok(Computed { hidden: Some(hidden), logits, pooled })
    }
}

/// What each sequence keeps of the encoder's output `[n_rows, dim]`.
fn cross_keys_values(
    decoder: &StackWeights,
    encoded: &Tensor,
    (planned, runs): (&[Planned], &Runs),
    streamer: Option<&Streamer>,
) -> candle_core::Result<Vec<(SeqId, CrossKeyValues)>> {
    let empty = |s: &Planned| (s.sequence, CrossKeyValues { layers: Vec::new(), len: s.n });
    let mut born: Vec<_> = planned.iter().map(empty).collect();
    for (idx, layer) in decoder.layers.iter().enumerate() {
        let Some((attention, _)) = &layer.weights.form().cross_attention else { continue };
        let encoded = encoded.to_device(&layer.executor.device)?;
        let (keys, values) = match (layer.is_streamed(), streamer) {
            (true, Some(streamer)) => {
                let mut held = streamer.take(Unit::CrossKeysValues { idx })?;
                let Some(kv) = held.linear_mut() else { candle_core::bail!("no matrix was read") };
                kv.add_as(&attention.kv);
                layer.executor.run(|| attention.split(&kv.forward(&encoded, runs)?))?
            }
            _ => layer.executor.run(|| attention.keys_values(&encoded, runs))?,
        };
        let n_kv_heads = attention.scoring.spec.n_kv_heads as usize;
        for (segment, (_, cross)) in planned.iter().zip(&mut born) {
            let block: KeyValues =
                own_block(&keys, &values, segment.first_row, segment.n, n_kv_heads)?;
            cross.layers.push(block);
        }
    }
    Ok(born)
}

impl ModelWeights {
    /// Writes what was computed to where the host wants it.
    fn write(
        &self,
        computed: &Computed,
        planned: &[Planned],
        out: &mut Outputs<'_>,
    ) -> Result<(), EngineError> {
        if let Some(logits) = &computed.logits {
            let n = logits.dim(0).map_err(error::compute)?;
            let rows = out.next_logits(n)?;
            with_values(logits, |values| rows.copy_from_slice(values)).map_err(error::compute)?;
        }
        let Some(hidden) = &computed.hidden else { return Ok(()) };
        let dim = hidden.dim(1).map_err(error::compute)?;
        let pooled = match &computed.pooled {
            Some(pooled) => with_values(pooled, <[f32]>::to_vec).map_err(error::compute)?,
            None => Vec::new(),
        };
        let mut pooled = pooled.chunks_exact(dim);
        with_values(hidden, |values| {
            let mut first = 0;
            for segment in planned {
                let n = self.needed(segment).len();
                let rows = &values[first * dim..(first + n) * dim];
                first += n;
                match segment.wanted {
                    Wanted::Nothing
                    | Wanted::LastLogits
                    | Wanted::AllLogits
                    | Wanted::SequenceLogits => {}
                    Wanted::Hidden => out.next_hidden(n)?.copy_from_slice(rows),
                    Wanted::PooledHead => {
                        if let Some(row) = pooled.next() {
                            out.next_hidden(1)?.copy_from_slice(row);
                        }
                    }
                    pooling => pool(pooling, rows, out.next_hidden(1)?),
                }
            }
            Ok(())
        })
        .map_err(error::compute)?
    }
}

#[cfg(test)]
mod tests;
