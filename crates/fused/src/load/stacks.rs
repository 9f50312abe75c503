//! Stacks, layers and their branches.

use std::ops::Range;

use drivetrain_artifacts::RowOrder;
use drivetrain_kernels::{Epilogue, Matrix, Precision, RotaryPairs, Scratch, Source};
use drivetrain_transformer::{
    Attention, AttentionPositions, EmbeddedPositions, FeedForward, FeedForwardForm, Layer, Norm,
    Norms, Stack, sinusoidal,
};

use super::{Cut, Kept, Loaded, Loader, Module, join};
use crate::adapters::Additions;
use crate::arena::rotations;
use crate::attention::{CrossAttention, Projections, Scoring, SelfAttention};
use crate::cache::shapes;
use crate::distances::Distances;
use crate::embedding::{EmbeddingWeights, PositionTable, Table, TableValues};
use crate::feed_forward::{Experts, FeedForwardLayer, Network, Up};
use crate::layer::{BranchNorms, LayerWeights};
use crate::linear::{Linear, Weights, activation};
use crate::norm::NormLayer;
use crate::options::WeightForm;
use crate::share::{HeadShare, LayerShare};
use crate::stack::StackWeights;
use crate::step::compute;

/// What the layers of a stack share.
struct Shared<'s> {
    stack: &'s Stack,
    /// What the rank has of the layer.
    share: &'s LayerShare,
    rotary_idx: Option<usize>,
    cache_idx: usize,
    /// Embedded distances, normed: `[n_rows, dim]`.
    distances: Option<&'s [f32]>,
}

impl<'a> Loader<'a, '_> {
    /// A stack.
    pub(crate) fn stack(&self, stack: &Stack) -> Loaded<StackWeights<'a>> {
        let (rotaries, rotary_of) = rotations(stack);
        let local = self.share.architecture.stacks().find(|local| local.name == stack.name);
        let (_, shape_of) = shapes(local.unwrap_or(stack));
        let distances = self.distance_rows(stack)?;
        let mut layers = Vec::with_capacity(stack.layers.len());
        let layers_and_shares = stack.layers.iter().zip(self.share.layers(stack));
        for (idx, (layer, share)) in layers_and_shares.enumerate() {
            let shared = Shared {
                stack,
                share,
                rotary_idx: rotary_of[idx],
                cache_idx: if stack.name == "decoder" { idx } else { shape_of[idx] },
                distances: distances.as_deref(),
            };
            layers.push(self.layer(&format!("{}.layers.{idx}", stack.name), layer, &shared)?);
        }
        let with_frequencies = rotaries.into_iter().map(|rotary| {
            let frequencies = rotary.inv_freq(1);
            (rotary, frequencies)
        });
        Ok(StackWeights {
            name: stack.name,
            embedding: self.embedding(stack)?,
            layers,
            final_norm: self.norm(&format!("{}.final_norm", stack.name), stack.final_norm)?,
            output_projection: stack
                .output_projection
                .map(|_| self.fused(stack.name, &[("output_projection", Cut::All)]))
                .transpose()?,
            rotaries: with_frequencies.collect(),
        })
    }

    fn embedding(&self, stack: &Stack) -> Loaded<EmbeddingWeights<'a>> {
        let embedding = &stack.embedding;
        let path = |part: &str| format!("{}.embedding.{part}", stack.name);
        let name = format!("{}.weight", path("positions"));
        let positions = match embedding.positions {
            EmbeddedPositions::None => None,
            EmbeddedPositions::Learned { offset, skipped, .. } => {
                Some(PositionTable { table: self.table(&name)?, offset, skipped })
            }
            EmbeddedPositions::Sinusoidal { .. } if self.has(&name) => {
                Some(PositionTable { table: self.table(&name)?, offset: 0, skipped: None })
            }
            EmbeddedPositions::Sinusoidal { .. } => {
                let mut values = vec![0.0; stack.max_positions as usize * self.dim];
                for (position, row) in values.chunks_exact_mut(self.dim).enumerate() {
                    sinusoidal(position as u32, row);
                }
                let table = Table { values: TableValues::Own(values), width: self.dim };
                Some(PositionTable { table, offset: 0, skipped: None })
            }
        };
        let token_types = (embedding.n_token_types > 0)
            .then(|| self.table(&format!("{}.weight", path("token_types"))))
            .transpose()?;
        let projection = embedding
            .projection
            .then(|| self.fused(&format!("{}.embedding", stack.name), &[("projection", Cut::All)]))
            .transpose()?;
        Ok(EmbeddingWeights {
            tokens: self.table(&format!("{}.weight", path("tokens")))?,
            additions: Additions::default(),
            projection,
            scale: embedding.scale as f32,
            positions,
            token_types,
            norm: self.norm(&path("norm"), embedding.norm)?,
            dim: self.dim,
        })
    }

    /// The stack's table of distances, normed: `[n_rows, dim]`.
    fn distance_rows(&self, stack: &Stack) -> Loaded<Option<Vec<f32>>> {
        let Some(table) = &stack.relative_table else { return Ok(None) };
        let name = format!("{}.relative", stack.name);
        let mut rows = self.values(&format!("{name}.weight"))?;
        if let Some(norm) = self.norm(&format!("{name}.norm"), table.norm)? {
            let columns = (0, norm.dim());
            norm.apply_heads(self.cpu, &mut rows, norm.dim(), columns).map_err(compute)?;
        }
        Ok(Some(rows))
    }

    fn layer(&self, path: &str, layer: &Layer, shared: &Shared<'_>) -> Loaded<LayerWeights<'a>> {
        let branch = format!("{path}.self_attention");
        let heads = &shared.share.own;
        let self_attention = match heads.heads.is_empty() {
            true => None,
            false => Some(self.self_attention(&branch, &layer.self_attention, shared)?),
        };
        let cross_attention = shared
            .share
            .cross
            .as_ref()
            .map(|heads| self.cross_attention(path, heads, layer.cross_attention_norms))
            .transpose()?;
        let feed_forward = format!("{path}.feed_forward");
        let columns = &shared.share.columns;
        Ok(LayerWeights {
            dim: self.dim,
            cache_idx: shared.cache_idx,
            self_attention,
            self_attention_norms: self.norms(&branch, layer.self_attention_norms)?,
            cross_attention,
            feed_forward: self.feed_forward(&feed_forward, layer.feed_forward, columns)?,
            feed_forward_norms: self.norms(&feed_forward, layer.feed_forward_norms)?,
            residual: layer.residual,
        })
    }

    fn self_attention(
        &self,
        branch: &str,
        spec: &Attention,
        shared: &Shared<'_>,
    ) -> Loaded<SelfAttention<'a>> {
        let qk_norms = match spec.qk_norm {
            None => None,
            norm => self
                .norm(&format!("{branch}.q_norm"), norm)?
                .zip(self.norm(&format!("{branch}.k_norm"), norm)?),
        };
        let heads = &shared.share.own;
        let (projections, pairs) = self.projections(branch, heads, qk_norms.is_some())?;
        Ok(SelfAttention {
            scoring: self.scoring(branch, shared)?,
            projections,
            out: self.fused(branch, &[("o", Cut::Columns(heads.q_columns()))])?,
            qk_norms,
            rotary: shared.rotary_idx.zip(pairs),
        })
    }

    /// The matrices of queries, keys and values, and which of a head's elements turn together.
    ///
    /// A GGUF file has the rows of a head that turns by halves in such an order that neighbours turn.
    /// Queries and keys that lie alike score alike, so its blocks are multiplied as they are.
    fn projections(
        &self,
        branch: &str,
        heads: &HeadShare,
        has_norms: bool,
    ) -> Loaded<(Projections<'a>, Option<RotaryPairs>)> {
        let spec = &heads.spec;
        let names = ["q", "k", "v"];
        let AttentionPositions::Rotary(rotary) = &spec.positions else {
            let in_blocks =
                names.iter().any(|part| self.stays_in_blocks(branch, part, RowOrder::Plain));
            return Ok((self.three(branch, heads, in_blocks.then_some(RowOrder::Plain))?, None));
        };
        let pairs = match rotary.pairs {
            drivetrain_transformer::RotaryPairs::Halves => RotaryPairs::HalfSplit,
            drivetrain_transformer::RotaryPairs::Interleaved => RotaryPairs::Interleaved,
        };
        let turned = RowOrder::Rotary { head_rows: spec.head_dim as usize };
        let has_bias = ["q", "k"].iter().any(|p| self.has(&join(branch, &format!("{p}.bias"))));
        let can_turn = pairs == RotaryPairs::HalfSplit
            && rotary.dim == spec.head_dim
            && !has_norms
            && !has_bias
            && ["q", "k"].iter().all(|part| self.stays_in_blocks(branch, part, turned));
        if can_turn {
            return Ok((self.three(branch, heads, Some(turned))?, Some(RotaryPairs::Interleaved)));
        }
        let in_blocks =
            names.iter().any(|part| self.stays_in_blocks(branch, part, RowOrder::Plain));
        Ok((self.three(branch, heads, in_blocks.then_some(RowOrder::Plain))?, Some(pairs)))
    }

    /// Queries, keys and values as one product, or as three with queries and keys in an order.
    fn three(
        &self,
        branch: &str,
        heads: &HeadShare,
        split: Option<RowOrder>,
    ) -> Loaded<Projections<'a>> {
        let [q, k, v] = [
            ("q", Cut::Rows(heads.q_columns())),
            ("k", Cut::Rows(heads.kv_columns())),
            ("v", Cut::Rows(heads.kv_columns())),
        ];
        let Some(order) = split else {
            return Ok(Projections::Fused(self.fused(branch, &[q, k, v])?));
        };
        Ok(Projections::Split([
            self.product(branch, &[q], order)?,
            self.product(branch, &[k], order)?,
            self.fused(branch, &[v])?,
        ]))
    }

    /// What positions do to the scores of an attention.
    fn scoring(&self, branch: &str, shared: &Shared<'_>) -> Loaded<Scoring> {
        let heads = &shared.share.own;
        let spec = &heads.spec;
        let max_positions = shared.stack.max_positions;
        let buckets = match &spec.positions {
            AttentionPositions::RelativeBuckets(_) => {
                Some(self.values(&format!("{branch}.relative_bias.weight"))?)
            }
            _ => None,
        };
        let distances = match (&spec.positions, shared.distances) {
            (AttentionPositions::Disentangled(kind), Some(table)) => {
                let of = |wanted: bool, own: &str, part: &str| {
                    let part = if kind.shared_projections { part } else { own };
                    wanted.then(|| self.by_head(branch, part, table, heads)).transpose()
                };
                let keys = of(kind.content_to_position, "relative_k", "k")?;
                let queries = of(kind.position_to_content, "relative_q", "q")?;
                Some(Distances::new(*kind, max_positions, keys, queries))
            }
            _ => None,
        };
        Ok(Scoring::new(heads, buckets.as_deref(), distances, max_positions))
    }

    /// Rows of `table` `[n_table, dim]` through a projection, a matrix `[n_table, head_dim]` for each
    /// head.
    fn by_head(
        &self,
        branch: &str,
        part: &str,
        table: &[f32],
        heads: &HeadShare,
    ) -> Loaded<Vec<Matrix>> {
        let name = join(branch, &format!("{part}.weight"));
        let cut = Cut::Rows(heads.q_columns());
        let values = self.part_of(&name, &cut)?;
        self.release(&[&name])?;
        let n_table = table.len() / self.dim;
        let pack = |values: &[f32], n_in| {
            Matrix::pack(self.cpu, &[Source::F32(values)], n_in, Precision::F32).map_err(compute)
        };
        let matrix = pack(&values, self.dim)?;
        let width = matrix.n_out();
        let bias = self.bias(branch, &[(part, cut)])?;
        let mut projected = vec![0.0; n_table * width];
        let mut scratch =
            Scratch::with_capacity(matrix.scratch_bytes(n_table, self.cpu.pool.n_threads()));
        let epilogue = Epilogue { bias: bias.as_deref(), ..Epilogue::default() };
        matrix
            .multiply(self.cpu.pool, table, &mut projected, &epilogue, &mut scratch)
            .map_err(compute)?;
        let head_dim = heads.spec.head_dim as usize;
        let of_head = |head: usize| {
            let rows = projected.chunks_exact(width);
            let values: Vec<f32> = rows
                .flat_map(|row| &row[head * head_dim..(head + 1) * head_dim])
                .copied()
                .collect();
            pack(&values, head_dim)
        };
        (0..heads.heads.len()).map(of_head).collect()
    }

    fn feed_forward(
        &self,
        path: &str,
        spec: FeedForward,
        columns: &Range<usize>,
    ) -> Loaded<FeedForwardLayer<'a>> {
        let cut = || Cut::Rows(columns.clone());
        let network = |path: &str, gated: bool| -> Loaded<Network<'a>> {
            Ok(Network {
                activation: activation(spec.activation),
                up: match gated {
                    true => self.gated(path, &cut())?,
                    false => Up::Plain(self.fused(path, &[("up", cut())])?),
                },
                down: self.fused(path, &[("down", Cut::Columns(columns.clone()))])?,
            })
        };
        Ok(match spec.form {
            FeedForwardForm::Plain => FeedForwardLayer::Dense(network(path, false)?),
            FeedForwardForm::Gated => FeedForwardLayer::Dense(network(path, true)?),
            FeedForwardForm::Experts { n_experts, n_active } => {
                let networks =
                    (0..n_experts).map(|idx| network(&format!("{path}.experts.{idx}"), true));
                FeedForwardLayer::Experts(Experts {
                    router: self.fused(path, &[("router", Cut::All)])?,
                    networks: networks.collect::<Loaded<_>>()?,
                    n_active: n_active as usize,
                })
            }
        })
    }

    /// A gate and the matrix beside it.
    fn gated(&self, path: &str, cut: &Cut) -> Loaded<Up<'a>> {
        let modules = ["gate", "up"].map(|module| (module, cut.clone()));
        let is_encoded = matches!(self.form, WeightForm::Encoded(_));
        let stays = |(part, _): &Module<'_>| self.stays_in_blocks(path, part, RowOrder::Plain);
        if is_encoded || modules.iter().any(stays) {
            let [gate, up] = modules.map(|module| self.fused(path, &[module]));
            return Ok(Up::Split { gate: gate?, up: up? });
        }
        let (names, parts) = self.parts(path, &modules)?;
        let precision = self.precision(&names)?;
        let (rows, columns) = cut.of(self.get(&names[0])?.shape());
        let shape = (rows.len(), columns.len());
        let kept = Kept { names: &names, cuts: &[cut.clone(), cut.clone()], shape };
        let matrix = self.kept_matrix(&kept, (precision, true), || {
            let (gate, up) = (self.in_place(&names[0], cut)?, self.in_place(&names[1], cut)?);
            let form = (columns.len(), precision);
            Matrix::pack_gated(self.cpu, gate.source(), up.source(), form).map_err(compute)
        });
        let bias = self.bias(path, &modules)?;
        let weights = Weights::Packed(matrix?);
        self.release(&names)?;
        Ok(Up::Gated(Linear::new(weights, bias, parts, None)))
    }

    fn cross_attention(
        &self,
        path: &str,
        heads: &HeadShare,
        norms: Norms,
    ) -> Loaded<(Option<CrossAttention<'a>>, BranchNorms)> {
        let branch = format!("{path}.cross_attention");
        let (q, kv) = (heads.q_columns(), heads.kv_columns());
        let linear = |module: &'static str, cut: Cut| self.fused(&branch, &[(module, cut)]);
        let attention = || -> Loaded<CrossAttention<'a>> {
            Ok(CrossAttention {
                scoring: Scoring::new(heads, None, None, 0),
                q: linear("q", Cut::Rows(q.clone()))?,
                kv: [linear("k", Cut::Rows(kv.clone()))?, linear("v", Cut::Rows(kv))?],
                out: linear("o", Cut::Columns(q))?,
            })
        };
        let attention = if heads.heads.is_empty() { None } else { Some(attention()?) };
        Ok((attention, self.norms(&branch, norms)?))
    }

    fn norms(&self, branch: &str, norms: Norms) -> Loaded<BranchNorms> {
        Ok(BranchNorms {
            before: self.norm(&format!("{branch}.norm_before"), norms.before)?,
            branch_out: self.norm(&format!("{branch}.norm_branch"), norms.branch_out)?,
            after: self.norm(&format!("{branch}.norm_after"), norms.after)?,
        })
    }

    pub(crate) fn norm(&self, path: &str, norm: Option<Norm>) -> Loaded<Option<NormLayer>> {
        let Some(norm) = norm else { return Ok(None) };
        let bias = norm.bias.then(|| self.values(&format!("{path}.bias"))).transpose()?;
        let weight = match norm.weight {
            true => self.values(&format!("{path}.weight"))?,
            false => vec![1.0; self.dim],
        };
        Ok(Some(NormLayer::new(norm, weight, bias)))
    }
}
