//! The memory that steps work in, reserved at load for the largest batch. Pages that no batch reaches are
//! never touched, and so take no memory.

use drivetrain_execution::{Pick, Runs};
use drivetrain_kernels::{Floats, Scratch};
use drivetrain_transformer::{Architecture, FeedForwardForm, Rotary, Stack};

use crate::adapters::AdapterRows;
use crate::collective::Collective;
use crate::distances::DistanceRows;
use crate::linear::Workspace;

/// Cosines and sines of each row's angles: `[n_rows, half]`.
#[derive(Debug)]
pub(crate) struct Angles {
    pub(crate) cos: Floats,
    pub(crate) sin: Floats,
    pub(crate) half: usize,
    /// `[half]`: those of a sequence, where they depend on its length.
    pub(crate) frequencies: Vec<f32>,
}

/// What attention works in.
#[derive(Debug)]
pub(crate) struct AttentionRows {
    /// Queries, keys and values.
    pub(crate) qkv: Floats,
    /// `[n_rows, q_width]`.
    pub(crate) attended: Floats,
    /// The angles of the stack that runs, a set for each of its rotations.
    pub(crate) angles: Vec<Angles>,
    /// 0, 1, 2: rows of the angles.
    pub(crate) identity: Vec<u32>,
    pub(crate) distances: DistanceRows,
}

/// What experts work in.
#[derive(Debug, Default)]
pub(crate) struct ExpertRows {
    /// `[n_rows, n_experts]`.
    pub(crate) logits: Floats,
    pub(crate) picks: Vec<Pick>,
    /// Rows of one expert, `[n_rows, dim]`.
    pub(crate) x: Floats,
    /// What it makes of them.
    pub(crate) y: Floats,
    pub(crate) runs: Runs,
}

/// All of it. A matrix of rows has the width that its user gives it.
#[derive(Debug)]
pub(crate) struct Arena {
    /// Hidden states, `[n_rows, dim]`.
    pub(crate) x: Floats,
    /// A branch's output, `[n_rows, dim]`.
    pub(crate) y: Floats,
    /// A branch's input, `[n_rows, dim]`.
    pub(crate) normed: Floats,
    pub(crate) attention: AttentionRows,
    /// Between the matrices of a feed-forward, `[n_rows, width]`.
    pub(crate) inner: Floats,
    /// The matrix beside a gate, where both are apart, `[n_rows, width]`.
    pub(crate) beside: Floats,
    pub(crate) experts: ExpertRows,
    /// Rows of the token table, `[n_rows, width]`.
    pub(crate) embedded: Floats,
    /// Tokens of the batch in the order of the rows.
    pub(crate) tokens: Vec<u32>,
    /// What the head reads.
    pub(crate) head: Floats,
    pub(crate) workspace: Workspace,
    /// What the rank exchanges with others, if the model is shared.
    pub(crate) collective: Option<Box<dyn Collective>>,
    /// Most elements of what it exchanges.
    pub(crate) shared: usize,
}

/// Memory that kernels ask for.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Needs {
    pub(crate) scratch_bytes: usize,
    /// Columns of the widest rows that are made wider for a product.
    pub(crate) padded: usize,
    /// Most columns of the head that a rank computes.
    pub(crate) head: usize,
}

/// The most columns of anything.
#[derive(Clone, Copy, Debug, Default)]
struct Widths {
    qkv: usize,
    q: usize,
    inner: usize,
    beside: usize,
    experts: usize,
    embedded: usize,
    head_dim: usize,
    n_table: usize,
    n_scores: usize,
}

impl Widths {
    fn of(architecture: &Architecture) -> Self {
        let mut widths = Self::default();
        for stack in architecture.stacks() {
            widths.embedded = widths.embedded.max(stack.embedding.width as usize);
            for layer in &stack.layers {
                let attentions = [Some(&layer.self_attention), layer.cross_attention.as_ref()];
                for attention in attentions.into_iter().flatten() {
                    let (q, kv) = (attention.q_width(), attention.kv_width());
                    widths.qkv = widths.qkv.max(q + 2 * kv);
                    widths.q = widths.q.max(q);
                }
                widths.inner = widths.inner.max(layer.feed_forward.width as usize);
                if layer.feed_forward.form != FeedForwardForm::Plain {
                    widths.beside = widths.inner;
                }
                if let FeedForwardForm::Experts { n_experts, .. } = layer.feed_forward.form {
                    widths.experts = widths.experts.max(n_experts as usize);
                }
                if let Some(table) = &stack.relative_table {
                    let attention = &layer.self_attention;
                    widths.head_dim = widths.head_dim.max(attention.head_dim as usize);
                    widths.n_table = widths.n_table.max(table.n_rows as usize);
                    let n_scores = attention.n_heads as usize * stack.max_positions as usize;
                    widths.n_scores = widths.n_scores.max(n_scores);
                }
            }
        }
        widths
    }
}

impl Arena {
    /// Bytes that each row of a batch takes, without what kernels and adapters need.
    pub(crate) fn row_bytes(architecture: &Architecture, rotaries: usize) -> u64 {
        let widths = Widths::of(architecture);
        let dim = (architecture.dim as usize).max(architecture.output_dim() as usize);
        let of_experts = if widths.experts > 0 { 2 * dim + widths.experts } else { 0 };
        let layers = widths.qkv + widths.q + widths.inner + widths.beside + of_experts;
        let angles = 2 * rotaries * widths_of_rotations(architecture);
        let distances = widths.head_dim + widths.n_table + widths.n_scores;
        let floats = 4 * dim + layers + angles + distances + widths.embedded;
        (floats * size_of::<f32>() + size_of::<u32>()) as u64
    }

    /// Memory for batches of `n_rows`, and what kernels need.
    pub(crate) fn new(
        architecture: &Architecture,
        rotaries: usize,
        n_rows: usize,
        needs: Needs,
    ) -> Self {
        let widths = Widths::of(architecture);
        let dim = (architecture.dim as usize).max(architecture.output_dim() as usize);
        let rows = |width: usize| Floats::zeroed(n_rows * width);
        let half = widths_of_rotations(architecture);
        let has_experts = widths.experts > 0;
        let of_experts = |width: usize| if has_experts { rows(width) } else { Floats::default() };
        Self {
            x: rows(dim),
            y: rows(dim),
            normed: rows(dim),
            attention: AttentionRows {
                qkv: rows(widths.qkv),
                attended: rows(widths.q),
                angles: (0..rotaries)
                    .map(|_| Angles {
                        cos: rows(half),
                        sin: rows(half),
                        half,
                        frequencies: vec![0.0; half],
                    })
                    .collect(),
                identity: (0..n_rows as u32).collect(),
                distances: DistanceRows::new(
                    n_rows,
                    widths.head_dim,
                    widths.n_table,
                    widths.n_scores,
                ),
            },
            inner: rows(widths.inner),
            beside: rows(widths.beside),
            experts: ExpertRows {
                logits: rows(widths.experts),
                picks: Vec::with_capacity(n_rows * widths.experts),
                x: of_experts(dim),
                y: of_experts(dim),
                runs: Runs::default(),
            },
            embedded: rows(widths.embedded),
            tokens: Vec::with_capacity(n_rows),
            head: rows(dim),
            workspace: Workspace {
                scratch: Scratch::with_capacity(needs.scratch_bytes),
                adapters: AdapterRows::default(),
                padded: rows(needs.padded),
                runs: Runs::default(),
            },
            collective: None,
            shared: (n_rows * dim).max(needs.head),
        }
    }

    /// Whether this is the rank that speaks for all.
    pub(crate) fn leads(&self) -> bool {
        self.collective.as_ref().is_none_or(|collective| collective.rank() == 0)
    }
}

/// The distinct rotations of a stack's layers, and which of them each layer has.
pub(crate) fn rotations(stack: &Stack) -> (Vec<Rotary>, Vec<Option<usize>>) {
    let mut rotaries: Vec<Rotary> = Vec::new();
    let of_layers = stack.layers.iter().map(|layer| match &layer.self_attention.positions {
        drivetrain_transformer::AttentionPositions::Rotary(rotary) => {
            let known = rotaries.iter().position(|known| known == rotary);
            Some(known.unwrap_or_else(|| {
                rotaries.push(rotary.clone());
                rotaries.len() - 1
            }))
        }
        _ => None,
    });
    let of_layers = of_layers.collect();
    (rotaries, of_layers)
}

/// Most pairs that any rotation turns.
fn widths_of_rotations(architecture: &Architecture) -> usize {
    let all = architecture.stacks().flat_map(|stack| rotations(stack).0);
    all.map(|rotary| rotary.dim as usize / 2).max().unwrap_or(0)
}
