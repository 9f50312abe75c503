//! The house rules that a machine can see.

use std::path::{Path, PathBuf};

use drivetrain_tests::{root, source_files};
use syn::spanned::Spanned;
use syn::visit::Visit;

/// Folders whose code may hold `unsafe`; everything else forbids it at the crate's root.
const UNSAFE_CRATES: &[&str] = &["crates/engine", "crates/kernels"];
/// The one crate that denies `unsafe` and allows it in its mapping module.
const MAPPING: (&str, &str) = ("crates/artifacts", "crates/artifacts/src/mapping.rs");

const MAX_FILE_LINES: usize = 800;
const P90_FILE_LINES: usize = 450;
const MEDIAN_FILE_LINES: usize = 150;
const P90_FUNCTION_LINES: usize = 40;
const MAX_FUNCTION_LINES: usize = 100;

struct Source {
    path: PathBuf,
    text: String,
}

impl Source {
    /// Lines of code proper: test modules at the end of a file do not count.
    fn n_code_lines(&self) -> usize {
        self.text.lines().take_while(|line| *line != "#[cfg(test)]").count()
    }

    fn is_test(&self) -> bool {
        let in_tests = self.path.components().any(|part| part.as_os_str() == "tests");
        in_tests || self.path.ends_with("tests.rs")
    }
}

fn sources() -> Vec<Source> {
    let read = |path: PathBuf| {
        let text = std::fs::read_to_string(root().join(&path)).unwrap();
        Source { path, text }
    };
    source_files().into_iter().map(read).collect()
}

fn assert_none(what: &str, wrong: &[String]) {
    assert!(wrong.is_empty(), "{what}:\n  {}", wrong.join("\n  "));
}

fn percentile(sorted: &[usize], percent: usize) -> usize {
    sorted.get(sorted.len() * percent / 100).copied().unwrap_or(0)
}

#[test]
fn every_file_says_what_it_is_for() {
    let silent = |source: &&Source| !source.text.starts_with("//!");
    let wrong: Vec<String> =
        sources().iter().filter(silent).map(|s| s.path.display().to_string()).collect();
    assert_none("files that do not open with `//!` and what they are for", &wrong);
}

#[test]
fn files_can_be_read_in_one_sitting() {
    let code: Vec<Source> = sources().into_iter().filter(|source| !source.is_test()).collect();
    let long = |source: &&Source| source.n_code_lines() > MAX_FILE_LINES;
    let describe = |s: &Source| format!("{} has {} lines", s.path.display(), s.n_code_lines());
    let wrong: Vec<String> = code.iter().filter(long).map(describe).collect();
    assert_none("files over 800 lines of code: split them by what they hold", &wrong);
    let mut lengths: Vec<usize> = code.iter().map(Source::n_code_lines).collect();
    lengths.sort_unstable();
    let (median, p90) = (percentile(&lengths, 50), percentile(&lengths, 90));
    assert!(median <= MEDIAN_FILE_LINES, "the median file has {median} lines of code");
    assert!(p90 <= P90_FILE_LINES, "a tenth of the files have {p90} lines of code or more");
}

#[test]
fn functions_fit_a_screen() {
    let mut lengths = Vec::new();
    let mut wrong = Vec::new();
    for source in sources().iter().filter(|source| !source.is_test()) {
        let file = syn::parse_file(&source.text).unwrap();
        let mut functions = Functions::default();
        functions.visit_file(&file);
        for (name, n_lines) in functions.found {
            lengths.push(n_lines);
            if n_lines > MAX_FUNCTION_LINES {
                wrong.push(format!("{}: {name} has {n_lines} lines", source.path.display()));
            }
        }
    }
    assert_none("functions over 100 lines", &wrong);
    lengths.sort_unstable();
    let p90 = percentile(&lengths, 90);
    assert!(p90 <= P90_FUNCTION_LINES, "a tenth of the functions have {p90} lines or more");
}

/// Collects each function's length, test modules apart.
#[derive(Default)]
struct Functions {
    found: Vec<(String, usize)>,
}

impl Functions {
    fn add(&mut self, name: &syn::Ident, block: &syn::Block) {
        let span = block.span();
        self.found.push((name.to_string(), span.end().line - span.start().line + 1));
    }
}

impl<'ast> Visit<'ast> for Functions {
    fn visit_item_mod(&mut self, module: &'ast syn::ItemMod) {
        if module.ident != "tests" {
            syn::visit::visit_item_mod(self, module);
        }
    }

    fn visit_item_fn(&mut self, function: &'ast syn::ItemFn) {
        self.add(&function.sig.ident, &function.block);
        syn::visit::visit_item_fn(self, function);
    }

    fn visit_impl_item_fn(&mut self, function: &'ast syn::ImplItemFn) {
        self.add(&function.sig.ident, &function.block);
        syn::visit::visit_impl_item_fn(self, function);
    }
}

#[test]
fn modules_are_named_for_what_they_hold() {
    let vague = ["utils", "util", "common", "helpers", "helper", "manager", "misc"];
    let is_vague = |source: &&Source| {
        let stem = source.path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
        vague.contains(&stem) || source.path.iter().any(|p| vague.iter().any(|v| p == *v))
    };
    let wrong: Vec<String> =
        sources().iter().filter(is_vague).map(|s| s.path.display().to_string()).collect();
    assert_none("modules with names that say nothing", &wrong);
}

#[test]
fn no_test_is_silenced_and_nothing_is_postponed() {
    // Built from pieces, so that this file does not find itself.
    let banned: Vec<String> =
        [("#[ign", "ore"), ("#[should_", "panic"), ("TO", "DO"), ("FIX", "ME")]
            .iter()
            .map(|(head, tail)| format!("{head}{tail}"))
            .collect();
    let mut wrong = Vec::new();
    for source in sources() {
        for (idx, line) in source.text.lines().enumerate() {
            if let Some(found) = banned.iter().find(|word| line.contains(word.as_str())) {
                wrong.push(format!("{}:{}: {found}", source.path.display(), idx + 1));
            }
        }
    }
    assert_none("silenced tests and postponed work", &wrong);
}

#[test]
fn unsafe_code_stays_where_it_belongs() {
    let mut wrong = Vec::new();
    for source in sources() {
        let is_root = ["src/lib.rs", "src/main.rs"].iter().any(|root| source.path.ends_with(root));
        let exempt = UNSAFE_CRATES.iter().any(|folder| source.path.starts_with(folder));
        if !is_root || exempt {
            continue;
        }
        let wanted = if source.path.starts_with(MAPPING.0) {
            "#![deny(unsafe_code)]"
        } else {
            "#![forbid(unsafe_code)]"
        };
        if !source.text.contains(wanted) {
            wrong.push(format!("{} lacks {wanted}", source.path.display()));
        }
    }
    for source in sources() {
        let allows = source.text.contains("allow(unsafe_code)");
        let is_this_file = source.path.ends_with("tidy.rs");
        let in_mapping = source.path == Path::new(MAPPING.1)
            || source.path == Path::new(MAPPING.0).join("src/lib.rs");
        let exempt = UNSAFE_CRATES.iter().any(|folder| source.path.starts_with(folder));
        if allows && !in_mapping && !exempt && !is_this_file && !source.is_test() {
            wrong.push(format!("{} allows unsafe code", source.path.display()));
        }
    }
    assert_none("unsafe code outside its crates", &wrong);
}

#[test]
fn every_unsafe_block_says_why_it_holds() {
    let mut wrong = Vec::new();
    for source in sources().iter().filter(|source| !source.path.ends_with("tidy.rs")) {
        let lines: Vec<&str> = source.text.lines().collect();
        for (idx, line) in lines.iter().enumerate() {
            let is_block = line.contains("unsafe {") && !line.trim_start().starts_with("//");
            if is_block && !is_explained(&lines, idx) {
                wrong.push(format!("{}:{}", source.path.display(), idx + 1));
            }
        }
    }
    assert_none("unsafe blocks without a SAFETY reason above them", &wrong);
}

/// Whether a comment with SAFETY ends within two lines above line `idx`, or stands on it.
fn is_explained(lines: &[&str], idx: usize) -> bool {
    let is_comment = |line: &&&str| line.trim_start().starts_with("//");
    let above = lines[..idx].iter().rev();
    let comment = above.clone().take(3).position(|line| is_comment(&line));
    let explains = |line: &&str| line.contains("SAFETY:");
    explains(&lines[idx])
        || comment.is_some_and(|skip| above.skip(skip).take_while(is_comment).any(explains))
}

#[test]
fn the_changelog_has_a_place_for_what_comes() {
    let text = std::fs::read_to_string(root().join("CHANGELOG.md")).unwrap();
    assert!(text.contains("## Unreleased"), "CHANGELOG.md needs a section `## Unreleased`");
}

#[test]
fn the_map_names_every_crate_and_only_those() {
    let text = std::fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    assert!(text.lines().count() <= 300, "ARCHITECTURE.md is a map: at most 300 lines");
    let metadata = cargo_metadata::MetadataCommand::new()
        .manifest_path(root().join("Cargo.toml"))
        .no_deps()
        .exec()
        .unwrap();
    let mut wrong = Vec::new();
    let mut folders = Vec::new();
    for package in &metadata.packages {
        let folder = package.manifest_path.parent().unwrap();
        let folder = folder.as_std_path().strip_prefix(root()).unwrap().display().to_string();
        if !text.contains(&format!("`{folder}`")) {
            wrong.push(format!("{folder} is not on the map"));
        }
        folders.push(folder);
    }
    for word in text.split('`').skip(1).step_by(2) {
        let is_folder = word.starts_with("crates/") || word.starts_with("plugins/");
        if is_folder && !word.contains(char::is_whitespace) && !folders.iter().any(|f| f == word) {
            wrong.push(format!("{word} is on the map, and no such package exists"));
        }
    }
    assert_none("ARCHITECTURE.md against the workspace", &wrong);
}
