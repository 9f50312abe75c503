//! Where the fixtures lie.

use std::path::{Path, PathBuf};

use drivetrain_artifacts::{ModelDir, UnpackOptions};

/// The directory of a fixture.
pub(crate) fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures").join(name)
}

/// A fixture, opened.
pub(crate) fn open(name: &str) -> ModelDir {
    ModelDir::open(&path(name), &UnpackOptions::default()).expect("the fixture is there")
}
