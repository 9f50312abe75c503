//! Files that are no engine for this host, and what is said of them.

mod built;

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};

use built::library;
use drivetrain_engine::{AbiVersion, Engine, EngineLibrary, OpenEngineError};

/// A file in a folder of its own test, which is removed afterwards.
struct File(PathBuf);

impl File {
    fn new(name: &str, bytes: &[u8]) -> Self {
        let folder = std::env::temp_dir().join(format!("drivetrain-open-{}", std::process::id()));
        fs::create_dir_all(&folder).expect("the temporary folder can be written");
        let path = folder.join(name);
        fs::write(&path, bytes).expect("the temporary folder can be written");
        Self(path)
    }
}

impl Drop for File {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

#[track_caller]
fn refused(path: &Path) -> OpenEngineError {
    let error = EngineLibrary::open(path).expect_err("no engine");
    let text = error.to_string();
    assert!(text.starts_with(&path.display().to_string()), "{text}");
    assert_eq!(error.path(), path);
    error
}

/// Checks what is said of a file with these bytes.
#[track_caller]
fn check(name: &str, bytes: &[u8], expect: &str) {
    let file = File::new(name, bytes);
    let text = refused(&file.0).to_string();
    assert!(text.contains(expect), "expected {expect:?} in {text:?}");
}

#[test]
fn a_file_that_is_no_library_is_called_what_it_is() {
    check("text.so", b"not a library\n", "found a text file (14 bytes)");
    check("empty.so", b"", "found an empty file (0 bytes)");
    check("zip.so", b"PK\x03\x04....", "found a zip archive");
    check("script.so", b"#!/bin/sh\n", "found a script");
    check("noise.so", b"\x00\x01\x02\xff\xfe", "found 5 bytes of unknown data");
    check("utf8.so", "ü".repeat(300).as_bytes(), "found a text file (600 bytes)");
    check("magic.so", b"\x7fELF", "cut short (4 bytes of at least 64)");
}

#[test]
fn a_path_that_is_no_file_says_so() {
    let error = refused(Path::new("/nowhere/libengine.so"));
    assert!(matches!(error, OpenEngineError::Read { .. }), "{error}");
    assert!(error.source().is_some());
    let error = refused(&std::env::temp_dir());
    assert!(error.to_string().contains("found a directory"), "{error}");
}

#[test]
fn a_library_that_was_cut_short_is_refused_at_every_length() {
    let whole = fs::read(library("plain")).expect("the library was built");
    for n_bytes in (0..64).map(|part| whole.len() * part / 64).chain([whole.len() - 1]).skip(1) {
        check("short.so", &whole[..n_bytes], "cut short");
    }
}

#[test]
fn a_library_for_another_machine_names_both() {
    let mut bytes = fs::read(library("plain")).expect("the library was built");
    let arch = std::env::consts::ARCH;
    bytes[18..20].copy_from_slice(&[0xb7, 0]);
    let (found, machine) = if arch == "aarch64" { ("x86_64", 62) } else { ("aarch64", 0xb7) };
    bytes[18] = machine;
    check("machine.so", &bytes, &format!("built for {found}, this host is {arch}"));
    bytes[18..20].copy_from_slice(&[0x34, 0x12]);
    check("number.so", &bytes, "a machine with ELF number 4660");
    let mut bytes = fs::read(library("plain")).expect("the library was built");
    bytes[4] = 1;
    check("narrow.so", &bytes, "32-bit pointers");
    let mut bytes = fs::read(library("plain")).expect("the library was built");
    bytes[16] = 1;
    check("object.so", &bytes, "an ELF file that is no shared library");
}

#[test]
fn a_library_without_an_engine_says_what_is_missing() {
    let error = refused(&library("no_engine"));
    assert!(matches!(error, OpenEngineError::MissingSymbol { .. }), "{error}");
    assert!(error.to_string().contains("export_engine!"), "{error}");
}

#[test]
fn another_engine_abi_is_named_with_the_crate_to_rebuild_with() {
    let error = refused(&library("other_version"));
    let OpenEngineError::Abi { found, .. } = &error else { panic!("{error}") };
    assert_eq!(*found, AbiVersion { major: 7, minor: 3 });
    let text = error.to_string();
    assert!(text.contains("speaks engine ABI 7.3, this host 1.0"), "{text}");
    assert!(text.ends_with("rebuild it with drivetrain-engine 1.0.0"), "{text}");
}

#[test]
fn another_layout_shows_the_difference_and_keeps_the_report() {
    let error = refused(&library("other_layout"));
    assert!(matches!(error, OpenEngineError::Layout { .. }), "{error}");
    let text = error.to_string();
    assert!(text.contains("rebuild it with drivetrain-engine 1.0.0"), "{text}");
    assert!(text.contains("(unexpected field Expected: field_name:engine"), "{text}");
    assert!(text.contains("Found: field_name:start"), "{text}");
    assert!(text.len() < 1000, "{text}");
    assert!(error.details().is_some_and(|details| details.len() > text.len()));
}

#[test]
fn another_abi_stable_is_named() {
    let error = refused(&library("other_abi_stable"));
    let text = error.to_string();
    assert!(text.contains("built with abi_stable 0.12, this host with abi_stable 0.11"), "{text}");
}

#[test]
fn a_panic_at_the_start_is_an_error() {
    let error = refused(&library("panics_when_made"));
    let expect = "panicked while starting: no device 7 on this machine";
    assert!(error.to_string().ends_with(expect), "{error}");
    let error = refused(&library("panics_in_info"));
    assert!(error.to_string().ends_with("panicked while starting: no name"), "{error}");
}

#[test]
fn two_engines_are_told_apart() {
    let (plain, faulty) = (library("plain"), library("faulty"));
    let [plain, faulty, again] =
        [&plain, &faulty, &plain].map(|path| EngineLibrary::open(path).expect("it opens"));
    assert_eq!(plain.info().name, "plain");
    assert_eq!(faulty.info().name, "faulty");
    assert_eq!(faulty.info().aliases, ["broken", "torn"]);
    assert_eq!(faulty.info().capabilities, ["panics"]);
    assert_eq!(again.info(), plain.info());
    assert_eq!(plain.abi(), drivetrain_engine::ABI_VERSION);
}
