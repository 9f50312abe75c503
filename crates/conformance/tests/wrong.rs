//! The suite names the fault of each engine that is wrong.

mod libraries;

use drivetrain_conformance::Report;
use libraries::faulty;

#[test]
fn a_seed_repeats_a_run() {
    let reasons = |report: Report| {
        report.failures().map(|(name, why)| format!("{name}: {why}")).collect::<Vec<_>>()
    };
    let first = reasons(faulty("decoder", "batch-dependent", 2));
    assert_eq!(first, reasons(faulty("decoder", "batch-dependent", 2)));
}

#[test]
fn each_fault_is_caught_and_named() {
    let faults = [
        ("decoder", "panic-in-load", "the model loads", "panicked: load gave up"),
        ("decoder", "panic-in-forward", "rows are exactly", "panicked: forward gave up"),
        ("decoder", "panic-in-fork", "a fork shares", "panicked: fork gave up"),
        ("decoder", "panic-in-release", "a sequence lives", "panicked: release gave up"),
        ("decoder", "loads-nothing", "an empty directory", "where there is none"),
        ("decoder", "ignores-cancel", "loading can be", "expected cancelled"),
        ("decoder", "refuses-plan", "a plan is of a model", "its plan refused: out of memory"),
        ("decoder", "weightless-plan", "a plan is of a model", "takes no memory on any device"),
        ("encoder", "other-plan", "a plan is of a model", "max_sequences is 17, and 16 of"),
        ("decoder", "overfull-plan", "a plan keeps to", "more than its own limit"),
        ("decoder", "boundless-plan", "a plan keeps to", "the plan has more on the CPU"),
        ("decoder", "boundless-load", "a plan keeps to", "refused and the model loaded"),
        ("decoder", "leaks-sequence", "a sequence lives", "expected 1"),
        ("decoder", "leaks-sequence", "sequences leak", "are left after cycle"),
        ("decoder", "missing-row", "rows are exactly", "wrote 4 rows of logits"),
        ("decoder", "extra-row", "rows are exactly", "where the batch wants 5"),
        ("decoder", "unwritten-row", "rows are exactly", "left it unwritten"),
        ("decoder", "wrong-last-row", "rows are exactly", "LastLogits against"),
        ("decoder", "wrong-pooling", "rows are exactly", "PooledFirst against"),
        ("decoder", "nondeterministic", "the same calls", "run 2 of the same prompt"),
        ("decoder", "batch-dependent", "a batch equals", "in a batch against alone"),
        ("decoder", "chunk-dependent", "prompt chunks", "in chunks of up to 1"),
        ("decoder", "fork-aliases", "a fork shares", "a fork at"),
        ("decoder", "fork-ignores-length", "a fork shares", "a fork at"),
        ("decoder", "fork-dies-with-origin", "a fork shares", "a fork"),
        ("decoder", "truncate-ignored", "a truncated", "cut from"),
        ("decoder", "truncate-stale", "a truncated", "cut from"),
        ("decoder", "any-sequence", "an unknown sequence", "was accepted"),
        ("decoder", "any-position", "a wrong position", "was accepted"),
        ("decoder", "any-token", "a token outside", "was accepted"),
        ("decoder", "half-batch", "a token outside", "the sequence beside it"),
        ("decoder", "wrong-kind", "an unknown sequence", "expected bad input, got internal"),
        ("decoder", "any-length", "a sequence past", "was accepted"),
        ("decoder", "capacity-lie", "the stated capacity", "512 tokens fit"),
        ("decoder", "sequences-lie", "max_sequences", "8 sequences fit"),
        ("decoder", "hidden-pooler", "rows are exactly", "is not what the model's info offers"),
        ("decoder", "hidden-pooler", "an output the model", "PooledHead was accepted"),
        ("decoder", "hidden-classifier", "rows are exactly", "SequenceLogits is not what"),
        ("decoder", "fork-overwrites", "a wrong fork", "exists was accepted"),
        ("decoder", "any-adapter", "an adapter that is not", "never loaded was accepted"),
        ("decoder", "truncate-grows", "a wrong truncation", "more than there is was accepted"),
        ("encoder-decoder", "ignores-encoder", "only an encoded", "decoded alike"),
        ("encoder-decoder", "fork-loses-encoder", "a fork shares", "a fork"),
        ("encoder-decoder", "batch-dependent", "an input is encoded", "in a batch against"),
        ("encoder", "encoder-keeps", "a sequence lives", "which leaves nothing"),
        ("encoder", "batch-dependent", "a batch equals", "in a batch against alone"),
        ("request", "keeps-sending", "a reply nobody", "frames were sent after"),
        ("request", "mixes-requests", "requests at once", "another answer among others"),
        ("request", "mixes-batches", "a batch of requests", "another answer in a batch"),
        ("request", "short-batch", "a batch of requests", "gave a request of a batch no end"),
        ("request", "panic-in-call", "a request is answered", "panicked: call gave up"),
        ("request", "late-head", "a request is answered", "head was called after"),
    ];
    for (kind, fault, case, reason) in faults {
        let report = faulty(kind, fault, 2);
        let caught =
            report.failures().any(|(name, why)| name.starts_with(case) && why.contains(reason));
        assert!(caught, "{kind} with {fault}: expected {case:?} to say {reason:?}\n{report}");
    }
}
