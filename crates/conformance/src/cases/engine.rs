//! What an engine says of itself, and loads that have to fail.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use drivetrain_engine::{
    ErrorKind, HeadKind, HostServices, LogLevel, MetricKind, ModelKind, Services,
};

use crate::suite::{Context, Loader, Stop, Verdict, describe, ensure};

pub(super) fn info_is_sane(loader: &Loader<'_>) -> Verdict {
    let info = loader.engine.info();
    for name in std::iter::once(&info.name).chain(&info.aliases) {
        let good =
            |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-_".contains(&byte);
        ensure(!name.is_empty() && name.bytes().all(good), || {
            format!("name {name:?}: expected lower-case letters, digits, - and _")
        })?;
    }
    ensure(!info.version.is_empty(), || "the version is empty".to_owned())?;
    ensure(!info.devices.is_empty(), || "no device is named, not even cpu".to_owned())?;
    ensure(loader.engine.info() == info, || "the info differs from call to call".to_owned())?;
    Ok(None)
}

pub(super) fn model_info_is_sane(context: &mut Context<'_>) -> Verdict {
    let info = context.driver.info;
    let at_least_one = [
        ("vocab", u64::from(info.vocab)),
        ("n_logits or dim", u64::from(info.n_logits.max(info.dim))),
        ("max_positions", u64::from(info.max_positions)),
        ("max_sequences", u64::from(info.max_sequences)),
        ("max_batch_tokens", u64::from(info.max_batch_tokens)),
        ("kv_block_tokens", u64::from(info.kv_block_tokens)),
    ];
    let cached = [("kv_capacity_tokens", info.kv_capacity_tokens)];
    let crossed = [
        ("max_encoder_positions", u64::from(info.max_encoder_positions)),
        ("cross_capacity_tokens", info.cross_capacity_tokens),
    ];
    let (n_cached, n_crossed) = match info.kind {
        ModelKind::Encoder => (0, 0),
        ModelKind::Decoder => (1, 0),
        ModelKind::EncoderDecoder => (1, 2),
    };
    let figures = at_least_one.iter().chain(&cached[..n_cached]).chain(&crossed[..n_crossed]);
    for (name, value) in figures {
        ensure(*value > 0, || format!("{name} is 0: expected 1 or more"))?;
    }
    let has_head = info.head != HeadKind::None;
    ensure(has_head == (info.n_logits > 0), || {
        format!(
            "head is {:?} and n_logits is {}: no head makes no logits",
            info.head, info.n_logits
        )
    })?;
    ensure(info.head != HeadKind::QuestionAnswering || info.n_logits == 2, || {
        format!("n_logits is {}: question answering has a start and an end, 2", info.n_logits)
    })?;
    ensure(context.driver.model().info() == info, || {
        "the info differs from call to call".to_owned()
    })?;
    Ok(None)
}

pub(super) fn missing_directory(loader: &Loader<'_>) -> Verdict {
    let scratch = Scratch::new()?;
    refused(loader, &scratch.path().join("nowhere"))
}

pub(super) fn empty_directory(loader: &Loader<'_>) -> Verdict {
    refused(loader, Scratch::new()?.path())
}

pub(super) fn damaged_directory(loader: &Loader<'_>) -> Verdict {
    let scratch = Scratch::new()?;
    let files: [(&str, &[u8]); 6] = [
        ("config.json", b"{\"model_type\": \"gpt2\", \"vocab_size\": -1"),
        ("model.safetensors", b"\xff\xff\xff\xff\xff\xff\xff\x7f{}"),
        ("pytorch_model.bin", b"PK\x03\x04 and then nothing"),
        ("tokenizer.json", b"[[[[[[[["),
        ("vocab.txt", b"\0\xff\xfe"),
        ("serving.properties", b"engine\\"),
    ];
    for (name, bytes) in files {
        fs::write(scratch.path().join(name), bytes).map_err(|error| scratch_failed(&error))?;
    }
    refused(loader, scratch.path())
}

fn refused(loader: &Loader<'_>, dir: &Path) -> Verdict {
    match loader.load_from(dir, Services::silent()) {
        Ok(_) => Err(Stop::Fail("a model was loaded where there is none".to_owned())),
        Err(error) => match error.kind() {
            ErrorKind::BadInput | ErrorKind::Unsupported => Ok(None),
            _ => Err(Stop::Fail(format!("expected bad input, got {}", describe(&error)))),
        },
    }
}

pub(super) fn loading_can_be_cancelled(context: &mut Context<'_>) -> Verdict {
    let services = Services::new(Arc::new(Impatient));
    let dir = context.loader.options.model_dir.as_deref().unwrap_or(Path::new(""));
    match context.loader.load_from(dir, services) {
        Ok(_) => Ok(Some("it was loaded before it asked".to_owned())),
        Err(error) if error.kind() == ErrorKind::Cancelled => Ok(None),
        Err(error) => Err(Stop::Fail(format!("expected cancelled, got {}", describe(&error)))),
    }
}

/// A host that wants no model any more.
struct Impatient;

impl HostServices for Impatient {
    fn log(&self, _: LogLevel, _: &str) {}
    fn metric(&self, _: MetricKind, _: &str, _: f64) {}
    fn progress(&self, _: &str, _: u64, _: u64) {}
    fn cancelled(&self) -> bool {
        true
    }
}

/// An empty directory that goes away again.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Result<Self, Stop> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("drivetrain-check-{}-{count}", std::process::id());
        let path = std::env::temp_dir().join(name);
        fs::create_dir_all(&path).map_err(|error| scratch_failed(&error))?;
        Ok(Self(path))
    }

    fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What can't be removed stays in the system's temporary folder, which is swept anyway.
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn scratch_failed(error: &std::io::Error) -> Stop {
    Stop::Skip(format!("the system's temporary folder can't be written: {error}"))
}
