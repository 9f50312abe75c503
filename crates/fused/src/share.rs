//! Which part of a model a rank has.
//!
//! Matrices ahead of an elementwise function or of attention are cut by their outputs (rows), those
//! behind it by their inputs (columns); what the latter give on each rank adds up to the whole
//! (Shoeybi et al. 2019, arXiv:1909.08053).
//!
//! | of | a rank has |
//! | --- | --- |
//! | heads of queries | `[r H / n, (r + 1) H / n)`, any number of them, none if there are fewer than ranks |
//! | heads of keys and values | those that its queries read; one that several ranks read is on each |
//! | columns between the matrices of a feed-forward, of each expert's | whole units: see [`unit`] |
//! | rows of a vocabulary's head | whole units |
//! | norms, routers, tables, projections between sizes | all |
//! | the head of a task with labels, the pooler | all on the first rank, none on others |
//!
//! The first rank with a share of a matrix that is cut by columns has its bias.

use std::ops::Range;

use drivetrain_execution::HeadPlan;
use drivetrain_kernels::{HeadGroups, part};
use drivetrain_transformer::{Architecture, Attention, CanonicalWeights, Layer, Stack};

use crate::load::blocks_of;
use crate::options::WeightForm;

/// One of the ranks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Share {
    pub(crate) rank: usize,
    /// How many ranks there are.
    pub(crate) degree: usize,
}

/// Columns of a feed-forward, or rows of a head, that aren't divided: as wide as the kernels' panels.
const UNIT: usize = 32;

/// Units that each rank should have at least, so that their numbers differ by little.
const UNITS: usize = 4;

impl Share {
    fn part(self, n: usize, unit: usize) -> Range<usize> {
        part(n, unit, self.rank, self.degree)
    }
}

/// What `n` columns are cut by: [`UNIT`] or a block of weights, or less where that would leave a rank
/// with little. Where a cut goes through a block, both ranks have the block.
fn unit(n: usize, block: Option<usize>, degree: usize) -> usize {
    let units = if block.is_some() { 1 } else { UNITS };
    let mut unit = block.unwrap_or(UNIT);
    while unit > 1 && n / unit < units * degree {
        unit /= 2;
    }
    unit
}

/// The heads of an attention that a rank has.
#[derive(Clone, Debug)]
pub(crate) struct HeadShare {
    pub(crate) heads: Range<usize>,
    pub(crate) kv_heads: Range<usize>,
    pub(crate) groups: HeadGroups,
    /// Heads of queries on all ranks.
    pub(crate) n_heads: usize,
    /// The attention with these heads alone.
    pub(crate) spec: Attention,
}

impl HeadShare {
    fn of(spec: &Attention, share: Share) -> Self {
        let total = spec.n_heads as usize;
        let size = (total / spec.n_kv_heads.max(1) as usize).max(1);
        let heads = share.part(total, 1);
        let kv_heads = match heads.is_empty() {
            true => 0..0,
            false => heads.start / size..heads.end.div_ceil(size),
        };
        let groups = HeadGroups { size, first: heads.start % size };
        let (n_heads, n_kv_heads) = (heads.len() as u32, kv_heads.len() as u32);
        let own = Attention { n_heads, n_kv_heads, ..spec.clone() };
        Self { heads, kv_heads, groups, n_heads: total, spec: own }
    }

    /// Columns of the queries.
    pub(crate) fn q_columns(&self) -> Range<usize> {
        self.columns(&self.heads)
    }

    /// Columns of the keys, or of the values.
    pub(crate) fn kv_columns(&self) -> Range<usize> {
        self.columns(&self.kv_heads)
    }

    fn columns(&self, heads: &Range<usize>) -> Range<usize> {
        let head_dim = self.spec.head_dim as usize;
        heads.start * head_dim..heads.end * head_dim
    }
}

/// A rank's part of a layer.
#[derive(Clone, Debug)]
pub(crate) struct LayerShare {
    pub(crate) own: HeadShare,
    pub(crate) cross: Option<HeadShare>,
    /// Between the matrices of the feed-forward.
    pub(crate) columns: Range<usize>,
    /// How many there are on all ranks.
    width: usize,
}

/// A rank's part of a model.
#[derive(Clone, Debug)]
pub(crate) struct ModelShare {
    pub(crate) share: Share,
    /// The model with the heads and columns of this rank alone.
    pub(crate) architecture: Architecture,
    /// Rows of the head's matrix.
    pub(crate) head: Range<usize>,
    /// Whether each rank has some of these rows.
    pub(crate) head_is_split: bool,
    /// Rows of the head's matrix on all ranks.
    n_head: usize,
    encoder: Vec<LayerShare>,
    decoder: Vec<LayerShare>,
}

impl ModelShare {
    pub(crate) fn new(
        architecture: &Architecture,
        weights: &CanonicalWeights<'_>,
        form: WeightForm,
        share: Share,
    ) -> Self {
        let head = HeadPlan::of(architecture, weights);
        let width = head.as_ref().map_or(0, |head| head.width as usize);
        // A few labels are less work than a meeting of the ranks.
        let head_is_split = share.degree > 1
            && width == architecture.vocab as usize
            && width >= UNIT * share.degree;
        let head = match (head_is_split, share.rank) {
            (true, _) => share.part(width, UNIT),
            (false, 0) => 0..width,
            (false, _) => 0..0,
        };
        let layers = |stack: &Option<Stack>| -> Vec<LayerShare> {
            let stack = stack.iter();
            let layers = stack.flat_map(|s| s.layers.iter().enumerate().map(move |of| (s, of)));
            let layers = layers.map(|(stack, (idx, layer))| {
                let path = format!("{}.layers.{idx}.feed_forward", stack.name);
                layer_share(layer, feed_forward_unit(weights, form, &path, layer, share), share)
            });
            layers.collect()
        };
        let (encoder, decoder) = (layers(&architecture.encoder), layers(&architecture.decoder));
        let mut architecture = architecture.clone();
        let own = [(&mut architecture.encoder, &encoder), (&mut architecture.decoder, &decoder)];
        for (stack, shares) in own {
            let layers = stack.iter_mut().flat_map(|stack| &mut stack.layers);
            for (layer, share) in layers.zip(shares) {
                layer.self_attention = share.own.spec.clone();
                layer.cross_attention = share.cross.as_ref().map(|cross| cross.spec.clone());
                layer.feed_forward.width = share.columns.len() as u32;
            }
        }
        Self { share, architecture, head, head_is_split, n_head: width, encoder, decoder }
    }

    /// Its part of a stack's layers.
    pub(crate) fn layers(&self, stack: &Stack) -> &[LayerShare] {
        if stack.name == "decoder" { &self.decoder } else { &self.encoder }
    }

    /// How much of a matrix the rank has: a part, and what it is of. Tables are not among what ranks have:
    /// they read them where they lie in the file.
    pub(crate) fn held(&self, module: &str) -> (usize, usize) {
        let (all, none) = ((1, 1), (0, 1));
        let first = if self.share.rank == 0 { all } else { none };
        match module {
            "head" if self.head_is_split => return (self.head.len(), self.n_head),
            "head" | "pooler" => return first,
            "head.dense" => return if self.head.is_empty() { none } else { all },
            _ => {}
        }
        let Some((layer, of)) = self.layer(module) else {
            return if module.ends_with("projection") { all } else { none };
        };
        let last = module.rsplit('.').next().unwrap_or(module);
        let heads = match of {
            "self_attention" => Some(&layer.own),
            "cross_attention" => layer.cross.as_ref(),
            _ => None,
        };
        match (heads, last) {
            (Some(heads), "q" | "o") => (heads.heads.len(), heads.n_heads),
            (Some(heads), "k" | "v") => (heads.kv_heads.len(), heads.n_heads / heads.groups.size),
            (None, "gate" | "up" | "down") => (layer.columns.len(), layer.width),
            (None, "router") => all,
            // Small, or made of others at load.
            _ => none,
        }
    }

    /// The rank's part of the layer that a module is of, and of which branch it is.
    fn layer<'m>(&self, module: &'m str) -> Option<(&LayerShare, &'m str)> {
        let mut path = module.split('.');
        let layers = if path.next()? == "decoder" { &self.decoder } else { &self.encoder };
        let idx: usize = path.next().filter(|of| *of == "layers").and(path.next())?.parse().ok()?;
        Some((layers.get(idx)?, path.next()?))
    }

    /// Most rows of the head's matrix on any rank.
    pub(crate) fn widest_head(&self, width: usize) -> usize {
        let ranks = (0..self.share.degree).map(|rank| Share { rank, ..self.share });
        ranks.map(|share| share.part(width, UNIT).len()).max().unwrap_or(width)
    }
}

/// The fewest heads of any layer, and the fewest columns of any feed-forward: at a degree up to these each
/// rank has a part of each feed-forward.
pub(crate) fn most_ranks(architecture: &Architecture) -> (usize, usize) {
    let layers = || architecture.stacks().flat_map(|stack| &stack.layers);
    let heads = layers().map(|layer| layer.self_attention.n_heads as usize).min();
    let columns = layers().map(|layer| layer.feed_forward.width as usize).min();
    (heads.unwrap_or(1), columns.unwrap_or(1))
}

fn layer_share(layer: &Layer, unit: usize, share: Share) -> LayerShare {
    LayerShare {
        own: HeadShare::of(&layer.self_attention, share),
        cross: layer.cross_attention.as_ref().map(|spec| HeadShare::of(spec, share)),
        columns: share.part(layer.feed_forward.width as usize, unit),
        width: layer.feed_forward.width as usize,
    }
}

fn feed_forward_unit(
    weights: &CanonicalWeights<'_>,
    form: WeightForm,
    path: &str,
    layer: &Layer,
    share: Share,
) -> usize {
    let names = [format!("{path}.down.weight"), format!("{path}.experts.0.down.weight")];
    let block = match form {
        WeightForm::Encoded(format) => Some(format.block_len()),
        _ => names.iter().find_map(|name| blocks_of(weights, form, name)).map(|f| f.block_len()),
    };
    unit(layer.feed_forward.width as usize, block, share.degree)
}
