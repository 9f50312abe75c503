//! What loading would do: asked of the engine that would load, with the settings of a load.

use std::sync::atomic::Ordering;

use drivetrain_engine::{ErrorKind, LoadPlan};

use super::*;
use crate::{Planned, Stop};

struct NoWatch;

impl Watch for NoWatch {
    fn progress(&self, _: &str, _: u64, _: u64) {}

    fn stop(&self) -> Option<Stop> {
        None
    }
}

fn engine(name: &'static str) -> FakeEngine {
    FakeEngine::new(name, info(ModelKind::Decoder))
}

/// An engine whose plan has this many sequences.
fn planner(name: &'static str, max_sequences: u32) -> FakeEngine {
    FakeEngine { plan: Some(LoadPlan { max_sequences, ..LoadPlan::default() }), ..engine(name) }
}

fn refuser(name: &'static str, error: EngineError) -> FakeEngine {
    FakeEngine { refuses: Some(error), ..planner(name, 1) }
}

/// Asks these engines for a plan of a model with these properties; nothing is loaded by it.
fn plan(
    engines: Vec<FakeEngine>,
    properties: &str,
    settings: &[(&str, &str)],
) -> Result<Planned, HostError> {
    let engines: Vec<Arc<FakeEngine>> = engines.into_iter().map(Arc::new).collect();
    let mut registry = EngineRegistry::default();
    engines.iter().for_each(|engine| registry.add(Arc::clone(engine) as _));
    let host = host_with(registry);
    let dir = dir_of(ModelKind::Decoder, properties);
    let settings: Vec<(String, String)> =
        settings.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    let planned = host.plan(&ModelSpec::at(dir.path().to_str().unwrap()), &settings, &NoWatch);
    assert!(host.models().is_empty(), "a plan registers nothing");
    assert!(engines.iter().all(|engine| engine.n_alive.load(Ordering::SeqCst) == 0));
    planned
}

#[test]
fn settings_go_before_the_models_own() {
    let properties = "engine=one\noption.max_memory=cpu:1GiB\noption.dtype=bf16\n";
    let check = |settings: &[(&str, &str)], engine: &str, notes: [&str; 2]| {
        let planned = plan(vec![planner("one", 1), planner("two", 2)], properties, settings);
        let planned = planned.unwrap();
        assert_eq!(planned.engine, engine);
        for note in notes {
            assert!(planned.plan.notes.iter().any(|found| found == note), "{:?}", planned.plan);
        }
    };
    check(&[], "one", ["max_memory=cpu:1GiB", "dtype=bf16"]);
    let max_memory = ("max_memory", "cpu:2GiB");
    check(&[("engine", "two"), max_memory], "two", ["max_memory=cpu:2GiB", "dtype=bf16"]);
    check(&[("dtype", "fp32"), ("dtype", "fp16")], "one", ["max_memory=cpu:1GiB", "dtype=fp16"]);
}

#[test]
fn the_engine_that_would_load_is_the_one_that_plans() {
    let cannot = || EngineError::unsupported("model_type=gpt2: no code for it");
    let planned = plan(vec![refuser("one", cannot()), planner("two", 2)], "", &[]).unwrap();
    assert_eq!((planned.engine.as_str(), planned.plan.max_sequences), ("two", 2));
    let error = plan(vec![engine("one"), planner("two", 2)], "", &[]).unwrap_err();
    assert!(error.to_string().starts_with("engine one: this engine states no plan"), "{error}");
    assert!(matches!(error, HostError::Engine(error) if error.kind() == ErrorKind::Unsupported));
}

#[test]
fn what_would_not_load_has_no_plan() {
    let full = EngineError::out_of_memory("cpu: 3 bytes of 2");
    let error = plan(vec![refuser("one", full), planner("two", 2)], "", &[]).unwrap_err();
    assert_eq!(error.to_string(), "out of memory: cpu: 3 bytes of 2");
    let error = plan(vec![planner("one", 1)], "", &[("engine", "nonesuch")]).unwrap_err();
    assert!(matches!(error, HostError::EngineNotFound { .. }), "{error}");
    let error = plan(vec![planner("one", 1)], "required_memory_mb=1000000000\n", &[]).unwrap_err();
    assert!(matches!(error, HostError::OutOfMemory { .. }), "{error}");
}
