//! The command line of `engine-bench`.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use drivetrain_benches::Work;

/// The command line, parsed.
#[derive(Debug)]
pub(crate) struct Arguments {
    /// The engine's library.
    pub(crate) plugin: PathBuf,
    /// The model's directory, or its GGUF file.
    pub(crate) model: PathBuf,
    /// The model's options, keys without `option.`.
    pub(crate) options: Vec<(String, String)>,
    /// Threads to compute on; all by default.
    pub(crate) n_threads: Option<NonZeroUsize>,
    /// What to time; without it, commands are read.
    pub(crate) work: Option<Work>,
    /// How often `work` is timed.
    pub(crate) n_rounds: usize,
}

impl Arguments {
    pub(crate) fn parse(mut given: impl Iterator<Item = String>) -> Result<Self> {
        let (mut plugin, mut model) = (None, None);
        let (mut options, mut n_threads, mut work, mut n_rounds) = (Vec::new(), None, None, 5);
        while let Some(flag) = given.next() {
            let value = given.next().with_context(|| format!("{flag} needs a value"))?;
            match flag.as_str() {
                "--plugin" => plugin = Some(value.into()),
                "--model" => model = Some(value.into()),
                "--option" => {
                    let pair = value.split_once('=');
                    let (key, value) =
                        pair.with_context(|| format!("--option {value}: expected KEY=VALUE"))?;
                    options.push((key.to_owned(), value.to_owned()));
                }
                "--threads" => n_threads = Some(value.parse().context("--threads")?),
                "--work" => work = Some(value.parse()?),
                "--rounds" => n_rounds = value.parse().context("--rounds")?,
                _ => bail!("{flag} is not an option of engine-bench"),
            }
        }
        Ok(Self {
            plugin: plugin.context("--plugin LIBRARY is missing")?,
            model: model.context("--model DIR is missing")?,
            options,
            n_threads,
            work,
            n_rounds,
        })
    }
}
