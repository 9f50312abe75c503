//! Where layers run: the CPU, accelerators, and virtual ones that are made of the CPU's threads.

use std::num::NonZeroUsize;
use std::sync::Arc;

use candle_core::Device;
use drivetrain_engine::{EngineError, ErrorKind};
use rayon::{ThreadPool, ThreadPoolBuilder};

use crate::matrix::Compute;

/// A device with the threads that drive it.
#[derive(Debug)]
pub(crate) struct Executor {
    pub(crate) device: Device,
    /// What multiplies with matrices that are no f32.
    pub(crate) compute: Arc<Compute>,
    threads: ThreadPool,
}

impl Executor {
    /// An executor with threads of its own; `name` is what device maps call it.
    pub(crate) fn new(
        name: &str,
        device: Device,
        n_threads: NonZeroUsize,
    ) -> Result<Self, EngineError> {
        let label = name.to_owned();
        let threads = ThreadPoolBuilder::new()
            .num_threads(n_threads.get())
            .thread_name(move |idx| format!("accelerate-{label}-{idx}"))
            .build()
            .map_err(|error| {
                let message = format!("no threads to compute on device {name} with");
                EngineError::wrap(ErrorKind::OutOfMemory, message, &error)
            })?;
        let compute = Arc::new(Compute::new(n_threads)?);
        Ok(Self { device, compute, threads })
    }

    /// Does `work` on the device's threads.
    pub(crate) fn run<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        self.threads.install(work)
    }
}
