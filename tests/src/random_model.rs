//! Models of any size with random weights, for what depends on sizes alone.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::Result;
use serde_json::{Map, json};

use crate::{Random, copy_model, edit_json};

/// The shape of a LLaMA with the fixture's vocabulary.
#[derive(Clone, Copy, Debug)]
pub struct RandomLlama {
    /// Hidden size: a multiple of 64.
    pub dim: usize,
    /// Rows of a layer's feed-forward matrices.
    pub inner: usize,
    /// How many layers there are.
    pub n_layers: usize,
    /// The longest sequence.
    pub max_positions: usize,
}

impl RandomLlama {
    /// Bytes of its weights in f32.
    pub fn weight_bytes(&self) -> u64 {
        let layer = 4 * self.dim * self.dim + 3 * self.dim * self.inner + 2 * self.dim;
        4 * (self.n_layers * layer + VOCAB * self.dim + self.dim) as u64
    }

    /// Writes it to `dir`, with the fixture's tokenizer.
    ///
    /// # Errors
    /// If the files can't be written.
    pub fn write(&self, dir: &Path) -> Result<PathBuf> {
        let dir = copy_model("llama_gqa", dir);
        let config = json!({
            "hidden_size": self.dim, "intermediate_size": self.inner,
            "num_hidden_layers": self.n_layers, "max_position_embeddings": self.max_positions,
            "num_attention_heads": self.dim / 64, "num_key_value_heads": self.dim / 64,
            "head_dim": 64,
        });
        edit_json(&dir.join("config.json"), &config);
        let tensors = self.tensors();
        let (mut header, mut end) = (Map::new(), 0);
        for (name, shape) in &tensors {
            let begin = end;
            end += 4 * shape.iter().product::<usize>();
            let entry = json!({"dtype": "F32", "shape": shape, "data_offsets": [begin, end]});
            header.insert(name.clone(), entry);
        }
        let mut header = serde_json::Value::Object(header).to_string().into_bytes();
        header.resize(header.len().next_multiple_of(8), b' ');
        let mut file = BufWriter::new(File::create(dir.join("model.safetensors"))?);
        file.write_all(&(header.len() as u64).to_le_bytes())?;
        file.write_all(&header)?;
        let mut random = Random::new(7);
        // Numbers around 0 with a deviation that keeps the sizes of hidden states.
        let scale = 2.0 / (self.dim as f32).sqrt();
        let uniform = |n: u64| (n >> 40) as f32 / (1u64 << 24) as f32 - 0.5;
        let table: Vec<u8> =
            (0..1 << 17).flat_map(|_| (scale * uniform(random.number())).to_le_bytes()).collect();
        for (name, shape) in &tensors {
            let mut left = 4 * shape.iter().product::<usize>();
            if name.ends_with("norm.weight") {
                file.write_all(&1.0f32.to_le_bytes().repeat(left / 4))?;
                continue;
            }
            while left > 0 {
                let start = 4 * random.below(table.len() / 8);
                let n = left.min(table.len() / 2);
                file.write_all(&table[start..start + n])?;
                left -= n;
            }
        }
        file.flush()?;
        Ok(dir)
    }

    /// Names and shapes in the order of the checkpoint.
    fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let (d, f) = (self.dim, self.inner);
        let mut tensors = vec![("model.embed_tokens.weight".to_owned(), vec![VOCAB, d])];
        for layer in 0..self.n_layers {
            let parts = [
                ("input_layernorm", vec![d]),
                ("self_attn.q_proj", vec![d, d]),
                ("self_attn.k_proj", vec![d, d]),
                ("self_attn.v_proj", vec![d, d]),
                ("self_attn.o_proj", vec![d, d]),
                ("post_attention_layernorm", vec![d]),
                ("mlp.gate_proj", vec![f, d]),
                ("mlp.up_proj", vec![f, d]),
                ("mlp.down_proj", vec![d, f]),
            ];
            let named =
                parts.map(|(part, shape)| (format!("model.layers.{layer}.{part}.weight"), shape));
            tensors.extend(named);
        }
        tensors.push(("model.norm.weight".to_owned(), vec![d]));
        tensors
    }
}

/// Rows of the fixture's token table.
const VOCAB: usize = 379;
