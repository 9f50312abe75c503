//! An encoder or decoder: embeddings, layers, final norm.

use candle_core::{Device, Result, Tensor};
use drivetrain_engine::Batch;
use drivetrain_transformer::Rotary;

use crate::attention::Queries;
use crate::cache::Cache;
use crate::layer::{Angles, LayerWeights, Pass, own_block};
use crate::norm::NormLayer;
use crate::plan::Planned;
use crate::rows;

/// Tables and norm ahead of the first layer.
#[derive(Clone, Debug)]
pub(crate) struct EmbeddingWeights {
    /// `[vocab, dim]`.
    pub(crate) tokens: Tensor,
    /// Factor on the rows of `tokens`.
    pub(crate) scale: f64,
    /// `[n_rows, dim]`, and the row of position 0.
    pub(crate) positions: Option<(Tensor, u32)>,
    /// `[n_token_types, dim]`.
    pub(crate) token_types: Option<Tensor>,
    pub(crate) norm: Option<NormLayer>,
}

/// A stack with its weights.
#[derive(Clone, Debug)]
pub(crate) struct StackWeights {
    pub(crate) embedding: EmbeddingWeights,
    pub(crate) layers: Vec<LayerWeights>,
    pub(crate) final_norm: Option<NormLayer>,
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
        let pass = BatchPass { stack: self, planned, cache, angles: self.angles(planned, device)? };
        let mut x = self.embed(batch, planned, device)?;
        for (layer_idx, layer) in self.layers.iter().enumerate() {
            x = layer.forward(layer_idx, &x, &pass)?;
        }
        Ok(x)
    }

    /// The final norm, where there is one.
    pub(crate) fn finish(&self, x: &Tensor) -> Result<Tensor> {
        self.final_norm.as_ref().map_or_else(|| Ok(x.clone()), |norm| norm.forward(x))
    }

    fn embed(&self, batch: &Batch<'_>, planned: &[Planned], device: &Device) -> Result<Tensor> {
        let embedding = &self.embedding;
        let tokens: Vec<u32> = batch.segments().flat_map(|s| s.tokens).copied().collect();
        let n_rows = tokens.len();
        let mut x = embedding.tokens.index_select(&Tensor::from_vec(tokens, n_rows, device)?, 0)?;
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
        if let Some((table, offset)) = &embedding.positions {
            let of_segment =
                |s: &Planned| (s.position..s.position + s.n).map(|p| p as u32 + *offset);
            let positions: Vec<u32> = planned.iter().flat_map(of_segment).collect();
            let positions = table.index_select(&Tensor::from_vec(positions, n_rows, device)?, 0)?;
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

/// A batch on its way through a stack.
struct BatchPass<'a> {
    stack: &'a StackWeights,
    planned: &'a [Planned],
    /// Absent where nothing is kept: every segment then looks at its own rows.
    cache: Option<&'a Cache>,
    angles: Vec<Angles>,
}

impl Pass for BatchPass<'_> {
    fn self_queries(
        &self,
        layer_idx: usize,
        keys: &Tensor,
        values: &Tensor,
    ) -> Result<Vec<Queries>> {
        let layer = self.stack.layers.get(layer_idx);
        let n_kv_heads = layer.map_or(1, |l| l.self_attention.spec.n_kv_heads as usize);
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

    fn angles(&self, rotary_idx: usize) -> Option<&Angles> {
        self.angles.get(rotary_idx)
    }
}

fn queries(segment: &Planned, blocks: Vec<crate::attention::KeyValues>) -> Queries {
    Queries { first_row: segment.first_row, n: segment.n, position: segment.position, blocks }
}
