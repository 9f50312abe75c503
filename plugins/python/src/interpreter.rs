//! The interpreter, and what it does once before the workers start.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use drivetrain_engine::{LogLevel, Services};

use crate::entry::Entry;
use crate::error::PythonError;
use crate::output;
use crate::package::Package;
use crate::process;
use crate::settings::Settings;

/// The oldest version that handlers run on.
const OLDEST: (u32, u32) = (3, 9);

/// Prints what is asked of an interpreter. `sys.executable` is the interpreter itself where the name
/// is that of a script which looks for it each time.
const ASK: &str = "import sys; print(sys.version_info[0], sys.version_info[1], sys.executable)";

/// How long an interpreter may take to say who it is.
const ASK_LIMIT: Duration = Duration::from_secs(30);

/// How long what a process printed is waited for when it has ended. Processes that it left outside of its
/// group may print for ever.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Most of what a program prints that is looked at.
const MAX_TEXT_BYTES: u64 = 1 << 20;

/// How often it is looked whether a process has ended.
const TURN: Duration = Duration::from_millis(10);

/// What the workers are started with.
#[derive(Clone, Debug)]
pub(crate) struct Prepared {
    pub(crate) python: PathBuf,
    pub(crate) entry: Entry,
}

/// Finds the interpreter, makes the virtual environment, installs the requirements and fetches the
/// entry point, as far as any of this is to be done.
pub(crate) fn prepare(
    settings: &Settings,
    package: &Package,
    model_dir: &Path,
    services: &Services,
) -> Result<Prepared, PythonError> {
    let mut prepared =
        Prepared { python: find(settings, services)?, entry: settings.entry.clone() };
    let url = match &settings.entry {
        Entry::Url(url) => Some(url.as_str()),
        _ => None,
    };
    let has_requirements = model_dir.join("requirements.txt").is_file();
    if !settings.has_venv && url.is_none() && !has_requirements {
        return Ok(prepared);
    }
    services.progress("installing requirements", 0, 0);
    let mut command = Command::new(&prepared.python);
    command.arg(package.script()).arg("prepare");
    command.arg("--model-dir").arg(model_dir).arg("--work-dir").arg(package.root());
    command.envs(settings.env.iter().map(|(key, value)| (key, value)));
    if settings.has_venv {
        command.arg("--venv");
    }
    if let Some(url) = url {
        command.arg("--entry-url").arg(url);
    }
    let limit = settings.load_timeout;
    let done = run(&mut command, &settings.python, limit, services)?;
    let said = |name: &str| {
        let line = done.text.lines().rev().find_map(|line| line.strip_prefix(name));
        line.and_then(|line| line.strip_prefix('='))
    };
    if !done.is_good {
        let what = if url.is_some() { "fetching the entry point" } else { "making the venv" };
        return Err(PythonError::Prepare { what });
    }
    if let Some(python) = said("python") {
        prepared.python = PathBuf::from(python);
    }
    if let Some(file) = said("entry") {
        prepared.entry = Entry::File(PathBuf::from(file));
    }
    if said("requirements") == Some("failed") {
        services.log(
            LogLevel::Warn,
            "requirements.txt could not be installed; the handler may find a module missing",
        );
    }
    Ok(prepared)
}

/// The interpreter itself, once it has said that it is new enough.
fn find(settings: &Settings, services: &Services) -> Result<PathBuf, PythonError> {
    let program = settings.python.as_str();
    let mut command = Command::new(program);
    command.args(["-c", ASK]);
    command.envs(settings.env.iter().map(|(key, value)| (key, value)));
    let done = run(&mut command, program, ASK_LIMIT, services)?;
    let wrong =
        |found: String| PythonError::WrongInterpreter { program: program.to_owned(), found };
    let mut words = done.text.trim().splitn(3, ' ');
    let mut number = || words.next().and_then(|word| word.parse::<u32>().ok());
    let (Some(major), Some(minor), true) = (number(), number(), done.is_good) else {
        return Err(wrong("what is no Python".to_owned()));
    };
    if (major, minor) < OLDEST {
        return Err(wrong(format!("Python {major}.{minor}")));
    }
    let path = words.next().filter(|path| !path.is_empty()).unwrap_or(program);
    services.log(LogLevel::Info, &format!("handlers run on Python {major}.{minor} ({path})"));
    Ok(PathBuf::from(path))
}

/// What a program printed to standard output, and whether it ended well.
struct Done {
    text: String,
    is_good: bool,
}

/// Runs a program to its end. What it prints to standard error goes to the log.
fn run(
    command: &mut Command,
    program: &str,
    limit: Duration,
    services: &Services,
) -> Result<Done, PythonError> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let no_interpreter =
        |source| PythonError::NoInterpreter { program: program.to_owned(), source };
    let mut child = process::spawn(command).map_err(no_interpreter)?;
    let what = "what it prints could not be given a thread";
    let no_thread = |source| PythonError::System { worker: 0, what, source };
    let (out, err) = (child.take_stdout(), child.take_stderr());
    let text = Arc::new(Mutex::new(Vec::new()));
    let (is_done, done) = mpsc::channel::<()>();
    let (own, log) = (Arc::clone(&text), services.clone());
    let read = move || {
        // Dropped with the thread's end, which is what is waited for.
        let _is_done = is_done;
        if let Some(out) = out {
            collect(out.take(MAX_TEXT_BYTES), &own);
        }
    };
    let print = move || {
        if let Some(err) = err {
            output::pump(err, "prepare", LogLevel::Warn, &log);
        }
    };
    thread::Builder::new().spawn(read).map_err(no_thread)?;
    thread::Builder::new().spawn(print).map_err(no_thread)?;
    let ended = wait(&mut child, limit, services);
    child.kill();
    // It sends nothing: an error is its end, or the end of patience.
    let _ = done.recv_timeout(LAST_WORDS);
    let text = text.lock().unwrap_or_else(PoisonError::into_inner);
    Ok(Done { text: String::from_utf8_lossy(&text).into_owned(), is_good: ended? })
}

/// Puts what comes to what has come.
fn collect(mut from: impl Read, to: &Mutex<Vec<u8>>) {
    let mut chunk = [0; 4096];
    while let Some(n) = from.read(&mut chunk).ok().filter(|n| *n > 0) {
        to.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(&chunk[..n]);
    }
}

fn wait(
    child: &mut process::Process,
    limit: Duration,
    services: &Services,
) -> Result<bool, PythonError> {
    let deadline = Instant::now() + limit;
    while !child.has_ended() {
        if services.cancelled() {
            return Err(PythonError::Cancelled);
        }
        if Instant::now() >= deadline {
            return Err(PythonError::LoadTimeout { limit });
        }
        thread::sleep(TURN);
    }
    Ok(child.reap().is_some_and(|status| status.success()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(script: &str, limit: Duration) -> Result<String, PythonError> {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        run(&mut command, "sh", limit, &Services::silent()).map(|done| done.text)
    }

    #[test]
    fn what_a_program_leaves_behind_is_not_waited_for() {
        let begun = Instant::now();
        let text = said("setsid sleep 60 & echo here", Duration::from_secs(30)).unwrap();
        assert_eq!(text, "here\n");
        let late = said("setsid sleep 60 & echo here; sleep 60", Duration::from_millis(200));
        assert!(matches!(late, Err(PythonError::LoadTimeout { .. })));
        assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    }
}
