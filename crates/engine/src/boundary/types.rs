//! The data that crosses the boundary: `repr(C)` structs of borrowed slices, owned strings of the
//! side that made them, and C-like enums.

use std::path::{Path, PathBuf};

use abi_stable::StableAbi;
use abi_stable::std_types::{ROption, RResult, RSlice, RSliceMut, RStr, RString, RVec};

use super::objects::ReplyRef;
use crate::batch::{Batch, Outputs, Rows, Segment, TokenId};
use crate::{DevicePlan, EngineError, EngineInfo, ErrorKind, LoadPlan, PlacedModule, PlannedPart};

/// What an entry point returns.
pub(crate) type AbiResult<T> = RResult<T, AbiError>;

/// An [`EngineError`]; its strings belong to the side that made it.
#[repr(C)]
#[derive(StableAbi)]
pub struct AbiError {
    kind: ErrorKind,
    message: RString,
    causes: RVec<RString>,
}

impl From<EngineError> for AbiError {
    fn from(error: EngineError) -> Self {
        Self {
            kind: error.kind(),
            message: error.message().into(),
            causes: error.causes().iter().map(|cause| cause.as_str().into()).collect(),
        }
    }
}

impl From<AbiError> for EngineError {
    fn from(error: AbiError) -> Self {
        let causes = error.causes.iter().map(|cause| cause.as_str().to_owned()).collect();
        Self::with_causes(error.kind, error.message.as_str(), causes)
    }
}

/// An [`EngineInfo`].
#[repr(C)]
#[derive(StableAbi)]
pub struct AbiEngineInfo {
    name: RString,
    aliases: RVec<RString>,
    version: RString,
    description: RString,
    devices: RVec<RString>,
    capabilities: RVec<RString>,
}

impl From<EngineInfo> for AbiEngineInfo {
    fn from(info: EngineInfo) -> Self {
        let list = |texts: Vec<String>| texts.into_iter().map(RString::from).collect();
        Self {
            name: info.name.into(),
            aliases: list(info.aliases),
            version: info.version.into(),
            description: info.description.into(),
            devices: list(info.devices),
            capabilities: list(info.capabilities),
        }
    }
}

impl From<AbiEngineInfo> for EngineInfo {
    fn from(info: AbiEngineInfo) -> Self {
        // The strings are copied, because those of `info` belong to the library's allocator.
        let list = |texts: &RVec<RString>| texts.iter().map(|t| t.as_str().to_owned()).collect();
        Self {
            name: info.name.as_str().to_owned(),
            aliases: list(&info.aliases),
            version: info.version.as_str().to_owned(),
            description: info.description.as_str().to_owned(),
            devices: list(&info.devices),
            capabilities: list(&info.capabilities),
        }
    }
}

/// A [`LoadPlan`], or none if it has no devices; its strings and lists belong to the library.
#[repr(C)]
#[derive(StableAbi)]
pub struct AbiLoadPlan {
    devices: RVec<AbiDevicePlan>,
    placements: RVec<AbiPlacedModule>,
    kv_capacity_tokens: u64,
    cross_capacity_tokens: u64,
    max_batch_tokens: u32,
    max_sequences: u32,
    notes: RVec<RString>,
}

/// A [`DevicePlan`].
#[repr(C)]
#[derive(StableAbi)]
pub struct AbiDevicePlan {
    name: RString,
    limit_bytes: ROption<u64>,
    parts: RVec<AbiPlannedPart>,
}

/// A [`PlannedPart`].
#[repr(C)]
#[derive(StableAbi)]
pub struct AbiPlannedPart {
    what: RString,
    bytes: u64,
}

/// A [`PlacedModule`].
#[repr(C)]
#[derive(StableAbi)]
pub struct AbiPlacedModule {
    module: RString,
    device: RString,
    bytes: u64,
}

impl AbiLoadPlan {
    /// `plan` for the host.
    pub(crate) fn of(plan: Option<LoadPlan>) -> Result<Self, EngineError> {
        match plan {
            Some(plan) if plan.devices.is_empty() => {
                Err(EngineError::internal("the engine's plan names no device"))
            }
            plan => Ok(plan.unwrap_or_default().into()),
        }
    }
}

impl LoadPlan {
    /// What the library stated, if it did.
    pub(crate) fn stated(plan: AbiLoadPlan) -> Option<Self> {
        (!plan.devices.is_empty()).then(|| plan.into())
    }
}

impl From<LoadPlan> for AbiLoadPlan {
    fn from(plan: LoadPlan) -> Self {
        let part = |part: PlannedPart| AbiPlannedPart { what: part.what.into(), bytes: part.bytes };
        let device = |device: DevicePlan| AbiDevicePlan {
            name: device.name.into(),
            limit_bytes: device.limit_bytes.into(),
            parts: device.parts.into_iter().map(part).collect(),
        };
        let placed = |placed: PlacedModule| AbiPlacedModule {
            module: placed.module.into(),
            device: placed.device.into(),
            bytes: placed.bytes,
        };
        Self {
            devices: plan.devices.into_iter().map(device).collect(),
            placements: plan.placements.into_iter().map(placed).collect(),
            kv_capacity_tokens: plan.kv_capacity_tokens,
            cross_capacity_tokens: plan.cross_capacity_tokens,
            max_batch_tokens: plan.max_batch_tokens,
            max_sequences: plan.max_sequences,
            notes: plan.notes.into_iter().map(RString::from).collect(),
        }
    }
}

impl From<AbiLoadPlan> for LoadPlan {
    fn from(plan: AbiLoadPlan) -> Self {
        // Everything is copied, because it belongs to the library's allocator.
        let text = |text: &RString| text.as_str().to_owned();
        let part =
            |part: &AbiPlannedPart| PlannedPart { what: text(&part.what), bytes: part.bytes };
        let device = |device: &AbiDevicePlan| DevicePlan {
            name: text(&device.name),
            limit_bytes: device.limit_bytes.into_option(),
            parts: device.parts.iter().map(part).collect(),
        };
        let placed = |placed: &AbiPlacedModule| PlacedModule {
            module: text(&placed.module),
            device: text(&placed.device),
            bytes: placed.bytes,
        };
        Self {
            devices: plan.devices.iter().map(device).collect(),
            placements: plan.placements.iter().map(placed).collect(),
            kv_capacity_tokens: plan.kv_capacity_tokens,
            cross_capacity_tokens: plan.cross_capacity_tokens,
            max_batch_tokens: plan.max_batch_tokens,
            max_sequences: plan.max_sequences,
            notes: plan.notes.iter().map(text).collect(),
        }
    }
}

/// A key and its value: an option, a header.
#[repr(C)]
#[derive(StableAbi, Clone, Copy)]
pub struct AbiPair<'a> {
    key: RStr<'a>,
    value: RStr<'a>,
}

impl<'a> AbiPair<'a> {
    pub(crate) fn new((key, value): (&'a str, &'a str)) -> Self {
        Self { key: key.into(), value: value.into() }
    }

    pub(crate) fn get(self) -> (&'a str, &'a str) {
        (self.key.as_str(), self.value.as_str())
    }
}

/// A content entry of a request: its name and bytes.
#[repr(C)]
#[derive(StableAbi, Clone, Copy)]
pub struct AbiEntry<'a> {
    name: RStr<'a>,
    bytes: RSlice<'a, u8>,
}

impl<'a> AbiEntry<'a> {
    pub(crate) fn new((name, bytes): (&'a str, &'a [u8])) -> Self {
        Self { name: name.into(), bytes: bytes.into() }
    }

    pub(crate) fn get(self) -> (&'a str, &'a [u8]) {
        (self.name.as_str(), self.bytes.as_slice())
    }
}

/// A [`LoadRequest`](crate::LoadRequest) but for the services.
#[repr(C)]
#[derive(StableAbi, Clone, Copy)]
pub struct AbiLoadRequest<'a> {
    pub(crate) model_name: RStr<'a>,
    /// The path as the system has it, UTF-8 or not.
    pub(crate) model_dir: RSlice<'a, u8>,
    /// Likewise; empty for none.
    pub(crate) adapter_dir: RSlice<'a, u8>,
    pub(crate) options: RSlice<'a, AbiPair<'a>>,
    pub(crate) n_threads: usize,
}

/// A [`Request`](crate::Request).
#[repr(C)]
#[derive(StableAbi, Clone, Copy)]
pub struct AbiRequest<'a> {
    pub(crate) id: RStr<'a>,
    pub(crate) properties: RSlice<'a, AbiPair<'a>>,
    pub(crate) content: RSlice<'a, AbiEntry<'a>>,
}

/// A [`Call`](crate::Call): a request with the reply that is lent for it.
#[repr(C)]
#[derive(StableAbi)]
pub struct AbiCall<'a> {
    pub(crate) request: AbiRequest<'a>,
    pub(crate) reply: ReplyRef<'a>,
}

/// A [`Batch`]: the host's own slices.
#[repr(C)]
#[derive(StableAbi, Clone, Copy)]
pub struct AbiBatch<'a> {
    segments: RSlice<'a, Segment>,
    tokens: RSlice<'a, TokenId>,
    token_types: RSlice<'a, u32>,
}

impl<'a> AbiBatch<'a> {
    pub(crate) fn new(batch: &Batch<'a>) -> Self {
        Self {
            segments: batch.raw_segments().into(),
            tokens: batch.tokens().into(),
            token_types: batch.token_types().into(),
        }
    }

    pub(crate) fn get(self) -> Result<Batch<'a>, EngineError> {
        let (segments, tokens) = (self.segments.as_slice(), self.tokens.as_slice());
        Batch::new(segments, tokens, self.token_types.as_slice())
    }
}

/// An [`Outputs`]: the rows of the host's buffers that the batch wants, no more.
#[repr(C)]
#[derive(StableAbi)]
pub struct AbiOutputs<'a> {
    logits: RSliceMut<'a, f32>,
    n_logits: usize,
    hidden: RSliceMut<'a, f32>,
    dim: usize,
}

impl<'a> AbiOutputs<'a> {
    /// The next `wanted` rows of `out`, which the caller marks as taken after the call.
    pub(crate) fn new(out: &'a mut Outputs<'_>, wanted: AbiRows) -> Result<Self, EngineError> {
        let (n_logits, dim) = (out.logits.width, out.hidden.width);
        Ok(Self {
            logits: next_rows(&mut out.logits, wanted.logits)?.into(),
            n_logits,
            hidden: next_rows(&mut out.hidden, wanted.hidden)?.into(),
            dim,
        })
    }

    pub(crate) fn get(self) -> Outputs<'a> {
        Outputs::new(
            self.logits.into_mut_slice(),
            self.n_logits,
            self.hidden.into_mut_slice(),
            self.dim,
        )
    }
}

/// The next `n` rows, not marked as taken.
fn next_rows<'a>(rows: &'a mut Rows<'_>, n: usize) -> Result<&'a mut [f32], EngineError> {
    let (start, n_floats) = (rows.n_taken * rows.width, n.saturating_mul(rows.width));
    let n_free = rows.data.len().saturating_sub(start).checked_div(rows.width).unwrap_or(0);
    rows.data.get_mut(start..start.saturating_add(n_floats)).ok_or_else(|| {
        EngineError::internal(format!(
            "the batch wants {n} rows of {} and the buffer has room for {n_free}",
            rows.what
        ))
    })
}

/// How many rows a batch wants, or an engine took.
#[repr(C)]
#[derive(StableAbi, Clone, Copy, PartialEq, Eq)]
pub struct AbiRows {
    pub(crate) logits: usize,
    pub(crate) hidden: usize,
}

impl AbiRows {
    pub(crate) fn wanted_by(batch: &Batch<'_>) -> Self {
        Self { logits: batch.n_logits_rows(), hidden: batch.n_hidden_rows() }
    }

    pub(crate) fn taken_of(out: &Outputs<'_>) -> Self {
        Self { logits: out.n_logits_taken(), hidden: out.n_hidden_taken() }
    }
}

/// The bytes of a path as the system has it.
#[cfg(unix)]
pub(crate) fn path_bytes(path: &Path) -> Result<&[u8], EngineError> {
    use std::os::unix::ffi::OsStrExt;
    Ok(path.as_os_str().as_bytes())
}

/// The bytes of a path, which has to be UTF-8 where the system's own form is not bytes.
#[cfg(not(unix))]
pub(crate) fn path_bytes(path: &Path) -> Result<&[u8], EngineError> {
    path.to_str().map(str::as_bytes).ok_or_else(|| {
        EngineError::bad_input(format!("{}: the path has to be valid Unicode", path.display()))
    })
}

/// The path that [`path_bytes`] took apart.
#[cfg(unix)]
pub(crate) fn path_from_bytes(bytes: &[u8]) -> Result<PathBuf, EngineError> {
    use std::os::unix::ffi::OsStrExt;
    Ok(PathBuf::from(std::ffi::OsStr::from_bytes(bytes)))
}

/// The path that [`path_bytes`] took apart.
#[cfg(not(unix))]
pub(crate) fn path_from_bytes(bytes: &[u8]) -> Result<PathBuf, EngineError> {
    std::str::from_utf8(bytes)
        .map(PathBuf::from)
        .map_err(|error| EngineError::wrap(ErrorKind::BadInput, "the model's path", &error))
}
