//! What tells one model's files from another's, at little cost: names, sizes and beginnings.
//!
//! The beginning of a safetensors or GGUF file names each tensor with its place and type, so files of
//! another model, another version of it or another quantisation differ there. Values alone don't count.

use std::fs;
use std::io::{self, Read};
use std::path::Path;

use sha2::{Digest, Sha256};

/// Bytes of each file that count.
const HEAD_BYTES: u64 = 256 << 10;
/// Most entries of a directory that are looked at.
const MAX_ENTRIES: usize = 10_000;
/// Ends of the names of files that say what is computed.
const ENDS: [&str; 5] = [".safetensors", ".gguf", ".json", ".bin", ".model"];

/// The digest of a model's file or directory, as hexadecimal digits.
///
/// # Errors
/// A file can't be read.
pub(crate) fn digest(path: &Path) -> io::Result<String> {
    let mut sum = Sha256::new();
    if path.is_dir() {
        let entries = fs::read_dir(path)?.take(MAX_ENTRIES).collect::<io::Result<Vec<_>>>()?;
        let mut names: Vec<_> = entries.into_iter().map(|entry| entry.file_name()).collect();
        names.sort_unstable();
        for name in names {
            let counts = name.to_str().is_some_and(|name| ENDS.iter().any(|e| name.ends_with(e)));
            if counts {
                sum.update(name.as_encoded_bytes());
                add(&mut sum, &path.join(&name))?;
            }
        }
    } else {
        add(&mut sum, path)?;
    }
    Ok(sum.finalize().iter().take(16).map(|byte| format!("{byte:02x}")).collect())
}

fn add(sum: &mut Sha256, path: &Path) -> io::Result<()> {
    let file = fs::File::open(path)?;
    sum.update(file.metadata()?.len().to_le_bytes());
    let mut head = Vec::new();
    file.take(HEAD_BYTES).read_to_end(&mut head)?;
    sum.update(&head);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_sizes_and_beginnings_count() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
        write("config.json", "{}");
        write("model.safetensors", "abc");
        let first = digest(dir.path()).unwrap();
        write("notes.txt", "of no account");
        assert_eq!(digest(dir.path()).unwrap(), first);
        write("model.safetensors", "abd");
        let second = digest(dir.path()).unwrap();
        assert_ne!(second, first);
        fs::rename(dir.path().join("config.json"), dir.path().join("other.json")).unwrap();
        assert_ne!(digest(dir.path()).unwrap(), second);
        assert_ne!(digest(&dir.path().join("model.safetensors")).unwrap(), second);
        assert!(digest(&dir.path().join("nothing")).is_err());
    }
}
