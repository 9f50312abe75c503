//! Options are read as the contract says, and wrong ones are named.

use std::num::NonZeroUsize;

use drivetrain_engine::{Options, Services};

use super::*;

fn read(options: &[(&str, &str)]) -> Result<Settings, PythonError> {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("model.py"), "").unwrap();
    Settings::read(&LoadRequest {
        model_name: "m",
        model_dir: folder.path(),
        adapter_dir: None,
        options: Options::new(options),
        n_threads: NonZeroUsize::MIN,
        services: Services::silent(),
    })
}

fn workers(options: &[(&str, &str)]) -> (u32, u32) {
    let cpu = [options, &[("load_on_devices", "-1")]].concat();
    let settings = read(&cpu).unwrap();
    (settings.min_workers, settings.max_workers)
}

#[test]
fn workers_have_the_contracts_bounds() {
    assert_eq!(workers(&[]), (1, 2));
    assert_eq!(workers(&[("async_mode", "true")]), (1, 1));
    assert_eq!(workers(&[("minWorkers", "3")]), (3, 3));
    assert_eq!(workers(&[("minWorkers", "3"), ("maxWorkers", "2")]), (2, 2));
    assert_eq!(workers(&[("maxWorkers", "4"), ("cpu.maxWorkers", "1")]), (1, 1));
    assert_eq!(workers(&[("maxWorkers", "0")]), (0, 0));
}

#[test]
fn limits_of_0_are_none() {
    let limit = |text| read(&[("predict_timeout", text)]).unwrap().predict_timeout;
    assert_eq!(limit("7"), Duration::from_secs(7));
    assert_eq!(limit("0.5"), Duration::from_millis(500));
    assert_eq!(limit("0"), NO_LIMIT);
}

#[test]
fn wrong_values_are_named() {
    for (key, value) in [
        ("predict_timeout", "soon"),
        ("predict_timeout", "-1"),
        ("enable_venv", "maybe"),
        ("maxWorkers", "many"),
        ("max_in_flight", "0"),
        ("max_in_flight", "1000"),
        ("tensor_parallel_degree", "0"),
        ("tensor_parallel_degree", "4000000000"),
    ] {
        let error = read(&[(key, value)]).unwrap_err().to_string();
        assert!(error.starts_with(&format!("option.{key}={value}: expected")), "{error}");
    }
    let error = read(&[("env", "secret")]).unwrap_err().to_string();
    assert!(error.starts_with("option.env=..: expected NAME=VALUE"), "{error}");
}

#[test]
fn a_comma_without_a_name_belongs_to_the_value() {
    let pairs = |text: &str| {
        let pairs = variables(text).unwrap();
        pairs.into_iter().map(|(k, v)| format!("{k}:{v}")).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(pairs(""), "");
    assert_eq!(pairs("A=1"), "A:1");
    assert_eq!(pairs("A=1, B=x=y"), "A:1 B:x=y");
    assert_eq!(pairs("A=1,2,B=3"), "A:1,2 B:3");
}

#[test]
fn the_handler_is_told_all_but_the_environment() {
    let settings = read(&[("task", "x"), ("env", "A=1"), ("model_dir", "elsewhere")]).unwrap();
    let get = |key: &str| {
        settings.properties.iter().find(|(k, _)| k == key).map(|(_, value)| value.as_str())
    };
    assert_eq!(get("task"), Some("x"));
    assert_eq!(get("env"), None);
    assert_eq!(get("engine"), Some("Python"));
    assert_eq!(get("tensor_parallel_degree"), Some("1"));
    assert_ne!(get("model_dir"), Some("elsewhere"));
}
