//! Weights that a first start leaves packed for the next: the same bits, and never those of other files.

use std::fs;
use std::num::NonZeroUsize;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use drivetrain_engine::{
    Engine, HostServices, LoadRequest, LoadedModel, LogLevel, MetricKind, Options, Services,
};
use tempfile::TempDir;

use crate::ENGINE;
use crate::measures::{rows, tokens};
use crate::support::{Model, assert_close, workspace};

/// The lines of a load.
#[derive(Debug, Default)]
struct Lines(Mutex<Vec<String>>);

impl HostServices for Lines {
    fn log(&self, _: LogLevel, message: &str) {
        self.0.lock().unwrap().push(message.to_owned());
    }

    fn metric(&self, _: MetricKind, _: &str, _: f64) {}

    fn cancelled(&self) -> bool {
        false
    }

    fn progress(&self, _: &str, _: u64, _: u64) {}
}

/// Loads, and says what was said of packed weights.
fn load(dir: &Path, form: (&str, &str)) -> (Model, String) {
    let lines = Arc::new(Lines::default());
    let options = [form, ("packed_cache", "true")];
    let request = LoadRequest {
        model_name: "test",
        model_dir: dir,
        adapter_dir: None,
        options: Options::new(&options),
        n_threads: NonZeroUsize::new(2).unwrap(),
        services: Services::new(Arc::clone(&lines) as Arc<dyn HostServices>),
    };
    let LoadedModel::Token(model) = ENGINE.load(&request).unwrap() else {
        panic!("a request model");
    };
    let lines = lines.0.lock().unwrap();
    let of_cache =
        |line: &&String| line.contains("packed weights") || line.contains("packed_cache");
    let said: Vec<&String> = lines.iter().filter(of_cache).collect();
    assert_eq!(said.len(), 1, "{lines:?}");
    (Model::of(model), said[0].clone())
}

/// A model of one's own.
fn copy(fixture: &str) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(workspace("tests/fixtures").join(fixture)).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            fs::copy(&path, dir.path().join(path.file_name().unwrap())).unwrap();
        }
    }
    dir
}

fn kept(dir: &Path) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> =
        fs::read_dir(dir.join(".drivetrain")).unwrap().map(|entry| entry.unwrap().path()).collect();
    found.sort();
    found
}

#[test]
fn a_second_start_has_the_same_bits() {
    let prompt = tokens(40, 9);
    for (name, form) in [
        ("llama_gqa", ("dtype", "fp32")),
        ("llama_gqa", ("quantize", "int8")),
        ("llama_gqa", ("quantize", "q4")),
        ("bart", ("quantize", "int8-weight-only")),
        ("mixtral", ("dtype", "fp16")),
        ("deberta_v2", ("dtype", "auto")),
    ] {
        let dir = copy(name);
        let (mut first, said) = load(dir.path(), form);
        assert!(said.contains("packed weights are in"), "{said}");
        let (mut second, said) = load(dir.path(), form);
        assert!(said.contains("packed weights of"), "{name} {form:?}: {said}");
        assert_eq!(first.info.weight_bytes, second.info.weight_bytes, "{name} {form:?}");
        assert_close(name, &rows(&mut second, &prompt), &rows(&mut first, &prompt), 0.0);
        assert_eq!(kept(dir.path()).len(), 1, "{name} {form:?}");
    }
}

#[test]
fn each_form_has_a_file_and_changed_files_have_another() {
    let dir = copy("llama_gqa");
    load(dir.path(), ("dtype", "fp32"));
    load(dir.path(), ("quantize", "int8"));
    let before = kept(dir.path());
    assert_eq!(before.len(), 2);
    // Another model of the same size, with the times of the first.
    let file = dir.path().join("model.safetensors");
    let modified = fs::metadata(&file).unwrap().modified().unwrap();
    let mut bytes = fs::read(&file).unwrap();
    let at = bytes.len() - 4096;
    bytes[at..].fill(0);
    fs::write(&file, bytes).unwrap();
    fs::File::options().write(true).open(&file).unwrap().set_modified(modified).unwrap();
    let prompt = tokens(40, 9);
    let (mut changed, said) = load(dir.path(), ("dtype", "fp32"));
    assert!(said.contains("packed weights are in"), "{said}");
    let expect = {
        let other = copy("llama_gqa");
        fs::copy(&file, other.path().join("model.safetensors")).unwrap();
        rows(&mut load(other.path(), ("dtype", "fp32")).0, &prompt)
    };
    assert_close("changed", &rows(&mut changed, &prompt), &expect, 0.0);
    // Those of the files before are gone.
    let after = kept(dir.path());
    assert!(after.len() == 1 && !before.contains(&after[0]), "{after:?}");
}

#[test]
fn damage_is_found() {
    let prompt = tokens(40, 9);
    let dir = copy("llama_gqa");
    let form = ("quantize", "int8");
    let expect = rows(&mut load(dir.path(), form).0, &prompt);
    let file = kept(dir.path()).remove(0);
    let whole = fs::read(&file).unwrap();
    type Damage = fn(&mut Vec<u8>);
    let damages: [(&str, Damage); 4] = [
        ("was damaged", |bytes| bytes[1000] ^= 1),
        ("are in", |bytes| bytes.truncate(bytes.len() / 2)),
        ("are in", |bytes| {
            let at = bytes.len() - 16;
            bytes[at..at + 8].fill(0xff);
        }),
        ("are in", Vec::clear),
    ];
    for (expected, damage) in damages {
        let mut bytes = whole.clone();
        damage(&mut bytes);
        fs::write(&file, bytes).unwrap();
        let (mut model, said) = load(dir.path(), form);
        assert!(said.contains(expected), "{said}");
        assert_close(expected, &rows(&mut model, &prompt), &expect, 0.0);
        // The next start writes it anew, the one after reads it.
        if expected == "was damaged" {
            assert!(kept(dir.path()).is_empty());
            load(dir.path(), form);
        }
        let (_, said) = load(dir.path(), form);
        assert!(said.contains("packed weights of"), "{said}");
    }
}

#[test]
fn a_folder_that_leads_elsewhere_is_not_written_to() {
    let (dir, elsewhere) = (copy("llama_gqa"), tempfile::tempdir().unwrap());
    symlink(elsewhere.path(), dir.path().join(".drivetrain")).unwrap();
    let (_, said) = load(dir.path(), ("dtype", "fp32"));
    assert!(said.contains("option.packed_cache=true has no effect"), "{said}");
    assert!(fs::read_dir(elsewhere.path()).unwrap().next().is_none());
}
