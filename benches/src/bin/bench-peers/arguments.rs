//! The command line of `bench-peers`.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};

use crate::entrants::{ENGINES, Format, PEERS};

/// What `--help` prints.
pub(crate) const USAGE: &str = "\
cargo xtask bench-peers [OPTION ...]

  --peers A,B         only these libraries: torch, hf_accelerate, ctranslate2, llama_cpp, openvino,
                      onnxruntime, or none;
                      torch in f32 always runs, since the others are checked against it
  --engines A,B       only these engines: fastertransformer, accelerate, or none
  --library NAME=FILE the engine NAME from this file, instead of building it here
  --models A,B        only these models: bart-large, smollm2-135m, llama-1b,
                      llama-1b-offloaded (with --small: bart-base)
  --work A,B          only work whose name begins so: features, features-1x128, summary, prefill, decode-16
  --formats A,B       only these: f32, bf16, int8, q8_0, q4_0
  --rounds N          rounds of each work (7)
  --threads N         threads of each entrant (all cores)
  --option FORMAT:KEY=VALUE
                      an option for engines that compute in FORMAT, in place of the built-in ones
  --small             small models and short inputs: to see whether everything works
  --out DIR           where the result goes (benches/results)";

/// The command line, parsed.
#[derive(Debug)]
pub(crate) struct Arguments {
    pub(crate) peers: Option<Vec<String>>,
    pub(crate) engines: Option<Vec<String>>,
    pub(crate) models: Option<Vec<String>>,
    pub(crate) work: Option<Vec<String>>,
    pub(crate) formats: Option<Vec<String>>,
    /// Engines from files of their own.
    pub(crate) libraries: Vec<(String, PathBuf)>,
    /// Options by format.
    pub(crate) options: Vec<(String, String, String)>,
    pub(crate) n_rounds: usize,
    pub(crate) n_threads: NonZeroUsize,
    pub(crate) is_small: bool,
    pub(crate) out: Option<PathBuf>,
    /// The line as it was given.
    pub(crate) given: String,
}

impl Arguments {
    /// Reads the line; `None` if help was asked for.
    pub(crate) fn parse(given: &[String]) -> Result<Option<Self>> {
        let n_threads = std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
        let mut parsed = Self {
            peers: None,
            engines: None,
            models: None,
            work: None,
            formats: None,
            libraries: Vec::new(),
            options: Vec::new(),
            n_rounds: 7,
            n_threads,
            is_small: false,
            out: None,
            given: given.join(" "),
        };
        let mut given = given.iter();
        while let Some(flag) = given.next() {
            match flag.as_str() {
                "--help" | "-h" => return Ok(None),
                "--small" => parsed.is_small = true,
                flag => {
                    let value = given.next().with_context(|| format!("{flag} needs a value"))?;
                    parsed.set(flag, value)?;
                }
            }
        }
        parsed.check()?;
        Ok(Some(parsed))
    }

    fn set(&mut self, flag: &str, value: &str) -> Result<()> {
        let list = || Some(value.split(',').map(str::to_owned).collect());
        match flag {
            "--peers" => self.peers = list(),
            "--engines" => self.engines = list(),
            "--models" => self.models = list(),
            "--work" => self.work = list(),
            "--formats" => self.formats = list(),
            "--rounds" => self.n_rounds = value.parse().context("--rounds")?,
            "--threads" => self.n_threads = value.parse().context("--threads")?,
            "--out" => self.out = Some(value.into()),
            "--library" => {
                let (name, file) = value.split_once('=').context("--library NAME=FILE")?;
                self.libraries.push((name.to_owned(), file.into()));
            }
            "--option" => {
                let form = "--option FORMAT:KEY=VALUE";
                let (format, pair) = value.split_once(':').context(form)?;
                let (key, value) = pair.split_once('=').context(form)?;
                self.options.push((format.to_owned(), key.to_owned(), value.to_owned()));
            }
            _ => bail!("{flag} is not an option\n\n{USAGE}"),
        }
        Ok(())
    }

    fn check(&self) -> Result<()> {
        let known = |what: &str, given: &Option<Vec<String>>, names: &[&str]| {
            let unknown = given
                .iter()
                .flatten()
                .find(|one| one.as_str() != "none" && !names.contains(&one.as_str()));
            match unknown {
                Some(one) => bail!("--{what} {one}: expected some of {}", names.join(", ")),
                None => Ok(()),
            }
        };
        known("peers", &self.peers, &PEERS.iter().map(|peer| peer.name).collect::<Vec<_>>())?;
        known("engines", &self.engines, &ENGINES.iter().map(|one| one.name).collect::<Vec<_>>())?;
        known("formats", &self.formats, &Format::ALL.map(Format::name))?;
        ensure!(self.n_rounds > 0, "--rounds 0: expected at least 1");
        Ok(())
    }
}

/// Whether `name` is wanted: everything is where nothing was said.
pub(crate) fn is_chosen(chosen: &Option<Vec<String>>, name: &str) -> bool {
    chosen.as_ref().is_none_or(|chosen| chosen.iter().any(|one| one == name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Option<Arguments>> {
        Arguments::parse(&line.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn the_line_is_read() {
        let parsed = parse("--peers torch,openvino --rounds 3 --small --option int8:quantize=w8a8")
            .unwrap()
            .unwrap();
        assert!(is_chosen(&parsed.peers, "openvino") && !is_chosen(&parsed.peers, "llama_cpp"));
        assert!(is_chosen(&parsed.engines, "accelerate") && parsed.is_small);
        assert_eq!(parsed.options, [("int8".into(), "quantize".into(), "w8a8".into())]);
        assert!(parse("--help").unwrap().is_none());
    }

    #[test]
    fn a_wrong_line_is_refused() {
        for line in ["--peers tensorflow", "--rounds 0", "--threads 0", "--rounds", "--fast 1"] {
            assert!(parse(line).is_err(), "{line}");
        }
    }
}
