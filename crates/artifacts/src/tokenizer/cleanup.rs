//! Taking out the spaces that splitting words from punctuation left.

/// What is replaced, in this order. Source: transformers 5.23.0, `clean_up_tokenization`.
const REPLACEMENTS: [(&str, &str); 10] = [
    (" .", "."),
    (" ?", "?"),
    (" !", "!"),
    (" ,", ","),
    (" ' ", "'"),
    (" n't", "n't"),
    (" 'm", "'m"),
    (" 's", "'s"),
    (" 've", "'ve"),
    (" 're", "'re"),
];

pub(super) fn clean_up(text: &str) -> String {
    let mut text = text.to_owned();
    for (from, to) in REPLACEMENTS {
        if text.contains(from) {
            text = text.replace(from, to);
        }
    }
    text
}

/// How much of a cleaned text stays as it is whatever is appended before cleaning. No replacement
/// reaches over a character that occurs in none, or over three letters in a row, so everything up to
/// the end of the last such place is safe.
pub(super) fn stable_len(text: &str) -> usize {
    let mut stable = 0;
    let mut run = 0;
    for (at, c) in text.char_indices() {
        run = if c.is_alphabetic() { run + 1 } else { 0 };
        if run >= 3 || !" .?!,'ntmsver".contains(c) {
            stable = at + c.len_utf8();
        }
    }
    stable
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spaces_before_punctuation_go() {
        let text = "it 's a test , do n't you think ? i 'm sure .";
        assert_eq!(clean_up(text), "it's a test, don't you think? i'm sure.");
        assert_eq!(clean_up("a ' b"), "a'b");
    }

    #[test]
    fn what_is_called_stable_does_not_change() {
        let words =
            ["the", " cat", " .", " n't", " '", " s", " 's", " do", " it", "?", " ve", "'", " "];
        for seed in 0..2000usize {
            let mut rest = seed.wrapping_mul(2_654_435_761);
            let (mut raw, mut shown) = (String::new(), String::new());
            for _ in 0..12 {
                raw.push_str(words[rest % words.len()]);
                rest = (rest / words.len()) ^ seed.wrapping_mul(40_503);
                let clean = clean_up(&raw);
                assert!(clean.starts_with(&shown), "{raw:?}: {shown:?}");
                shown = clean[..stable_len(&clean).max(shown.len())].to_owned();
            }
        }
    }
}
