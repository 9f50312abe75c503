//! The Python package's own tests, run by the interpreter there is.
#![allow(clippy::unwrap_used, reason = "clippy's exception for tests leaves out their helpers")]

use std::path::Path;
use std::process::Command;

#[test]
fn the_package_does_what_its_tests_say() {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/test_djl_python.py");
    let done = Command::new("python3").arg("-B").arg(script).output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
}
