//! What a worker prints goes to the log, line by line, and no faster than a log can take it.

use std::io::Read;
use std::time::{Duration, Instant};

use drivetrain_engine::{LogLevel, Services};

use crate::published;

/// Longest line; a longer one becomes several.
const MAX_LINE_BYTES: usize = 8 << 10;
/// Bytes that go to the log within a [`WINDOW`]; what is beyond them is counted and left out.
const WINDOW_BYTES: usize = 1 << 20;
const WINDOW: Duration = Duration::from_secs(1);

/// Reads `from` to its end. Each line is logged at `level` after the worker's `title`; lines with
/// metrics become metrics.
pub(crate) fn pump(mut from: impl Read, title: &str, level: LogLevel, services: &Services) {
    let mut lines = Lines::default();
    let mut budget = Budget { since: Instant::now(), n_bytes: 0, n_left_out: 0 };
    let mut chunk = [0; 8 << 10];
    let mut print = |line: &[u8]| {
        let text = String::from_utf8_lossy(line);
        let text = text.trim_end();
        if text.is_empty() {
            return;
        }
        if let Some(metric) = published::parse(text) {
            services.metric(metric.kind, &metric.name, metric.value);
        }
        let (fits, left_out) = budget.take(line.len());
        if left_out > 0 {
            let text = format!("{title}: {left_out} bytes of output are left out of the log");
            services.log(LogLevel::Warn, &text);
        }
        if fits {
            services.log(level, &format!("{title}: {text}"));
        }
    };
    loop {
        match from.read(&mut chunk) {
            Ok(0) => break,
            Ok(n) => lines.add(chunk.get(..n).unwrap_or_default(), &mut print),
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(_) => break,
        }
    }
    print(&lines.rest);
    if budget.n_left_out > 0 {
        let n_bytes = budget.n_left_out;
        services.log(
            LogLevel::Warn,
            &format!("{title}: {n_bytes} bytes of output are left out of the log"),
        );
    }
}

/// Cuts bytes into lines.
#[derive(Default)]
struct Lines {
    rest: Vec<u8>,
}

impl Lines {
    fn add(&mut self, bytes: &[u8], line: &mut impl FnMut(&[u8])) {
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            self.rest.extend_from_slice(piece);
            if piece.ends_with(b"\n") || self.rest.len() >= MAX_LINE_BYTES {
                line(&self.rest);
                self.rest.clear();
            }
        }
    }
}

struct Budget {
    since: Instant,
    n_bytes: usize,
    n_left_out: u64,
}

impl Budget {
    /// Whether a line of `n_bytes` may be logged, and how much was left out before a new window.
    fn take(&mut self, n_bytes: usize) -> (bool, u64) {
        let mut left_out = 0;
        if self.since.elapsed() >= WINDOW {
            left_out = std::mem::take(&mut self.n_left_out);
            (self.since, self.n_bytes) = (Instant::now(), 0);
        }
        let fits = self.n_bytes + n_bytes <= WINDOW_BYTES;
        if fits {
            self.n_bytes += n_bytes;
        } else {
            self.n_left_out += n_bytes as u64;
        }
        (fits, left_out)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use drivetrain_engine::{HostServices, MetricKind};

    use super::*;

    #[derive(Default)]
    struct Kept(Mutex<Vec<String>>);

    impl HostServices for Kept {
        fn log(&self, level: LogLevel, message: &str) {
            self.0.lock().unwrap().push(format!("{level:?} {message}"));
        }
        fn metric(&self, kind: MetricKind, name: &str, value: f64) {
            self.0.lock().unwrap().push(format!("{kind:?} {name} {value}"));
        }
        fn progress(&self, _: &str, _: u64, _: u64) {}
        fn cancelled(&self) -> bool {
            false
        }
    }

    fn pumped(bytes: &[u8]) -> Vec<String> {
        let kept = Arc::new(Kept::default());
        pump(bytes, "worker 1", LogLevel::Info, &Services::new(kept.clone()));
        let lines = kept.0.lock().unwrap();
        lines.clone()
    }

    #[test]
    fn lines_are_logged_and_metrics_counted() {
        let lines = pumped(b"one\r\n\ntwo \xff\n[METRICS]N.Count:2|#a:b|1|c\nlast");
        let expect = [
            "Info worker 1: one",
            "Info worker 1: two \u{fffd}",
            "Counter N 2",
            "Info worker 1: [METRICS]N.Count:2|#a:b|1|c",
            "Info worker 1: last",
        ];
        assert_eq!(lines, expect);
    }

    #[test]
    fn a_flood_is_left_out() {
        let lines = pumped(&vec![b'x'; 5 << 20]);
        let n_bytes: usize = lines.iter().map(String::len).sum();
        assert!(n_bytes < 4 << 20, "{n_bytes}");
        assert!(lines.iter().all(|line| line.len() < MAX_LINE_BYTES + (8 << 10) + 100));
        assert!(lines.last().unwrap().contains("bytes of output are left out"), "{lines:?}");
    }
}
