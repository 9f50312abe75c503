//! Work that is long when it is about many bytes, kept off the event loop.

use crate::failure::{ApiError, FailureKind};

/// Up to this many bytes, decoding is done before handing it to another thread would be.
pub(crate) const N_BYTES_INLINE: usize = 1 << 16;

/// Does `work`, which is about `n_bytes` bytes: here, or on a thread made for waiting.
///
/// # Errors
/// Those of `work`; `Internal` if it panics.
pub(crate) async fn offload<T: Send + 'static>(
    n_bytes: usize,
    work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    if n_bytes <= N_BYTES_INLINE {
        return work();
    }
    tokio::task::spawn_blocking(work).await.map_err(|error| {
        ApiError::new(FailureKind::Internal, format!("reading the body: {error}"))
    })?
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[tokio::test]
    async fn only_long_work_leaves_the_event_loop() {
        let here = thread::current().id();
        let thread_of = async |n_bytes| offload(n_bytes, || Ok(thread::current().id())).await;
        assert_eq!(thread_of(N_BYTES_INLINE).await.unwrap(), here);
        assert_ne!(thread_of(N_BYTES_INLINE + 1).await.unwrap(), here);
        let panics = offload(1 << 20, || -> Result<(), ApiError> { panic!("a bug") }).await;
        assert_eq!(panics.unwrap_err().kind, FailureKind::Internal);
    }
}
