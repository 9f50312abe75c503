//! Which names carry secrets, and a string that never prints itself.

use std::fmt;

/// What stands in a message for a secret.
pub(crate) const MASK: &str = "******";

/// A value that `Debug` and `Display` mask.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps a secret.
    pub fn new(value: impl Into<String>) -> Self {
        Self(value.into())
    }

    /// The secret itself, for the one place that needs it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(MASK)
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(MASK)
    }
}

/// Whether the value under this key or variable must not be printed.
///
/// Generous on purpose: to hide a harmless value costs nothing. `env` holds `NAME=VALUE` pairs for
/// a worker process, among them tokens.
pub fn is_secret(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    let name = name.strip_prefix("option.").unwrap_or(&name);
    let parts = ["secret", "password", "passwd", "credential", "access_key", "api_key", "apikey"];
    name == "env"
        || name.starts_with("aws_")
        || name.ends_with("token")
        || name.ends_with("_pass")
        || parts.iter().any(|part| name.contains(part))
}

/// Prints `name=value` pairs with the secrets masked.
pub(crate) fn fmt_pairs<'a>(
    f: &mut fmt::Formatter<'_>,
    pairs: impl Iterator<Item = (&'a str, &'a str)>,
) -> fmt::Result {
    f.debug_map()
        .entries(pairs.map(|(name, value)| (name, if is_secret(name) { MASK } else { value })))
        .finish()
}
