//! Phi 3 (Abdin et al. 2024, arXiv:2404.14219), 3.5 and 4; transformers 5.24, `models/phi3`.
//!
//! Where a text grows past `original_max_position_embeddings`, `longrope` turns to its other factors,
//! and transformers computes the whole text anew (`prepare_inputs_for_generation`). A description has
//! no word for that: cached keys stay as they are.

use super::llama::{self, Kin, LLAMA};
use super::reader::Reader;
use super::{Family, Form, FusedPart, ModuleNames, Place};
use crate::architecture::Architecture;
use crate::error::TransformerError;

pub(super) static FAMILY: Family = Family {
    model_type: "phi3",
    describe,
    modules: &[&llama::EMBEDDINGS, &FUSED, &llama::NORMS],
    ..llama::FAMILY
};

const QKV: Place = Place::new("layers.{i}.self_attn.qkv_proj");
const GATE_UP: Place = Place::new("layers.{i}.mlp.gate_up_proj");

static FUSED: [ModuleNames; 7] = [
    ModuleNames {
        canonical: "decoder.layers.{i}.self_attention.q",
        found: &[QKV.form(Form::Fused(FusedPart::Q))],
    },
    ModuleNames {
        canonical: "decoder.layers.{i}.self_attention.k",
        found: &[QKV.form(Form::Fused(FusedPart::K))],
    },
    ModuleNames {
        canonical: "decoder.layers.{i}.self_attention.v",
        found: &[QKV.form(Form::Fused(FusedPart::V))],
    },
    ModuleNames {
        canonical: "decoder.layers.{i}.self_attention.o",
        found: &[Place::new("layers.{i}.self_attn.o_proj")],
    },
    ModuleNames {
        canonical: "decoder.layers.{i}.feed_forward.gate",
        found: &[GATE_UP.form(Form::Half(0))],
    },
    ModuleNames {
        canonical: "decoder.layers.{i}.feed_forward.up",
        found: &[GATE_UP.form(Form::Half(1))],
    },
    ModuleNames {
        canonical: "decoder.layers.{i}.feed_forward.down",
        found: &[Place::new("layers.{i}.mlp.down_proj")],
    },
];

fn describe(config: &Reader<'_>) -> Result<Architecture, TransformerError> {
    let kin = Kin {
        vocab: 32_064,
        dim: 3072,
        width: 8192,
        eps: 1e-5,
        max_positions: 4096,
        partial: Some(1.0),
        ..LLAMA
    };
    let mut architecture = llama::describe_kin(config, &kin)?;
    let window = config.window(None)?;
    config.slide(&mut architecture, window, |_| true)?;
    Ok(architecture)
}
