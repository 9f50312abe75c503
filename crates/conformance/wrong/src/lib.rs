//! A correct engine of a few numbers, and the faults that `option.fault` puts into it. The
//! conformance suite has to pass the engine without a fault, and to name each fault.
//!
//! `option.kind` is `decoder` (the default), `encoder`, `encoder-decoder` or `request`.
#![forbid(unsafe_code)]

mod fault;
mod memory;
mod reference;
mod request;

use std::sync::Once;
use std::time::Duration;

use drivetrain_engine::{
    Engine, EngineError, EngineInfo, ErrorKind, LoadPlan, LoadRequest, LoadedModel, ModelKind,
    export_engine,
};

use fault::Fault;
use reference::Reference;
use request::Echo;

export_engine!(Wrong);

struct Wrong;

impl Engine for Wrong {
    fn info(&self) -> EngineInfo {
        EngineInfo {
            name: "wrong".into(),
            aliases: vec!["faulty".into()],
            version: env!("CARGO_PKG_VERSION").into(),
            description: "a correct engine with the fault that option.fault names".into(),
            devices: vec!["cpu".into()],
            capabilities: Vec::new(),
        }
    }

    fn load(&self, request: &LoadRequest<'_>) -> Result<LoadedModel, EngineError> {
        shorten_panics();
        let fault = fault_of(request)?;
        if fault == Fault::PanicInLoad {
            panic!("load gave up");
        }
        let path = request.model_dir.join("model.txt");
        if let Err(error) = std::fs::metadata(&path)
            && fault != Fault::LoadsNothing
        {
            let message = format!("{}: can't be read", path.display());
            return Err(EngineError::wrap(ErrorKind::BadInput, message, &error));
        }
        if request.services.cancelled() && fault != Fault::IgnoresCancel {
            return Err(EngineError::new(ErrorKind::Cancelled, "loading was cancelled"));
        }
        if fault == Fault::IgnoresCancel && request.services.cancelled() {
            std::thread::sleep(Duration::from_millis(1));
            return Err(EngineError::internal("the host gave up on it"));
        }
        if fault == Fault::LeaksMemory {
            std::mem::forget(vec![1_u8; 1 << 17]);
        }
        if fault != Fault::BoundlessLoad {
            memory::check(memory::limit(request)?)?;
        }
        Ok(match kind(request)? {
            Some(kind) => LoadedModel::Token(Box::new(Reference::new(kind, fault))),
            None => LoadedModel::Request(Box::new(Echo::new(fault))),
        })
    }

    fn plan(&self, request: &LoadRequest<'_>) -> Result<Option<LoadPlan>, EngineError> {
        let (fault, kind) = (fault_of(request)?, kind(request)?);
        kind.map(|kind| memory::plan(request, &Reference::new(kind, fault), fault)).transpose()
    }
}

fn fault_of(request: &LoadRequest<'_>) -> Result<Fault, EngineError> {
    let fault = request.options.parse::<Fault>("fault", "the name of a fault")?;
    Ok(fault.unwrap_or(Fault::None))
}

/// The kind of a token model; none for a request model.
fn kind(request: &LoadRequest<'_>) -> Result<Option<ModelKind>, EngineError> {
    Ok(match request.options.get("kind").unwrap_or("decoder") {
        "decoder" => Some(ModelKind::Decoder),
        "encoder" => Some(ModelKind::Encoder),
        "encoder-decoder" => Some(ModelKind::EncoderDecoder),
        "request" => None,
        other => {
            let message = format!(
                "option.kind={other}: expected decoder, encoder, encoder-decoder or request"
            );
            return Err(EngineError::bad_input(message));
        }
    })
}

/// Panics of this library are said in one line: they are meant, and stacks would bury what a test says.
fn shorten_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| std::panic::set_hook(Box::new(|panic| eprintln!("{panic}"))));
}
