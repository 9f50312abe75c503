//! A piece of work that every engine and every library is asked to do.

use std::fmt;
use std::str::FromStr;

use anyhow::Context;
use serde::{Deserialize, Serialize};

/// What is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Task {
    /// The last hidden state of every token, of encoder-decoder models the decoder's.
    Hidden,
    /// The logits of each sequence's last token.
    Prefill,
    /// Tokens that follow, the best one at each step, or by beam search.
    Generate,
}

/// A task and its size, written `TASK:SEQUENCESxTOKENS+NEW/BEAMS`, as in `hidden:8x512`,
/// `prefill:512`, `generate:1x16+32` and `generate:512+64/4`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Work {
    /// What is computed.
    pub task: Task,
    /// How many sequences at once.
    pub n_seqs: usize,
    /// Tokens that each is given.
    pub n_tokens: usize,
    /// Tokens that each gets.
    pub n_new: usize,
    /// Beams of each; 1 is greedy.
    pub n_beams: usize,
}

impl Work {
    /// Tokens that are counted for a rate: the new ones, or those that were given where there are none.
    pub fn n_counted(&self) -> usize {
        let of_one = if self.task == Task::Generate { self.n_new } else { self.n_tokens };
        self.n_seqs * of_one
    }

    /// Token ids of the given sequences: the same at every call, below `vocab`, none of them special.
    pub fn prompts(&self, vocab: u32) -> Vec<Vec<u32>> {
        const N_SPECIAL: u32 = 16;
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut token = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040);
            N_SPECIAL + (state >> 33) as u32 % vocab.saturating_sub(N_SPECIAL).max(1)
        };
        (0..self.n_seqs).map(|_| (0..self.n_tokens).map(|_| token()).collect()).collect()
    }
}

impl FromStr for Work {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let form = || format!("{text}: expected TASK:SEQUENCESxTOKENS+NEW/BEAMS");
        let (task, size) = text.split_once(':').with_context(form)?;
        let task = match task {
            "hidden" => Task::Hidden,
            "prefill" => Task::Prefill,
            "generate" => Task::Generate,
            _ => anyhow::bail!("{text}: the task is one of hidden, prefill and generate"),
        };
        let (size, n_beams) = size.split_once('/').unwrap_or((size, "1"));
        let (size, n_new) = size.split_once('+').unwrap_or((size, "0"));
        let (n_seqs, n_tokens) = size.split_once('x').unwrap_or(("1", size));
        let number = |text: &str| text.parse::<usize>().with_context(form);
        let work = Self {
            task,
            n_seqs: number(n_seqs)?,
            n_tokens: number(n_tokens)?,
            n_new: number(n_new)?,
            n_beams: number(n_beams)?,
        };
        let generates = work.task == Task::Generate;
        anyhow::ensure!(
            work.n_seqs > 0
                && work.n_tokens > 0
                && work.n_beams > 0
                && generates == (work.n_new > 0),
            form()
        );
        Ok(work)
    }
}

impl fmt::Display for Work {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sequences = if self.n_seqs == 1 { "sequence" } else { "sequences" };
        write!(f, "{} {sequences} of {} tokens", self.n_seqs, self.n_tokens)?;
        match (self.task, self.n_beams) {
            (Task::Hidden, _) => write!(f, ", last hidden states"),
            (Task::Prefill, _) => write!(f, ", last logits"),
            (Task::Generate, 1) => write!(f, ", {} new tokens, greedy", self.n_new),
            (Task::Generate, n) => write!(f, ", {} new tokens, {n} beams", self.n_new),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_is_read_from_text() {
        let check = |text: &str, expect: [usize; 4]| {
            let work: Work = text.parse().unwrap();
            assert_eq!([work.n_seqs, work.n_tokens, work.n_new, work.n_beams], expect, "{text}");
        };
        check("hidden:8x512", [8, 512, 0, 1]);
        check("prefill:512", [1, 512, 0, 1]);
        check("generate:16x16+32", [16, 16, 32, 1]);
        check("generate:512+64/4", [1, 512, 64, 4]);
        for wrong in ["hidden", "draw:1", "hidden:0x3", "hidden:3+1", "generate:3", "prefill:x"] {
            assert!(wrong.parse::<Work>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn prompts_are_inside_the_vocabulary() {
        let work: Work = "hidden:3x200".parse().unwrap();
        let prompts = work.prompts(100);
        assert_eq!(prompts, work.prompts(100));
        assert!(prompts.iter().flatten().all(|token| (16..100).contains(token)));
        assert_ne!(prompts[0], prompts[1]);
    }
}
