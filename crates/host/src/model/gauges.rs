//! What a model's thread tells the metrics after each step.

use metrics::{Counter, Gauge, Histogram, counter, gauge, histogram};

use crate::metrics as names;
use crate::scheduler::{Scheduler, Tally};

/// The metrics of one model's scheduler.
pub(crate) struct Gauges {
    queue_time: Histogram,
    running: Gauge,
    waiting: Gauge,
    rolling: Gauge,
    batch_size: Histogram,
    batch_tokens: Histogram,
    kv_use: Gauge,
    queried: Counter,
    hits: Counter,
    kv_capacity: u64,
    last: Tally,
}

impl Gauges {
    /// For the model `name`, whose cache holds `kv_capacity` tokens.
    pub(crate) fn new(name: &str, kv_capacity: u64) -> Self {
        let model = name.to_owned();
        Self {
            queue_time: histogram!(names::QUEUE_TIME, names::MODEL => model.clone()),
            running: gauge!(names::REQUESTS_RUNNING, names::MODEL => model.clone()),
            waiting: gauge!(names::REQUESTS_WAITING, names::MODEL => model.clone()),
            rolling: gauge!(names::ROLLING_BATCH_SIZE, names::MODEL => model.clone()),
            batch_size: histogram!(names::BATCH_SIZE, names::MODEL => model.clone()),
            batch_tokens: histogram!(names::BATCH_TOKENS, names::MODEL => model.clone()),
            kv_use: gauge!(names::KV_USE, names::MODEL => model.clone()),
            queried: counter!(names::PREFIX_QUERIED, names::MODEL => model.clone()),
            hits: counter!(names::PREFIX_HITS, names::MODEL => model),
            kv_capacity,
            last: Tally::default(),
        }
    }

    /// Tells what the last step changed.
    pub(crate) fn record(&mut self, scheduler: &mut Scheduler) {
        for wait in scheduler.waits() {
            self.queue_time.record(wait.as_secs_f64() * 1e6);
        }
        let tally = scheduler.tally();
        self.running.set(tally.n_running as f64);
        self.waiting.set(tally.n_waiting as f64);
        self.rolling.set(tally.n_rows as f64);
        if tally.n_segments > 0 {
            self.batch_size.record(tally.n_segments as f64);
            self.batch_tokens.record(tally.n_tokens as f64);
        }
        // A cache without limit is never in use by any part that counts.
        self.kv_use.set(tally.kv_running as f64 / self.kv_capacity.max(1) as f64);
        self.queried.increment(tally.prompt_tokens - self.last.prompt_tokens);
        self.hits.increment(tally.prefix_tokens - self.last.prefix_tokens);
        self.last = tally;
    }
}
