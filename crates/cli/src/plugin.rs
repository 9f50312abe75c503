//! `drivetrain plugin check`: the conformance suite against a built engine.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use anyhow::{Result, bail};
use drivetrain_config::Environment;
use drivetrain_conformance::{CheckOptions, check as run_suite, model_beside};
use drivetrain_engine::{Engine, EngineLibrary, LoadRequest, Options, Services};

use crate::args::Check;
use crate::default_model;
use crate::settings::settings;

/// Opens the library as a server would, runs the suite, prints the report, and fails with it.
pub(crate) fn check(args: &Check) -> Result<()> {
    crate::logging::start(&Environment::from_process(), "error");
    let library = EngineLibrary::open(&args.library)?;
    let info = library.info();
    println!(
        "{} {} (ABI {}) from {}",
        info.name,
        info.version,
        library.abi(),
        library.path().display()
    );
    let options = settings(&args.options)?;
    let report = run_suite(
        &library,
        &CheckOptions {
            model_dir: args.model.clone().or_else(|| model_for(&library)),
            options,
            cycles: args.cycles,
            seed: args.seed,
            ..CheckOptions::default()
        },
    );
    println!("{report}");
    if report.passed() { Ok(()) } else { bail!("{} does not conform", library.path().display()) }
}

/// A model to check an engine with when none is named: one beside the library, one that ships for
/// this engine, or the shipped default if the engine takes it.
fn model_for(library: &EngineLibrary) -> Option<PathBuf> {
    let executable = std::env::current_exe().ok()?;
    let own = model_beside(library.path())
        .or_else(|| default_model::of_engine(&executable, &library.info().name));
    let model = own.or_else(|| {
        let shipped = default_model::shipped(&executable)?;
        let request = LoadRequest {
            model_name: "check",
            model_dir: &shipped,
            adapter_dir: None,
            options: Options::new(&[]),
            n_threads: NonZeroUsize::MIN,
            services: Services::silent(),
        };
        library.load(&request).is_ok().then_some(shipped)
    })?;
    println!("with the model in {}", model.display());
    Some(model)
}
