//! The canonical tensors of a description: names, shapes, and where the shapes come from.
//!
//! A name is a module path and `weight` or `bias`. Matrices are `[out, in]`, tables `[rows, dim]`.
//!
//! ```text
//! {encoder|decoder}.embedding.{tokens,positions,token_types,projection,norm}
//! {encoder|decoder}.relative, {encoder|decoder}.relative.norm
//! {encoder|decoder}.layers.N.{self_attention,cross_attention}.{q,k,v,o,q_norm,k_norm}
//! {encoder|decoder}.layers.N.self_attention.{relative_bias,relative_q,relative_k}
//! {encoder|decoder}.layers.N.feed_forward.{gate,up,down}
//! {encoder|decoder}.layers.N.feed_forward.router, .experts.N.{gate,up,down}
//! {encoder|decoder}.layers.N.{self_attention,cross_attention,feed_forward}.{norm_before,norm_branch,norm_after}
//! {encoder|decoder}.final_norm, {encoder|decoder}.output_projection
//! head, head.{dense,norm}, pooler
//! ```

use crate::architecture::{Architecture, HeadBias, Layer, Stack};
use crate::attention::{Attention, AttentionPositions};
use crate::embedding::EmbeddedPositions;
use crate::feed_forward::{FeedForward, FeedForwardForm};
use crate::norm::{Norm, Norms};
use crate::task_head::{HeadTask, TaskHead};

/// A tensor that a description calls for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorSpec {
    /// Path of the module it belongs to: `decoder.layers.3.self_attention.q`.
    pub module: String,
    /// What it is of the module.
    pub parameter: Parameter,
    /// Its canonical shape.
    pub shape: Vec<usize>,
    /// Whether a checkpoint may lack it.
    pub presence: Presence,
    /// The config keys that the shape follows from.
    pub keys: Vec<&'static str>,
    /// Whether the module is a norm, whose parameters old checkpoints call `gamma` and `beta`.
    pub norm: bool,
}

/// Whether a checkpoint may lack a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    /// It must be there.
    Required,
    /// It may be absent.
    Optional,
    /// It must be there if the module's weight is.
    WithWeight,
}

/// What a tensor is of its module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parameter {
    /// The matrix, table or gain.
    Weight,
    /// What is added.
    Bias,
}

impl Parameter {
    /// Last part of the canonical name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Weight => "weight",
            Self::Bias => "bias",
        }
    }
}

impl TensorSpec {
    /// The canonical name.
    pub fn name(&self) -> String {
        format!("{}.{}", self.module, self.parameter.name())
    }
}

/// Every tensor of `architecture`.
pub(crate) fn tensors(architecture: &Architecture) -> Vec<TensorSpec> {
    let mut list = List { specs: Vec::new(), dim: architecture.dim as usize, keys: architecture };
    for stack in architecture.stacks() {
        list.embedding(stack);
        for (idx, layer) in stack.layers.iter().enumerate() {
            list.layer(stack, &format!("{}.layers.{idx}", stack.name), layer);
        }
        list.norm(&format!("{}.final_norm", stack.name), stack.final_norm.as_ref(), None);
        if let Some(width) = stack.output_projection {
            let name = format!("{}.output_projection", stack.name);
            list.linear(&name, width as usize, list.dim, false, &[architecture.keys.dim]);
        }
    }
    let (vocab, dim) = (architecture.vocab as usize, architecture.dim as usize);
    let keys = architecture.keys;
    if let Some(head) = &architecture.head {
        let width = architecture.output_dim() as usize;
        list.push("head", Parameter::Weight, vec![vocab, width], &[keys.vocab, keys.dim]);
        list.last_optional(!head.required);
        if head.bias != HeadBias::None {
            list.push("head", Parameter::Bias, vec![vocab], &[keys.vocab]);
            list.last_optional(head.bias == HeadBias::Optional);
        }
    }
    if let Some(head) = &architecture.task_head {
        list.task_head(head);
    }
    if let Some(pooler) = &architecture.pooler {
        list.linear("pooler", pooler.width as usize, dim, true, &[keys.dim]);
        for (spec, presence) in
            list.specs.iter_mut().rev().zip([Presence::WithWeight, Presence::Optional])
        {
            spec.presence = presence;
        }
    }
    list.specs
}

struct List<'a> {
    specs: Vec<TensorSpec>,
    dim: usize,
    keys: &'a Architecture,
}

impl List<'_> {
    fn push(
        &mut self,
        module: &str,
        parameter: Parameter,
        shape: Vec<usize>,
        keys: &[&'static str],
    ) {
        self.specs.push(TensorSpec {
            module: module.to_owned(),
            parameter,
            shape,
            presence: Presence::Required,
            keys: keys.to_vec(),
            norm: false,
        });
    }

    fn last_optional(&mut self, optional: bool) {
        if let Some(last) = self.specs.last_mut().filter(|_| optional) {
            last.presence = Presence::Optional;
        }
    }

    fn linear(&mut self, module: &str, out: usize, inp: usize, bias: bool, keys: &[&'static str]) {
        self.push(module, Parameter::Weight, vec![out, inp], keys);
        if bias {
            self.push(module, Parameter::Bias, vec![out], keys);
        }
    }

    fn norm(&mut self, module: &str, norm: Option<&Norm>, dim: Option<(usize, &'static str)>) {
        let Some(norm) = norm else { return };
        let (dim, key) = dim.unwrap_or((self.dim, self.keys.keys.dim));
        let start = self.specs.len();
        if norm.weight {
            self.push(module, Parameter::Weight, vec![dim], &[key]);
        }
        if norm.bias {
            self.push(module, Parameter::Bias, vec![dim], &[key]);
        }
        self.specs[start..].iter_mut().for_each(|spec| spec.norm = true);
    }

    fn task_head(&mut self, head: &TaskHead) {
        let (dim, keys) = (self.keys.output_dim() as usize, self.keys.keys);
        let start = self.specs.len();
        if head.dense.is_some() {
            self.linear("head.dense", dim, dim, true, &[keys.dim]);
        }
        self.norm("head.norm", head.norm.as_ref(), None);
        let labels = if head.task == HeadTask::MaskedLm { keys.vocab } else { "id2label" };
        self.linear("head", head.width as usize, dim, head.bias, &[labels, keys.dim]);
        if head.optional {
            self.specs[start..].iter_mut().for_each(|spec| spec.presence = Presence::Optional);
        }
    }

    fn norms(&mut self, branch: &str, norms: &Norms) {
        self.norm(&format!("{branch}.norm_before"), norms.before.as_ref(), None);
        self.norm(&format!("{branch}.norm_branch"), norms.branch_out.as_ref(), None);
        self.norm(&format!("{branch}.norm_after"), norms.after.as_ref(), None);
    }

    fn embedding(&mut self, stack: &Stack) {
        let (keys, embedding, dim) = (self.keys.keys, &stack.embedding, self.dim);
        let path = |part: &str| format!("{}.embedding.{part}", stack.name);
        let (vocab, width) = (embedding.n_tokens as usize, embedding.width as usize);
        self.push(&path("tokens"), Parameter::Weight, vec![vocab, width], &[keys.vocab, keys.dim]);
        if embedding.projection {
            self.linear(&path("projection"), dim, width, false, &[keys.dim]);
        }
        match embedding.positions {
            EmbeddedPositions::None => {}
            EmbeddedPositions::Learned { n_rows, .. }
            | EmbeddedPositions::Sinusoidal { n_rows } => {
                let (name, shape) = (path("positions"), vec![n_rows as usize, dim]);
                self.push(&name, Parameter::Weight, shape, &[keys.positions, keys.dim]);
                let computed = matches!(embedding.positions, EmbeddedPositions::Sinusoidal { .. });
                self.last_optional(computed);
            }
        }
        if embedding.n_token_types > 0 {
            let shape = vec![embedding.n_token_types as usize, dim];
            let keys = ["type_vocab_size", keys.dim];
            self.push(&path("token_types"), Parameter::Weight, shape, &keys);
        }
        self.norm(&path("norm"), embedding.norm.as_ref(), None);
        if let Some(table) = &stack.relative_table {
            let name = format!("{}.relative", stack.name);
            let shape = vec![table.n_rows as usize, dim];
            self.push(&name, Parameter::Weight, shape, &["position_buckets", keys.dim]);
            self.norm(&format!("{name}.norm"), table.norm.as_ref(), None);
        }
    }

    fn layer(&mut self, stack: &Stack, path: &str, layer: &Layer) {
        let branch = format!("{path}.self_attention");
        self.attention(stack, &branch, &layer.self_attention);
        self.norms(&branch, &layer.self_attention_norms);
        if let Some(attention) = &layer.cross_attention {
            let branch = format!("{path}.cross_attention");
            self.attention(stack, &branch, attention);
            self.norms(&branch, &layer.cross_attention_norms);
        }
        let branch = format!("{path}.feed_forward");
        self.feed_forward(stack, &branch, &layer.feed_forward);
        self.norms(&branch, &layer.feed_forward_norms);
    }

    fn attention(&mut self, stack: &Stack, path: &str, attention: &Attention) {
        let (dim, bias) = (self.dim, attention.bias);
        let (q, kv) = (attention.q_width(), attention.kv_width());
        let q_keys = [self.keys.keys.dim, stack.keys.heads];
        let kv_keys = [self.keys.keys.dim, stack.keys.heads, stack.keys.kv_heads];
        let kv_keys = if kv_keys[1] == kv_keys[2] { &kv_keys[..2] } else { &kv_keys[..] };
        self.linear(&format!("{path}.q"), q, dim, bias.q, &q_keys);
        self.linear(&format!("{path}.k"), kv, dim, bias.k, kv_keys);
        self.linear(&format!("{path}.v"), kv, dim, bias.v, kv_keys);
        self.linear(&format!("{path}.o"), dim, q, bias.o, &q_keys);
        let head = Some((attention.head_dim as usize, "head_dim"));
        self.norm(&format!("{path}.q_norm"), attention.qk_norm.as_ref(), head);
        self.norm(&format!("{path}.k_norm"), attention.qk_norm.as_ref(), head);
        match &attention.positions {
            AttentionPositions::RelativeBuckets(buckets) => {
                let shape = vec![buckets.n_buckets as usize, attention.n_heads as usize];
                let name = format!("{path}.relative_bias");
                self.push(&name, Parameter::Weight, shape, &[stack.keys.heads]);
            }
            AttentionPositions::Disentangled(table) if !table.shared_projections => {
                if table.position_to_content {
                    self.linear(&format!("{path}.relative_q"), q, dim, true, &q_keys);
                }
                if table.content_to_position {
                    self.linear(&format!("{path}.relative_k"), kv, dim, true, kv_keys);
                }
            }
            _ => {}
        }
    }

    fn feed_forward(&mut self, stack: &Stack, path: &str, form: &FeedForward) {
        let (dim, width, bias) = (self.dim, form.width as usize, form.bias);
        let keys = [stack.keys.feed_forward, self.keys.keys.dim];
        let experts = match form.form {
            FeedForwardForm::Plain => {
                self.linear(&format!("{path}.up"), width, dim, bias, &keys);
                self.linear(&format!("{path}.down"), dim, width, bias, &keys);
                return;
            }
            FeedForwardForm::Gated => vec![path.to_owned()],
            FeedForwardForm::Experts { n_experts, .. } => {
                let out = n_experts as usize;
                self.linear(&format!("{path}.router"), out, dim, false, &[self.keys.keys.dim]);
                (0..n_experts).map(|idx| format!("{path}.experts.{idx}")).collect()
            }
        };
        for path in experts {
            self.linear(&format!("{path}.gate"), width, dim, bias, &keys);
            self.linear(&format!("{path}.up"), width, dim, bias, &keys);
            self.linear(&format!("{path}.down"), dim, width, bias, &keys);
        }
    }
}
