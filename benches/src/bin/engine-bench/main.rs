//! One engine, opened as a library and driven without a server.
//!
//! `engine-bench --plugin LIBRARY --model DIR [--option KEY=VALUE ...] [--threads N]` loads the model and
//! answers commands on its standard input: see `drivetrain_benches::protocol`. With `--work
//! prefill:512 [--rounds N]` it times that instead, and prints a line a round.

#![forbid(unsafe_code)]

mod arguments;
mod beams;
mod notes;
mod session;

use std::io::{BufRead, Write};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use drivetrain_benches::protocol::{Command, Line, Ready};
use drivetrain_engine::{
    Engine, EngineLibrary, ErrorKind, LoadRequest, LoadedModel, Options, Services, TokenModel,
};

use arguments::Arguments;
use notes::Notes;
use session::Session;

/// Tokens that commands from `--work` treat as special: those of BART, and harmless elsewhere.
const EOS: u32 = 2;

fn main() -> Result<()> {
    let arguments = Arguments::parse(std::env::args().skip(1))?;
    let (model, ready) = load(&arguments)?;
    say(&Line::Ready(ready))?;
    let mut session = Session::new(model);
    match arguments.work {
        None => answer(&mut session),
        Some(work) => {
            let command = Command {
                task: work.task,
                ids: work.prompts(session.vocab()),
                n_new: work.n_new,
                n_beams: work.n_beams,
                eos: EOS,
                decoder_start: EOS,
                wants_output: false,
            };
            session.run(&command)?;
            (0..arguments.n_rounds).try_for_each(|_| say(&Line::Done(session.run(&command)?)))
        }
    }
}

fn load(arguments: &Arguments) -> Result<(Box<dyn TokenModel>, Ready)> {
    let notes = Arc::new(Notes::default());
    let started = Instant::now();
    let engine = EngineLibrary::open(&arguments.plugin)?;
    let info = engine.info();
    let pairs: Vec<(&str, &str)> =
        arguments.options.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
    let n_threads = arguments.n_threads.or_else(|| std::thread::available_parallelism().ok());
    let request = LoadRequest {
        model_name: "bench",
        model_dir: &arguments.model,
        adapter_dir: None,
        options: Options::new(&pairs),
        n_threads: n_threads.unwrap_or(NonZeroUsize::MIN),
        services: Services::new(notes.clone()),
    };
    let loaded = engine.load(&request).with_context(|| format!("{} can't load it", info.name))?;
    let LoadedModel::Token(model) = loaded else {
        bail!("{} serves whole requests: it has no forward pass to time", info.name);
    };
    let load_seconds = started.elapsed().as_secs_f64();
    let version = format!("{} {}", info.name, info.version);
    Ok((model, Ready { load_seconds, version, warnings: notes.take() }))
}

/// Answers commands until there are no more.
fn answer(session: &mut Session) -> Result<()> {
    for line in std::io::stdin().lock().lines() {
        let command: Command = serde_json::from_str(&line?).context("a command")?;
        say(&match session.run(&command) {
            Ok(done) => Line::Done(done),
            Err(error) if error.kind() == ErrorKind::Unsupported => {
                Line::Unsupported(error.message().to_owned())
            }
            Err(error) => Line::Failed(format!("{:#}", anyhow::Error::new(error))),
        })?;
    }
    Ok(())
}

fn say(line: &Line) -> Result<()> {
    let mut out = std::io::stdout().lock();
    serde_json::to_writer(&mut out, line)?;
    out.write_all(b"\n")?;
    Ok(out.flush()?)
}
