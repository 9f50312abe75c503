//! An encoder or decoder: embeddings, layers, final norm.

use std::sync::Arc;

use candle_core::{Device, Result, Tensor, bail};
use drivetrain_engine::Batch;
use drivetrain_execution::{Planned, Runs};
use drivetrain_transformer::{Rotary, sinusoidal};

use crate::adapters::Additions;
use crate::attention::Queries;
use crate::cache::Cache;
use crate::executor::Executor;
use crate::layer::{Angles, LayerWeights, Pass, own_block};
use crate::linear::Linear;
use crate::matrix::Matrix;
use crate::norm::NormLayer;
use crate::pipeline;
use crate::rows;
use crate::streaming::{Streamer, Unit};

/// Tables and norm ahead of the first layer.
#[derive(Clone, Debug)]
pub(crate) struct EmbeddingWeights {
    pub(crate) tokens: TokenTable,
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

/// Where the rows of tokens come from.
#[derive(Clone, Debug)]
pub(crate) enum TokenTable {
    /// `[vocab, dim]`.
    Resident(Matrix),
    /// Each row is read from the file when it is needed.
    Streamed,
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
    /// `encoder` or `decoder`.
    pub(crate) name: &'static str,
    /// Where all but the layers lies.
    pub(crate) device: Device,
    pub(crate) embedding: EmbeddingWeights,
    pub(crate) layers: Vec<PlacedLayer>,
    pub(crate) final_norm: Option<NormLayer>,
    /// A matrix that follows the final norm.
    pub(crate) output_projection: Option<Linear>,
    /// The distinct rotations of its layers.
    pub(crate) rotaries: Vec<Rotary>,
}

/// A layer and where it runs.
#[derive(Clone, Debug)]
pub(crate) struct PlacedLayer {
    pub(crate) executor: Arc<Executor>,
    pub(crate) weights: LayerHome,
}

/// Where a layer's weights are.
#[derive(Clone, Debug)]
pub(crate) enum LayerHome {
    /// In the memory of its executor.
    Resident(LayerWeights),
    /// The matrices are in their file, and are multiplied with there.
    InFile(LayerWeights),
    /// In their file; this is their form, with what adapters add to them.
    Streamed(LayerWeights),
    /// In the CPU's memory, from which they come to the executor as those of a file do.
    Lent {
        /// The weights.
        layer: Arc<LayerWeights>,
        /// Their form on the executor, with what adapters add to them.
        form: LayerWeights,
    },
}

impl LayerHome {
    /// The layer, or its form.
    pub(crate) fn form(&self) -> &LayerWeights {
        let (Self::Resident(form)
        | Self::InFile(form)
        | Self::Streamed(form)
        | Self::Lent { form, .. }) = self;
        form
    }

    fn form_mut(&mut self) -> &mut LayerWeights {
        let (Self::Resident(form)
        | Self::InFile(form)
        | Self::Streamed(form)
        | Self::Lent { form, .. }) = self;
        form
    }
}

impl PlacedLayer {
    /// Whether it comes ahead of its turn, and goes after it.
    pub(crate) fn is_streamed(&self) -> bool {
        matches!(self.weights, LayerHome::Streamed(_) | LayerHome::Lent { .. })
    }

    /// The weights that the CPU lends.
    pub(crate) fn lent(&self) -> Option<&Arc<LayerWeights>> {
        match &self.weights {
            LayerHome::Lent { layer, .. } => Some(layer),
            _ => None,
        }
    }

    /// Whether it is in memory.
    fn is_resident(&self) -> bool {
        matches!(self.weights, LayerHome::Resident(_))
    }

    /// Rows through the layer, where it runs.
    fn forward(&self, idx: usize, x: &Tensor, pass: &BatchPass<'_>) -> Result<Tensor> {
        let x = x.to_device(&self.executor.device)?;
        match &self.weights {
            LayerHome::Resident(layer) | LayerHome::InFile(layer) => {
                self.executor.run(|| layer.forward(idx, &x, pass))
            }
            LayerHome::Streamed(form) | LayerHome::Lent { form, .. } => {
                let of_decoder = pass.stack.name == "decoder";
                let Some(streamer) = pass.streamer else { bail!("nothing reads layer {idx}") };
                let mut held = streamer.take(Unit::Layer { of_decoder, idx })?;
                let Some(layer) = held.layer_mut() else { bail!("no layer was read") };
                layer.add_as(form);
                self.executor.run(|| layer.forward(idx, &x, pass))
            }
        }
    }
}

impl StackWeights {
    /// The batch's tokens through embeddings and layers, without the final norm: `[n_rows, dim]`,
    /// rows as `planned` says.
    pub(crate) fn forward(
        &self,
        batch: &Batch<'_>,
        planned: &[Planned],
        cache: Option<&Cache>,
        streamer: Option<&Streamer>,
    ) -> Result<Tensor> {
        let pass = self.pass(planned, cache, streamer)?;
        let mut x = self.embed(batch, &pass, &self.device)?;
        for (layer_idx, layer) in self.layers.iter().enumerate() {
            x = layer.forward(layer_idx, &x, &pass)?;
        }
        x.to_device(&self.device)
    }

    /// [`Self::forward`] in micro-batches, where its layers are on several devices and the batch has rows
    /// enough for that. It is not called from a device's threads.
    pub(crate) fn forward_in_parts(
        &self,
        batch: &Batch<'_>,
        planned: &[Planned],
        cache: Option<&Cache>,
    ) -> Result<Option<Tensor>> {
        if !pipeline::is_large(planned) {
            return Ok(None);
        }
        let stages = pipeline::stages(&self.layers);
        // Each part would read its own way through the file.
        if stages.len() < 2 || !self.layers.iter().all(PlacedLayer::is_resident) {
            return Ok(None);
        }
        let may_split = cache.is_some() && !self.rotaries.iter().any(Rotary::depends_on_length);
        let parts = pipeline::micro_batches(batch, planned, stages.len(), may_split);
        let (mut passes, mut inputs) = (Vec::new(), Vec::new());
        for part in &parts {
            let batch = Batch::new(&part.segments, batch.tokens(), batch.token_types())
                .map_err(candle_core::Error::wrap)?;
            let pass = self.pass(&part.planned, cache, None)?;
            inputs.push(self.embed(&batch, &pass, &self.device)?);
            passes.push(pass);
        }
        if parts.is_empty() {
            return Ok(None);
        }
        let rows = pipeline::run(stages.len(), inputs, |number, stage, mut rows| {
            let (Some(pass), Some(layers)) = (passes.get(number), stages.get(stage)) else {
                bail!("there is no stage {stage} of micro-batch {number}");
            };
            for idx in layers.clone() {
                rows = self.layers[idx].forward(idx, &rows, pass)?;
            }
            if stage + 1 == stages.len() { rows.to_device(&self.device) } else { Ok(rows) }
        })?;
        Tensor::cat(&rows, 0).map(Some)
    }

    fn pass<'a>(
        &'a self,
        planned: &'a [Planned],
        cache: Option<&'a Cache>,
        streamer: Option<&'a Streamer>,
    ) -> Result<BatchPass<'a>> {
        let (angles, runs) = (self.angles(planned, &self.device)?, Runs::of(planned));
        Ok(BatchPass { stack: self, planned, cache, streamer, angles, runs })
    }

    /// Its matrices.
    pub(crate) fn linears_mut(&mut self) -> impl Iterator<Item = &mut Linear> {
        let outer = self.embedding.projection.iter_mut().chain(&mut self.output_projection);
        let layers = self.layers.iter_mut().map(|layer| layer.weights.form_mut());
        outer.chain(layers.flat_map(LayerWeights::linears_mut))
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
        let x = match (&embedding.tokens, pass.streamer) {
            (TokenTable::Resident(table), _) => table.gather(&tokens)?.to_device(device)?,
            (TokenTable::Streamed, Some(streamer)) => {
                let table = format!("{}.embedding.tokens.weight", self.name);
                let rows = streamer.gather(table, tokens.clone())?;
                let width = rows.len() / n_rows;
                Tensor::from_vec(rows, (n_rows, width), device)?
            }
            (TokenTable::Streamed, None) => bail!("nothing reads the token table"),
        };
        let tokens = Tensor::from_vec(tokens, n_rows, device)?;
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
    /// Reads the weights that are not in memory.
    streamer: Option<&'a Streamer>,
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
        let n_kv_heads =
            layer.map_or(1, |l| l.weights.form().self_attention.scoring.spec.n_kv_heads as usize);
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
