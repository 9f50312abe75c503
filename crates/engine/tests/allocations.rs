//! A warm forward pass through the ABI allocates nothing, on either side: both are in this process,
//! so one allocator counts for both.

mod null;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use drivetrain_engine::{Batch, Outputs, SeqId};

struct Counting;

static N_ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call is passed on to the system's allocator, which keeps the trait's promises.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        N_ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promises are those that `System` asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promises are those that `System` asks for.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn a_warm_call_allocates_nothing() {
    for (name, mut model) in null::both() {
        for n_segments in [1, null::N_SEGMENTS] {
            let (segments, tokens) = null::steps(n_segments);
            let batch = Batch::new(&segments, &tokens, &[]).expect("the batch is right");
            let mut logits = vec![0.0; n_segments as usize * null::N_LOGITS];
            let mut step = || {
                let mut out = Outputs::new(&mut logits, null::N_LOGITS, &mut [], 0);
                model.forward(&batch, &mut out).expect("it runs");
                model.truncate(SeqId(0), 0).expect("it runs");
                model.release(SeqId(0));
                assert_eq!(model.n_sequences(), 0);
            };
            step();
            let before = N_ALLOCATIONS.load(Ordering::Relaxed);
            for _ in 0..100 {
                step();
            }
            let n_allocations = N_ALLOCATIONS.load(Ordering::Relaxed) - before;
            assert_eq!(n_allocations, 0, "{name}, {n_segments} segments");
        }
    }
}
