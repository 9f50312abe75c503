//! What can go wrong with a call, and the one table that gives each fault its code and status.

use std::fmt;

/// Which of the two services answers; they have names and bodies of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Api {
    /// JSON 1.1, `X-Amz-Target`.
    Control,
    /// REST and JSON.
    Runtime,
}

/// A kind of fault. Each is one row of [`FaultKind::row`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FaultKind {
    Validation,
    UnknownOperation,
    Serialization,
    MissingSignature,
    IncompleteSignature,
    UnknownKey,
    BadSignature,
    Model,
    ModelNotReady,
    Unavailable,
    Internal,
}

impl FaultKind {
    /// The code of the control plane, that of the runtime, and the status.
    fn row(self) -> (&'static str, &'static str, u16) {
        match self {
            Self::Validation => ("ValidationException", "ValidationError", 400),
            Self::UnknownOperation => {
                ("UnknownOperationException", "UnknownOperationException", 400)
            }
            Self::Serialization => ("SerializationException", "SerializationException", 400),
            Self::MissingSignature => {
                ("MissingAuthenticationTokenException", "MissingAuthenticationTokenException", 403)
            }
            Self::IncompleteSignature => {
                ("IncompleteSignatureException", "IncompleteSignatureException", 400)
            }
            Self::UnknownKey => ("UnrecognizedClientException", "UnrecognizedClientException", 403),
            Self::BadSignature => ("InvalidSignatureException", "InvalidSignatureException", 403),
            Self::Model => ("ModelError", "ModelError", 424),
            Self::ModelNotReady => ("ModelNotReadyException", "ModelNotReadyException", 429),
            Self::Unavailable => ("ServiceUnavailable", "ServiceUnavailable", 503),
            Self::Internal => ("InternalFailure", "InternalFailure", 500),
        }
    }
}

/// What a container answered that was no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Original {
    /// Its status; 0 where it gave none.
    pub(crate) status: u16,
    /// Its body, or what happened instead, shortened.
    pub(crate) message: String,
}

/// A refusal.
#[derive(Clone, Debug)]
pub(crate) struct Fault {
    pub(crate) kind: FaultKind,
    pub(crate) message: String,
    /// For [`FaultKind::Model`].
    pub(crate) original: Option<Original>,
}

impl Fault {
    pub(crate) fn new(kind: FaultKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), original: None }
    }

    /// The request can't be served as it is.
    pub(crate) fn validation(message: impl Into<String>) -> Self {
        Self::new(FaultKind::Validation, message)
    }

    /// A container's answer outside of 2xx, or what came instead of one.
    pub(crate) fn model(original: Original) -> Self {
        let whose = match original.status {
            400..=499 => "client",
            _ => "server",
        };
        let message = format!(
            "Received {whose} error ({}) from primary with message \"{}\"",
            original.status, original.message
        );
        Self { kind: FaultKind::Model, message, original: Some(original) }
    }

    /// The code in `api`'s words.
    pub(crate) fn code(&self, api: Api) -> &'static str {
        let (control, runtime, _) = self.kind.row();
        match api {
            Api::Control => control,
            Api::Runtime => runtime,
        }
    }

    pub(crate) fn status(&self) -> u16 {
        self.kind.row().2
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

/// An error with its causes, `: ` between them.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        next = cause.source();
    }
    text
}

/// `text` within `most` characters: its start and its end, since the first cause stands last.
pub(crate) fn shorten(text: &str, most: usize) -> String {
    let n_chars = text.chars().count();
    if n_chars <= most {
        return text.to_owned();
    }
    let n_start = most / 3;
    let n_end = most - n_start - 3;
    let start: String = text.chars().take(n_start).collect();
    let end: String = text.chars().skip(n_chars - n_end).collect();
    format!("{start}...{end}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_text_keeps_both_ends() {
        assert_eq!(shorten("short", 10), "short");
        let text = format!("start{}end", "-".repeat(100));
        let found = shorten(&text, 30);
        assert_eq!(found.chars().count(), 30);
        assert!(found.starts_with("start") && found.ends_with("end"), "{found}");
    }

    #[test]
    fn both_services_have_their_own_words() {
        let fault = Fault::validation("no");
        assert_eq!(fault.code(Api::Control), "ValidationException");
        assert_eq!(fault.code(Api::Runtime), "ValidationError");
        let fault = Fault::model(Original { status: 503, message: "busy".to_owned() });
        assert_eq!(fault.status(), 424);
        assert!(fault.message.starts_with("Received server error (503)"), "{}", fault.message);
    }
}
