//! The syntax against `java.util.Properties`, and on arbitrary bytes.

use std::fs;

use proptest::prelude::*;

use super::*;

/// Made by `tests/properties/Reference.java`.
const CASES: &str = include_str!("../../tests/properties/cases.jsonl");

fn parse(bytes: &[u8]) -> Result<Vec<(String, String)>, ConfigError> {
    let parsed = Properties::parse(Path::new("x.properties"), bytes)?;
    Ok(parsed.entries.into_iter().map(|entry| (entry.key, entry.value)).collect())
}

#[test]
fn java_reads_the_same() {
    let mut n_cases = 0;
    for case in CASES.lines() {
        let case: serde_json::Value = serde_json::from_str(case).expect("a case is JSON");
        let text = case["in"].as_str().expect("text");
        let bytes: Vec<u8> = text.chars().map(|c| u8::try_from(c).expect("a byte")).collect();
        let wanted: Option<Vec<(String, String)>> =
            serde_json::from_value(case["out"].clone()).expect("pairs or null");
        assert_eq!(parse(&bytes).ok(), wanted, "{text:?}");
        n_cases += 1;
    }
    assert!(n_cases > 700, "only {n_cases} cases");
}

#[test]
fn every_key_has_the_line_it_starts_on() {
    let check = |text: &str, wanted: &[(&str, u32)]| {
        let parsed = Properties::parse(Path::new("x"), text.as_bytes()).expect("parses");
        let lines: Vec<(&str, u32)> =
            parsed.entries.iter().map(|entry| (entry.key.as_str(), entry.line)).collect();
        assert_eq!(lines, wanted, "{text:?}");
    };
    check("a=1\nb=2", &[("a", 1), ("b", 2)]);
    check("a=1\r\nb=2\rc=3", &[("a", 1), ("b", 2), ("c", 3)]);
    check("# comment\n\n  a=1\n", &[("a", 3)]);
    check("a=1,\\\n 2,\\\n 3\nb=4", &[("a", 1), ("b", 4)]);
    check("a\\\n=1\nb", &[("a", 1), ("b", 3)]);
    check("\\\n\na=1", &[("a", 3)]);
    check("a=1\na=2", &[("a", 1), ("a", 2)]);
}

#[test]
fn a_byte_order_mark_is_skipped() {
    let pairs = parse(b"\xEF\xBB\xBFengine=Python").expect("parses");
    assert_eq!(pairs, [("engine".to_owned(), "Python".to_owned())]);
}

#[test]
fn a_bad_escape_names_its_line() {
    let error = parse(b"a=1\nb=\\\n  \\uZZZZ").expect_err("no hexadecimal digits");
    let text = error.to_string();
    assert!(text.starts_with("x.properties:2: \\uZZZZ: expected \\u and four"), "{text}");
    let text = parse(b"k=\\ud800x").expect_err("half a pair").to_string();
    assert!(text.starts_with("x.properties:1: \\ud800: expected"), "{text}");
}

#[test]
fn files_are_bounded_and_regular() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = dir.path().join("serving.properties");
    assert!(matches!(Properties::read(&path), Ok(Ok(None))));
    assert!(matches!(Properties::read(dir.path()), Ok(Err(_))));
    let limit = usize::try_from(MAX_FILE_BYTES).expect("fits");
    fs::write(&path, vec![b'#'; limit]).expect("written");
    assert!(matches!(Properties::read(&path), Ok(Ok(Some(p))) if p.entries.is_empty()));
    fs::write(&path, vec![b'#'; limit + 1]).expect("written");
    let text = Properties::read(&path).expect_err("too large").to_string();
    assert!(text.ends_with("1048577 bytes: expected a properties file of at most 1048576 bytes"));
}

/// Writes a pair the way `java.util.Properties.store` does, so that any text survives.
fn escape(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars() {
        match c {
            ' ' | '=' | ':' | '#' | '!' | '\\' => out.extend(['\\', c]),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\x0C' => out.push_str("\\f"),
            ' '..='~' => out.push(c),
            c => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    out.push_str(&format!("\\u{unit:04X}"));
                }
            }
        }
    }
    out
}

proptest! {
    #[test]
    fn any_pairs_survive_a_round_trip(pairs in prop::collection::vec((".{1,12}", ".{0,24}"), 0..8)) {
        let file: String =
            pairs.iter().map(|(key, value)| format!("{}={}\n", escape(key), escape(value))).collect();
        prop_assert_eq!(parse(file.as_bytes()).expect("parses"), pairs);
    }

    #[test]
    fn arbitrary_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = parse(&bytes);
    }

    /// The line of a key is where its logical line starts: reading from there gives the same rest.
    #[test]
    fn reading_from_a_keys_line_gives_the_rest(text in "[ab=:# \\\\\n\t]{0,60}") {
        let whole = Properties::parse(Path::new("x"), text.as_bytes()).expect("no \\u in it");
        for (n, entry) in whole.entries.iter().enumerate() {
            let skipped = usize::try_from(entry.line - 1).expect("fits");
            let rest: Vec<&str> = text.split('\n').skip(skipped).collect();
            let rest = Properties::parse(Path::new("x"), rest.join("\n").as_bytes()).expect("parses");
            let pairs = |entries: &[Entry]| -> Vec<(String, String)> {
                entries.iter().map(|e| (e.key.clone(), e.value.clone())).collect()
            };
            prop_assert_eq!(pairs(&rest.entries), pairs(&whole.entries[n..]));
        }
    }
}
