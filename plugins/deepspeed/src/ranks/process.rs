//! `mpirun`, in a process group of its own.

use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStderr, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use drivetrain_engine::{LogLevel, Services};
use rustix::process::{Pid, Signal, kill_process_group};
use tempfile::TempDir;

/// Bytes of what it printed last that are kept for a message.
const KEPT_BYTES: usize = 2 << 10;
/// Longest line that is logged as one.
const MAX_LINE_BYTES: u64 = 4 << 10;
/// How long it may take to clear up after a signal that asks it to.
const CLEARING: Duration = Duration::from_secs(1);
/// How often one who waits looks.
const TURN: Duration = Duration::from_millis(10);

/// The running program. It is ended when this is dropped.
#[derive(Debug)]
pub(crate) struct Launcher {
    child: Mutex<Child>,
    pid: Option<Pid>,
    printed: Arc<Mutex<String>>,
    /// Its files; last, since it goes when the program has gone.
    _dir: TempDir,
}

impl Launcher {
    /// Starts `command`, whose files lie in `dir`; what it prints goes to the log.
    pub(crate) fn start(
        command: &mut Command,
        dir: TempDir,
        services: &Services,
    ) -> std::io::Result<Self> {
        let command = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.process_group(0).spawn()?;
        let printed: Arc<Mutex<String>> = Arc::default();
        let (out, err): (Option<ChildStdout>, Option<ChildStderr>) =
            (child.stdout.take(), child.stderr.take());
        if let Some(out) = out {
            pump(out, Arc::clone(&printed), services.clone());
        }
        if let Some(err) = err {
            pump(err, Arc::clone(&printed), services.clone());
        }
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        Ok(Self { child: Mutex::new(child), pid, printed, _dir: dir })
    }

    /// How it has ended, if it has.
    pub(crate) fn end(&self) -> Option<ExitStatus> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner).try_wait().ok().flatten()
    }

    /// What it printed last.
    pub(crate) fn printed(&self) -> String {
        self.printed.lock().unwrap_or_else(PoisonError::into_inner).trim().to_owned()
    }

    /// Waits for its end as long as `limit`. Whether it has ended.
    pub(crate) fn wait(&self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        loop {
            if self.end().is_some() {
                return true;
            }
            if Instant::now() >= deadline {
                return false;
            }
            thread::sleep(TURN);
        }
    }

    /// Ends it and what it started: asked first, so that it clears up, then killed.
    pub(crate) fn kill(&self) {
        self.signal(Signal::TERM);
        if !self.wait(CLEARING) {
            self.signal(Signal::KILL);
            self.wait(CLEARING);
        }
    }

    fn signal(&self, signal: Signal) {
        // While it has not been waited for its number stays its own.
        let mut child = self.child.lock().unwrap_or_else(PoisonError::into_inner);
        if child.try_wait().is_ok_and(|end| end.is_none())
            && let Some(pid) = self.pid
        {
            // A group that has ended already is no error.
            let _ = kill_process_group(pid, signal);
        }
    }
}

impl Drop for Launcher {
    fn drop(&mut self) {
        if self.end().is_none() {
            self.kill();
        }
    }
}

/// Logs what comes line by line, and keeps the last of it.
fn pump(from: impl Read + Send + 'static, printed: Arc<Mutex<String>>, services: Services) {
    let work = move || {
        let mut from = BufReader::new(from);
        let mut line = Vec::new();
        loop {
            line.clear();
            match (&mut from).take(MAX_LINE_BYTES).read_until(b'\n', &mut line) {
                Ok(0) | Err(_) => return,
                Ok(_) => {}
            }
            let text = String::from_utf8_lossy(&line);
            let text = text.trim();
            if text.is_empty() || text.bytes().all(|byte| byte == b'-') {
                continue;
            }
            services.log(LogLevel::Warn, &format!("mpirun: {text}"));
            let mut kept = printed.lock().unwrap_or_else(PoisonError::into_inner);
            kept.push_str(text);
            kept.push(' ');
            let over = kept.len().saturating_sub(KEPT_BYTES);
            let over = (over..=kept.len()).find(|idx| kept.is_char_boundary(*idx)).unwrap_or(0);
            kept.drain(..over);
        }
    };
    // Without a thread its output is lost, and nothing else.
    let _ = thread::Builder::new().name("mpirun-output".to_owned()).spawn(work);
}
