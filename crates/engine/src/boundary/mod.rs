//! The stable ABI under the author-facing traits.
//!
//! Each author trait has a twin here that is safe to call in another library ([`objects`]); adapters
//! turn the author's value into the twin inside the library ([`plugin`]) and the twin into the
//! author's trait again in the host ([`host`]). The data both sides share is in [`types`]. Nothing
//! that unwinds passes: every method of an adapter goes through [`panics`].

pub(crate) mod host;
// abi_stable's macros write impls inside of a function, and ask for `pub` on what they describe.
#[allow(non_local_definitions, unreachable_pub)]
pub(crate) mod objects;
pub(crate) mod panics;
pub(crate) mod plugin;
#[allow(unreachable_pub)]
pub(crate) mod types;

#[cfg(test)]
mod tests;
