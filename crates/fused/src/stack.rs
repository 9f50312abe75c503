//! An encoder or decoder: embeddings, layers, final norm.

use drivetrain_engine::{Batch, EngineError, LogLevel, Services};
use drivetrain_execution::Planned;
use drivetrain_kernels::{KernelError, KvCache};
use drivetrain_transformer::Rotary;

use crate::arena::{Angles, Arena};
use crate::embedding::EmbeddingWeights;
use crate::layer::{LayerCaches, LayerWeights};
use crate::linear::{After, Linear, Workspace};
use crate::norm::NormLayer;
use crate::step::{Step, compute};

/// A stack with its weights.
#[derive(Debug)]
pub(crate) struct StackWeights<'a> {
    pub(crate) name: &'static str,
    pub(crate) embedding: EmbeddingWeights<'a>,
    pub(crate) layers: Vec<LayerWeights<'a>>,
    pub(crate) final_norm: Option<NormLayer>,
    /// A matrix that follows the final norm.
    pub(crate) output_projection: Option<Linear<'a>>,
    /// The distinct rotations of its layers, with their frequencies.
    pub(crate) rotaries: Vec<(Rotary, Vec<f32>)>,
}

/// The caches that a stack's layers look into.
pub(crate) struct StackCaches<'a> {
    pub(crate) own: &'a mut [KvCache],
    pub(crate) cross: &'a [KvCache],
}

impl<'a> StackWeights<'a> {
    /// The batch's tokens through embeddings and layers, without the final norm, to `arena.x`
    /// `[n_rows, dim]`.
    pub(crate) fn forward(
        &self,
        (batch, planned): (&Batch<'_>, &[Planned]),
        step: &Step<'_>,
        caches: &mut StackCaches<'_>,
        arena: &mut Arena,
        services: &Services,
    ) -> Result<(), EngineError> {
        self.embedding.forward(batch, step, planned, arena)?;
        self.fill_angles(planned, &mut arena.attention.angles);
        // All ranks have the same hidden states; one of them looks.
        let mut is_finite = arena.leads();
        for (idx, layer) in self.layers.iter().enumerate() {
            let (own, cross) = (&mut *caches.own, caches.cross);
            let Some(own) = own.get_mut(layer.cache_idx) else {
                return Err(EngineError::internal("a layer without a cache"));
            };
            let layer_caches = LayerCaches { own, cross: cross.get(idx) };
            layer.forward(step, arena, layer_caches).map_err(compute)?;
            if is_finite {
                is_finite = finite(&arena.x[..step.n_rows * self.embedding.dim]);
                if !is_finite {
                    let at =
                        format!("{}.layers.{idx} gives numbers that are not finite", self.name);
                    services.log(LogLevel::Debug, &at);
                }
            }
        }
        Ok(())
    }

    /// Final norm and projection of rows `x` `[n_rows, dim]`, to `out` `[n_rows, output_dim]`.
    pub(crate) fn finish(
        &self,
        step: &Step<'_>,
        x: &mut [f32],
        out: &mut [f32],
        workspace: &mut Workspace,
    ) -> Result<(), KernelError> {
        match (&self.final_norm, &self.output_projection) {
            (None, None) => out.copy_from_slice(x),
            (Some(norm), None) => norm.apply(step.cpu, x, out)?,
            (norm, Some(projection)) => {
                if let Some(norm) = norm {
                    // The projection is between two sizes, so the row has no other place.
                    norm.apply_heads(step.cpu, x, norm.dim(), (0, norm.dim()))?;
                }
                let with = (step.cpu, step.runs);
                projection.forward(with, x, out, After::NOTHING, workspace)?;
            }
        }
        Ok(())
    }

    /// Its matrices.
    pub(crate) fn linears(&self) -> impl Iterator<Item = &Linear<'a>> {
        let outer = self.embedding.projection.iter().chain(&self.output_projection);
        outer.chain(self.layers.iter().flat_map(LayerWeights::linears))
    }

    /// Its matrices, to be changed.
    pub(crate) fn linears_mut(&mut self) -> impl Iterator<Item = &mut Linear<'a>> {
        let outer = self.embedding.projection.iter_mut().chain(&mut self.output_projection);
        outer.chain(self.layers.iter_mut().flat_map(LayerWeights::linears_mut))
    }

    /// The angles of all rows for each of the stack's rotations.
    fn fill_angles(&self, planned: &[Planned], angles: &mut [Angles]) {
        for ((rotary, frequencies), angles) in self.rotaries.iter().zip(angles) {
            let half = frequencies.len();
            angles.half = half;
            let factor = rotary.attention_factor();
            let Angles { cos, sin, frequencies: of_length, .. } = angles;
            let of_length = &mut of_length[..half];
            let mut rows = cos.chunks_exact_mut(half).zip(sin.chunks_exact_mut(half));
            for segment in planned {
                let end = segment.position + segment.n;
                let frequencies = match rotary.depends_on_length() {
                    true => {
                        rotary.fill_inv_freq(end, of_length);
                        &*of_length
                    }
                    false => frequencies,
                };
                for position in segment.position..end {
                    let Some((cos, sin)) = rows.next() else { return };
                    for (idx, f) in frequencies.iter().enumerate() {
                        let (s, c) = (position as f32 * f).sin_cos();
                        (cos[idx], sin[idx]) = (c * factor, s * factor);
                    }
                }
            }
        }
    }
}

/// Whether all are numbers, and none is infinite.
fn finite(values: &[f32]) -> bool {
    // A number times 0 is 0; the sums are independent, so that they are vectors.
    let mut sums = [0.0f32; 16];
    let (whole, rest) = values.as_chunks::<16>();
    for part in whole {
        sums.iter_mut().zip(part).for_each(|(sum, x)| *sum += x * 0.0);
    }
    sums.iter().sum::<f32>() + rest.iter().map(|x| x * 0.0).sum::<f32>() == 0.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_that_are_none_are_seen_anywhere() {
        let mut values = vec![1e30f32; 37];
        assert!(finite(&values));
        for (at, bad) in [(0, f32::NAN), (31, f32::INFINITY), (36, f32::NEG_INFINITY)] {
            let before = std::mem::replace(&mut values[at], bad);
            assert!(!finite(&values), "{at}");
            values[at] = before;
        }
    }
}
