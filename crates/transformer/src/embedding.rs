//! What happens to token ids ahead of the first layer.

use crate::norm::Norm;

/// Token ids to hidden states:
/// `norm(projection(tokens[id]) * scale + positions[p] + token_types[t])`.
#[derive(Clone, Debug, PartialEq)]
pub struct Embedding {
    /// Rows of the token table.
    pub n_tokens: u32,
    /// Columns of the token table; the hidden size unless there is a projection.
    pub width: u32,
    /// Factor on the rows of the token table: `sqrt(dim)` in some BARTs and in Gemma, else 1.
    pub scale: f64,
    /// Positions that are added to the embedding.
    pub positions: EmbeddedPositions,
    /// Rows of the token type table; 0 without one.
    pub n_token_types: u32,
    /// Norm of the sum.
    pub norm: Option<Norm>,
    /// Whether a matrix `[dim, width]` follows the token table (OPT-350m).
    pub projection: bool,
}

/// Positions that are added to the embedding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EmbeddedPositions {
    /// None here; see [`AttentionPositions`](crate::AttentionPositions).
    None,
    /// A table of `n_rows` rows; position `p` is row `p + offset`.
    Learned {
        /// Rows of the table.
        n_rows: u32,
        /// Row of position 0: 2 in BART and OPT, `padding_idx + 1` in RoBERTa.
        offset: u32,
        /// A token that has no position: its row is its own number, and it doesn't count
        /// (RoBERTa's and MPNet's padding, should a text contain it).
        skipped: Option<u32>,
    },
    /// See [`sinusoidal`](crate::sinusoidal): Marian, Pegasus. A checkpoint may hold them as a table
    /// of `n_rows` rows, which then counts.
    Sinusoidal {
        /// Rows of the table.
        n_rows: u32,
    },
}

impl Embedding {
    /// A token table `[n_tokens, dim]` and nothing else.
    pub(crate) fn tokens(n_tokens: u32, dim: u32) -> Self {
        Self {
            n_tokens,
            width: dim,
            scale: 1.0,
            positions: EmbeddedPositions::None,
            n_token_types: 0,
            norm: None,
            projection: false,
        }
    }
}
