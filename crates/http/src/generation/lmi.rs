//! The LMI text-generation schema: `inputs` and `parameters` in, one document, JSON lines or
//! server-sent events out; Text Generation Inference's shapes and those of LMI's asynchronous
//! service are dialects of it.

mod document;
mod lines;
mod outputs;
mod request;

pub(crate) use document::{LmiReply, document};
pub(crate) use lines::LmiLines;
pub(crate) use outputs::Outputs;
pub(crate) use request::{LmiRequest, PARAMETERS, REQUEST, is_zero as request_is_zero};

/// How the schema is spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dialect {
    /// LMI's rolling batch.
    Rolling,
    /// Text Generation Inference, which `option.tgi_compat` asks for.
    Tgi,
    /// LMI's asynchronous service, which `option.async_mode` asks for.
    Async,
}

impl Dialect {
    /// The key of a token's log-probability.
    fn logprob_key(self) -> &'static str {
        match self {
            Self::Rolling => "log_prob",
            Self::Tgi | Self::Async => "logprob",
        }
    }

    /// The key that marks a special token.
    fn special_key(self) -> &'static str {
        match self {
            Self::Rolling => "special_token",
            Self::Tgi | Self::Async => "special",
        }
    }
}
