//! The host's side: the library's objects behind the author traits again, so that the host can't
//! tell a library's engine from one in its own process.

use std::cell::RefCell;
use std::path::Path;

use abi_stable::erased_types::TD_Opaque;
use abi_stable::std_types::{RSlice, RStr, RVec};

use super::objects::{
    AbiLoadedRequestModel, AbiLoadedTokenModel, AbiReply, AbiReply_TO, AbiServices, AbiServices_TO,
    EngineBox, RequestModelBox, ServicesBox, TokenModelBox,
};
use super::panics::catch;
use super::types::{
    AbiBatch, AbiCall, AbiEntry, AbiLoadRequest, AbiOutputs, AbiPair, AbiRequest, AbiResult,
    AbiRows, path_bytes,
};
use crate::batch::{AdapterId, Batch, Outputs, SeqId};
use crate::model::{Call, Engine, EngineInfo, LoadRequest, LoadedModel, Reply, Request};
use crate::{
    EngineError, LoadPlan, LogLevel, MetricKind, RequestModel, RequestModelInfo, Services,
    TokenModel, TokenModelInfo,
};

/// An engine across the boundary.
pub(crate) struct ForeignEngine {
    engine: EngineBox,
    info: EngineInfo,
}

impl ForeignEngine {
    /// Asks the engine for its name once.
    pub(crate) fn new(engine: EngineBox) -> Result<Self, EngineError> {
        let info = plain(engine.info())?.into();
        Ok(Self { engine, info })
    }
}

impl Engine for ForeignEngine {
    fn info(&self) -> EngineInfo {
        self.info.clone()
    }

    fn load(&self, request: &LoadRequest<'_>) -> Result<LoadedModel, EngineError> {
        let loaded =
            with_request(request, |request, services| self.engine.load(request, services))?;
        match (loaded.token.into_option(), loaded.request.into_option()) {
            (Some(AbiLoadedTokenModel { info, model }), None) => {
                let fault = RefCell::new(None);
                Ok(LoadedModel::Token(Box::new(ForeignTokenModel { model, info, fault })))
            }
            (None, Some(AbiLoadedRequestModel { info, model })) => {
                Ok(LoadedModel::Request(Box::new(ForeignRequestModel { model, info })))
            }
            _ => Err(EngineError::internal("the engine loaded neither or both kinds of model")),
        }
    }

    fn plan(&self, request: &LoadRequest<'_>) -> Result<Option<LoadPlan>, EngineError> {
        let plan = with_request(request, |request, services| self.engine.plan(request, services))?;
        Ok(LoadPlan::stated(plan))
    }
}

/// Calls the library with a request as it crosses the boundary.
fn with_request<T>(
    request: &LoadRequest<'_>,
    call: impl FnOnce(AbiLoadRequest<'_>, ServicesBox) -> AbiResult<T>,
) -> Result<T, EngineError> {
    let options: Vec<AbiPair<'_>> = request.options.iter().map(AbiPair::new).collect();
    let abi_request = AbiLoadRequest {
        model_name: request.model_name.into(),
        model_dir: path_bytes(request.model_dir)?.into(),
        adapter_dir: request.adapter_dir.map_or(Ok(&[][..]), path_bytes)?.into(),
        options: RSlice::from_slice(&options),
        n_threads: request.n_threads.get(),
    };
    plain(call(abi_request, services_object(request.services.clone())))
}

struct ForeignTokenModel {
    model: TokenModelBox,
    info: TokenModelInfo,
    /// A panic in a call that returns no error; the next call that can return one does.
    fault: RefCell<Option<EngineError>>,
}

impl ForeignTokenModel {
    fn raise_fault(&self) -> Result<(), EngineError> {
        self.fault.take().map_or(Ok(()), Err)
    }

    fn run(
        &mut self,
        batch: &Batch<'_>,
        out: &mut Outputs<'_>,
        call: impl FnOnce(&mut TokenModelBox, AbiBatch<'_>, AbiOutputs<'_>) -> AbiResult<AbiRows>,
    ) -> Result<(), EngineError> {
        self.raise_fault()?;
        let wanted = AbiRows::wanted_by(batch);
        let abi_out = AbiOutputs::new(out, wanted)?;
        let taken = plain(call(&mut self.model, AbiBatch::new(batch), abi_out))?;
        if taken != wanted {
            return Err(EngineError::internal(format!(
                "the engine wrote {} rows of logits and {} of hidden states where the batch wants \
                 {} and {}",
                taken.logits, taken.hidden, wanted.logits, wanted.hidden
            )));
        }
        out.logits.n_taken += wanted.logits;
        out.hidden.n_taken += wanted.hidden;
        Ok(())
    }
}

impl TokenModel for ForeignTokenModel {
    fn info(&self) -> TokenModelInfo {
        self.info
    }

    fn encode(&mut self, batch: &Batch<'_>, out: &mut Outputs<'_>) -> Result<(), EngineError> {
        self.run(batch, out, |model, batch, out| model.encode(batch, out))
    }

    fn forward(&mut self, batch: &Batch<'_>, out: &mut Outputs<'_>) -> Result<(), EngineError> {
        self.run(batch, out, |model, batch, out| model.forward(batch, out))
    }

    fn fork(&mut self, from: SeqId, to: SeqId, len: u32) -> Result<(), EngineError> {
        self.raise_fault()?;
        plain(self.model.fork(from, to, len))
    }

    fn truncate(&mut self, sequence: SeqId, len: u32) -> Result<(), EngineError> {
        self.raise_fault()?;
        plain(self.model.truncate(sequence, len))
    }

    fn release(&mut self, sequence: SeqId) {
        if let Err(error) = plain(self.model.release(sequence)) {
            self.fault.replace(Some(error));
        }
    }

    fn n_sequences(&self) -> usize {
        plain(self.model.n_sequences()).unwrap_or_else(|error| {
            self.fault.replace(Some(error));
            0
        })
    }

    fn load_adapter(&mut self, adapter: AdapterId, dir: &Path) -> Result<(), EngineError> {
        self.raise_fault()?;
        plain(self.model.load_adapter(adapter, path_bytes(dir)?.into()))
    }

    fn unload_adapter(&mut self, adapter: AdapterId) {
        if let Err(error) = plain(self.model.unload_adapter(adapter)) {
            self.fault.replace(Some(error));
        }
    }

    fn health(&mut self) -> Result<(), EngineError> {
        self.raise_fault()?;
        plain(self.model.health())
    }
}

struct ForeignRequestModel {
    model: RequestModelBox,
    info: RequestModelInfo,
}

impl RequestModel for ForeignRequestModel {
    fn info(&self) -> RequestModelInfo {
        self.info
    }

    fn call(&self, request: &Request<'_>, reply: &mut dyn Reply) -> Result<(), EngineError> {
        let parts = RequestParts::of(request);
        let mut lent = LentReply { reply, panic: None };
        let result =
            self.model.call(parts.get(request), AbiReply_TO::from_ptr(&mut lent, TD_Opaque));
        lent.end(plain(result))
    }

    fn call_batch(&self, calls: &mut [Call<'_>]) -> Vec<Result<(), EngineError>> {
        let parts: Vec<RequestParts<'_>> =
            calls.iter().map(|call| RequestParts::of(&call.request)).collect();
        let requests: Vec<Request<'_>> = calls.iter().map(|call| call.request).collect();
        let mut lent: Vec<LentReply<'_>> =
            calls.iter_mut().map(|call| LentReply { reply: call.reply, panic: None }).collect();
        let abi_calls: RVec<AbiCall<'_>> = lent
            .iter_mut()
            .zip(parts.iter().zip(&requests))
            .map(|(lent, (parts, request))| AbiCall {
                request: parts.get(request),
                reply: AbiReply_TO::from_ptr(lent, TD_Opaque),
            })
            .collect();
        let ends = match plain(self.model.call_batch(abi_calls)) {
            Ok(ends) => Ok(ends.into_iter().map(plain).collect::<Vec<_>>()),
            Err(error) => Err(error),
        };
        let mut ends = match ends {
            Ok(ends) => ends.into_iter(),
            Err(error) => return lent.into_iter().map(|_| Err(error.clone())).collect(),
        };
        let missing = || Err(EngineError::internal("the engine gave a request of a batch no end"));
        lent.into_iter().map(|lent| lent.end(ends.next().unwrap_or_else(missing))).collect()
    }

    fn health(&self) -> Result<(), EngineError> {
        plain(self.model.health())
    }
}

/// The lists of a request as they cross the boundary.
struct RequestParts<'a> {
    properties: Vec<AbiPair<'a>>,
    content: Vec<AbiEntry<'a>>,
}

impl<'a> RequestParts<'a> {
    fn of(request: &Request<'a>) -> Self {
        Self {
            properties: request.properties.iter().copied().map(AbiPair::new).collect(),
            content: request.content.iter().copied().map(AbiEntry::new).collect(),
        }
    }

    fn get<'b>(&'b self, request: &Request<'b>) -> AbiRequest<'b> {
        AbiRequest {
            id: request.id.into(),
            properties: RSlice::from_slice(&self.properties),
            content: RSlice::from_slice(&self.content),
        }
    }
}

/// The host's reply, lent to the library; a panic of the host's stops the engine at its next frame.
struct LentReply<'a> {
    reply: &'a mut dyn Reply,
    panic: Option<String>,
}

impl LentReply<'_> {
    /// How the request ended: as the engine says, unless the host's side is at fault.
    fn end(self, end: Result<(), EngineError>) -> Result<(), EngineError> {
        match self.panic {
            Some(message) => Err(EngineError::internal(format!(
                "the host's own reply panicked while the engine wrote to it: {message}"
            ))),
            None => end,
        }
    }
}

impl AbiReply for LentReply<'_> {
    fn head(&mut self, status: u16, reason: RStr<'_>, headers: RSlice<'_, AbiPair<'_>>) {
        let sent = catch(|| {
            let headers: Vec<(&str, &str)> = headers.iter().map(|pair| pair.get()).collect();
            self.reply.head(status, reason.as_str(), &headers);
        });
        self.panic = sent.err().or(self.panic.take());
    }

    fn frame(&mut self, bytes: RSlice<'_, u8>) -> bool {
        if self.panic.is_some() {
            return false;
        }
        catch(|| self.reply.frame(bytes.as_slice())).unwrap_or_else(|message| {
            self.panic = Some(message);
            false
        })
    }
}

fn services_object(services: Services) -> ServicesBox {
    AbiServices_TO::from_value(LentServices(Some(services)), TD_Opaque)
}

/// The host's services, given to the library. A panic of the host's loses the one event: the
/// panic's own report on the host's standard error is all that is left to say.
struct LentServices(Option<Services>);

impl LentServices {
    fn call<T>(&self, call: impl FnOnce(&Services) -> T) -> Option<T> {
        self.0.as_ref().and_then(|services| catch(|| call(services)).ok())
    }
}

impl AbiServices for LentServices {
    fn log(&self, level: LogLevel, message: RStr<'_>) {
        self.call(|services| services.log(level, message.as_str()));
    }

    fn metric(&self, kind: MetricKind, name: RStr<'_>, value: f64) {
        self.call(|services| services.metric(kind, name.as_str(), value));
    }

    fn progress(&self, stage: RStr<'_>, done: u64, total: u64) {
        self.call(|services| services.progress(stage.as_str(), done, total));
    }

    fn cancelled(&self) -> bool {
        self.call(Services::cancelled).unwrap_or(false)
    }
}

impl Drop for LentServices {
    fn drop(&mut self) {
        // The library drops its last handle inside its own code, which the host must not unwind.
        let services = self.0.take();
        let _ = catch(|| drop(services));
    }
}

fn plain<T>(result: AbiResult<T>) -> Result<T, EngineError> {
    result.into_result().map_err(Into::into)
}
