//! Opening a library in a process of its own first: a damaged one can end whoever opens it.

use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use drivetrain_engine::{Engine, EngineLibrary, OpenEngineError};

/// The trial's exit code for a library that is refused in good order.
const REFUSED: u8 = 3;
/// A trial that takes longer hangs.
const LIMIT: Duration = Duration::from_secs(20);

/// The trial itself: opens `library` and asks for its name.
pub(crate) fn open(library: &Path) -> ExitCode {
    match EngineLibrary::open(library) {
        Ok(engine) => {
            drop(engine.info());
            ExitCode::SUCCESS
        }
        Err(_) => ExitCode::from(REFUSED),
    }
}

/// Runs the trial of `library` in a process of `executable`. A library that is refused in good
/// order passes: opening it here gives the reason.
pub(crate) fn run(executable: &Path, library: &Path) -> Result<(), OpenEngineError> {
    let crashed = |how: String| OpenEngineError::Crashed { path: library.to_owned(), how };
    let child = Command::new(executable)
        .args(["plugin", "try"])
        .arg(library)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    // Where no process can be started there is no trial, and the library is opened as it is.
    let Ok(mut child) = child else { return Ok(()) };
    let began = Instant::now();
    loop {
        match child.try_wait() {
            Ok(Some(status)) => {
                let in_order = status.success() || status.code() == Some(i32::from(REFUSED));
                return if in_order { Ok(()) } else { Err(crashed(status.to_string())) };
            }
            Ok(None) if began.elapsed() < LIMIT => std::thread::sleep(Duration::from_millis(1)),
            Ok(None) => {
                // It hangs; whether the kill arrives changes nothing for this process.
                let _ = child.kill();
                let _ = child.wait();
                return Err(crashed(format!("no answer within {} s", LIMIT.as_secs())));
            }
            Err(error) => return Err(crashed(error.to_string())),
        }
    }
}
