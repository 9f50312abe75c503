//! Between two steps of greedy decoding the model's thread takes no memory.

#[path = "../benches/null/mod.rs"]
mod null;

use alloc_tracker::Allocator;
use drivetrain_host::Event;
use null::{Served, request};
use serde_json::json;

#[global_allocator]
static ALLOCATOR: Allocator<std::alloc::System> = Allocator::system();

#[tokio::test]
async fn greedy_steps_allocate_nothing() {
    const N_SEQUENCES: usize = 8;
    const COUNTED: (usize, usize) = (40, 150);
    let served = Served::new().unwrap();
    {
        let mut gauge = served.gauge();
        gauge.reset(N_SEQUENCES);
        gauge.counted = COUNTED;
    }
    let mut readers = Vec::new();
    for idx in 0..N_SEQUENCES {
        let asked = request(idx, true, &json!({"max_new_tokens": 250}));
        let mut generation = served.model.generate(asked).await.unwrap();
        readers.push(tokio::spawn(async move {
            let mut n_tokens = 0;
            while let Some(event) = generation.next().await {
                n_tokens += usize::from(matches!(event.unwrap(), Event::Token { .. }));
            }
            n_tokens
        }));
    }
    for reader in readers {
        assert_eq!(reader.await.unwrap(), 250);
    }
    let gauge = served.gauge();
    assert_eq!(gauge.allocations(), (0, COUNTED.1 as u64));
}
