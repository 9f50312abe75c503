//! The types of values a key can have, and how each is described to a user.

use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

use crate::address::Address;
use crate::secret::Secret;
use crate::values::{
    Devices, Dtype, ErrorRate, OutputFormatter, ParallelDegree, RollingBatch, Streaming,
};

/// What values a key takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Any text, blanks included.
    Text,
    /// A word; blanks around it are dropped.
    Word,
    /// The name of an engine.
    Engine,
    /// The name of an HTTP header.
    HeaderName,
    /// A path.
    Path,
    /// Text that is never printed.
    Secret,
    /// `true` or `false`.
    Bool,
    /// A whole number, 1 or more.
    Count,
    /// A whole number, 0 or more.
    Whole,
    /// Whole milliseconds.
    Millis,
    /// Whole seconds.
    Seconds,
    /// Whole megabytes.
    Megabytes,
    /// Bytes, 1 or more.
    Bytes,
    /// An HTTP status of an error.
    ErrorStatus,
    /// A listener's address.
    Address,
    /// `*` or a list of devices.
    Devices,
    /// A number of partitions or `max`.
    Degree,
    /// An error limit and its window.
    ErrorRate,
    /// An element type.
    Dtype,
    /// A way of batching.
    RollingBatch,
    /// How replies are written.
    OutputFormatter,
    /// Whether and how a reply is streamed.
    Streaming,
}

impl Kind {
    /// What is allowed, to follow the word "expected".
    pub(crate) fn wanted(self) -> String {
        match self {
            Self::Text => "text".to_owned(),
            Self::Word => "a word".to_owned(),
            Self::Engine => "the name of an engine, or auto".to_owned(),
            Self::HeaderName => "the name of an HTTP header".to_owned(),
            Self::Path => "a path".to_owned(),
            Self::Secret => "a secret".to_owned(),
            Self::Bool => "true or false".to_owned(),
            Self::Count => format!("a whole number from 1 to {}", u32::MAX),
            Self::Whole => format!("a whole number from 0 to {}", u32::MAX),
            Self::Millis => "whole milliseconds, 0 or more".to_owned(),
            Self::Seconds => "whole seconds, 0 or more".to_owned(),
            Self::Megabytes => "whole megabytes, 0 or more".to_owned(),
            Self::Bytes => "whole bytes, 1 or more".to_owned(),
            Self::ErrorStatus => "an HTTP status from 400 to 599".to_owned(),
            Self::Address => Address::WANTED.to_owned(),
            Self::Devices => Devices::WANTED.to_owned(),
            Self::Degree => "a whole number, 1 or more, or max".to_owned(),
            Self::ErrorRate => ErrorRate::WANTED.to_owned(),
            Self::Dtype => format!("one of {}", Dtype::NAMES.join(", ")),
            Self::RollingBatch => format!("one of {}", RollingBatch::NAMES.join(", ")),
            Self::OutputFormatter => {
                format!("one of {}, or a name of its own", OutputFormatter::NAMES.join(", "))
            }
            Self::Streaming => format!("one of {}", Streaming::NAMES.join(", ")),
        }
    }

    /// Whether blanks around a value are dropped. In text and paths they belong to the value.
    pub(crate) fn trims(self) -> bool {
        !matches!(self, Self::Text | Self::Path | Self::Secret)
    }

    /// Whether an empty value means that the key is not set; else it is a wrong value.
    pub(crate) fn empty_is_unset(self) -> bool {
        matches!(
            self,
            Self::Text | Self::Word | Self::Engine | Self::HeaderName | Self::Path | Self::Secret
        )
    }

    /// Whether this is one of the values.
    #[cfg(test)]
    pub(crate) fn allows(self, text: &str) -> bool {
        match self {
            Self::Text | Self::Word | Self::Engine | Self::HeaderName => {
                String::from_text(self, text).is_some()
            }
            Self::Path => PathBuf::from_text(self, text).is_some(),
            Self::Secret => Secret::from_text(self, text).is_some(),
            Self::Bool => bool::from_text(self, text).is_some(),
            Self::Count => NonZeroU32::from_text(self, text).is_some(),
            Self::Whole => u32::from_text(self, text).is_some(),
            Self::Millis | Self::Seconds => Duration::from_text(self, text).is_some(),
            Self::Megabytes | Self::Bytes => u64::from_text(self, text).is_some(),
            Self::ErrorStatus => u16::from_text(self, text).is_some(),
            Self::Address => Address::from_text(self, text).is_some(),
            Self::Devices => Devices::from_text(self, text).is_some(),
            Self::Degree => ParallelDegree::from_text(self, text).is_some(),
            Self::ErrorRate => ErrorRate::from_text(self, text).is_some(),
            Self::Dtype => Dtype::from_text(self, text).is_some(),
            Self::RollingBatch => RollingBatch::from_text(self, text).is_some(),
            Self::OutputFormatter => OutputFormatter::from_text(self, text).is_some(),
            Self::Streaming => Streaming::from_text(self, text).is_some(),
        }
    }
}

/// A type that a value's text becomes, given the key's kind (which knows the unit).
pub(crate) trait FromText: Sized {
    /// The value, or `None` if the text is not one.
    fn from_text(kind: Kind, text: &str) -> Option<Self>;
}

/// Digits only: no sign, no blanks, no separators. What no `u64` holds is the largest one.
fn whole(text: &str) -> Option<u64> {
    let plain = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    plain.then(|| text.parse().unwrap_or(u64::MAX))
}

impl FromText for String {
    fn from_text(kind: Kind, text: &str) -> Option<Self> {
        let allowed = match kind {
            Kind::Engine => !text.chars().any(|c| c.is_control() || c == '/'),
            Kind::HeaderName => {
                text.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b))
            }
            _ => true,
        };
        allowed.then(|| text.to_owned())
    }
}

impl FromText for PathBuf {
    fn from_text(_: Kind, text: &str) -> Option<Self> {
        Some(text.into())
    }
}

impl FromText for Secret {
    fn from_text(_: Kind, text: &str) -> Option<Self> {
        Some(Self::new(text))
    }
}

impl FromText for bool {
    fn from_text(_: Kind, text: &str) -> Option<Self> {
        if text.eq_ignore_ascii_case("true") {
            Some(true)
        } else {
            text.eq_ignore_ascii_case("false").then_some(false)
        }
    }
}

impl FromText for u32 {
    fn from_text(_: Kind, text: &str) -> Option<Self> {
        whole(text)?.try_into().ok()
    }
}

impl FromText for NonZeroU32 {
    fn from_text(kind: Kind, text: &str) -> Option<Self> {
        Self::new(u32::from_text(kind, text)?)
    }
}

impl FromText for u16 {
    fn from_text(_: Kind, text: &str) -> Option<Self> {
        whole(text)?.try_into().ok().filter(|status| (400..=599).contains(status))
    }
}

/// A size in bytes.
impl FromText for u64 {
    fn from_text(kind: Kind, text: &str) -> Option<Self> {
        let number = whole(text)?;
        match kind {
            Kind::Megabytes => Some(number.saturating_mul(1 << 20)),
            _ => (number > 0).then_some(number),
        }
    }
}

impl FromText for Duration {
    fn from_text(kind: Kind, text: &str) -> Option<Self> {
        // Cut off at a century or so, so that a deadline made from it is a time there is.
        let number = whole(text)?.min(u64::from(u32::MAX));
        Some(if kind == Kind::Millis { Self::from_millis(number) } else { Self::from_secs(number) })
    }
}

impl FromText for Address {
    fn from_text(_: Kind, text: &str) -> Option<Self> {
        Self::parse(text)
    }
}

macro_rules! from_text_by_parse {
    ($($kind:ty),*) => {$(
        impl FromText for $kind {
            fn from_text(_: Kind, text: &str) -> Option<Self> {
                Self::parse(text)
            }
        }
    )*};
}
from_text_by_parse!(
    Devices,
    Dtype,
    ErrorRate,
    OutputFormatter,
    ParallelDegree,
    RollingBatch,
    Streaming
);
