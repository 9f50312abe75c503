//! A model under test, and the numbers it is compared with. The engine is the one that `main.rs` names:
//! other engines compile these files, too.

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use drivetrain_engine::{
    AdapterId, Batch, Engine, EngineError, LoadRequest, LoadedModel, ModelKind, Options, Outputs,
    Segment, SeqId, Services, TokenModel, TokenModelInfo, Wanted,
};
use safetensors::SafeTensors;
use serde_json::Value;

use crate::{ENGINE, EXACT, options_of};

/// Tolerance on logits.
pub(crate) const LOGITS: f32 = 1e-3;
/// Tolerance on hidden states.
pub(crate) const HIDDEN: f32 = 1e-4;

/// A path under the workspace's root.
pub(crate) fn workspace(relative: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(relative)
}

pub(crate) fn try_load(
    dir: &Path,
    options: &[(&str, &str)],
) -> Result<Box<dyn TokenModel>, EngineError> {
    try_load_with(dir, None, options)
}

pub(crate) fn try_load_with(
    dir: &Path,
    adapter_dir: Option<&Path>,
    options: &[(&str, &str)],
) -> Result<Box<dyn TokenModel>, EngineError> {
    let own = options_of(dir);
    let own = own.iter().map(|(key, value)| (*key, value.as_str()));
    let options: Vec<(&str, &str)> = own.chain(options.iter().copied()).collect();
    load_as_is(dir, adapter_dir, &options)
}

/// The same without the options that the suite has for the model.
pub(crate) fn load_as_is(
    dir: &Path,
    adapter_dir: Option<&Path>,
    options: &[(&str, &str)],
) -> Result<Box<dyn TokenModel>, EngineError> {
    let request = LoadRequest {
        model_name: "test",
        model_dir: dir,
        adapter_dir,
        options: Options::new(options),
        n_threads: NonZeroUsize::new(2).unwrap(),
        services: Services::silent(),
    };
    match ENGINE.load(&request)? {
        LoadedModel::Token(model) => Ok(model),
        LoadedModel::Request(_) => panic!("a request model"),
    }
}

/// A loaded model with the sequences' names given out.
pub(crate) struct Model {
    pub(crate) inner: Box<dyn TokenModel>,
    pub(crate) info: TokenModelInfo,
    next: u64,
    /// The adapters that sequences go through; none for others.
    pub(crate) adapters: HashMap<SeqId, AdapterId>,
}

/// What one segment is.
#[derive(Clone, Copy)]
pub(crate) struct Part<'a> {
    pub(crate) sequence: SeqId,
    pub(crate) tokens: &'a [u32],
    pub(crate) position: usize,
    pub(crate) wanted: Wanted,
}

/// Rows of logits and of hidden states.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Rows {
    pub(crate) logits: Vec<f32>,
    pub(crate) hidden: Vec<f32>,
}

impl Model {
    pub(crate) fn load(dir: &Path) -> Self {
        let inner = try_load(dir, EXACT)
            .unwrap_or_else(|error| panic!("{}: {error}: {:?}", dir.display(), error.causes()));
        Self::of(inner)
    }

    pub(crate) fn of(inner: Box<dyn TokenModel>) -> Self {
        Self { info: inner.info(), inner, next: 1, adapters: HashMap::new() }
    }

    pub(crate) fn name(&mut self) -> SeqId {
        self.next += 1;
        SeqId(self.next)
    }

    pub(crate) fn try_run(
        &mut self,
        encode: bool,
        parts: &[Part<'_>],
        token_types: &[u32],
    ) -> Result<Rows, EngineError> {
        let (mut tokens, mut segments) = (Vec::new(), Vec::new());
        for part in parts {
            segments.push(Segment {
                sequence: part.sequence,
                first_token: tokens.len() as u32,
                n_tokens: part.tokens.len() as u32,
                position: part.position as u32,
                wanted: part.wanted,
                adapter: self.adapters.get(&part.sequence).copied().unwrap_or_default(),
            });
            tokens.extend_from_slice(part.tokens);
        }
        let batch = Batch::new(&segments, &tokens, token_types)?;
        let (n_logits, dim) = (self.info.n_logits as usize, self.info.dim as usize);
        let mut rows = Rows {
            logits: vec![f32::NAN; batch.n_logits_rows() * n_logits],
            hidden: vec![f32::NAN; batch.n_hidden_rows() * dim],
        };
        let mut out = Outputs::new(&mut rows.logits, n_logits, &mut rows.hidden, dim);
        if encode {
            self.inner.encode(&batch, &mut out)?;
        } else {
            self.inner.forward(&batch, &mut out)?;
        }
        assert_eq!(out.n_logits_taken(), batch.n_logits_rows());
        assert_eq!(out.n_hidden_taken(), batch.n_hidden_rows());
        Ok(rows)
    }

    pub(crate) fn forward(&mut self, parts: &[Part<'_>]) -> Rows {
        self.try_run(false, parts, &[]).unwrap()
    }

    /// One segment of `forward`.
    pub(crate) fn step(
        &mut self,
        sequence: SeqId,
        tokens: &[u32],
        position: usize,
        wanted: Wanted,
    ) -> Rows {
        self.forward(&[Part { sequence, tokens, position, wanted }])
    }

    /// One segment of `encode`.
    pub(crate) fn encode(&mut self, sequence: SeqId, tokens: &[u32], wanted: Wanted) -> Rows {
        self.try_run(true, &[Part { sequence, tokens, position: 0, wanted }], &[]).unwrap()
    }

    /// A new sequence; for an encoder-decoder model, with `input` encoded.
    pub(crate) fn begin(&mut self, input: &[u32]) -> SeqId {
        let sequence = self.name();
        if self.info.kind == ModelKind::EncoderDecoder {
            self.encode(sequence, input, Wanted::Nothing);
        }
        sequence
    }

    /// Feeds `tokens` as a whole and then one token a time, each the best so far; `force` may
    /// replace the token of a step.
    pub(crate) fn greedy(
        &mut self,
        sequence: SeqId,
        tokens: &[u32],
        n: usize,
        force: impl Fn(usize) -> Option<u32>,
    ) -> Vec<u32> {
        let mut new = Vec::new();
        let mut logits = self.step(sequence, tokens, 0, Wanted::LastLogits).logits;
        while new.len() < n {
            let token = force(new.len()).unwrap_or_else(|| argmax(&logits));
            new.push(token);
            let position = tokens.len() + new.len() - 1;
            if new.len() < n {
                logits = self.step(sequence, &[token], position, Wanted::LastLogits).logits;
            }
        }
        new
    }
}

pub(crate) fn argmax(logits: &[f32]) -> u32 {
    let best = (0..logits.len()).max_by(|a, b| logits[*a].total_cmp(&logits[*b]).then(b.cmp(a)));
    best.unwrap() as u32
}

#[track_caller]
pub(crate) fn assert_close(what: &str, found: &[f32], expect: &[f32], tolerance: f32) {
    assert_eq!(found.len(), expect.len(), "{what}: lengths");
    let far = found.iter().zip(expect).map(|(a, b)| (a - b).abs());
    let worst = far.fold(0.0f32, |worst, d| if d.is_nan() { f32::INFINITY } else { worst.max(d) });
    assert!(worst <= tolerance, "{what}: off by {worst}, at most {tolerance} is allowed");
}

/// `reference.json` and `reference.safetensors` of a folder.
pub(crate) struct Reference {
    pub(crate) json: Value,
    bytes: Vec<u8>,
}

impl Reference {
    pub(crate) fn read(dir: &Path) -> Self {
        let json = std::fs::read(dir.join("reference.json")).unwrap();
        Self {
            json: serde_json::from_slice(&json).unwrap(),
            bytes: std::fs::read(dir.join("reference.safetensors")).unwrap(),
        }
    }

    /// An f32 array, row-major, if it is there.
    pub(crate) fn array(&self, name: &str) -> Option<Vec<f32>> {
        let tensors = SafeTensors::deserialize(&self.bytes).unwrap();
        let data = tensors.tensor(name).ok()?;
        assert_eq!(data.dtype(), safetensors::Dtype::F32, "{name}");
        Some(data.data().as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect())
    }
}

pub(crate) fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}
