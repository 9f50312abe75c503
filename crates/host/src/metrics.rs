//! The metrics: every name, its labels and what it means, in one place.
//!
//! Both the host and the front ends record with the macros of the `metrics` crate, which do nothing
//! until a recorder is installed. A recorder has to be there before a handle is made, so it is
//! installed before the first model is loaded. Names without a prefix are DJL Serving's, and keep
//! its unit; those of our own begin with `drivetrain_` and count in seconds.
//!
//! All carry the label [`MODEL`] but the counters of replies, of errors and of time-outs.

use metrics::{Unit, describe_counter, describe_gauge, describe_histogram};

/// The label that names the model.
pub const MODEL: &str = "Model";
/// The label of [`ERRORS`] that says what went wrong.
pub const KIND: &str = "kind";
/// The label of [`REQUESTS`] that says how a generation ended: `eos_token`, `stop_sequence`,
/// `length`, `shutdown`, `error` or `cancelled`.
pub const FINISH: &str = "finish";

/// Histogram, microseconds: from a request's arrival until its first step.
pub const QUEUE_TIME: &str = "QueueTime";
/// Histogram, microseconds: from a request's arrival to the end of its answer.
pub const REQUEST_LATENCY: &str = "RequestLatency";
/// Histogram, microseconds: from one token of a choice to the next.
pub const TOKEN_LATENCY: &str = "TokenLatency";
/// Histogram: new tokens of a request a second, from its arrival to its end.
pub const TOKEN_THROUGHPUT: &str = "TokenThroughput";
/// Histogram: new tokens of a request.
pub const OUTPUT_TOKENS: &str = "OutputTokens";
/// Gauge: sequences of the step under way.
pub const ROLLING_BATCH_SIZE: &str = "RollingBatchSize";
/// Counter: requests whose time was over before their answer was.
pub const ROLLING_BATCH_TIMEOUT: &str = "RollingBatchTimeout";
/// Counter: replies with a status of 2xx.
pub const RESPONSE_2XX: &str = "Response_2XX";
/// Counter: replies with a status of 4xx.
pub const RESPONSE_4XX: &str = "Response_4XX";
/// Counter: replies with a status of 5xx.
pub const RESPONSE_5XX: &str = "Response_5XX";
/// Counter: requests that were refused or failed for the state of a model or of its queue.
pub const WLM_ERROR: &str = "WlmError";
/// Counter: requests that failed through the engine or through the server itself.
pub const SERVER_ERROR: &str = "ServerError";

/// Histogram, seconds: from a request's arrival to its first token.
pub const TIME_TO_FIRST_TOKEN: &str = "drivetrain_time_to_first_token_seconds";
/// Counter: tokens of prompts, special ones included.
pub const PROMPT_TOKENS: &str = "drivetrain_prompt_tokens_total";
/// Counter: new tokens.
pub const GENERATED_TOKENS: &str = "drivetrain_generated_tokens_total";
/// Counter, by [`FINISH`]: choices that ended, and requests that failed or were cancelled.
pub const REQUESTS: &str = "drivetrain_generations_total";
/// Counter, by [`KIND`]: failed requests.
pub const ERRORS: &str = "drivetrain_errors_total";
/// Gauge: requests whose sequences are in the running batch.
pub const REQUESTS_RUNNING: &str = "drivetrain_requests_running";
/// Gauge: requests in the model's queue.
pub const REQUESTS_WAITING: &str = "drivetrain_requests_waiting";
/// Histogram: sequences of a forward pass.
pub const BATCH_SIZE: &str = "drivetrain_batch_sequences";
/// Histogram: tokens of a forward pass.
pub const BATCH_TOKENS: &str = "drivetrain_batch_tokens";
/// Gauge: KV cache in use or spoken for, from 0 to 1.
pub const KV_USE: &str = "drivetrain_kv_cache_use_ratio";
/// Counter: prompt tokens that were looked up in the prefix cache.
pub const PREFIX_QUERIED: &str = "drivetrain_prefix_queried_tokens_total";
/// Counter: prompt tokens that were found in the prefix cache.
pub const PREFIX_HITS: &str = "drivetrain_prefix_hit_tokens_total";

/// Bounds of the buckets of histograms in microseconds: from 0.1 ms to 10 minutes.
pub const MICROSECOND_BUCKETS: [f64; 18] = [
    1e2, 5e2, 1e3, 2.5e3, 5e3, 1e4, 2.5e4, 5e4, 1e5, 2.5e5, 5e5, 1e6, 2.5e6, 5e6, 1e7, 3e7, 1e8,
    6e8,
];
/// Bounds of the buckets of histograms in seconds: from 1 ms to 10 minutes.
pub const SECOND_BUCKETS: [f64; 16] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 100.0,
    600.0,
];
/// Bounds of the buckets of histograms that count: powers of 2.
pub const COUNT_BUCKETS: [f64; 16] = [
    1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0,
    16384.0, 32768.0,
];

/// Every histogram, and the bounds of its buckets.
pub const HISTOGRAMS: [(&str, &[f64]); 8] = [
    (QUEUE_TIME, &MICROSECOND_BUCKETS),
    (REQUEST_LATENCY, &MICROSECOND_BUCKETS),
    (TOKEN_LATENCY, &MICROSECOND_BUCKETS),
    (TOKEN_THROUGHPUT, &COUNT_BUCKETS),
    (OUTPUT_TOKENS, &COUNT_BUCKETS),
    (TIME_TO_FIRST_TOKEN, &SECOND_BUCKETS),
    (BATCH_SIZE, &COUNT_BUCKETS),
    (BATCH_TOKENS, &COUNT_BUCKETS),
];

/// Says to the installed recorder what each metric means.
pub fn describe() {
    let histograms = [
        (QUEUE_TIME, Unit::Microseconds, "From a request's arrival until its first step"),
        (REQUEST_LATENCY, Unit::Microseconds, "From a request's arrival to its answer's end"),
        (TOKEN_LATENCY, Unit::Microseconds, "From one token of a choice to the next"),
        (TOKEN_THROUGHPUT, Unit::CountPerSecond, "New tokens of a request a second"),
        (OUTPUT_TOKENS, Unit::Count, "New tokens of a request"),
        (TIME_TO_FIRST_TOKEN, Unit::Seconds, "From a request's arrival to its first token"),
        (BATCH_SIZE, Unit::Count, "Sequences of a forward pass"),
        (BATCH_TOKENS, Unit::Count, "Tokens of a forward pass"),
    ];
    for (name, unit, text) in histograms {
        describe_histogram!(name, unit, text);
    }
    let gauges = [
        (ROLLING_BATCH_SIZE, "Sequences of the step under way"),
        (REQUESTS_RUNNING, "Requests whose sequences are in the running batch"),
        (REQUESTS_WAITING, "Requests in the model's queue"),
        (KV_USE, "KV cache in use or spoken for, from 0 to 1"),
    ];
    for (name, text) in gauges {
        describe_gauge!(name, text);
    }
    let counters = [
        (ROLLING_BATCH_TIMEOUT, "Requests whose time was over before their answer was"),
        (RESPONSE_2XX, "Replies with a status of 2xx"),
        (RESPONSE_4XX, "Replies with a status of 4xx"),
        (RESPONSE_5XX, "Replies with a status of 5xx"),
        (WLM_ERROR, "Requests that failed for the state of a model or of its queue"),
        (SERVER_ERROR, "Requests that failed through the engine or the server itself"),
        (PROMPT_TOKENS, "Tokens of prompts"),
        (GENERATED_TOKENS, "New tokens"),
        (REQUESTS, "Choices by how they ended, and requests that failed or were cancelled"),
        (ERRORS, "Failed requests by kind"),
        (PREFIX_QUERIED, "Prompt tokens looked up in the prefix cache"),
        (PREFIX_HITS, "Prompt tokens found in the prefix cache"),
    ];
    for (name, text) in counters {
        describe_counter!(name, text);
    }
}
