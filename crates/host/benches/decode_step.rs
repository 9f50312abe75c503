//! The host's own cost of a decode step: schedule, batch, choose, send, and the reader's part.
//!
//! `cargo bench -p drivetrain-host --bench decode_step [-- FILTER]`. The model's thread runs a null
//! engine, which notes the time between its passes, so that its own is not in the figures. Costs by
//! number of sequences give, by a straight line, what a step and what a sequence costs. What comes out
//! is checked: every request gets all its tokens.

mod null;

use std::error::Error;
use std::hint::black_box;
use std::time::{Duration, Instant};

use alloc_tracker::Allocator;
use drivetrain_host::Event;
use null::{MAX_SEQUENCES, Served, VOCAB, request};
use serde_json::{Value, json};

#[global_allocator]
static ALLOCATOR: Allocator<std::alloc::System> = Allocator::system();

/// Steps before and while allocations are counted.
const COUNTED: (usize, usize) = (100, 100);

/// How the next tokens are chosen.
struct Case {
    name: &'static str,
    parameters: Value,
    is_streamed: bool,
    /// Sequences of a request.
    width: usize,
    sizes: &'static [usize],
}

/// What one number of sequences costs.
struct Cost {
    n_sequences: usize,
    /// The median step, and the tenth percentile.
    step: Duration,
    low: Duration,
    allocations: f64,
    /// Of the readers, for a token.
    reader: Duration,
    engine: Duration,
}

fn main() -> Result<(), Box<dyn Error>> {
    let is_bench = std::env::args().any(|argument| argument == "--bench");
    let filter = std::env::args().skip(1).find(|argument| !argument.starts_with('-'));
    let n_steps = if is_bench { 500 } else { COUNTED.0 + COUNTED.1 + 10 };
    let served = Served::new()?;
    let row_bytes = VOCAB * size_of::<f32>();
    // What a core reads of logits that were just written, and of memory.
    let near = bandwidth(32 * row_bytes);
    let far = bandwidth(if is_bench { 512 << 20 } else { 1 << 20 });
    println!(
        "bytes of a row of logits: {row_bytes}; a core reads {near:.1} GB/s of 32 such rows, \
         {far:.1} GB/s of memory"
    );
    let cases = cases();
    let cases = cases.iter().filter(|case| filter.as_ref().is_none_or(|f| case.name.contains(f)));
    for case in cases {
        println!(
            "{:24} {:>5} {:>9} {:>9} {:>9} {:>9} {:>8} {:>9} {:>9}",
            case.name,
            "seqs",
            "steps/s",
            "us/step",
            "us/seq",
            "p10/seq",
            "allocs",
            "reader us",
            "engine us"
        );
        let mut costs = Vec::new();
        for &n_sequences in case.sizes {
            let cost = measure(&served, case, n_sequences, n_steps)?;
            let micros = |time: Duration| time.as_secs_f64() * 1e6;
            println!(
                "{:24} {:5} {:9.0} {:9.1} {:9.2} {:9.2} {:8.2} {:9.2} {:9.1}",
                "",
                n_sequences,
                1e6 / micros(cost.step),
                micros(cost.step),
                micros(cost.step) / n_sequences as f64,
                micros(cost.low) / n_sequences as f64,
                cost.allocations,
                micros(cost.reader),
                micros(cost.engine),
            );
            costs.push(cost);
        }
        let (fixed, each) = line(&costs);
        let roof = |bandwidth: f64| row_bytes as f64 / bandwidth / 1e3;
        println!(
            "{:24} {fixed:.1} us a step + {each:.2} us a sequence; to read its logits once takes \
             {:.2} us ({:.0} %) from cache, {:.2} us ({:.0} %) from memory",
            "",
            roof(near),
            100.0 * roof(near) / each,
            roof(far),
            100.0 * roof(far) / each,
        );
    }
    Ok(())
}

fn cases() -> Vec<Case> {
    let case = |name, parameters| {
        let sizes = &[1, 2, 4, 8, 16, 32];
        Case { name, parameters, is_streamed: true, width: 1, sizes }
    };
    let sampling = |top_k: u32, top_p: f64| json!({"do_sample": true, "temperature": 0.8, "top_k": top_k, "top_p": top_p, "seed": 1});
    vec![
        Case {
            sizes: &[1, 2, 4, 8, 16, 32, MAX_SEQUENCES],
            ..case("greedy", json!({"do_sample": false}))
        },
        case("greedy, 5 logprobs", json!({"do_sample": false, "logprobs": 5})),
        case("top-k 50, top-p 0.9", sampling(50, 0.9)),
        Case {
            name: "4 beams",
            parameters: json!({"num_beams": 4, "do_sample": false}),
            is_streamed: false,
            width: 4,
            sizes: &[4, 8, 16, 32],
        },
    ]
}

/// Runs `n_sequences` at once for `n_steps`.
fn measure(
    served: &Served,
    case: &Case,
    n_sequences: usize,
    n_steps: usize,
) -> Result<Cost, Box<dyn Error>> {
    let mut parameters = case.parameters.clone();
    if let Value::Object(parameters) = &mut parameters {
        parameters.insert("max_new_tokens".to_owned(), json!(n_steps));
    }
    {
        let mut gauge = served.gauge();
        gauge.reset(n_sequences);
        gauge.counted = COUNTED;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let began = thread_time();
    let n_tokens = runtime.block_on(async {
        let mut readers = Vec::new();
        for idx in 0..n_sequences / case.width {
            let asked = request(idx, case.is_streamed, &parameters);
            let mut generation =
                served.model.generate(asked).await.map_err(|error| error.to_string())?;
            readers.push(tokio::spawn(async move {
                let mut n_tokens = 0;
                while let Some(event) = generation.next().await {
                    match event.map_err(|error| error.to_string())? {
                        Event::Token { text, .. } => n_tokens += usize::from(!text.is_empty()),
                        Event::Done { completion, .. } if n_tokens == 0 => {
                            n_tokens = completion.ids.len();
                        }
                        _ => {}
                    }
                }
                Ok::<_, String>(n_tokens)
            }));
        }
        let mut all = 0;
        for reader in readers {
            let n_tokens = reader.await.map_err(|error| error.to_string())??;
            if n_tokens != n_steps {
                return Err(format!("{n_tokens} tokens came of {n_steps}"));
            }
            all += n_tokens;
        }
        Ok(all)
    })?;
    let reader = (thread_time() - began) / n_tokens as u32;
    let gauge = served.gauge();
    let mut steps = gauge.host.clone();
    steps.sort_unstable();
    let at = |percent: usize| steps.get(steps.len() * percent / 100).copied().unwrap_or_default();
    let (n_allocations, n_counted) = gauge.allocations();
    if n_counted != COUNTED.1 as u64 {
        return Err(format!("{} steps of {n_sequences} sequences, too few", steps.len()).into());
    }
    Ok(Cost {
        n_sequences,
        step: at(50),
        low: at(10),
        allocations: n_allocations as f64 / n_counted as f64,
        reader,
        engine: gauge.engine / steps.len().max(1) as u32,
    })
}

/// The straight line through the costs, in microseconds: what a step costs, and what a sequence does.
/// Each point weighs as its error does, which grows with the cost.
fn line(costs: &[Cost]) -> (f64, f64) {
    let (mut w, mut x, mut y, mut xx, mut xy) = (0.0, 0.0, 0.0, 0.0, 0.0);
    for cost in costs {
        let (n, micros) = (cost.n_sequences as f64, cost.step.as_secs_f64() * 1e6);
        let weight = 1.0 / (micros * micros);
        w += weight;
        x += weight * n;
        y += weight * micros;
        xx += weight * n * n;
        xy += weight * n * micros;
    }
    let each = (w * xy - x * y) / (w * xx - x * x);
    ((y - each * x) / w, each)
}

/// Gigabytes a second that one core reads of a buffer of `n_bytes` that was just written.
fn bandwidth(n_bytes: usize) -> f64 {
    let mut numbers = vec![1_u64; n_bytes / 8];
    let mut best = Duration::MAX;
    for turn in 0..7 {
        numbers.fill(turn);
        let began = Instant::now();
        let sum = numbers.iter().fold(0_u64, |sum, number| sum.wrapping_add(*number));
        black_box(sum);
        best = best.min(began.elapsed());
    }
    n_bytes as f64 / best.as_secs_f64() / 1e9
}

/// Processor time of this thread, as Linux counts it; nothing elsewhere.
fn thread_time() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let nanos = text.split(' ').next().and_then(|text| text.parse().ok());
    Duration::from_nanos(nanos.unwrap_or_default())
}
