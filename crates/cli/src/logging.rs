//! Where log lines go and which of them.

use std::io::IsTerminal;

use drivetrain_config::Environment;
use tracing_subscriber::EnvFilter;

/// Sends log lines of `level` and up to standard error; `DRIVETRAIN_LOG` chooses others, by target
/// (`info,drivetrain_host=debug`), and `DRIVETRAIN_LOG_FORMAT=json` another form.
pub(crate) fn start(env: &Environment, level: &str) {
    let filter = env.get("DRIVETRAIN_LOG").unwrap_or(level);
    let filter = EnvFilter::try_new(filter).unwrap_or_else(|error| {
        eprintln!("drivetrain: DRIVETRAIN_LOG={filter}: {error}; logging at {level}");
        EnvFilter::new(level)
    });
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    if env.get("DRIVETRAIN_LOG_FORMAT") == Some("json") {
        lines.json().init();
    } else {
        lines.init();
    }
}
