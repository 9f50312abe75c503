//! The error that crosses the engine boundary: a kind the host acts on, a message, and causes.

use std::error::Error as StdError;
use std::fmt;

/// What the host does about an error. The kinds are closed: a new one is a new ABI major version.
#[repr(u8)]
#[derive(abi_stable::StableAbi, Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// The request or the model's files are at fault; the same call would fail again.
    BadInput,
    /// Memory ran out; the call may succeed when less is running.
    OutOfMemory,
    /// The device or the process behind the model is gone; the model may only be dropped.
    DeviceLost,
    /// The engine can't do this at all.
    Unsupported,
    /// The host asked for the work to stop.
    Cancelled,
    /// The engine broke one of its own rules, or panicked.
    Internal,
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::BadInput => "bad input",
            Self::OutOfMemory => "out of memory",
            Self::DeviceLost => "device lost",
            Self::Unsupported => "unsupported",
            Self::Cancelled => "cancelled",
            Self::Internal => "internal error",
        })
    }
}

/// Why an engine could not do what the host asked.
///
/// The message says where, what was found, what is allowed and what to do next, in lower case and
/// without a full stop; what lies behind it is in [`EngineError::causes`], outermost first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EngineError {
    kind: ErrorKind,
    message: String,
    causes: Vec<String>,
    /// The causes as a linked chain, so that `source()` works like any other error's.
    chain: Option<Box<Cause>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Cause {
    message: String,
    next: Option<Box<Cause>>,
}

impl EngineError {
    /// An error without a cause.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self::with_causes(kind, message, Vec::new())
    }

    /// An error with its causes, outermost first.
    pub fn with_causes(kind: ErrorKind, message: impl Into<String>, causes: Vec<String>) -> Self {
        let chain = causes
            .iter()
            .rev()
            .fold(None, |next, message| Some(Box::new(Cause { message: message.clone(), next })));
        Self { kind, message: message.into(), causes, chain }
    }

    /// An error that wraps another: its text and its own sources become the causes.
    pub fn wrap(
        kind: ErrorKind,
        message: impl Into<String>,
        source: &(dyn StdError + 'static),
    ) -> Self {
        let mut causes = Vec::new();
        let mut next = Some(source);
        while let Some(error) = next {
            causes.push(error.to_string());
            next = error.source();
        }
        Self::with_causes(kind, message, causes)
    }

    /// [`ErrorKind::BadInput`].
    pub fn bad_input(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::BadInput, message)
    }

    /// [`ErrorKind::OutOfMemory`].
    pub fn out_of_memory(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::OutOfMemory, message)
    }

    /// [`ErrorKind::Unsupported`].
    pub fn unsupported(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Unsupported, message)
    }

    /// [`ErrorKind::Internal`].
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Internal, message)
    }

    /// What the host does about it.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// The message alone, without the causes.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// What lies behind it, outermost first.
    pub fn causes(&self) -> &[String] {
        &self.causes
    }
}

impl fmt::Display for EngineError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl StdError for EngineError {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.chain.as_deref().map(|cause| cause as _)
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl StdError for Cause {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.next.as_deref().map(|cause| cause as _)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrapping_keeps_every_cause_in_order() {
        let inner = EngineError::with_causes(
            ErrorKind::Internal,
            "reading layer 3",
            vec!["short read".into(), "disk is full".into()],
        );
        let outer = EngineError::wrap(ErrorKind::BadInput, "loading the model", &inner);
        assert_eq!(outer.causes(), ["reading layer 3", "short read", "disk is full"]);
        let mut texts = Vec::new();
        let mut next: Option<&dyn StdError> = Some(&outer);
        while let Some(error) = next {
            texts.push(error.to_string());
            next = error.source();
        }
        assert_eq!(texts, ["loading the model", "reading layer 3", "short read", "disk is full"]);
    }
}
