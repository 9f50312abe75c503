//! The version of the ABI, which is the version of this crate.

use std::fmt;

use abi_stable::StableAbi;

/// A version of the engine ABI.
///
/// A minor version only adds to the one before it; a major version removes or changes meaning. A
/// host takes libraries of its own major version and of any minor version up to its own.
#[repr(C)]
#[derive(StableAbi, Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AbiVersion {
    /// Changes when a library has to be rebuilt.
    pub major: u16,
    /// Changes when a library may be rebuilt to use more.
    pub minor: u16,
}

/// The ABI that this crate speaks.
pub const ABI_VERSION: AbiVersion = AbiVersion { major: 1, minor: 0 };

impl AbiVersion {
    /// Whether a host of this version can drive a library of version `library`.
    pub fn takes(self, library: Self) -> bool {
        library.major == self.major && library.minor <= self.minor
    }
}

impl fmt::Display for AbiVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_abi_version_is_the_version_of_the_crate() {
        let text = format!("{ABI_VERSION}.");
        assert!(env!("CARGO_PKG_VERSION").starts_with(&text), "{text}");
    }

    #[test]
    fn a_host_takes_its_own_major_and_minors_up_to_its_own() {
        let host = AbiVersion { major: 2, minor: 3 };
        for (major, minor, takes) in
            [(2, 3, true), (2, 0, true), (2, 4, false), (1, 3, false), (3, 0, false)]
        {
            assert_eq!(host.takes(AbiVersion { major, minor }), takes, "{major}.{minor}");
        }
    }
}
