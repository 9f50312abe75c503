//! What the host has to know of a model, from its description.

use drivetrain_engine::{DefaultDecoderInput, EngineError, ModelKind, TokenModelInfo};
use drivetrain_transformer::{Architecture, Attention, CanonicalWeights, Kind, Stack};

use crate::head::HeadPlan;
use crate::memory::available_bytes;

/// Most tokens in one batch, unless a whole input is longer.
const MAX_BATCH_TOKENS: u32 = 2048;

/// Sequences for each of `option.max_rolling_batch_size` that may live beside it: the host keeps
/// prefixes in them, which cost no more than the blocks they hold.
const KEPT_SEQUENCES: u32 = 8;

/// How an engine's cache holds keys and values.
#[derive(Clone, Copy, Debug)]
pub struct KvForm {
    /// Bytes of an element.
    pub element_bytes: u64,
    /// Bytes beside the elements of one token's head: a scale.
    pub scale_bytes: u64,
    /// Tokens of a block.
    pub block_tokens: u32,
}

impl KvForm {
    /// Bytes of one token's keys and values in an attention.
    pub fn bytes_per_token(self, attention: &Attention) -> u64 {
        let elements = attention.kv_width() as u64 * self.element_bytes;
        2 * (elements + u64::from(attention.n_kv_heads) * self.scale_bytes)
    }
}

/// The figures of a model with such a cache; its capacities, and the bytes of its weights, are 0 so far.
pub fn figures(
    architecture: &Architecture,
    weights: &CanonicalWeights<'_>,
    head: Option<&HeadPlan>,
    kv: KvForm,
) -> TokenModelInfo {
    let positions = |stack: &Option<Stack>| stack.as_ref().map_or(0, |s| s.max_positions);
    let kind = match architecture.kind {
        Kind::Decoder => ModelKind::Decoder,
        Kind::EncoderDecoder => ModelKind::EncoderDecoder,
        Kind::Encoder => ModelKind::Encoder,
    };
    let (max_positions, max_encoder_positions) = match kind {
        ModelKind::Encoder => (positions(&architecture.encoder), 0),
        _ => (positions(&architecture.decoder), positions(&architecture.encoder)),
    };
    let whole_input =
        if kind == ModelKind::Encoder { max_positions } else { max_encoder_positions };
    let kv_bytes = |attention: &Attention| kv.bytes_per_token(attention);
    let layers = architecture.decoder.iter().flat_map(|stack| &stack.layers);
    let crosses = layers.clone().filter_map(|layer| layer.cross_attention.as_ref());
    TokenModelInfo {
        kind,
        vocab: architecture.stacks().map(|stack| stack.embedding.n_tokens).max().unwrap_or(0),
        head: head.map_or(drivetrain_engine::HeadKind::None, |head| head.kind),
        n_logits: head.map_or(0, |head| head.width),
        dim: architecture.output_dim(),
        max_positions,
        max_encoder_positions,
        kv_bytes_per_token: layers.map(|layer| kv_bytes(&layer.self_attention)).sum(),
        kv_block_tokens: kv.block_tokens,
        cross_bytes_per_token: crosses.map(kv_bytes).sum(),
        max_batch_tokens: MAX_BATCH_TOKENS.max(whole_input),
        n_parameters: weights.n_parameters(),
        default_decoder_input: match architecture.default_decoder_input {
            drivetrain_transformer::DefaultDecoderInput::None => DefaultDecoderInput::None,
            drivetrain_transformer::DefaultDecoderInput::ShiftRight => {
                DefaultDecoderInput::ShiftRight
            }
            drivetrain_transformer::DefaultDecoderInput::RotateLast => {
                DefaultDecoderInput::RotateLast
            }
        },
        has_pooler: architecture.pooler.is_some() && weights.contains("pooler.weight"),
        ..TokenModelInfo::default()
    }
}

/// What the caches may hold.
#[derive(Clone, Copy, Debug)]
pub struct Capacity {
    /// Tokens of the KV cache.
    pub tokens: u64,
    /// Encoder tokens of the cross-attention cache.
    pub cross_tokens: u64,
    /// Sequences alive.
    pub sequences: usize,
}

/// Memory for the caches of the layers that are in one place.
#[derive(Clone, Copy, Debug, Default)]
pub struct CacheRoom {
    /// Bytes for both caches.
    pub bytes: u64,
    /// Bytes that a token takes of them in the KV cache.
    pub kv_bytes_per_token: u64,
    /// Bytes that an encoder token takes of them in the cross-attention cache.
    pub cross_bytes_per_token: u64,
}

impl CacheRoom {
    /// The part of the memory that one of the caches has, and its tokens.
    fn tokens(self, bytes_per_token: u64) -> u64 {
        let is_shared = self.kv_bytes_per_token > 0 && self.cross_bytes_per_token > 0;
        let share = if is_shared { self.bytes / 2 } else { self.bytes };
        share.checked_div(bytes_per_token).unwrap_or(u64::MAX)
    }
}

impl Capacity {
    /// Shares the memory that is left out to the caches, for `sequences` that run at once, and enters
    /// the result in `info`. Half of the memory stays free for activations and for others; no cache is
    /// larger than what all sequences could use. Blocks that are not full are paid for ahead.
    ///
    /// # Errors
    /// There is no room for the shortest sequences; the error has the figures.
    pub fn plan(info: &mut TokenModelInfo, sequences: u32) -> Result<Self, EngineError> {
        let room = CacheRoom {
            bytes: available_bytes().map_or(u64::MAX, |available| available / 2),
            kv_bytes_per_token: info.kv_bytes_per_token,
            cross_bytes_per_token: info.cross_bytes_per_token,
        };
        Self::within(info, sequences, &[room])
    }

    /// The same with the memory of each place where layers are; all of it may be used.
    ///
    /// # Errors
    /// As [`Self::plan`].
    pub fn within(
        info: &mut TokenModelInfo,
        sequences: u32,
        rooms: &[CacheRoom],
    ) -> Result<Self, EngineError> {
        info.max_sequences = sequences.saturating_mul(1 + KEPT_SEQUENCES);
        let sequences = u64::from(sequences);
        let most = |positions: u32| sequences * u64::from(positions);
        if info.kind == ModelKind::Encoder {
            (info.kv_capacity_tokens, info.cross_capacity_tokens) = (u64::MAX, u64::MAX);
        } else {
            let block = u64::from(info.kv_block_tokens);
            let overhead = sequences * (block - 1);
            let fits = rooms.iter().map(|room| room.tokens(room.kv_bytes_per_token)).min();
            let fits = fits.unwrap_or(u64::MAX).saturating_sub(overhead);
            info.kv_capacity_tokens = fits.min(most(info.max_positions));
            let cross = rooms.iter().map(|room| room.tokens(room.cross_bytes_per_token)).min();
            info.cross_capacity_tokens = match info.cross_bytes_per_token {
                0 => 0,
                _ => cross.unwrap_or(u64::MAX).min(most(info.max_encoder_positions)),
            };
            if info.kv_capacity_tokens < block.min(u64::from(info.max_positions)) {
                let left = rooms.iter().map(|room| room.bytes).min().unwrap_or(0);
                return Err(EngineError::out_of_memory(format!(
                    "the KV cache needs {} bytes a token and {sequences} sequences; {} MiB are left \
                     for it; lower option.max_rolling_batch_size",
                    info.kv_bytes_per_token,
                    left >> 20
                )));
            }
        }
        Ok(Self {
            tokens: info.kv_capacity_tokens,
            cross_tokens: info.cross_capacity_tokens,
            sequences: info.max_sequences as usize,
        })
    }

    /// Bytes that the caches may take in a place, blocks that are not full included.
    pub fn bytes_in(&self, info: &TokenModelInfo, room: &CacheRoom) -> u64 {
        if info.kind == ModelKind::Encoder {
            return 0;
        }
        let sequences = u64::from(info.max_sequences / (1 + KEPT_SEQUENCES));
        let overhead = sequences * u64::from(info.kv_block_tokens.saturating_sub(1));
        let block = u64::from(info.kv_block_tokens.max(1));
        // A sequence has no more blocks than its longest length fills.
        let most = match u64::from(info.max_positions).checked_mul(sequences) {
            Some(all) if self.tokens == all => {
                sequences * u64::from(info.max_positions).div_ceil(block) * block
            }
            _ => u64::MAX,
        };
        let kv = self.tokens.saturating_add(overhead).min(most);
        let kv = kv.saturating_mul(room.kv_bytes_per_token);
        kv.saturating_add(self.cross_tokens.saturating_mul(room.cross_bytes_per_token))
    }
}
