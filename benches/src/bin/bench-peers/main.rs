//! Drivetrain's engines against other libraries, on the same cores, in the same run, round by round:
//! `cargo xtask bench-peers`, whose options `--help` lists.
//!
//! Each entrant is a process that keeps its model loaded. In a round each does the work once, one after
//! the other, so that a machine that slows down slows all of them; what is compared is their times of the
//! same round. Before it is timed an entrant's result is compared with PyTorch's in f32.

#![forbid(unsafe_code)]

mod arguments;
mod entrants;
mod machine;
mod python;
mod reads;
mod report;
mod rounds;
mod runner;
mod seats;
mod statistics;
mod workload;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use drivetrain_benches::Work;

use arguments::{Arguments, USAGE, is_chosen};
use entrants::Family;
use machine::Machine;
use python::Python;
use reads::Reads;
use report::{Report, Section};
use seats::Field;
use workload::{Model, SMALL, WHOLE};

fn main() -> Result<()> {
    let given: Vec<String> = std::env::args().skip(1).collect();
    let Some(arguments) = Arguments::parse(&given)? else {
        println!("{USAGE}");
        return Ok(());
    };
    let chosen = chosen(&arguments)?;
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("the workspace's root")?;
    let python = Python::open(root)?;
    let mut field = Field::open(&arguments, &python, root);
    let machine = Machine::measure(arguments.n_threads)?;
    let out = arguments.out.clone().unwrap_or_else(|| root.join("benches/results"));
    let mut report = Report {
        date: machine::today(),
        commit: machine::commit(root),
        command: format!("cargo xtask bench-peers {}", arguments.given).trim().to_owned(),
        n_rounds: arguments.n_rounds,
        python: python.version(),
        machine,
        n_busy: 0.0,
        missing: Vec::new(),
        sections: Vec::new(),
    };
    let path = out.join(name(&report, &arguments));
    for (model, works) in &chosen {
        let mut outcomes = Vec::new();
        let reads = match model.family {
            Family::Offloaded => {
                let dir = python.form(model.shape, "hf")?;
                Some(Reads::measure(&dir, arguments.n_threads)?)
            }
            _ => None,
        };
        let sittings = field.sittings(model, &arguments, &python)?;
        report.n_busy = machine::busy_cores().unwrap_or(0.0).max(report.n_busy);
        if report.is_disturbed() {
            eprintln!(
                "other programs keep {:.1} cores busy: times will mean little",
                report.n_busy
            );
        }
        for (idx, seats) in sittings.into_iter().enumerate() {
            let rounds = (idx, arguments.n_rounds);
            outcomes.extend(rounds::sit(model, works, rounds, seats, &mut field.missing)?);
        }
        report.sections.push(Section { model: model.name, works: works.clone(), reads, outcomes });
        report.missing.clone_from(&field.missing);
        // After each model, so that a run that is cut short leaves something.
        report.write(&path)?;
    }
    println!("{}", report.markdown());
    eprintln!("written to {}", path.with_extension("md").display());
    Ok(())
}

/// A model with its work, by name.
type Chosen = (&'static Model, Vec<(&'static str, Work)>);

/// The models and their work that the arguments leave.
fn chosen(arguments: &Arguments) -> Result<Vec<Chosen>> {
    let mut chosen = Vec::new();
    let is_wanted = |name: &str| {
        arguments.work.as_ref().is_none_or(|wanted| wanted.iter().any(|w| name.starts_with(&**w)))
    };
    let models = if arguments.is_small { SMALL } else { WHOLE };
    for model in models.iter().filter(|model| is_chosen(&arguments.models, model.name)) {
        let mut works = Vec::new();
        for (name, text) in model.works.iter().filter(|(name, _)| is_wanted(name)) {
            works.push((*name, text.parse()?));
        }
        if !works.is_empty() {
            chosen.push((model, works));
        }
    }
    ensure!(!chosen.is_empty(), "--models and --work leave nothing to do");
    Ok(chosen)
}

/// The file's name without its ending.
fn name(report: &Report, arguments: &Arguments) -> PathBuf {
    let small = if arguments.is_small { "-small" } else { "" };
    format!("{}-{}{small}", report.date, report.machine.slug()).into()
}
