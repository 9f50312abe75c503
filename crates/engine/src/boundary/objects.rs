//! The twins of the author traits, and the root module by which a library is entered.
//!
//! Every method says who calls it and on which thread by its namesake in `model.rs` and
//! `services.rs`. Arguments are borrowed for the call, except boxes, which change owner even when
//! the call fails. A returned value belongs to the caller and is freed by the code of its maker,
//! which its box carries along.

use abi_stable::StableAbi;
use abi_stable::library::RootModule;
use abi_stable::sabi_trait;
use abi_stable::sabi_types::{RMut, VersionStrings};
use abi_stable::std_types::{RBox, ROption, RSlice, RStr, RVec};

use super::types::{
    AbiBatch, AbiCall, AbiEngineInfo, AbiLoadPlan, AbiLoadRequest, AbiOutputs, AbiPair, AbiRequest,
    AbiResult, AbiRows,
};
use crate::{AbiVersion, AdapterId, LogLevel, MetricKind, RequestModelInfo, SeqId, TokenModelInfo};

/// [`HostServices`](crate::HostServices), implemented by the host. Nothing it does fails.
#[sabi_trait]
pub trait AbiServices: Send + Sync {
    /// A log line.
    fn log(&self, level: LogLevel, message: RStr<'_>);
    /// A metric's value.
    fn metric(&self, kind: MetricKind, name: RStr<'_>, value: f64);
    /// Progress of loading.
    fn progress(&self, stage: RStr<'_>, done: u64, total: u64);
    /// Whether to stop.
    #[sabi(last_prefix_field)]
    fn cancelled(&self) -> bool;
}

/// [`Reply`](crate::Reply), implemented by the host and lent for one call.
#[sabi_trait]
pub trait AbiReply {
    /// Status code, reason and headers.
    fn head(&mut self, status: u16, reason: RStr<'_>, headers: RSlice<'_, AbiPair<'_>>);
    /// A piece of the body; `false` to stop.
    #[sabi(last_prefix_field)]
    fn frame(&mut self, bytes: RSlice<'_, u8>) -> bool;
}

/// [`Engine`](crate::Engine), implemented by the library.
#[sabi_trait]
pub trait AbiEngine: Send + Sync {
    /// Name, version and powers.
    fn info(&self) -> AbiResult<AbiEngineInfo>;
    /// Loads a model.
    fn load(&self, request: AbiLoadRequest<'_>, services: ServicesBox) -> AbiResult<AbiModel>;
    /// Says what loading it would do; without devices if it states no plan.
    #[sabi(last_prefix_field)]
    fn plan(&self, request: AbiLoadRequest<'_>, services: ServicesBox) -> AbiResult<AbiLoadPlan>;
}

/// [`TokenModel`](crate::TokenModel), implemented by the library.
#[sabi_trait]
pub trait AbiTokenModel: Send {
    /// Runs the encoder; the rows it took.
    fn encode(&mut self, batch: AbiBatch<'_>, out: AbiOutputs<'_>) -> AbiResult<AbiRows>;
    /// Runs a batch; the rows it took.
    fn forward(&mut self, batch: AbiBatch<'_>, out: AbiOutputs<'_>) -> AbiResult<AbiRows>;
    /// Shares a prefix.
    fn fork(&mut self, from: SeqId, to: SeqId, len: u32) -> AbiResult<()>;
    /// Cuts a sequence.
    fn truncate(&mut self, sequence: SeqId, len: u32) -> AbiResult<()>;
    /// Frees a sequence.
    fn release(&mut self, sequence: SeqId) -> AbiResult<()>;
    /// Sequences alive.
    fn n_sequences(&self) -> AbiResult<usize>;
    /// Loads an adapter from a directory, whose path is as the system has it.
    fn load_adapter(&mut self, adapter: AdapterId, dir: RSlice<'_, u8>) -> AbiResult<()>;
    /// Frees an adapter.
    fn unload_adapter(&mut self, adapter: AdapterId) -> AbiResult<()>;
    /// Whether the model can still compute.
    #[sabi(last_prefix_field)]
    fn health(&mut self) -> AbiResult<()>;
}

/// [`RequestModel`](crate::RequestModel), implemented by the library.
#[sabi_trait]
pub trait AbiRequestModel: Send + Sync {
    /// Answers a request.
    fn call(&self, request: AbiRequest<'_>, reply: ReplyRef<'_>) -> AbiResult<()>;
    /// Answers several requests; the end of each in order.
    fn call_batch(&self, calls: RVec<AbiCall<'_>>) -> AbiResult<RVec<AbiResult<()>>>;
    /// Whether the model can still answer.
    #[sabi(last_prefix_field)]
    fn health(&self) -> AbiResult<()>;
}

/// The host's services, owned by the library.
pub type ServicesBox = AbiServices_TO<'static, RBox<()>>;
/// The host's reply, borrowed for a call.
pub type ReplyRef<'a> = AbiReply_TO<'a, RMut<'a, ()>>;
/// The library's engine, owned by the host.
pub type EngineBox = AbiEngine_TO<'static, RBox<()>>;
/// A token model, owned by the host.
pub type TokenModelBox = AbiTokenModel_TO<'static, RBox<()>>;
/// A request model, owned by the host.
pub type RequestModelBox = AbiRequestModel_TO<'static, RBox<()>>;

/// A loaded model: one of the two is there.
#[repr(C)]
#[derive(StableAbi)]
pub struct AbiModel {
    pub(crate) token: ROption<AbiLoadedTokenModel>,
    pub(crate) request: ROption<AbiLoadedRequestModel>,
}

/// A token model with its figures, asked for once.
#[repr(C)]
#[derive(StableAbi)]
pub struct AbiLoadedTokenModel {
    pub(crate) info: TokenModelInfo,
    pub(crate) model: TokenModelBox,
}

/// A request model with its figures, asked for once.
#[repr(C)]
#[derive(StableAbi)]
pub struct AbiLoadedRequestModel {
    pub(crate) info: RequestModelInfo,
    pub(crate) model: RequestModelBox,
}

/// What a library exports. A minor version adds fields at the end, after `engine`.
#[repr(C)]
#[derive(StableAbi)]
#[sabi(kind(Prefix(prefix_ref = EngineModuleRef)))]
#[sabi(missing_field(panic))]
pub struct EngineModule {
    /// The ABI the library speaks.
    pub abi: AbiVersion,
    /// The library's engine. Every call hands out the same one.
    #[sabi(last_prefix_field)]
    pub engine: extern "C" fn() -> AbiResult<EngineBox>,
}

impl RootModule for EngineModuleRef {
    abi_stable::declare_root_module_statics! {EngineModuleRef}
    const BASE_NAME: &'static str = "drivetrain_engine";
    const NAME: &'static str = "drivetrain_engine";
    const VERSION_STRINGS: VersionStrings = abi_stable::package_version_strings!();
}
