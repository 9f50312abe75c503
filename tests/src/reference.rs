//! What transformers computed for a fixture.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;

/// A fixture's recorded outputs.
#[derive(Debug)]
pub struct Reference {
    /// `reference.json`.
    pub json: Value,
    tensors: Vec<u8>,
}

impl Reference {
    /// Reads both files of a fixture's directory.
    ///
    /// # Errors
    /// If one of them can't be read.
    pub fn read(dir: &Path) -> Result<Self> {
        let json = std::fs::read(dir.join("reference.json"))?;
        let tensors = std::fs::read(dir.join("reference.safetensors"))?;
        Ok(Self { json: serde_json::from_slice(&json)?, tensors })
    }

    /// The text of prompt `idx`.
    ///
    /// # Errors
    /// If there is none.
    pub fn prompt(&self, idx: usize) -> Result<&str> {
        let text = self.json.pointer(&format!("/prompts/{idx}/text"));
        text.and_then(Value::as_str).with_context(|| format!("no prompt {idx}"))
    }

    /// The greedy text of prompt `idx`; with the prompt before it if `key` is `text_with_prompt`.
    ///
    /// # Errors
    /// If there is none.
    pub fn greedy(&self, idx: usize, key: &str) -> Result<&str> {
        let text = self.json.pointer(&format!("/greedy/{idx}/{key}"));
        text.and_then(Value::as_str).with_context(|| format!("no greedy {key} {idx}"))
    }

    /// A recorded array as rows.
    ///
    /// # Errors
    /// If it is absent or no f32 matrix.
    pub fn rows(&self, name: &str) -> Result<Vec<Vec<f32>>> {
        let tensors = SafeTensors::deserialize(&self.tensors)?;
        let tensor = tensors.tensor(name)?;
        ensure!(tensor.dtype() == Dtype::F32, "{name} is {:?}", tensor.dtype());
        let width = *tensor.shape().last().context("a scalar")?;
        let values: Vec<f32> = tensor
            .data()
            .as_chunks::<4>()
            .0
            .iter()
            .map(|bytes| f32::from_le_bytes(*bytes))
            .collect();
        Ok(values.chunks_exact(width).map(<[f32]>::to_vec).collect())
    }
}

/// The largest difference between `got`, nested JSON lists of numbers `[rows][columns]`, and `want`.
///
/// # Errors
/// If the shapes differ or something is no number.
pub fn largest_difference(got: &Value, want: &[Vec<f32>]) -> Result<f32> {
    let rows = got.as_array().context("not a list of rows")?;
    ensure!(rows.len() == want.len(), "{} rows, {} wanted", rows.len(), want.len());
    let mut largest = 0_f32;
    for (row, want) in rows.iter().zip(want) {
        let row = row.as_array().context("a row is not a list")?;
        ensure!(row.len() == want.len(), "{} columns, {} wanted", row.len(), want.len());
        for (value, want) in row.iter().zip(want) {
            let value = value.as_f64().context("not a number")? as f32;
            largest = largest.max((value - want).abs());
        }
    }
    Ok(largest)
}
