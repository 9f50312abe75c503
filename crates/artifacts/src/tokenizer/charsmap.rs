//! Checks of the character maps that sentencepiece compiles: the length of a double array, the array
//! of words of four bytes, and replacements that each end in a zero byte.
//!
//! The library follows the array wherever it leads, so that one which leads out of itself, or to a
//! replacement that is none, would end in a panic at some later text. Source: darts-clone's
//! `darts.h` for what the bits of a word mean.

use super::guard::Cause;

/// Largest map, in bytes. Those of Unicode's NFKC with case folding have 250 KB.
const MAX_BYTES: usize = 4 << 20;

/// Longest replacement, in bytes. The longest of Unicode's NFKC has 33.
const MAX_REPLACEMENT_BYTES: usize = 1024;

/// Checks a map.
pub(super) fn check(bytes: &[u8]) -> Result<(), Cause> {
    find_fault(bytes).map_err(|fault| format!("its precompiled charsmap {fault}").into())
}

fn find_fault(bytes: &[u8]) -> Result<(), String> {
    if bytes.len() > MAX_BYTES {
        return Err(format!("has {} bytes, at most {MAX_BYTES} are allowed", bytes.len()));
    }
    let (length, rest) = bytes.split_first_chunk::<4>().ok_or("is cut off")?;
    let length = u32::from_le_bytes(*length) as usize;
    let (array, replacements) = rest
        .split_at_checked(length / 4 * 4)
        .ok_or_else(|| format!("says {length} bytes, but has {}", rest.len()))?;
    let replacements =
        std::str::from_utf8(replacements).map_err(|_| "has replacements that are not UTF-8")?;
    let longest = replacements.split('\0').map(str::len).max().unwrap_or(0);
    if longest > MAX_REPLACEMENT_BYTES {
        return Err(format!("replaces a character by {longest} bytes"));
    }
    let words: Vec<u32> =
        array.as_chunks::<4>().0.iter().map(|word| u32::from_le_bytes(*word)).collect();
    walk(&words, replacements)
}

/// Goes wherever a text can lead.
fn walk(words: &[u32], replacements: &str) -> Result<(), String> {
    let word = |place: usize| words.get(place).copied().ok_or("leads out of its array");
    let mut seen = vec![false; words.len()];
    let mut open = vec![offset(word(0)?)];
    while let Some(node) = open.pop() {
        word(node)?;
        if std::mem::replace(&mut seen[node], true) {
            continue;
        }
        for letter in 1..=255 {
            let place = node ^ letter as usize;
            let next = word(place)?;
            if next & (1 << 31 | 0xff) != letter {
                continue;
            }
            let node = place ^ offset(next);
            if next >> 8 & 1 == 1 {
                let replacement = (word(node)? & !(1 << 31)) as usize;
                if !replacements.is_char_boundary(replacement) {
                    return Err("names a replacement that it does not have".to_owned());
                }
            }
            open.push(node);
        }
    }
    Ok(())
}

/// How far a node's children are.
fn offset(word: u32) -> usize {
    ((word >> 10) as usize) << ((word & 1 << 9) >> 6)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A map that replaces the letter a by b.
    fn map() -> Vec<u8> {
        let mut words = [0u32; 256];
        // The root's children are at 0 ^ letter; that of `a` has a leaf, whose value is at 'a' ^ 1.
        words[usize::from(b'a')] = u32::from(b'a') | 1 << 8 | 1 << 10;
        let bytes = words.iter().flat_map(|word| word.to_le_bytes());
        1024u32.to_le_bytes().into_iter().chain(bytes).chain(*b"b\0").collect()
    }

    #[test]
    fn a_map_does_what_it_says() {
        check(&map()).unwrap();
        let found = tokenizers::normalizers::Precompiled::from(&map()).unwrap();
        assert_eq!(found.normalize_string("cat"), "cbt");
    }

    #[test]
    fn broken_maps_say_what_is_wrong() {
        let check = |bytes: &[u8], expect: &str| {
            let message = check(bytes).unwrap_err().to_string();
            assert!(message.contains(expect), "{message}");
        };
        check(&[1, 0], "is cut off");
        check(&[255; 40], "says 4294967295 bytes, but has 36");
        check(&[&[0; 4][..], &[b'a'; 2000]].concat(), "replaces a character by 2000 bytes");
        check(&[0, 0, 0, 0, b'a', 0], "leads out of its array");
        check(&[0, 0, 0, 0, 0xff, 0], "not UTF-8");
        check(&vec![0; MAX_BYTES + 1], "at most 4194304 are allowed");
        let mut far = map();
        far[4 + usize::from(b'a') * 4 + 3] = 0x40;
        check(&far, "leads out of its array");
        let mut lost = map();
        lost[4 + usize::from(b'a' ^ 1) * 4] = 200;
        check(&lost, "names a replacement that it does not have");
    }
}
