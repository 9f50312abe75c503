//! Panics stop here: a panic that reached the boundary would end the process.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

use abi_stable::std_types::{RErr, ROk};

use super::types::AbiResult;
use crate::EngineError;

/// Runs `work`; a panic becomes its message.
///
/// What `work` touched may be half-changed afterwards. That is the same as after an error, and the
/// caller treats it as one.
pub(crate) fn catch<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(work)).map_err(message)
}

/// Runs `work` on the library's side of the boundary; its error or panic crosses as a value.
pub(crate) fn guard<T>(work: impl FnOnce() -> Result<T, EngineError>) -> AbiResult<T> {
    match catch(|| work().map_err(Into::into)) {
        Ok(Ok(value)) => ROk(value),
        Ok(Err(error)) => RErr(error),
        Err(message) => RErr(panicked(&message).into()),
    }
}

/// The error that a panic becomes.
pub(crate) fn panicked(message: &str) -> EngineError {
    EngineError::internal(format!("panicked: {message}"))
}

fn message(payload: Box<dyn Any + Send>) -> String {
    let payload = match payload.downcast::<String>() {
        Ok(message) => return *message,
        Err(payload) => payload,
    };
    match payload.downcast::<&'static str>() {
        Ok(message) => (*message).to_owned(),
        Err(payload) => {
            // Dropping a value of an unknown type could panic again, outside of any guard.
            std::mem::forget(payload);
            "a value that is no text".to_owned()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct PanicsInDrop;

    impl Drop for PanicsInDrop {
        fn drop(&mut self) {
            panic!("again");
        }
    }

    #[test]
    fn every_payload_becomes_a_message() {
        assert_eq!(catch(|| panic!("plain")).unwrap_err(), "plain");
        assert_eq!(catch(|| panic!("layer {}", 3)).unwrap_err(), "layer 3");
        let odd = catch(|| std::panic::panic_any(PanicsInDrop)).unwrap_err();
        assert_eq!(odd, "a value that is no text");
    }
}
