//! A pass of one rank over a batch.

use drivetrain_engine::{Batch, EngineError, Outputs, Services, Wanted, pool};
use drivetrain_execution::{Planned, Runs};
use drivetrain_kernels::{Activation, Cpu, Isa, Pool, Segment};

use crate::adapters::Additions;
use crate::arena::{Arena, Needs};
use crate::cache::Stores;
use crate::head::Head;
use crate::linear::{After, Linear};
use crate::stack::{StackCaches, StackWeights};
use crate::step::{Step, compute};

/// A rank's weights of a model.
#[derive(Debug)]
pub(crate) struct ModelWeights<'a> {
    pub(crate) encoder: Option<StackWeights<'a>>,
    pub(crate) decoder: Option<StackWeights<'a>>,
    pub(crate) head: Option<Head<'a>>,
    /// On the first rank.
    pub(crate) pooler: Option<Linear<'a>>,
}

/// What a rank computes with and in.
#[derive(Debug)]
pub(crate) struct RankState {
    pub(crate) pool: Pool,
    pub(crate) stores: Stores,
    pub(crate) arena: Arena,
    /// Adapters of the rows that outputs are made of.
    pub(crate) selected: Runs,
    /// Why its last pass failed.
    pub(crate) failure: Option<EngineError>,
}

/// Which of a model's stacks a pass goes through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PassStack {
    Encoder,
    Decoder,
}

/// What all ranks compute.
#[derive(Clone, Copy)]
pub(crate) struct Pass<'p> {
    pub(crate) stack: PassStack,
    pub(crate) batch: &'p Batch<'p>,
    pub(crate) planned: &'p [Planned],
    /// Which rows go through which adapter.
    pub(crate) runs: &'p Runs,
    /// The rows of each sequence, with the blocks of its own keys.
    pub(crate) segments: &'p [Segment<'p>],
    /// The same with the blocks of its encoder's output.
    pub(crate) cross_segments: &'p [Segment<'p>],
    /// Columns of what the model gives.
    pub(crate) dim: usize,
    pub(crate) isa: Isa,
    pub(crate) services: &'p Services,
}

impl<'a> ModelWeights<'a> {
    /// Bytes that the matrices occupy.
    pub(crate) fn n_bytes(&self) -> usize {
        self.linears().map(Linear::n_bytes).sum()
    }

    /// Memory that the matrices need for products of `n_rows`.
    pub(crate) fn needs(&self, n_rows: usize, n_threads: usize) -> Needs {
        let linears = self.linears().map(|linear| linear.scratch_bytes(n_rows, n_threads));
        let layers = self.encoder.iter().chain(&self.decoder).flat_map(|stack| &stack.layers);
        let attentions = layers.filter_map(|layer| layer.self_attention.as_ref());
        let distances = attentions.filter_map(|attention| attention.scoring.distances.as_ref());
        let distances = distances.map(|distances| distances.scratch_bytes(n_rows, n_threads));
        Needs {
            scratch_bytes: linears.chain(distances).max().unwrap_or(0),
            padded: self.linears().map(Linear::padded).max().unwrap_or(0),
            head: self.head.as_ref().and_then(|head| head.split).unwrap_or(0),
        }
    }

    fn reads_first(&self) -> bool {
        self.head.as_ref().is_some_and(|head| head.plan.reads_first)
    }

    /// Its matrices.
    pub(crate) fn linears(&self) -> impl Iterator<Item = &Linear<'a>> {
        let stacks = self.encoder.iter().chain(&self.decoder);
        stacks
            .flat_map(StackWeights::linears)
            .chain(self.head.iter().flat_map(Head::linears))
            .chain(&self.pooler)
    }

    /// Its matrices, to be changed.
    pub(crate) fn linears_mut(&mut self) -> impl Iterator<Item = &mut Linear<'a>> {
        let stacks = self.encoder.iter_mut().chain(&mut self.decoder);
        stacks
            .flat_map(StackWeights::linears_mut)
            .chain(self.head.iter_mut().flat_map(Head::linears_mut))
            .chain(&mut self.pooler)
    }

    /// What adapters add to the token tables, with the tables' canonical modules and widths.
    pub(crate) fn tables_mut(
        &mut self,
    ) -> impl Iterator<Item = (&'static str, &mut Additions, usize)> {
        let encoder = self.encoder.iter_mut().map(|s| ("encoder.embedding.tokens", s));
        let decoder = self.decoder.iter_mut().map(|s| ("decoder.embedding.tokens", s));
        encoder.chain(decoder).map(|(module, stack)| {
            let embedding = &mut stack.embedding;
            (module, &mut embedding.additions, embedding.tokens.width)
        })
    }

    /// This rank's part of a pass, and the outputs on the rank that has room for them.
    pub(crate) fn run(
        &self,
        rank: &mut RankState,
        pass: &Pass<'_>,
        out: Option<&mut Outputs<'_>>,
    ) -> Result<(), EngineError> {
        match pass.stack {
            PassStack::Encoder => self.encode(rank, pass, out),
            PassStack::Decoder => self.decode(rank, pass, out),
        }
    }

    /// A pass of the encoder over whole inputs, and what the decoder keeps of them.
    fn encode(
        &self,
        rank: &mut RankState,
        pass: &Pass<'_>,
        out: Option<&mut Outputs<'_>>,
    ) -> Result<(), EngineError> {
        let RankState { pool, stores, arena, selected, .. } = rank;
        let Pass { batch, planned, runs, .. } = *pass;
        let cpu = Cpu { isa: pass.isa, pool };
        let Some(encoder) = &self.encoder else {
            return Err(EngineError::internal("a model without any stack"));
        };
        let step = pass.step(cpu);
        let mut stack_caches = StackCaches { own: &mut stores.passing, cross: &[] };
        encoder.forward((batch, planned), &step, &mut stack_caches, arena, pass.services)?;
        let Some(decoder) = &self.decoder else {
            return self.end((encoder, &step), pass, (arena, selected), out);
        };
        let (from_dim, n_rows) = (encoder.embedding.dim, step.n_rows);
        let Arena { x, y, normed, attention, workspace, .. } = &mut *arena;
        let (x, y) = (&mut x[..n_rows * from_dim], &mut y[..n_rows * from_dim]);
        encoder.finish(&step, x, y, workspace).map_err(compute)?;
        let crosses = decoder.layers.iter().filter_map(|layer| layer.cross_attention.as_ref());
        for ((layer, _), cache) in crosses.zip(&mut stores.cross) {
            if let Some(layer) = layer {
                layer.keep(&step, y, attention, cache, workspace).map_err(compute)?;
            }
        }
        gather(planned, self.reads_first(), from_dim, y, normed);
        self.write((cpu, planned), (runs, selected), arena, from_dim, out)
    }

    /// A pass of the decoder.
    fn decode(
        &self,
        rank: &mut RankState,
        pass: &Pass<'_>,
        out: Option<&mut Outputs<'_>>,
    ) -> Result<(), EngineError> {
        let RankState { pool, stores, arena, selected, .. } = rank;
        let cpu = Cpu { isa: pass.isa, pool };
        let Some(decoder) = &self.decoder else {
            return Err(EngineError::internal("a model without any stack"));
        };
        let step = pass.step(cpu);
        let mut caches = StackCaches { own: &mut stores.own, cross: &stores.cross };
        let of = (pass.batch, pass.planned);
        decoder.forward(of, &step, &mut caches, arena, pass.services)?;
        self.end((decoder, &step), pass, (arena, selected), out)
    }

    /// The end of a pass whose last stack's layers have left the batch's rows in `arena.x`: those that
    /// outputs are made of through the final norm, and the outputs.
    fn end(
        &self,
        (stack, step): (&StackWeights<'a>, &Step<'_>),
        pass: &Pass<'_>,
        (arena, selected): (&mut Arena, &mut Runs),
        out: Option<&mut Outputs<'_>>,
    ) -> Result<(), EngineError> {
        let Pass { planned, runs, dim, .. } = *pass;
        let from_dim = stack.embedding.dim;
        let Arena { x, y, normed, workspace, .. } = &mut *arena;
        let n = gather(planned, self.reads_first(), from_dim, x, y);
        if n > 0 {
            selected.set_selected(runs, self.needed_rows(planned));
            let step = Step { runs: selected, n_rows: n, ..*step };
            let (y, normed) = (&mut y[..n * from_dim], &mut normed[..n * dim]);
            stack.finish(&step, y, normed, workspace).map_err(compute)?;
        }
        self.write((step.cpu, planned), (runs, selected), arena, dim, out)
    }

    /// The rows of the batch that outputs are made of.
    fn needed_rows(&self, planned: &[Planned]) -> impl Iterator<Item = usize> {
        let reads_first = self.reads_first();
        planned.iter().flat_map(move |segment| segment.needed(reads_first))
    }

    /// Makes the outputs of the rows that `planned` needs, which lie in `arena.normed` `[n_needed, dim]`, in
    /// order. Without `out`, computes what the rank that has it needs of this one.
    fn write(
        &self,
        (cpu, planned): (Cpu<'_>, &[Planned]),
        (runs, selected): (&Runs, &mut Runs),
        arena: &mut Arena,
        dim: usize,
        out: Option<&mut Outputs<'_>>,
    ) -> Result<(), EngineError> {
        let Arena { x, normed: rows, head: picked, workspace, collective, .. } = arena;
        let mut out = out;
        let needed = |segment: &Planned| segment.needed(self.reads_first());
        let wants_logits = |segment: &&Planned| segment.wanted.n_logits_rows(segment.n) > 0;
        if let Some(head) = &self.head {
            let (mut first, mut n) = (0, 0);
            for segment in planned {
                let own = needed(segment).len();
                if wants_logits(&segment) {
                    let from = first * dim..(first + own) * dim;
                    picked[n * dim..(n + own) * dim].copy_from_slice(&rows[from]);
                    n += own;
                }
                first += own;
            }
            if n > 0 {
                selected.set_selected(runs, planned.iter().filter(wants_logits).flat_map(needed));
                let logits = out.as_mut().map(|out| out.next_logits(n)).transpose()?;
                let io = (&mut picked[..n * dim], &mut x[..n * dim]);
                head.forward((cpu, selected), io, logits, workspace, collective.as_deref_mut())
                    .map_err(compute)?;
            }
        }
        let Some(out) = out else { return Ok(()) };
        let mut first = 0;
        for segment in planned {
            let n = needed(segment).len();
            let own = &rows[first * dim..(first + n) * dim];
            first += n;
            match segment.wanted {
                Wanted::Nothing
                | Wanted::LastLogits
                | Wanted::AllLogits
                | Wanted::SequenceLogits => {}
                Wanted::Hidden => out.next_hidden(n)?.copy_from_slice(own),
                Wanted::PooledHead => {
                    let Some(pooler) = &self.pooler else { continue };
                    selected.set_selected(runs, needed(segment));
                    let (row, after) = (out.next_hidden(1)?, After::activation(Activation::Tanh));
                    pooler.forward((cpu, selected), own, row, after, workspace).map_err(compute)?;
                }
                pooling => pool(pooling, own, out.next_hidden(1)?),
            }
        }
        Ok(())
    }
}

impl<'p> Pass<'p> {
    fn step<'s>(&'s self, cpu: Cpu<'s>) -> Step<'s> {
        Step {
            cpu,
            segments: self.segments,
            cross_segments: self.cross_segments,
            runs: self.runs,
            n_rows: self.planned.iter().map(|segment| segment.n).sum(),
        }
    }
}

/// Copies the rows that `planned` needs from `from` to `to`, one after the other; returns how many.
fn gather(
    planned: &[Planned],
    reads_first: bool,
    dim: usize,
    from: &[f32],
    to: &mut [f32],
) -> usize {
    let mut n = 0;
    for segment in planned {
        let rows = segment.needed(reads_first);
        let n_own = rows.len();
        to[n * dim..(n + n_own) * dim].copy_from_slice(&from[rows.start * dim..rows.end * dim]);
        n += n_own;
    }
    n
}
