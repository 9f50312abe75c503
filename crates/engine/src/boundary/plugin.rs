//! The library's side: an author's engine and models behind the ABI, and the host's services and
//! reply behind the author's traits.

use std::num::NonZeroUsize;
use std::sync::{Arc, OnceLock};

use abi_stable::erased_types::TD_Opaque;
use abi_stable::std_types::{RNone, RSlice, RSome, RStr, RVec};

use super::objects::{
    AbiEngine, AbiEngine_TO, AbiLoadedRequestModel, AbiLoadedTokenModel, AbiModel, AbiRequestModel,
    AbiRequestModel_TO, AbiTokenModel, AbiTokenModel_TO, EngineBox, ReplyRef, ServicesBox,
};
use super::panics::{catch, guard};
use super::types::{
    AbiBatch, AbiCall, AbiEngineInfo, AbiLoadPlan, AbiLoadRequest, AbiOutputs, AbiPair, AbiRequest,
    AbiResult, AbiRows, path_from_bytes,
};
use crate::batch::{AdapterId, Batch, Outputs, SeqId};
use crate::model::{Call, Engine, LoadRequest, LoadedModel, Options, Reply, Request};
use crate::{EngineError, HostServices, LogLevel, MetricKind, RequestModel, Services, TokenModel};

/// The one engine of a library, made when it is first asked for.
pub struct EngineCell {
    make: fn() -> Box<dyn Engine>,
    engine: OnceLock<Arc<dyn Engine>>,
}

impl EngineCell {
    /// A cell whose engine is made by `make`.
    pub const fn new(make: fn() -> Box<dyn Engine>) -> Self {
        Self { make, engine: OnceLock::new() }
    }

    /// The engine, for the host; `Internal` if making it panics.
    pub fn get(&self) -> AbiResult<EngineBox> {
        guard(|| {
            let engine = self.engine.get_or_init(|| Arc::from((self.make)()));
            Ok(engine_object(Arc::clone(engine)))
        })
    }
}

/// `engine` behind the ABI.
pub(crate) fn engine_object(engine: Arc<dyn Engine>) -> EngineBox {
    AbiEngine_TO::from_value(Exported(engine), TD_Opaque)
}

struct Exported(Arc<dyn Engine>);

impl AbiEngine for Exported {
    fn info(&self) -> AbiResult<AbiEngineInfo> {
        guard(|| Ok(self.0.info().into()))
    }

    fn load(&self, request: AbiLoadRequest<'_>, services: ServicesBox) -> AbiResult<AbiModel> {
        guard(|| {
            let services = Services::new(Arc::new(HostSide(services)));
            let loaded = with_request(&request, &services, |request| self.0.load(request))?;
            Ok(match loaded {
                LoadedModel::Token(model) => token_object(model, services),
                LoadedModel::Request(model) => request_object(model, services),
            })
        })
    }

    fn plan(&self, request: AbiLoadRequest<'_>, services: ServicesBox) -> AbiResult<AbiLoadPlan> {
        guard(|| {
            let services = Services::new(Arc::new(HostSide(services)));
            let plan = with_request(&request, &services, |request| self.0.plan(request))?;
            AbiLoadPlan::of(plan)
        })
    }
}

/// Calls the author's code with a request as the author sees it.
fn with_request<T>(
    request: &AbiLoadRequest<'_>,
    services: &Services,
    call: impl FnOnce(&LoadRequest<'_>) -> Result<T, EngineError>,
) -> Result<T, EngineError> {
    let model_dir = path_from_bytes(request.model_dir.as_slice())?;
    let adapter_dir = path_from_bytes(request.adapter_dir.as_slice())?;
    let options: Vec<(&str, &str)> = request.options.iter().map(|pair| pair.get()).collect();
    call(&LoadRequest {
        model_name: request.model_name.as_str(),
        model_dir: &model_dir,
        adapter_dir: Some(adapter_dir.as_path()).filter(|dir| !dir.as_os_str().is_empty()),
        options: Options::new(&options),
        n_threads: NonZeroUsize::new(request.n_threads).unwrap_or(NonZeroUsize::MIN),
        services: services.clone(),
    })
}

fn token_object(model: Box<dyn TokenModel>, services: Services) -> AbiModel {
    let model = Kept::new(model, services);
    let info = model.get().info();
    let model = AbiTokenModel_TO::from_value(model, TD_Opaque);
    AbiModel { token: RSome(AbiLoadedTokenModel { info, model }), request: RNone }
}

fn request_object(model: Box<dyn RequestModel>, services: Services) -> AbiModel {
    let model = Kept::new(model, services);
    let info = model.get().info();
    let model = AbiRequestModel_TO::from_value(model, TD_Opaque);
    AbiModel { token: RNone, request: RSome(AbiLoadedRequestModel { info, model }) }
}

/// An author's model, whose destructor may panic.
struct Kept<M: ?Sized> {
    /// Taken by `drop` only.
    model: Option<Box<M>>,
    services: Services,
}

impl<M: ?Sized> Kept<M> {
    fn new(model: Box<M>, services: Services) -> Self {
        Self { model: Some(model), services }
    }

    fn get(&self) -> &M {
        self.model.as_deref().expect("only drop takes the model")
    }

    fn get_mut(&mut self) -> &mut M {
        self.model.as_deref_mut().expect("only drop takes the model")
    }
}

impl<M: ?Sized> Drop for Kept<M> {
    fn drop(&mut self) {
        let model = self.model.take();
        if let Err(message) = catch(|| drop(model)) {
            let text = format!("the model panicked while it was freed: {message}");
            self.services.log(LogLevel::Error, &text);
        }
    }
}

impl Kept<dyn TokenModel> {
    fn run(
        &mut self,
        batch: AbiBatch<'_>,
        out: AbiOutputs<'_>,
        call: fn(&mut dyn TokenModel, &Batch<'_>, &mut Outputs<'_>) -> Result<(), EngineError>,
    ) -> AbiResult<AbiRows> {
        guard(|| {
            let mut out = out.get();
            call(self.get_mut(), &batch.get()?, &mut out)?;
            Ok(AbiRows::taken_of(&out))
        })
    }
}

impl AbiTokenModel for Kept<dyn TokenModel> {
    fn encode(&mut self, batch: AbiBatch<'_>, out: AbiOutputs<'_>) -> AbiResult<AbiRows> {
        self.run(batch, out, |model, batch, out| model.encode(batch, out))
    }

    fn forward(&mut self, batch: AbiBatch<'_>, out: AbiOutputs<'_>) -> AbiResult<AbiRows> {
        self.run(batch, out, |model, batch, out| model.forward(batch, out))
    }

    fn fork(&mut self, from: SeqId, to: SeqId, len: u32) -> AbiResult<()> {
        guard(|| self.get_mut().fork(from, to, len))
    }

    fn truncate(&mut self, sequence: SeqId, len: u32) -> AbiResult<()> {
        guard(|| self.get_mut().truncate(sequence, len))
    }

    fn release(&mut self, sequence: SeqId) -> AbiResult<()> {
        guard(|| {
            self.get_mut().release(sequence);
            Ok(())
        })
    }

    fn n_sequences(&self) -> AbiResult<usize> {
        guard(|| Ok(self.get().n_sequences()))
    }

    fn load_adapter(&mut self, adapter: AdapterId, dir: RSlice<'_, u8>) -> AbiResult<()> {
        guard(|| self.get_mut().load_adapter(adapter, &path_from_bytes(dir.as_slice())?))
    }

    fn unload_adapter(&mut self, adapter: AdapterId) -> AbiResult<()> {
        guard(|| {
            self.get_mut().unload_adapter(adapter);
            Ok(())
        })
    }

    fn health(&mut self) -> AbiResult<()> {
        guard(|| self.get_mut().health())
    }
}

impl AbiRequestModel for Kept<dyn RequestModel> {
    fn call(&self, request: AbiRequest<'_>, reply: ReplyRef<'_>) -> AbiResult<()> {
        guard(|| {
            let parts = RequestParts::of(&request);
            self.get().call(&parts.get(&request), &mut HostReply(reply))
        })
    }

    fn call_batch(&self, calls: RVec<AbiCall<'_>>) -> AbiResult<RVec<AbiResult<()>>> {
        guard(|| {
            let (requests, mut replies): (Vec<_>, Vec<_>) =
                calls.into_iter().map(|call| (call.request, HostReply(call.reply))).unzip();
            let parts: Vec<RequestParts<'_>> = requests.iter().map(RequestParts::of).collect();
            let mut calls: Vec<Call<'_>> = replies
                .iter_mut()
                .zip(parts.iter().zip(&requests))
                .map(|(reply, (parts, request))| Call { request: parts.get(request), reply })
                .collect();
            let ends = self.get().call_batch(&mut calls);
            Ok(ends.into_iter().map(|end| end.map_err(Into::into).into()).collect())
        })
    }

    fn health(&self) -> AbiResult<()> {
        guard(|| self.get().health())
    }
}

/// The lists of a request as the author sees them.
struct RequestParts<'a> {
    properties: Vec<(&'a str, &'a str)>,
    content: Vec<(&'a str, &'a [u8])>,
}

impl<'a> RequestParts<'a> {
    fn of(request: &AbiRequest<'a>) -> Self {
        Self {
            properties: request.properties.into_iter().map(|pair| pair.get()).collect(),
            content: request.content.into_iter().map(|entry| entry.get()).collect(),
        }
    }

    fn get<'b>(&'b self, request: &AbiRequest<'b>) -> Request<'b> {
        let (properties, content) = (self.properties.as_slice(), self.content.as_slice());
        Request { id: request.id.as_str(), properties, content }
    }
}

/// The host's services as the author sees them.
struct HostSide(ServicesBox);

impl HostServices for HostSide {
    fn log(&self, level: LogLevel, message: &str) {
        self.0.log(level, RStr::from(message));
    }

    fn metric(&self, kind: MetricKind, name: &str, value: f64) {
        self.0.metric(kind, RStr::from(name), value);
    }

    fn progress(&self, stage: &str, done: u64, total: u64) {
        self.0.progress(RStr::from(stage), done, total);
    }

    fn cancelled(&self) -> bool {
        self.0.cancelled()
    }
}

/// The host's reply as the author sees it.
struct HostReply<'a>(ReplyRef<'a>);

impl Reply for HostReply<'_> {
    fn head(&mut self, status: u16, reason: &str, headers: &[(&str, &str)]) {
        let headers: Vec<AbiPair<'_>> = headers.iter().copied().map(AbiPair::new).collect();
        self.0.head(status, RStr::from(reason), RSlice::from_slice(&headers));
    }

    fn frame(&mut self, bytes: &[u8]) -> bool {
        self.0.frame(RSlice::from_slice(bytes))
    }
}
