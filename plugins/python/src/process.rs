//! A child process in a group of its own, which is ended as a whole.

use std::fs;
use std::io;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, ChildStderr, ChildStdout, Command, ExitStatus};

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};

/// A child process. It and what it started are killed when this is dropped.
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
    pid: Option<Pid>,
    status: Option<ExitStatus>,
}

/// Starts a process in a group of its own.
pub(crate) fn spawn(command: &mut Command) -> io::Result<Process> {
    let child = command.process_group(0).spawn()?;
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    Ok(Process { child, pid, status: None })
}

impl Process {
    /// The process's number.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// What it prints, once.
    pub(crate) fn take_stdout(&mut self) -> Option<ChildStdout> {
        self.child.stdout.take()
    }

    /// What it prints to standard error, once.
    pub(crate) fn take_stderr(&mut self) -> Option<ChildStderr> {
        self.child.stderr.take()
    }

    /// Whether it has ended. It is not waited for, so that its number stays its own.
    pub(crate) fn has_ended(&self) -> bool {
        let Some(pid) = self.pid.filter(|_| self.status.is_none()) else { return true };
        let look = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT | WaitIdOptions::NOHANG;
        !matches!(waitid(WaitId::Pid(pid), look), Ok(None))
    }

    /// Bytes of memory that it and what it started have for themselves: no pages of files, which they
    /// share.
    pub(crate) fn own_bytes(&self) -> u64 {
        if self.has_ended() { 0 } else { own_bytes(self.id(), 0) }
    }

    /// Kills it and its group. After [`Self::reap`] nothing is left that its number stands for.
    pub(crate) fn kill(&self) {
        if let Some(pid) = self.pid.filter(|_| self.status.is_none()) {
            // A group that has ended already is no error.
            let _ = kill_process_group(pid, Signal::KILL);
        }
    }

    /// Kills what is left of the group, and returns how the process itself ended.
    pub(crate) fn reap(&mut self) -> Option<ExitStatus> {
        if self.status.is_none() {
            self.kill();
            self.status = self.child.wait().ok();
        }
        self.status
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.reap();
    }
}

/// How deep processes may lie below a worker to be counted.
const DEEPEST: u32 = 8;

/// Of a process and its descendants, as far as they can be seen.
fn own_bytes(pid: u32, depth: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    let kib = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok());
    let own = kib.unwrap_or(0) << 10;
    if depth == DEEPEST {
        return own;
    }
    let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let children: Vec<u32> = threads
        .filter_map(|thread| fs::read_to_string(thread.path().join("children")).ok())
        .flat_map(|text| text.split(' ').map_while(|c| c.parse().ok()).collect::<Vec<u32>>())
        .collect();
    own + children.into_iter().map(|child| own_bytes(child, depth + 1)).sum::<u64>()
}

/// How a process ended, in words that follow its name.
pub(crate) fn ending(status: Option<ExitStatus>) -> String {
    match status.map(|status| (status.code(), status.signal())) {
        Some((Some(code), _)) => format!("ended with exit code {code}"),
        Some((None, Some(signal))) => format!("was ended by signal {signal}"),
        _ => "ended".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::process::Stdio;
    use std::thread::sleep;
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_status_is_that_of_the_process_though_its_group_is_killed() {
        let mut process = spawn(Command::new("sh").args(["-c", "sleep 100 & exit 3"])).unwrap();
        while !process.has_ended() {
            sleep(Duration::from_millis(5));
        }
        assert_eq!(ending(process.reap()), "ended with exit code 3");
        assert!(process.has_ended());
        process.kill();
    }

    #[test]
    fn memory_of_what_it_started_counts() {
        let script = "read x; head -c 40000000 /dev/zero | tail | (read y; sleep 100)";
        let mut process =
            spawn(Command::new("sh").args(["-c", script]).stdin(Stdio::piped())).unwrap();
        let before = process.own_bytes();
        assert!(before < 10_000_000, "{before}");
        let mut stdin = process.child.stdin.take().unwrap();
        std::io::Write::write_all(&mut stdin, b"\n").unwrap();
        let deadline = std::time::Instant::now() + Duration::from_secs(20);
        while process.own_bytes() < 40_000_000 {
            assert!(std::time::Instant::now() < deadline, "{}", process.own_bytes());
            sleep(Duration::from_millis(2));
        }
        process.kill();
        process.reap();
        assert_eq!(process.own_bytes(), 0);
    }

    #[test]
    fn what_it_started_ends_with_it() {
        let script = "sleep 100 & echo $!; wait";
        let mut process =
            spawn(Command::new("sh").args(["-c", script]).stdout(Stdio::piped())).unwrap();
        let out = process.take_stdout().unwrap();
        let mut line = String::new();
        let mut out = std::io::BufReader::new(out);
        std::io::BufRead::read_line(&mut out, &mut line).unwrap();
        drop(process);
        let mut rest = String::new();
        // The pipe closes when the last of them has gone.
        std::io::Read::read_to_string(&mut out, &mut rest).unwrap();
        assert_eq!(rest, "");
    }
}
