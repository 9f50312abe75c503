//! What the host adds to the time to the first token: from the call to the first event, with a null
//! engine.
//!
//! `cargo bench -p drivetrain-host --bench first_token [-- REQUESTS]`. Prints percentiles for a host
//! that has nothing else to do, and for one that runs 31 other sequences.

mod null;

use std::error::Error;
use std::time::{Duration, Instant};

use alloc_tracker::Allocator;
use drivetrain_host::{Event, Generation};
use null::{Served, request};
use serde_json::json;

#[global_allocator]
static ALLOCATOR: Allocator<std::alloc::System> = Allocator::system();

fn main() -> Result<(), Box<dyn Error>> {
    let is_bench = std::env::args().any(|argument| argument == "--bench");
    let n_requests = std::env::args().skip(1).find(|argument| !argument.starts_with('-'));
    let default_requests = if is_bench { 1000 } else { 3 };
    let n_requests: usize = n_requests.map_or(Ok(default_requests), |text| text.parse())?;
    let served = Served::new()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        measure(&served, "alone", n_requests).await?;
        let mut company = Vec::new();
        for idx in 0..31 {
            let asked = request(idx, true, &json!({"max_new_tokens": 30_000}));
            let mut generation = served.model.generate(asked).await?;
            company.push(tokio::spawn(async move { while next(&mut generation).await.is_ok() {} }));
        }
        measure(&served, "with 31 others", n_requests).await?;
        company.iter().for_each(tokio::task::JoinHandle::abort);
        Ok(())
    })
}

/// One request after the other.
async fn measure(served: &Served, name: &str, n_requests: usize) -> Result<(), Box<dyn Error>> {
    let mut times = Vec::with_capacity(n_requests);
    for idx in 0..n_requests {
        let asked = request(idx, true, &json!({"max_new_tokens": 2}));
        let began = Instant::now();
        let mut generation = served.model.generate(asked).await?;
        next(&mut generation).await.map_err(|error| error.to_string())?;
        times.push(began.elapsed());
        while next(&mut generation).await.is_ok() {}
        // The model's thread goes to sleep.
        tokio::time::sleep(Duration::from_micros(500)).await;
    }
    times.sort_unstable();
    let at = |percent: usize| times.get(times.len() * percent / 100).copied().unwrap_or_default();
    println!("{name:16} p10 {:?}, p50 {:?}, p90 {:?}, p99 {:?}", at(10), at(50), at(90), at(99));
    Ok(())
}

/// The next token's text.
async fn next(generation: &mut Generation) -> Result<String, Box<dyn Error + Send + Sync>> {
    match generation.next().await.ok_or("no more events")?? {
        Event::Token { text, .. } => Ok(text),
        _ => Err("the end".into()),
    }
}
