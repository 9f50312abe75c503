//! Runs a target and sees what it takes.

use std::time::{Duration, Instant};

use alloc_tracker::Session;

/// What an input may cost.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Bytes of memory at once, whatever the input.
    pub base_bytes: u64,
    /// Further bytes of memory at once, for each byte of the input.
    pub bytes_per_byte: u64,
    /// Time, on a slow machine in a build without optimisation.
    pub time: Duration,
}

/// What an input did cost.
#[derive(Clone, Copy, Debug)]
pub struct Spent {
    /// Most bytes of memory at once, beyond what was held before.
    pub peak_bytes: u64,
    /// Time.
    pub time: Duration,
}

impl Bounds {
    /// Most bytes of memory at once for an input of this length.
    pub fn bytes(&self, input_len: usize) -> u64 {
        let more = self.bytes_per_byte.saturating_mul(input_len as u64);
        self.base_bytes.saturating_add(more)
    }
}

/// Calls `run` on the input. Memory is counted where the program's allocator is `alloc_tracker`'s,
/// on this thread.
pub(crate) fn measure(run: fn(&[u8]), input: &[u8]) -> Spent {
    let session = Session::new().no_stdout().no_file();
    let began = Instant::now();
    {
        let operation = session.operation("input");
        let _span = operation.measure_thread().iterations(1);
        run(input);
    }
    let time = began.elapsed();
    let report = session.to_report();
    let peak = report.operations().filter_map(|(_, each)| each.peak_outstanding_bytes());
    Spent { peak_bytes: peak.fold(0.0, f64::max) as u64, time }
}
