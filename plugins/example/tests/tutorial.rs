//! The tutorial's code is the example's.

use std::fs;
use std::path::Path;

/// The blocks of `text` that open with three backquotes and `language`.
fn blocks<'a>(text: &'a str, language: &str) -> Vec<&'a str> {
    let fence = format!("```{language}\n");
    let begins = text.split(fence.as_str()).skip(1);
    begins.map(|rest| rest.split("```").next().unwrap_or(rest)).collect()
}

#[test]
fn every_block_of_the_tutorial_is_a_part_of_the_example() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let tutorial = fs::read_to_string(root.join("../../docs/plugins/tutorial.md")).unwrap();
    for (language, file, n_least) in [("rust", "src/lib.rs", 9), ("toml", "Cargo.toml", 1)] {
        let whole = fs::read_to_string(root.join(file)).unwrap();
        let blocks = blocks(&tutorial, language);
        assert!(blocks.len() >= n_least, "{} blocks of {language}", blocks.len());
        for block in blocks {
            assert!(whole.contains(block), "this is no part of {file} any more:\n{block}");
        }
    }
}

#[test]
fn the_example_is_under_150_lines() {
    let source = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/lib.rs"));
    let source = source.unwrap();
    let is_code = |line: &&str| !line.trim().is_empty() && !line.trim().starts_with("//");
    let n_lines = source.lines().filter(is_code).count();
    assert!(n_lines < 150, "{n_lines} lines of code");
}
