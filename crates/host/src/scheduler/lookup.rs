//! Tokens that may come next, looked up in the text so far.
//!
//! If the last few tokens occurred before, what followed them there is proposed; one pass of the
//! engine then checks all of it at once (prompt lookup decoding, Saxena 2023; speculative decoding,
//! Leviathan et al. 2023). A proposal that is wrong costs its part of the pass and changes nothing,
//! since each token is still chosen from its own logits.

use drivetrain_engine::TokenId;

/// Appends up to `n_most` tokens that followed the latest earlier occurrence of the longest run of
/// last tokens, of `longest` at most, that occurs earlier; how many they are.
pub(crate) fn propose(tokens: &mut Vec<TokenId>, longest: usize, n_most: usize) -> usize {
    let len = tokens.len();
    for n in (1..=longest.min(len.saturating_sub(1))).rev() {
        let run = tokens.get(len - n..).unwrap_or_default();
        // The latest occurrence that ends before the last token does.
        let found = tokens.get(..len - 1).and_then(|text| text.windows(n).rposition(|w| w == run));
        if let Some(start) = found {
            let follows = start + n;
            let end = (follows + n_most).min(len);
            tokens.extend_from_within(follows..end);
            return end - follows;
        }
    }
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_longest_run_is_continued() {
        let check = |tokens: &[TokenId], longest: usize, n_most: usize, expect: &[TokenId]| {
            let mut all = tokens.to_vec();
            let n = propose(&mut all, longest, n_most);
            assert_eq!(n, expect.len());
            assert_eq!(all, [tokens, expect].concat());
        };
        check(&[1, 2, 3, 4, 1, 2], 2, 10, &[3, 4, 1, 2]);
        check(&[1, 2, 3, 4, 1, 2], 2, 1, &[3]);
        check(&[1, 2, 3, 9, 2, 5, 1, 2], 2, 2, &[3, 9]);
        check(&[1, 2, 3, 9, 2, 5, 1, 2], 1, 2, &[5, 1]);
        // Runs that lie over each other.
        check(&[7, 7, 7], 2, 4, &[7]);
        check(&[1, 2, 3], 3, 4, &[]);
        check(&[1], 3, 4, &[]);
        check(&[1, 1], 3, 0, &[]);
    }
}
