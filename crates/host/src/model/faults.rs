//! How long an engine may go on failing by its own fault.

use crate::scheduler::{Calls, Step};

/// The faults of a model's engine. Calls of each kind have a row of their own: one that works says
/// nothing of the other.
#[derive(Debug, Default)]
pub(super) struct Faults {
    encode: Row,
    forward: Row,
}

/// Steps in a row whose calls of one kind failed by the engine's own fault and did nothing right.
#[derive(Debug, Default)]
struct Row {
    n_steps: u32,
    n_blamed: usize,
}

/// What the faults so far say of the model, the worst last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Verdict {
    /// Nothing, or nothing new.
    Fine,
    /// There are too many, but one request may be the cause of all.
    Suspect,
    /// There are too many, and no single request is to blame.
    Broken {
        /// Steps that failed one after the other.
        n_steps: u32,
    },
}

impl Faults {
    /// Adds a step; `threshold` steps in a row are forgiven.
    pub(super) fn add(&mut self, step: &Step, threshold: u32) -> Verdict {
        self.encode.add(&step.encode, threshold).max(self.forward.add(&step.forward, threshold))
    }
}

impl Row {
    fn add(&mut self, calls: &Calls, threshold: u32) -> Verdict {
        if calls.n_good > 0 {
            *self = Self::default();
        }
        if calls.n_good > 0 || calls.n_blamed == 0 {
            return Verdict::Fine;
        }
        self.n_steps = self.n_steps.saturating_add(1);
        // A job fails once, so each one counted is another.
        self.n_blamed = self.n_blamed.saturating_add(calls.n_blamed);
        match self.n_blamed {
            _ if self.n_steps <= threshold => Verdict::Fine,
            0 | 1 => Verdict::Suspect,
            _ => Verdict::Broken { n_steps: self.n_steps },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BAD: Calls = Calls { n_made: 1, n_good: 0, n_blamed: 1 };
    const GOOD: Calls = Calls { n_made: 1, n_good: 1, n_blamed: 0 };
    const NONE: Calls = Calls { n_made: 0, n_good: 0, n_blamed: 0 };

    fn check(threshold: u32, steps: &[(Calls, Calls)], expect: Verdict) {
        let mut faults = Faults::default();
        let verdicts = steps
            .iter()
            .map(|(encode, forward)| Step { encode: *encode, forward: *forward })
            .map(|step| faults.add(&step, threshold));
        assert_eq!(verdicts.last(), Some(expect), "{threshold} {steps:?}");
    }

    #[test]
    fn one_request_breaks_no_model_and_two_do() {
        check(0, &[(NONE, BAD)], Verdict::Suspect);
        check(0, &[(NONE, BAD), (NONE, BAD)], Verdict::Broken { n_steps: 2 });
        check(0, &[(NONE, BAD), (NONE, GOOD), (NONE, BAD)], Verdict::Suspect);
        check(0, &[(NONE, Calls { n_blamed: 2, ..BAD })], Verdict::Broken { n_steps: 1 });
        check(2, &[(NONE, BAD), (NONE, BAD)], Verdict::Fine);
        check(2, &[(NONE, BAD), (NONE, BAD), (NONE, BAD)], Verdict::Broken { n_steps: 3 });
    }

    #[test]
    fn an_encoder_that_works_does_not_excuse_the_decoder() {
        check(0, &[(GOOD, BAD), (GOOD, BAD)], Verdict::Broken { n_steps: 2 });
        check(0, &[(BAD, GOOD), (BAD, GOOD)], Verdict::Broken { n_steps: 2 });
        check(1, &[(GOOD, BAD), (GOOD, GOOD), (GOOD, BAD)], Verdict::Fine);
    }
}
