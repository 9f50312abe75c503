//! What a container prints: told on in the service's own log, and its end kept for reasons.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Longest line; what is longer is told in several.
const MAX_LINE_BYTES: u64 = 16 << 10;
/// Lines that are kept.
const N_KEPT: usize = 200;
/// How long the rest of a container's output is waited for once it has ended: what it started may
/// hold its output open.
const LAST_LINES: Duration = Duration::from_millis(500);
const TURN: Duration = Duration::from_millis(5);

/// What `drivetrain serve` says of a model that can't be loaded, before the reason.
const FAILED_TO_LOAD: &str = " failed to load: ";
/// What the binary's own last words begin with.
const LAST_WORDS: &str = "drivetrain: ";

/// The output of one container.
#[derive(Debug)]
pub(super) struct Log {
    endpoint: String,
    variant: String,
    kept: Mutex<VecDeque<String>>,
    n_open: AtomicUsize,
}

impl Log {
    pub(super) fn new(endpoint: &str, variant: &str) -> Arc<Self> {
        Arc::new(Self {
            endpoint: endpoint.to_owned(),
            variant: variant.to_owned(),
            kept: Mutex::default(),
            n_open: AtomicUsize::new(0),
        })
    }

    /// Reads `output` to its end, on a thread of its own.
    pub(super) fn follow(self: &Arc<Self>, output: impl Read + Send + 'static) {
        let log = Arc::clone(self);
        log.n_open.fetch_add(1, Ordering::AcqRel);
        let started =
            std::thread::Builder::new().name("container-log".to_owned()).spawn(move || {
                let mut output = BufReader::new(output);
                let mut line = Vec::new();
                loop {
                    line.clear();
                    let read = (&mut output).take(MAX_LINE_BYTES).read_until(b'\n', &mut line);
                    if !read.is_ok_and(|n| n > 0) {
                        break;
                    }
                    log.take(String::from_utf8_lossy(&line).trim_end());
                }
                log.n_open.fetch_sub(1, Ordering::AcqRel);
            });
        if let Err(error) = started {
            self.n_open.fetch_sub(1, Ordering::AcqRel);
            tracing::error!(endpoint = self.endpoint, %error, "the container's log can't be followed");
        }
    }

    fn take(&self, line: &str) {
        if line.is_empty() {
            return;
        }
        tracing::info!(target: "container", endpoint = self.endpoint, variant = self.variant, "{line}");
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() == N_KEPT {
            kept.pop_front();
        }
        kept.push_back(line.to_owned());
    }

    /// Waits until everything is read that an ended container printed.
    pub(super) async fn settle(&self) {
        let mut waited = Duration::ZERO;
        while self.n_open.load(Ordering::Acquire) > 0 && waited < LAST_LINES {
            tokio::time::sleep(TURN).await;
            waited += TURN;
        }
    }

    /// Why it ended, as far as its output says: the reason that a model could not be loaded, else its
    /// last words, else its last line.
    pub(super) fn reason(&self) -> Option<String> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let own = || kept.iter().filter_map(|line| line.strip_prefix(LAST_WORDS));
        let of_model = own().find_map(|line| Some(line.split_once(FAILED_TO_LOAD)?.1));
        let found =
            of_model.or_else(|| own().next_back()).or_else(|| kept.back().map(String::as_str));
        found.map(str::to_owned)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn check(output: &'static str, wanted: Option<&str>) {
        let log = Log::new("e", "v");
        log.follow(output.as_bytes());
        log.settle().await;
        assert_eq!(log.reason().as_deref(), wanted, "{output}");
    }

    #[tokio::test]
    async fn the_first_cause_goes_before_what_followed_from_it() {
        check("", None).await;
        check("INFO starting\nTraceback\n", Some("Traceback")).await;
        check("drivetrain: --host: wrong\nINFO bye\n", Some("--host: wrong")).await;
        check(
            "INFO starting\ndrivetrain: model model failed to load: model.py: no module: x\n\
             drivetrain: 1 of 1 models failed to load; nothing is served\n",
            Some("model.py: no module: x"),
        )
        .await;
    }
}
