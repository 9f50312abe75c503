//! Mixtral (Jiang et al. 2024, arXiv:2401.04088); transformers 5.24, `models/mixtral`.

use super::llama::{self, Kin, LLAMA};
use super::reader::Reader;
use super::{Family, Form, ModuleNames, Place};
use crate::architecture::Architecture;
use crate::error::TransformerError;
use crate::feed_forward::FeedForwardForm;

pub(super) static FAMILY: Family = Family {
    model_type: "mixtral",
    aliases: &[("num_experts", "num_local_experts")],
    describe,
    modules: &[&llama::EMBEDDINGS, &llama::ATTENTION, &llama::NORMS, &ROUTER, &EXPERTS],
    ..llama::FAMILY
};

static ROUTER: [ModuleNames; 1] = [ModuleNames {
    canonical: "decoder.layers.{i}.feed_forward.router",
    found: &[Place::new("layers.{i}.block_sparse_moe.gate"), Place::new("layers.{i}.mlp.gate")],
}];

/// A matrix an expert, or those of all experts in one tensor.
static EXPERTS: [ModuleNames; 3] = [
    ModuleNames {
        canonical: "decoder.layers.{i}.feed_forward.experts.{e}.gate",
        found: &[
            Place::new("layers.{i}.block_sparse_moe.experts.{e}.w1"),
            Place::new("layers.{i}.mlp.experts.gate_up_proj")
                .form(Form::Experts { part: 0, n_parts: 2 }),
        ],
    },
    ModuleNames {
        canonical: "decoder.layers.{i}.feed_forward.experts.{e}.up",
        found: &[
            Place::new("layers.{i}.block_sparse_moe.experts.{e}.w3"),
            Place::new("layers.{i}.mlp.experts.gate_up_proj")
                .form(Form::Experts { part: 1, n_parts: 2 }),
        ],
    },
    ModuleNames {
        canonical: "decoder.layers.{i}.feed_forward.experts.{e}.down",
        found: &[
            Place::new("layers.{i}.block_sparse_moe.experts.{e}.w2"),
            Place::new("layers.{i}.mlp.experts.down_proj")
                .form(Form::Experts { part: 0, n_parts: 1 }),
        ],
    },
];

/// Most experts of all layers together.
const MAX_EXPERTS: u32 = 1 << 16;

fn describe(config: &Reader<'_>) -> Result<Architecture, TransformerError> {
    let kin = Kin {
        width: 14_336,
        kv_heads: Some(8),
        eps: 1e-5,
        theta: 1e6,
        max_positions: 4096 * 32,
        ..LLAMA
    };
    let mut architecture = llama::describe_kin(config, &kin)?;
    let n_experts = config.size("num_local_experts", 8)?;
    let n_active = config.size("num_experts_per_tok", 2)?;
    // A description names each expert's tensors, so their number in all layers is bounded, too.
    let n_layers = architecture.layers_mut().count() as u32;
    let most = (MAX_EXPERTS / n_layers.max(1)).min(1024);
    if n_experts > most {
        let wanted = format!("a whole number from 1 to {most} in {n_layers} layers");
        return Err(config.json.invalid("num_local_experts", wanted).into());
    }
    if n_active > n_experts {
        let wanted = format!("at most num_local_experts = {n_experts}");
        return Err(config.json.invalid("num_experts_per_tok", wanted).into());
    }
    let form = FeedForwardForm::Experts { n_experts, n_active };
    architecture.layers_mut().for_each(|layer| layer.feed_forward.form = form);
    let window = config.window(None)?;
    config.slide(&mut architecture, window, |_| true)?;
    Ok(architecture)
}
