//! Attention to the own sequence and to the encoder's output.

use drivetrain_kernels::{
    Attention, HeadGroups, Heads, KernelError, KvCache, Mask, PositionBias, Rotary, RotaryPairs,
    RotaryRows, Segment,
};
use drivetrain_transformer as transformer;
use drivetrain_transformer::AttentionPositions;

use crate::arena::{Angles, AttentionRows};
use crate::distances::Distances;
use crate::linear::{After, Linear, Workspace};
use crate::norm::NormLayer;
use crate::share::HeadShare;
use crate::step::Step;

/// What positions add to scores.
#[derive(Debug)]
enum Bias {
    None,
    /// A slope a head.
    Slopes(Vec<f32>),
    /// `[n_heads, n_positions]`.
    Keys(Vec<f32>),
    /// `[n_heads, 2 * zero + 1]`.
    Distances {
        table: Vec<f32>,
        zero: usize,
    },
}

/// How an attention scores its keys.
#[derive(Debug)]
pub(crate) struct Scoring {
    /// With the rank's own heads alone.
    pub(crate) spec: transformer::Attention,
    groups: HeadGroups,
    bias: Bias,
    /// Embedded distances that contents are scored with.
    pub(crate) distances: Option<Distances>,
}

impl Scoring {
    /// `buckets` is the table of [`AttentionPositions::RelativeBuckets`], `[n_buckets, n_heads]`, with the
    /// heads of all ranks.
    pub(crate) fn new(
        share: &HeadShare,
        buckets: Option<&[f32]>,
        distances: Option<Distances>,
        max_positions: u32,
    ) -> Self {
        let (spec, heads, n_heads) = (&share.spec, share.heads.clone(), share.n_heads);
        let bias = match (&spec.positions, buckets) {
            (AttentionPositions::Alibi(alibi), _) => {
                let slopes = alibi.slopes(n_heads as u32);
                let slopes = &slopes[heads];
                if alibi.rounded {
                    let of_head = |slope: &f32| {
                        let slope = *slope;
                        (0..max_positions).map(move |position| alibi.bias(slope, position))
                    };
                    Bias::Keys(slopes.iter().flat_map(of_head).collect())
                } else {
                    Bias::Slopes(slopes.iter().map(|slope| slope * alibi.scale).collect())
                }
            }
            (AttentionPositions::RelativeBuckets(rule), Some(values)) => {
                let reach = i64::from(rule.reach());
                let of_head = |head: usize| {
                    (-reach..=reach).map(move |distance| {
                        values[rule.bucket(distance) as usize * n_heads + head]
                    })
                };
                let table = heads.flat_map(of_head).collect();
                Bias::Distances { table, zero: reach as usize }
            }
            _ => Bias::None,
        };
        Self { spec: spec.clone(), groups: share.groups, bias, distances }
    }

    /// Attends to what the cache holds.
    fn apply(
        &self,
        step: &Step<'_>,
        (cache, segments): (&KvCache, &[Segment<'_>]),
        queries: Heads<'_>,
        rows: Option<(&[f32], usize)>,
        attended: &mut [f32],
    ) -> Result<(), KernelError> {
        let cache = (cache, self.groups);
        self.attention(rows).apply_groups(step.cpu, cache, segments, queries, attended)
    }

    fn attention<'b>(&'b self, rows: Option<(&'b [f32], usize)>) -> Attention<'b> {
        let mask = match (self.spec.causal, self.spec.window) {
            (false, _) => Mask::Full,
            (true, None) => Mask::Causal,
            (true, Some(window)) => Mask::Window(window as usize),
        };
        let bias = match (rows, &self.bias) {
            (Some((rows, n_keys)), _) => PositionBias::Rows { rows, n_keys },
            (None, Bias::None) => PositionBias::None,
            (None, Bias::Slopes(slopes)) => PositionBias::Alibi(slopes),
            (None, Bias::Keys(table)) => PositionBias::Key { table },
            (None, Bias::Distances { table, zero }) => {
                PositionBias::Distance { table, zero: *zero }
            }
        };
        Attention {
            n_heads: self.spec.n_heads as usize,
            scale: self.spec.scale as f32,
            mask,
            soft_cap: self.spec.soft_cap,
            bias,
        }
    }
}

/// The matrices of queries, keys and values.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "there is one a layer, made at load")]
pub(crate) enum Projections<'a> {
    /// One product: a row holds all three.
    Fused(Linear<'a>),
    /// Three products, one after the other.
    Split([Linear<'a>; 3]),
}

/// Where the heads of one kind are in the memory of a batch's queries, keys and values.
#[derive(Clone, Copy, Debug)]
struct Columns {
    first_value: usize,
    stride: usize,
    first_column: usize,
}

impl Columns {
    fn heads(self, values: &[f32], n_rows: usize) -> Heads<'_> {
        let rows = &values[self.first_value..self.first_value + n_rows * self.stride];
        Heads { rows, stride: self.stride, first_column: self.first_column }
    }
}

impl<'a> Projections<'a> {
    pub(crate) fn linears(&self) -> &[Linear<'a>] {
        match self {
            Self::Fused(linear) => std::slice::from_ref(linear),
            Self::Split(linears) => linears,
        }
    }

    pub(crate) fn linears_mut(&mut self) -> &mut [Linear<'a>] {
        match self {
            Self::Fused(linear) => std::slice::from_mut(linear),
            Self::Split(linears) => linears,
        }
    }

    fn columns(&self, n_rows: usize, widths: [usize; 3]) -> [Columns; 3] {
        let [q, k, v] = widths;
        match self {
            Self::Fused(_) => [0, q, q + k].map(|first_column| Columns {
                first_value: 0,
                stride: q + k + v,
                first_column,
            }),
            Self::Split(_) => [(0, q), (q, k), (q + k, v)].map(|(before, stride)| Columns {
                first_value: n_rows * before,
                stride,
                first_column: 0,
            }),
        }
    }

    fn forward(
        &self,
        step: &Step<'_>,
        x: &[f32],
        mut qkv: &mut [f32],
        workspace: &mut Workspace,
    ) -> Result<(), KernelError> {
        for linear in self.linears() {
            let (part, rest) = qkv.split_at_mut(step.n_rows * linear.width());
            linear.forward((step.cpu, step.runs), x, part, After::NOTHING, workspace)?;
            qkv = rest;
        }
        Ok(())
    }
}

/// Attention to the own sequence, up to its output matrix.
#[derive(Debug)]
pub(crate) struct SelfAttention<'a> {
    pub(crate) scoring: Scoring,
    pub(crate) projections: Projections<'a>,
    pub(crate) out: Linear<'a>,
    /// Norms of each head of the queries and the keys.
    pub(crate) qk_norms: Option<(NormLayer, NormLayer)>,
    /// Which of the pass's angles rotate queries and keys, and how.
    pub(crate) rotary: Option<(usize, RotaryPairs)>,
}

impl SelfAttention<'_> {
    /// Fills `rows.attended` `[n_rows, q_width]` from `x` `[n_rows, dim]`.
    pub(crate) fn forward(
        &self,
        step: &Step<'_>,
        x: &[f32],
        rows: &mut AttentionRows,
        cache: &mut KvCache,
        workspace: &mut Workspace,
    ) -> Result<(), KernelError> {
        let spec = &self.scoring.spec;
        let (q_width, kv_width) = (spec.q_width(), spec.kv_width());
        let n_rows = step.n_rows;
        self.projections.forward(step, x, &mut rows.qkv, workspace)?;
        let columns = self.projections.columns(n_rows, [q_width, kv_width, kv_width]);
        let [q, k, v] = columns;
        if let Some((q_norm, k_norm)) = &self.qk_norms {
            for (norm, at, width) in [(q_norm, q, q_width), (k_norm, k, kv_width)] {
                let values = at.first_value..at.first_value + n_rows * at.stride;
                let columns = (at.first_column, width);
                norm.apply_heads(step.cpu, &mut rows.qkv[values], at.stride, columns)?;
            }
        }
        if let Some((angles_idx, pairs)) = self.rotary {
            self.rotate((step, rows), (angles_idx, pairs), [q, k])?;
        }
        let (keys, values) = (k.heads(&rows.qkv, n_rows), v.heads(&rows.qkv, n_rows));
        cache.append(step.cpu, step.segments, keys, values)?;
        let queries = q.heads(&rows.qkv, n_rows);
        let with_distances = match &self.scoring.distances {
            Some(distances) => {
                let scale = spec.scale as f32;
                let to = (&mut rows.distances, &mut workspace.scratch);
                let n_keys = distances.fill(step, (queries, keys), scale, to)?;
                let n = n_rows * spec.n_heads as usize * n_keys;
                Some((&rows.distances.bias[..n], n_keys))
            }
            None => None,
        };
        let attended = &mut rows.attended[..n_rows * q_width];
        let keys = (&*cache, step.segments);
        self.scoring.apply(step, keys, queries, with_distances, attended)
    }

    fn rotate(
        &self,
        (step, rows): (&Step<'_>, &mut AttentionRows),
        (angles_idx, pairs): (usize, RotaryPairs),
        [q, k]: [Columns; 2],
    ) -> Result<(), KernelError> {
        let spec = &self.scoring.spec;
        let Some(Angles { cos, sin, half, .. }) = rows.angles.get(angles_idx) else {
            return Ok(());
        };
        let rotary = Rotary {
            pairs,
            head_dim: spec.head_dim as usize,
            n_rotated: 2 * half,
            cos: &cos[..step.n_rows * half],
            sin: &sin[..step.n_rows * half],
        };
        let (n_q, n_k) = (spec.n_heads as usize, spec.n_kv_heads as usize);
        // In one product, the keys' heads follow the queries'.
        let parts = match &self.projections {
            Projections::Fused(_) => [(q, n_q + n_k), (k, 0)],
            Projections::Split(_) => [(q, n_q), (k, n_k)],
        };
        for (at, n_heads) in parts.into_iter().filter(|(_, n_heads)| *n_heads > 0) {
            let values = at.first_value..at.first_value + step.n_rows * at.stride;
            let heads = RotaryRows {
                rows: &mut rows.qkv[values],
                stride: at.stride,
                first_column: at.first_column,
                n_heads,
                positions: &rows.identity[..step.n_rows],
            };
            rotary.apply(step.cpu, heads)?;
        }
        Ok(())
    }
}

/// Attention to the encoder's output, up to its output matrix.
#[derive(Debug)]
pub(crate) struct CrossAttention<'a> {
    pub(crate) scoring: Scoring,
    pub(crate) q: Linear<'a>,
    /// Keys and values.
    pub(crate) kv: [Linear<'a>; 2],
    pub(crate) out: Linear<'a>,
}

impl CrossAttention<'_> {
    /// Fills `rows.attended` `[n_rows, q_width]` from `x` `[n_rows, dim]`.
    pub(crate) fn forward(
        &self,
        step: &Step<'_>,
        x: &[f32],
        rows: &mut AttentionRows,
        cache: &KvCache,
        workspace: &mut Workspace,
    ) -> Result<(), KernelError> {
        let (n_rows, width) = (step.n_rows, self.scoring.spec.q_width());
        let q = &mut rows.qkv[..n_rows * width];
        self.q.forward((step.cpu, step.runs), x, q, After::NOTHING, workspace)?;
        let queries = Heads { rows: q, stride: width, first_column: 0 };
        let attended = &mut rows.attended[..n_rows * width];
        self.scoring.apply(step, (cache, step.cross_segments), queries, None, attended)
    }

    /// Puts keys and values of the encoder's output `[n_rows, dim]` into the cache.
    pub(crate) fn keep(
        &self,
        step: &Step<'_>,
        encoded: &[f32],
        rows: &mut AttentionRows,
        cache: &mut KvCache,
        workspace: &mut Workspace,
    ) -> Result<(), KernelError> {
        let width = self.scoring.spec.kv_width();
        let (keys, values) = rows.qkv.split_at_mut(step.n_rows * width);
        let values = &mut values[..step.n_rows * width];
        let with = (step.cpu, step.runs);
        self.kv[0].forward(with, encoded, keys, After::NOTHING, workspace)?;
        self.kv[1].forward(with, encoded, values, After::NOTHING, workspace)?;
        let heads = |rows| Heads { rows, stride: width, first_column: 0 };
        cache.append(step.cpu, step.cross_segments, heads(keys), heads(values))
    }
}
