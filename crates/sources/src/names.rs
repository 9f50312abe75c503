//! Names of files that a remote side gave: each stays inside the model and is one file's.

use std::collections::HashMap;
use std::path::{Component, Path};

use crate::error::{SourceError, shorten};

/// Longest name, in bytes: what Linux takes for a path inside another.
const MAX_NAME_BYTES: usize = 1024;
/// Longest part of a name between slashes, in bytes.
const MAX_PART_BYTES: usize = 255;
/// Deepest directory.
const MAX_DEPTH: usize = 32;

/// Checks the names of one model.
///
/// # Errors
/// A name that is absolute, leads out of the model, can't be a file's, or differs from another one
/// in nothing but case, or is another one's directory.
pub(crate) fn check<'a>(
    place: &str,
    names: impl Iterator<Item = &'a str> + Clone,
) -> Result<(), SourceError> {
    let refuse = |name: &str, reason| {
        Err(SourceError::Name { place: place.to_owned(), name: shorten(name), reason })
    };
    let mut seen: HashMap<String, &str> = HashMap::new();
    for name in names.clone() {
        if let Some(reason) = fault(name) {
            return refuse(name, reason);
        }
        if seen.insert(name.to_lowercase(), name).is_some() {
            return refuse(name, "stands there twice, or differs from another in nothing but case");
        }
    }
    for name in names {
        let folded = name.to_lowercase();
        let mut parents = folded.match_indices('/').map(|(idx, _)| &folded[..idx]);
        if parents.any(|parent| seen.contains_key(parent)) {
            return refuse(name, "is in a directory that has the name of a file");
        }
    }
    Ok(())
}

/// What is wrong with a name on its own.
fn fault(name: &str) -> Option<&'static str> {
    if name.is_empty() || name.len() > MAX_NAME_BYTES {
        return Some("is empty or longer than 1024 bytes");
    }
    if name.chars().any(char::is_control) || name.contains('\\') {
        return Some("holds a control character or a backslash");
    }
    if name.starts_with('/') {
        return Some("is an absolute path");
    }
    // `Path` passes over `.` and `//`, which stand for other names than they seem to.
    if name.split('/').any(|part| matches!(part, "" | "." | "..") || part.len() > MAX_PART_BYTES) {
        return Some("leads out of the model, or has a part that is empty, a dot or too long");
    }
    let path = Path::new(name);
    if !path.components().all(|part| matches!(part, Component::Normal(_))) {
        return Some("leads out of the model");
    }
    (path.components().count() > MAX_DEPTH).then_some("is nested deeper than 32 directories")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(names: &[&str]) -> Option<String> {
        check("m", names.iter().copied()).err().map(|error| error.to_string())
    }

    #[test]
    fn ordinary_names_pass() {
        let names = ["config.json", "1_Pooling/config.json", "a b/ü.txt", "x/..y", ".hidden"];
        assert_eq!(refused(&names), None);
    }

    #[test]
    fn names_that_lead_elsewhere_are_refused() {
        let long = "x".repeat(256);
        let deep = "d/".repeat(33) + "f";
        for name in [
            "",
            "/etc/passwd",
            "../x",
            "a/../../x",
            "a/./b",
            "a//b",
            "a/",
            "a\nb",
            "a\0b",
            "a\\b",
            "\u{85}",
            &long,
            &deep,
        ] {
            assert!(refused(&[name]).is_some(), "{name:?}");
        }
        assert!(refused(&["a", "A"]).is_some());
        assert!(refused(&["a/b", "a"]).is_some());
        assert!(refused(&["a", "A/b"]).is_some());
        assert_eq!(
            refused(&["x/../y"]).unwrap(),
            "m: the file name \"x/../y\" leads out of the model, or has a part that is empty, a dot \
             or too long; nothing of it was downloaded"
        );
    }
}
