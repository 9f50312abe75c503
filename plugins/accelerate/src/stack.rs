//! An encoder or decoder: embeddings, layers, final norm.

use candle_core::{Device, Result, Tensor};
use drivetrain_engine::Batch;
use drivetrain_execution::{Planned, Runs};
use drivetrain_transformer::{Rotary, sinusoidal};

use crate::adapters::Additions;
use crate::attention::Queries;
use crate::cache::Cache;
use crate::layer::{Angles, LayerWeights, Pass, own_block};
use crate::linear::Linear;
use crate::norm::NormLayer;
use crate::rows;

/// Tables and norm ahead of the first layer.
#[derive(Clone, Debug)]
pub(crate) struct EmbeddingWeights {
    /// `[vocab, dim]`.
    pub(crate) tokens: Tensor,
    /// What adapters add to it.
    pub(crate) additions: Additions,
    /// A matrix that follows the table.
    pub(crate) projection: Option<Linear>,
    /// Factor on what comes of a token.
    pub(crate) scale: f64,
    pub(crate) positions: PositionRows,
    /// `[n_token_types, dim]`.
    pub(crate) token_types: Option<Tensor>,
    pub(crate) norm: Option<NormLayer>,
}

/// Positions that are added to tokens.
#[derive(Clone, Debug)]
pub(crate) enum PositionRows {
    None,
    /// Rows of a table.
    Table {
        /// `[n_rows, dim]`.
        table: Tensor,
        /// The row of position 0.
        offset: u32,
        /// A token without a position, which has the row of its own number.
        skipped: Option<u32>,
    },
    /// Computed.
    Sinusoidal,
}

/// A stack with its weights.
#[derive(Clone, Debug)]
pub(crate) struct StackWeights {
    pub(crate) embedding: EmbeddingWeights,
    pub(crate) layers: Vec<LayerWeights>,
    pub(crate) final_norm: Option<NormLayer>,
    /// A matrix that follows the final norm.
    pub(crate) output_projection: Option<Linear>,
    /// The distinct rotations of its layers.
    pub(crate) rotaries: Vec<Rotary>,
}

impl StackWeights {
    /// The batch's tokens through embeddings and layers, without the final norm: `[n_rows, dim]`,
    /// rows as `planned` says.
    pub(crate) fn forward(
        &self,
        batch: &Batch<'_>,
        planned: &[Planned],
        cache: Option<&Cache>,
    ) -> Result<Tensor> {
        let device = self.embedding.tokens.device();
        let (angles, runs) = (self.angles(planned, device)?, Runs::of(planned));
        let pass = BatchPass { stack: self, planned, cache, angles, runs };
        let mut x = self.embed(batch, &pass, device)?;
        for (layer_idx, layer) in self.layers.iter().enumerate() {
            x = layer.forward(layer_idx, &x, &pass)?;
        }
        Ok(x)
    }

    /// Its matrices.
    pub(crate) fn linears_mut(&mut self) -> impl Iterator<Item = &mut Linear> {
        let outer = self.embedding.projection.iter_mut().chain(&mut self.output_projection);
        outer.chain(self.layers.iter_mut().flat_map(LayerWeights::linears_mut))
    }

    /// The final norm and projection, where there are.
    pub(crate) fn finish(&self, x: &Tensor, runs: &Runs) -> Result<Tensor> {
        let x = self.final_norm.as_ref().map_or_else(|| Ok(x.clone()), |norm| norm.forward(x))?;
        self.output_projection
            .as_ref()
            .map_or_else(|| Ok(x.clone()), |linear| linear.forward(&x, runs))
    }

    fn embed(&self, batch: &Batch<'_>, pass: &BatchPass<'_>, device: &Device) -> Result<Tensor> {
        let (embedding, planned, runs) = (&self.embedding, pass.planned, &pass.runs);
        let tokens: Vec<u32> = batch.segments().flat_map(|s| s.tokens).copied().collect();
        let n_rows = tokens.len();
        let tokens = Tensor::from_vec(tokens, n_rows, device)?;
        let x = embedding.tokens.index_select(&tokens, 0)?;
        let mut x = embedding.additions.add_rows_to(x, &tokens, runs)?;
        if let Some(projection) = &embedding.projection {
            x = projection.forward(&x, runs)?;
        }
        if embedding.scale != 1.0 {
            x = (x * embedding.scale)?;
        }
        if let Some(table) = &embedding.token_types {
            let types: Vec<u32> = batch
                .segments()
                .flat_map(|s| {
                    let type_of = move |idx| s.token_types.get(idx).copied().unwrap_or(0);
                    (0..s.tokens.len()).map(type_of)
                })
                .collect();
            let types = table.index_select(&Tensor::from_vec(types, n_rows, device)?, 0)?;
            x = rows::add(&types, x)?;
        }
        if let Some(positions) = embedding.positions.rows(batch, planned, x.dim(1)?, device)? {
            x = rows::add(&positions, x)?;
        }
        embedding.norm.as_ref().map_or_else(|| Ok(x.clone()), |norm| norm.forward(&x))
    }

    /// The angles of all rows for each of the stack's rotations.
    fn angles(&self, planned: &[Planned], device: &Device) -> Result<Vec<Angles>> {
        let of_rotary = |rotary: &Rotary| -> Result<Angles> {
            let (mut cos, mut sin) = (Vec::new(), Vec::new());
            let mut inv_freq = rotary.inv_freq(1);
            for segment in planned {
                let end = segment.position + segment.n;
                if rotary.depends_on_length() {
                    inv_freq = rotary.inv_freq(end);
                }
                for position in segment.position..end {
                    rotary.push_cos_sin(&inv_freq, position as u32, &mut cos, &mut sin);
                }
            }
            let shape = (cos.len() / inv_freq.len().max(1), inv_freq.len());
            Ok(Angles {
                cos: Tensor::from_vec(cos, shape, device)?,
                sin: Tensor::from_vec(sin, shape, device)?,
            })
        };
        self.rotaries.iter().map(of_rotary).collect()
    }
}

impl PositionRows {
    /// What is added to each row of the batch: `[n_rows, dim]`.
    fn rows(
        &self,
        batch: &Batch<'_>,
        planned: &[Planned],
        dim: usize,
        device: &Device,
    ) -> Result<Option<Tensor>> {
        let positions = planned.iter().flat_map(|s| s.position as u32..(s.position + s.n) as u32);
        match self {
            Self::None => Ok(None),
            Self::Table { table, offset, skipped: None } => {
                let rows: Vec<u32> = positions.map(|p| p + offset).collect();
                let n_rows = rows.len();
                table.index_select(&Tensor::from_vec(rows, n_rows, device)?, 0).map(Some)
            }
            Self::Table { table, offset, skipped: Some(skipped) } => {
                let mut rows = Vec::with_capacity(batch.tokens().len());
                for segment in batch.segments() {
                    let mut next = segment.position + offset;
                    rows.extend(segment.tokens.iter().map(|token| {
                        if token == skipped {
                            return *skipped;
                        }
                        next += 1;
                        next - 1
                    }));
                }
                let n_rows = rows.len();
                table.index_select(&Tensor::from_vec(rows, n_rows, device)?, 0).map(Some)
            }
            Self::Sinusoidal => {
                let positions: Vec<u32> = positions.collect();
                let mut values = vec![0.0; positions.len() * dim];
                for (position, row) in positions.iter().zip(values.chunks_exact_mut(dim)) {
                    sinusoidal(*position, row);
                }
                Tensor::from_vec(values, (positions.len(), dim), device).map(Some)
            }
        }
    }
}

/// A batch on its way through a stack.
struct BatchPass<'a> {
    stack: &'a StackWeights,
    planned: &'a [Planned],
    /// Absent where nothing is kept: every segment then looks at its own rows.
    cache: Option<&'a Cache>,
    angles: Vec<Angles>,
    runs: Runs,
}

impl Pass for BatchPass<'_> {
    fn self_queries(
        &self,
        layer_idx: usize,
        keys: &Tensor,
        values: &Tensor,
    ) -> Result<Vec<Queries>> {
        let layer = self.stack.layers.get(layer_idx);
        let n_kv_heads = layer.map_or(1, |l| l.self_attention.scoring.spec.n_kv_heads as usize);
        let of_segment = |segment: &Planned| -> Result<Queries> {
            let blocks = match self.cache {
                Some(cache) => {
                    cache.write(segment, layer_idx, keys, values)?;
                    cache.blocks(segment.sequence, layer_idx, segment.position + segment.n)
                }
                None => {
                    vec![own_block(keys, values, segment.first_row, segment.n, n_kv_heads)?]
                }
            };
            Ok(queries(segment, blocks))
        };
        self.planned.iter().map(of_segment).collect()
    }

    fn cross_queries(&self, layer_idx: usize) -> Result<Vec<Queries>> {
        let cross = |segment: &Planned| {
            self.cache.and_then(|cache| cache.cross(segment.sequence, layer_idx))
        };
        Ok(self.planned.iter().map(|s| queries(s, cross(s).into_iter().collect())).collect())
    }

    fn runs(&self) -> &Runs {
        &self.runs
    }

    fn angles(&self, rotary_idx: usize) -> Option<&Angles> {
        self.angles.get(rotary_idx)
    }
}

fn queries(segment: &Planned, blocks: Vec<crate::attention::KeyValues>) -> Queries {
    Queries { first_row: segment.first_row, n: segment.n, position: segment.position, blocks }
}
