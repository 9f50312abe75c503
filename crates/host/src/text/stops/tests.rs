//! With the tokenizers of the fixtures.

use std::path::Path;

use drivetrain_artifacts::{ModelDir, SpecialTokens, Tokenizer, UnpackOptions};

use super::*;

fn tokenizer(name: &str) -> Tokenizer {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures").join(name);
    Tokenizer::read(&ModelDir::open(&folder, &UnpackOptions::default()).unwrap()).unwrap()
}

fn watch(tokenizer: &Tokenizer, strings: &[&str]) -> StopWatch {
    let strings = strings.iter().map(|string| (*string).to_owned()).collect();
    StopWatch::new(strings, tokenizer.stream())
}

/// The text up to the token that brings a stop string, and which.
fn stopped(name: &str, text: &str, strings: &[&str]) -> Option<(String, usize)> {
    let tokenizer = tokenizer(name);
    let ids = tokenizer.encode(text, SpecialTokens::None).unwrap().ids;
    let mut watch = watch(&tokenizer, strings);
    let mut stream = tokenizer.stream();
    let mut so_far = String::new();
    for id in ids {
        so_far.extend(stream.push(id));
        // A copy goes on as the original does.
        let mut copy = watch.clone();
        let found = watch.push(id);
        assert_eq!(copy.push(id), found);
        if let Some(idx) = found {
            so_far.extend(stream.finish());
            return Some((so_far, idx));
        }
    }
    None
}

#[test]
fn a_stop_string_is_found_with_its_last_token() {
    for name in ["gpt2", "llama_mha", "bart"] {
        let text = "the cat sat on the mat, and the dog ran. After that, the end.";
        let (so_far, idx) = stopped(name, text, &["dog ran. Af", "mat,"]).unwrap();
        assert_eq!(idx, 1, "{name}");
        assert!(so_far.contains("mat,") && !so_far.contains("dog"), "{name}: {so_far}");
        let (so_far, idx) = stopped(name, text, &["zebra", "dog ran. Af"]).unwrap();
        assert_eq!(idx, 1);
        assert!(so_far.contains("dog ran. Af") && !so_far.contains("the end"), "{name}: {so_far}");
        assert_eq!(stopped(name, text, &["zebra", "the the"]), None);
    }
}

#[test]
fn letters_of_several_bytes_are_found() {
    let (so_far, idx) = stopped("llama_mha", "so ☃ grün ☃ Ende", &["n ☃"]).unwrap();
    assert_eq!(idx, 0);
    assert!(so_far.ends_with("n ☃"), "{so_far}");
}

#[test]
fn a_line_feed_is_found_at_once() {
    for name in ["gpt2", "llama_mha"] {
        let (so_far, _) = stopped(name, "one\ntwo", &["\n"]).unwrap();
        assert!(so_far.ends_with('\n'), "{name}: {so_far:?}");
    }
}

#[test]
fn only_what_is_new_counts() {
    let strings = ["ab".to_owned(), "b".to_owned(), "xyz".to_owned()];
    assert_eq!(find(&strings, "abc", 0), Some((0, 0..2)));
    assert_eq!(find(&strings, "abc", 2), None);
    assert_eq!(find(&strings, "ab", 1), Some((0, 0..2)));
    assert_eq!(find(&strings, "abxyz", 4), Some((2, 2..5)));
    assert_eq!(find(&["ü☃".to_owned()], "aü☃", 3), Some((0, 1..6)));
}
