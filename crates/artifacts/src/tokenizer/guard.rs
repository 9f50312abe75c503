//! Calls into the tokenizer library that end in an error whatever happens in it.

use std::error::Error;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// What the library's errors are.
pub(super) type Cause = Box<dyn Error + Send + Sync>;

/// Calls `f`; a panic in it becomes an error. The library panics on some definitions that it
/// accepts, such as a character map that is cut off.
pub(super) fn call<T>(f: impl FnOnce() -> Result<T, Cause>) -> Result<T, Cause> {
    // Nothing that `f` could leave half-changed is used again: a tokenizer that is being made is
    // dropped, and one that is made is only read.
    catch_unwind(AssertUnwindSafe(f)).unwrap_or_else(|panic| {
        let message = panic
            .downcast_ref::<String>()
            .cloned()
            .or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
            .unwrap_or_default();
        Err(format!("the tokenizer library panicked: {message}").into())
    })
}
