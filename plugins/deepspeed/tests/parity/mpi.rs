//! Ranks that are processes, started by `mpirun`, against ranks that are threads.
//!
//! They need the program `drivetrain-rank` beside the tests and `mpirun`. Where either is missing the tests
//! say so and are skipped, unless `DRIVETRAIN_TEST_ALL` is set.

use std::path::Path;
use std::process::Command;

use drivetrain_engine::{Engine, EngineError, ErrorKind, LoadedModel, ModelKind};

use crate::ENGINE;
use crate::degrees::{is_mpi, run_with};
use crate::measures::{rows, step, tokens};
use crate::own::{fixture, request};
use crate::support::{Model, assert_close};

/// Whether the tests can run here.
fn can_run(test: &str) -> bool {
    let own = std::env::current_exe().unwrap();
    let program = own.ancestors().nth(2).unwrap().join("drivetrain-rank");
    let has_mpirun = Command::new("mpirun").arg("--version").output().is_ok();
    if program.exists() && has_mpirun {
        return true;
    }
    let why = format!("{} or mpirun is missing: see CONTRIBUTING.md", program.display());
    assert!(std::env::var_os("DRIVETRAIN_TEST_ALL").is_none(), "{test}: {why}");
    eprintln!("skipped: {test}: {why}");
    false
}

fn try_load(dir: &Path, degree: u32, more: &[(&str, &str)]) -> Result<Model, EngineError> {
    let degree = degree.to_string();
    let own = [("tensor_parallel_degree", degree.as_str()), ("dtype", "fp32")];
    let options: Vec<(&str, &str)> = own.iter().chain(more).copied().collect();
    let loaded = ENGINE.load(&request(dir, &options, 2, &std::sync::Arc::default()))?;
    let LoadedModel::Token(model) = loaded else { panic!("a request model") };
    Ok(Model::of(model))
}

const PROCESSES: &[(&str, &str)] = &[("mpi_mode", "true")];

/// What a prompt gives, and a step after it.
fn answers(model: &mut Model, prompt: &[u32]) -> (Vec<f32>, Vec<f32>) {
    if model.info.kind == ModelKind::Encoder {
        return (rows(model, prompt), rows(model, prompt));
    }
    let (first, last) = prompt.split_at(prompt.len() - 1);
    let sequence = model.begin(first);
    let read = step(model, sequence, first, 0);
    let next = step(model, sequence, last, first.len());
    model.inner.release(sequence);
    assert_eq!(model.inner.n_sequences(), 0);
    (read, next)
}

/// Heads of their own, shared by groups and by all; heads that ranks don't divide; with an encoder and
/// without; a mixture of experts.
#[test]
fn processes_give_the_bits_of_threads() {
    if is_mpi() || !can_run("processes_give_the_bits_of_threads") {
        return;
    }
    for (name, degree) in [
        ("gpt2", 2),
        ("llama_gqa", 2),
        ("llama_gqa", 3),
        ("variants/llama_bias_mqa", 3),
        ("variants/bloom_six_heads", 4),
        ("mixtral", 2),
        ("bart", 2),
        ("bart", 3),
        ("bert", 2),
        ("heads/bert_labels", 3),
    ] {
        let prompt: Vec<u32> = tokens(30, 3).iter().map(|token| token % 60).collect();
        let one = answers(&mut try_load(&fixture(name), 1, &[]).unwrap(), &prompt);
        let threads = answers(&mut try_load(&fixture(name), degree, &[]).unwrap(), &prompt);
        let mut model = try_load(&fixture(name), degree, PROCESSES).unwrap();
        let processes = answers(&mut model, &prompt);
        assert!(processes == threads, "{name} at {degree}");
        assert_close(&format!("{name} at {degree}"), &processes.0, &one.0, 1e-4);
        assert_close(&format!("{name} at {degree}"), &processes.1, &one.1, 1e-4);
        model.inner.health().unwrap();
    }
}

/// Adapters, and what batches, sequences and refusals are, as at any degree.
#[test]
fn the_suite_passes_on_processes() {
    if is_mpi() || !can_run("the_suite_passes_on_processes") {
        return;
    }
    let filters = ["adapters::one_batch", "adapters::an_unloaded", "behaviour::"];
    run_with(&[("DRIVETRAIN_TEST_MPI", "1")], &filters);
}

fn refused(dir: &Path, degree: u32, more: &[(&str, &str)]) -> EngineError {
    let options: Vec<(&str, &str)> = PROCESSES.iter().chain(more).copied().collect();
    match try_load(dir, degree, &options) {
        Ok(_) => panic!("the model was loaded"),
        Err(error) => error,
    }
}

#[test]
fn what_ranks_cannot_be_started_with_is_refused() {
    if !can_run("what_ranks_cannot_be_started_with_is_refused") {
        return;
    }
    let model = fixture("llama_gqa");
    for (degree, option, expect) in [
        (2, ("mpi_mode", "maybe"), "option.mpi_mode=maybe: expected true or false"),
        (0, ("dtype", "fp32"), "option.tensor_parallel_degree=0: expected a whole number above 0"),
        (65, ("dtype", "fp32"), "4 heads and 64 columns"),
        (2, ("mpi_hostfile", "/nowhere/hosts"), "option.mpi_hostfile=/nowhere/hosts: No such file"),
    ] {
        let error = refused(&model, degree, &[option]);
        assert_eq!(error.kind(), ErrorKind::BadInput, "{error}");
        assert!(error.message().contains(expect), "{error}");
    }
    let dir = tempfile::tempdir().unwrap();
    let hosts = dir.path().join("hosts");
    std::fs::write(&hosts, "# none\n\n").unwrap();
    let error = refused(&model, 2, &[("mpi_hostfile", hosts.to_str().unwrap())]);
    assert!(error.message().ends_with("hosts: it names no host"), "{error}");
    let error = refused(dir.path(), 2, &[]);
    assert_eq!(error.kind(), ErrorKind::BadInput, "{error}");
}
