//! Who can take part with a model, and who sits in memory together.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::arguments::{Arguments, is_chosen};
use crate::entrants::{ENGINES, Engine, Format, Offer, PEERS, Peer, YARDSTICK};
use crate::machine;
use crate::python::Python;
use crate::rounds::Seat;
use crate::workload::Model;

/// A process takes this beside its weights.
const OVERHEAD_BYTES: u64 = 600 << 20;

/// Engines and libraries that are there.
#[derive(Debug)]
pub(crate) struct Field {
    engines: Vec<(&'static Engine, PathBuf)>,
    peers: Vec<&'static Peer>,
    /// Who is not, and why.
    pub(crate) missing: Vec<(String, String)>,
}

impl Field {
    /// Builds the engines and installs the libraries that were chosen.
    pub(crate) fn open(arguments: &Arguments, python: &Python, root: &Path) -> Self {
        let mut field = Self { engines: Vec::new(), peers: Vec::new(), missing: Vec::new() };
        for engine in ENGINES.iter().filter(|one| is_chosen(&arguments.engines, one.name)) {
            match library(arguments, engine.name, root) {
                Ok(library) => field.engines.push((engine, library)),
                Err(error) => field.missing.push((engine.name.to_owned(), format!("{error:#}"))),
            }
        }
        for peer in PEERS {
            if peer.name != YARDSTICK && !is_chosen(&arguments.peers, peer.name) {
                continue;
            }
            match python.install(peer.name) {
                Ok(()) => field.peers.push(peer),
                Err(error) => field.missing.push((peer.name.to_owned(), format!("{error:#}"))),
            }
        }
        field
    }

    /// Everyone who computes `model`, with the log of each, in groups that fit into memory; the first of
    /// each group is the yardstick.
    ///
    /// # Errors
    /// There is no yardstick.
    pub(crate) fn sittings(
        &mut self,
        model: &Model,
        arguments: &Arguments,
        python: &Python,
    ) -> Result<Vec<Vec<(Seat, PathBuf)>>> {
        let hf =
            python.form(model.shape, "hf").context("torch is what the others are checked with")?;
        let yardstick = || {
            let seat = peer_seat(&PEERS[0], Format::F32, &hf, arguments, python);
            vec![with_log(seat, model, python)]
        };
        let budget = machine::available_bytes().unwrap_or(u64::MAX) / 10 * 9;
        let room = budget.saturating_sub(bytes(model, Format::F32));
        let (mut sittings, mut sitting, mut free) = (Vec::new(), yardstick(), room);
        for format in Format::ALL.into_iter().filter(|f| is_chosen(&arguments.formats, f.name())) {
            let needed = bytes(model, format);
            for seat in self.seats(model, format, arguments, python) {
                if needed > free && sitting.len() > 1 {
                    sittings.push(std::mem::replace(&mut sitting, yardstick()));
                    free = room;
                }
                free = free.saturating_sub(needed);
                sitting.push(with_log(seat, model, python));
            }
        }
        sittings.push(sitting);
        Ok(sittings)
    }

    fn seats(
        &mut self,
        model: &Model,
        format: Format,
        arguments: &Arguments,
        python: &Python,
    ) -> Vec<Seat> {
        let mut seats = Vec::new();
        let engines = self.engines.clone();
        for (engine, library) in
            engines.into_iter().filter(|(engine, _)| engine.families.contains(&model.family))
        {
            if let Some((offer, path)) =
                self.form(engine.name, engine.offers, model, format, python)
            {
                seats.push(engine_seat((engine.name, offer), &library, &path, arguments));
            }
        }
        let peers = self.peers.clone();
        for peer in peers.into_iter().filter(|peer| peer.families.contains(&model.family)) {
            let is_there = peer.name == YARDSTICK
                && (format == Format::F32 || !is_chosen(&arguments.peers, YARDSTICK));
            if is_there {
                continue;
            }
            if let Some((_, path)) = self.form(peer.name, peer.offers, model, format, python) {
                seats.push(peer_seat(peer, format, &path, arguments, python));
            }
        }
        seats
    }

    /// What `name` loads to compute `model` in `format`, if it does so; what can't be made is noted.
    fn form(
        &mut self,
        name: &str,
        offers: &'static [Offer],
        model: &Model,
        format: Format,
        python: &Python,
    ) -> Option<(&'static Offer, PathBuf)> {
        let offer = offers.iter().find(|offer| offer.format == format)?;
        if offer.form.starts_with("gguf") && !model.has_gguf() {
            return None;
        }
        match python.form(model.shape, offer.form) {
            Ok(path) => Some((offer, path)),
            Err(error) => {
                let what = format!("{name} {} of {}", format.name(), model.name);
                self.missing.push((what, format!("{error:#}")));
                None
            }
        }
    }
}

fn with_log(seat: Seat, model: &Model, python: &Python) -> (Seat, PathBuf) {
    let name = format!("{}-{}-{}.log", model.name, seat.name, seat.format.name());
    (seat, python.logs().join(name))
}

/// What a process with `model` takes at most: some keep the mapped file beside what they made of it.
fn bytes(model: &Model, format: Format) -> u64 {
    let weights = model.n_millions * 1_000_000 * format.bits() / 8;
    weights + weights / 5 + OVERHEAD_BYTES
}

/// The library of an engine: the one that was given, or one that is built now.
fn library(arguments: &Arguments, name: &str, root: &Path) -> Result<PathBuf> {
    if let Some((_, file)) = arguments.libraries.iter().find(|(given, _)| given == name) {
        ensure!(file.is_file(), "{} is not there", file.display());
        return Ok(file.clone());
    }
    let is_there = root.join("plugins").join(name).join("Cargo.toml").is_file();
    ensure!(is_there, "the workspace has no plugins/{name}");
    let package = format!("drivetrain-{name}");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut build = Command::new(cargo);
    build.current_dir(root).args(["build", "--release", "--locked", "--package", &package]);
    ensure!(build.status()?.success(), "{package} can't be built");
    let (prefix, suffix) = (std::env::consts::DLL_PREFIX, std::env::consts::DLL_SUFFIX);
    let file = beside(&format!("{prefix}{}{suffix}", package.replace('-', "_")))?;
    ensure!(file.is_file(), "{} is not there after a build", file.display());
    Ok(file)
}

/// A file in the folder that this program is in: where cargo builds.
fn beside(name: &str) -> Result<PathBuf> {
    let this = std::env::current_exe()?;
    Ok(this.parent().context("this program lies nowhere")?.join(name))
}

fn engine_seat(
    (name, offer): (&'static str, &Offer),
    library: &Path,
    model: &Path,
    arguments: &Arguments,
) -> Seat {
    let program = beside(&format!("engine-bench{}", std::env::consts::EXE_SUFFIX));
    let mut command = Command::new(program.unwrap_or_else(|_| "engine-bench".into()));
    command.arg("--plugin").arg(library).arg("--model").arg(model);
    command.args(["--threads", &arguments.n_threads.to_string()]);
    let given = arguments.options.iter().filter(|(format, ..)| format == offer.format.name());
    let given: Vec<(&str, &str)> = given.map(|(_, key, value)| (&**key, &**value)).collect();
    for (key, value) in if given.is_empty() { offer.options } else { &given } {
        command.args(["--option", &format!("{key}={value}")]);
    }
    Seat { name, format: offer.format, is_engine: true, command }
}

fn peer_seat(
    peer: &Peer,
    format: Format,
    model: &Path,
    arguments: &Arguments,
    python: &Python,
) -> Seat {
    let mut command = python.script(&format!("{}_runner.py", peer.name));
    let threads = arguments.n_threads.to_string();
    command.arg("--model").arg(model).args(["--format", format.name(), "--threads", &threads]);
    command.env("OMP_NUM_THREADS", &threads).env("MKL_NUM_THREADS", &threads);
    Seat { name: peer.name, format, is_engine: false, command }
}
