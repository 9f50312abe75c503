//! Names and ARNs.

use crate::fault::Fault;

/// The account in ARNs: no account's.
pub(crate) const ACCOUNT: &str = "000000000000";

/// Longest name of a resource.
const MAX_NAME_CHARS: usize = 63;

/// A kind of resource: its word in an ARN, and in messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Model,
    EndpointConfig,
    Endpoint,
}

impl Kind {
    fn in_arn(self) -> &'static str {
        match self {
            Self::Model => "model",
            Self::EndpointConfig => "endpoint-config",
            Self::Endpoint => "endpoint",
        }
    }

    fn in_words(self) -> &'static str {
        match self {
            Self::Model => "model",
            Self::EndpointConfig => "endpoint configuration",
            Self::Endpoint => "endpoint",
        }
    }
}

/// The ARN of a resource.
pub(crate) fn arn(region: &str, kind: Kind, name: &str) -> String {
    let name = name.to_ascii_lowercase();
    format!("arn:aws:sagemaker:{region}:{ACCOUNT}:{}/{name}", kind.in_arn())
}

/// There is no such resource; boto3's waiters know this form.
pub(crate) fn missing(region: &str, kind: Kind, name: &str) -> Fault {
    let arn = arn(region, kind, name);
    Fault::validation(format!("Could not find {} \"{arn}\".", kind.in_words()))
}

/// There is one of this name already.
pub(crate) fn exists(region: &str, kind: Kind, name: &str) -> Fault {
    let arn = arn(region, kind, name);
    Fault::validation(format!("Cannot create already existing {} \"{arn}\".", kind.in_words()))
}

/// A name of letters, digits and hyphens between them, at most 63.
///
/// # Errors
/// It is another.
pub(crate) fn check(field: &str, name: &str) -> Result<(), Fault> {
    let fits = |b: u8| b.is_ascii_alphanumeric() || b == b'-';
    let is_name = (1..=MAX_NAME_CHARS).contains(&name.len())
        && name.bytes().all(fits)
        && !name.starts_with('-')
        && !name.ends_with('-');
    match is_name {
        true => Ok(()),
        false => {
            let shown: String = name.chars().take(80).collect();
            Err(Fault::validation(format!(
                "Value {shown:?} at '{field}' failed to satisfy constraint: 1 to {MAX_NAME_CHARS} \
                 letters, digits and hyphens, no hyphen at either end"
            )))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_the_services() {
        for name in ["a", "bart-large", "A1", &"x".repeat(63)] {
            assert!(check("endpointName", name).is_ok(), "{name}");
        }
        for name in ["", "-a", "a-", "a_b", "a/b", "..", "ä", &"x".repeat(64)] {
            assert!(check("endpointName", name).is_err(), "{name}");
        }
    }

    #[test]
    fn an_arn_is_in_small_letters() {
        let found = arn("eu-west-1", Kind::EndpointConfig, "MyConfig");
        assert_eq!(found, "arn:aws:sagemaker:eu-west-1:000000000000:endpoint-config/myconfig");
    }
}
