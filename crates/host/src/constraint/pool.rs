//! The threads that compute what may come next, for all models.

use std::num::NonZeroUsize;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread;

type Work = Box<dyn FnOnce() + Send>;

/// Most threads.
const MAX_THREADS: usize = 4;

/// Runs `work`, which doesn't panic, on a thread of the pool; at once and here if there is none.
pub(super) fn run(work: Work) {
    static POOL: OnceLock<Sender<Work>> = OnceLock::new();
    if let Err(refused) = POOL.get_or_init(start).send(work) {
        (refused.0)();
    }
}

fn start() -> Sender<Work> {
    let n_cores = thread::available_parallelism().map_or(1, NonZeroUsize::get);
    let (sender, receiver) = channel();
    let receiver = Arc::new(Mutex::new(receiver));
    for idx in 0..n_cores.div_ceil(2).min(MAX_THREADS) {
        let receiver = Arc::clone(&receiver);
        let builder = thread::Builder::new().name(format!("grammar-{idx}"));
        if let Err(error) = builder.spawn(move || work_off(&receiver)) {
            tracing::warn!(%error, "a thread for grammars could not be started");
        }
    }
    sender
}

/// Works until the senders are gone, which is never: the pool lives as long as the process.
fn work_off(receiver: &Mutex<Receiver<Work>>) {
    loop {
        // The lock is let go before the work is done.
        let next = receiver.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(work) = next else { return };
        work();
    }
}
