//! A runner as a process: asked on its standard input, answering on its standard output.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use drivetrain_benches::protocol::{Command as Ask, Done, Line, Ready};

/// Loading a model may quantise it.
const LOAD_TIMEOUT: Duration = Duration::from_secs(1200);
const TIMEOUT: Duration = Duration::from_secs(600);

/// A process with a loaded model.
#[derive(Debug)]
pub(crate) struct Runner {
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Receiver<String>,
    log: PathBuf,
    pub(crate) ready: Ready,
}

/// What a runner answered.
#[derive(Debug)]
pub(crate) enum Answer {
    /// It did the work.
    Done(Done),
    /// It can't, or the work failed: why.
    Not(String),
}

impl Runner {
    /// Starts `command`, whose standard error goes to `log`, and waits until its model is loaded.
    ///
    /// # Errors
    /// It can't be started, or ends before its model is loaded; what it last said.
    pub(crate) fn start(command: &mut Command, log: PathBuf) -> Result<Self> {
        if let Some(folder) = log.parent() {
            fs::create_dir_all(folder)?;
        }
        let stderr = File::create(&log).with_context(|| format!("making {}", log.display()))?;
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(stderr)
            .spawn()
            .with_context(|| format!("{} can't start", command.get_program().display()))?;
        let (sender, lines) = channel();
        let out = child.stdout.take().context("a runner without output")?;
        std::thread::spawn(move || {
            let lines = BufReader::new(out).lines().map_while(Result::ok);
            lines.take_while(|line| sender.send(line.clone()).is_ok()).for_each(drop);
        });
        let stdin = child.stdin.take();
        let ready = Ready { load_seconds: 0.0, version: String::new(), warnings: Vec::new() };
        let mut runner = Self { child, stdin, lines, log, ready };
        match runner.line(LOAD_TIMEOUT)? {
            Line::Ready(ready) => runner.ready = ready,
            other => bail!("the runner said {other:?} before it was ready"),
        }
        Ok(runner)
    }

    /// Lets it do `ask`.
    ///
    /// # Errors
    /// The process ended, or does not answer.
    pub(crate) fn ask(&mut self, ask: &Ask) -> Result<Answer> {
        let stdin = self.stdin.as_mut().context("a runner without input")?;
        let mut line = serde_json::to_vec(ask)?;
        line.push(b'\n');
        // A process that has ended takes nothing; the reason is in what it said.
        let _ = stdin.write_all(&line).and_then(|()| stdin.flush());
        Ok(match self.line(TIMEOUT)? {
            Line::Done(done) => Answer::Done(done),
            Line::Unsupported(why) | Line::Failed(why) => Answer::Not(why),
            Line::Ready(_) => bail!("the runner was ready twice"),
        })
    }

    /// The most memory that it held at once, pages of mapped files included.
    pub(crate) fn peak_bytes(&self) -> Option<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
        let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
        Some(kib << 10)
    }

    fn line(&mut self, timeout: Duration) -> Result<Line> {
        match self.lines.recv_timeout(timeout) {
            Ok(line) => serde_json::from_str(&line).with_context(|| {
                format!("not a runner's line: {}", line.chars().take(200).collect::<String>())
            }),
            Err(RecvTimeoutError::Timeout) => bail!("no answer in {} s", timeout.as_secs()),
            Err(RecvTimeoutError::Disconnected) => {
                let status = self.child.wait()?;
                let said = fs::read_to_string(&self.log).unwrap_or_default();
                // A cause of an `anyhow` chain follows its error, and a traceback ends with its own.
                let last = said.lines().rev().find(|line| !line.trim().is_empty());
                let last: String = last.unwrap_or_default().trim().chars().take(300).collect();
                bail!("{last} ({status})")
            }
        }
    }
}

impl Drop for Runner {
    /// Ends the process: its input ends, and it gets no time to think about that.
    fn drop(&mut self) {
        self.stdin = None;
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
