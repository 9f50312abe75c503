//! Discovery, precedence, and what is said when there is no such engine.

use std::fs;

use drivetrain_engine::ModelKind;

use super::*;
use crate::fake::{FakeEngine, info};

fn registry(names: &[&'static str]) -> EngineRegistry {
    let mut registry = EngineRegistry::default();
    for name in names {
        registry.add(Arc::new(FakeEngine::new(name, info(ModelKind::Decoder))));
    }
    registry
}

fn named(name: &str) -> EngineChoice {
    EngineChoice::Named(name.to_owned())
}

#[test]
fn names_and_aliases_match_without_case() {
    let registry = registry(&["example", "accelerate"]);
    let check = |name: &str, expect: Option<&str>| {
        let found = registry.select(&named(name)).ok().map(|engine| engine.info().name);
        assert_eq!(found.as_deref(), expect, "{name}");
    };
    check("Accelerate", Some("accelerate"));
    check("EXAMPLE-ALIAS", Some("example"));
    check("nonesuch", None);
}

#[test]
fn the_host_prefers_fast_engines() {
    let order = |names: &[&'static str]| -> Vec<String> {
        let registry = registry(names);
        let found = registry.candidates(&EngineChoice::Auto).unwrap();
        found.into_iter().map(|found| found.info.name.clone()).collect()
    };
    let expect = ["fastertransformer", "accelerate", "example", "other"];
    assert_eq!(order(&["example", "accelerate", "other", "fastertransformer"]), expect);
}

#[test]
fn of_one_name_the_first_counts() {
    let registry = registry(&["example", "example"]);
    assert_eq!(registry.engines().len(), 1);
}

#[test]
fn a_missing_engine_is_told_with_those_there_are() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("libbroken.so"), b"no library").unwrap();
    fs::write(dir.path().join("notes.txt"), b"no library either").unwrap();
    let mut registry = EngineRegistry::discover(&[dir.path().join("absent"), dir.path().into()]);
    assert_eq!(registry.rejected().len(), 1);
    let message = registry.select(&EngineChoice::Auto).err().unwrap().to_string();
    assert!(
        message.contains("there is no engine") && message.contains("libbroken.so"),
        "{message}"
    );
    registry.add(Arc::new(FakeEngine::new("accelerate", info(ModelKind::Decoder))));
    let message = registry.select(&named("nonesuch")).err().unwrap().to_string();
    let expect = "engine=nonesuch: there is no engine of this name; found: accelerate";
    assert!(message.starts_with(expect) && message.contains("libbroken.so"), "{message}");
}

#[cfg(unix)]
#[test]
fn a_link_to_an_opened_file_is_passed_over() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("liba.so"), b"no library").unwrap();
    std::os::unix::fs::symlink(dir.path().join("liba.so"), dir.path().join("libb.so")).unwrap();
    let registry = EngineRegistry::discover(&[dir.path().into(), dir.path().into()]);
    assert_eq!(registry.rejected().len(), 1);
}

#[test]
fn folders_are_searched_in_their_order() {
    let dirs = |paths: &[&str]| paths.iter().map(PathBuf::from).collect::<Vec<_>>();
    let found = plugin_dirs(&dirs(&["/a", "/b"]), &dirs(&["/c", "/a"]), Some(Path::new("/bin")));
    let expect =
        ["/a", "/b", "/c", "/bin", "/bin/../lib/drivetrain/plugins", "/opt/drivetrain/plugins"];
    assert_eq!(found, dirs(&expect));
}
