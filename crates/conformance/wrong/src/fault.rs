//! The faults.

use std::str::FromStr;

macro_rules! faults {
    ($($(#[$doc:meta])* $variant:ident = $name:literal,)*) => {
        /// What the engine does wrong.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(crate) enum Fault {
            $($(#[$doc])* $variant,)*
        }

        impl FromStr for Fault {
            type Err = ();

            fn from_str(name: &str) -> Result<Self, ()> {
                match name {
                    $($name => Ok(Self::$variant),)*
                    _ => Err(()),
                }
            }
        }
    };
}

faults! {
    /// Nothing.
    None = "none",
    /// `load` panics.
    PanicInLoad = "panic-in-load",
    /// `forward` panics.
    PanicInForward = "panic-in-forward",
    /// `fork` panics.
    PanicInFork = "panic-in-fork",
    /// `release` panics.
    PanicInRelease = "panic-in-release",
    /// `load` does not notice that there is no model.
    LoadsNothing = "loads-nothing",
    /// `load` fails with the wrong kind when it is cancelled.
    IgnoresCancel = "ignores-cancel",
    /// `plan` refuses a model that `load` loads.
    RefusesPlan = "refuses-plan",
    /// `plan` finds no room for the model that it takes.
    WeightlessPlan = "weightless-plan",
    /// `plan` has other figures than the model.
    OtherPlan = "other-plan",
    /// `plan` has more on a device than its limit.
    OverfullPlan = "overfull-plan",
    /// `plan` does not heed `option.max_memory`.
    BoundlessPlan = "boundless-plan",
    /// `load` does not heed `option.max_memory`.
    BoundlessLoad = "boundless-load",
    /// `load` forgets 128 KiB.
    LeaksMemory = "leaks-memory",
    /// `release` keeps the sequence.
    LeaksSequence = "leaks-sequence",
    /// `forward` leaves out the last row.
    MissingRow = "missing-row",
    /// `forward` takes a row too many.
    ExtraRow = "extra-row",
    /// `forward` takes a row and does not write it.
    UnwrittenRow = "unwritten-row",
    /// `LastLogits` are those of the first token.
    WrongLastRow = "wrong-last-row",
    /// Pooling forgets a row.
    WrongPooling = "wrong-pooling",
    /// Outputs differ from call to call.
    Nondeterministic = "nondeterministic",
    /// Outputs depend on the number of segments.
    BatchDependent = "batch-dependent",
    /// Outputs depend on how the prompt was cut.
    ChunkDependent = "chunk-dependent",
    /// A fork and its origin are one sequence.
    ForkAliases = "fork-aliases",
    /// A fork has all tokens, whatever length was asked for.
    ForkIgnoresLength = "fork-ignores-length",
    /// A fork goes when its origin goes.
    ForkDiesWithOrigin = "fork-dies-with-origin",
    /// `truncate` does nothing, and any position is taken.
    TruncateIgnored = "truncate-ignored",
    /// `truncate` leaves a token too many in the state.
    TruncateStale = "truncate-stale",
    /// A segment of an unknown sequence begins it at any position.
    AnySequence = "any-sequence",
    /// A segment may begin at any position.
    AnyPosition = "any-position",
    /// A token outside the vocabulary wraps around.
    AnyToken = "any-token",
    /// A segment before the wrong one is kept.
    HalfBatch = "half-batch",
    /// Wrong input is an internal error.
    WrongKind = "wrong-kind",
    /// A sequence may pass `max_positions`.
    AnyLength = "any-length",
    /// Half the stated capacity is there.
    CapacityLie = "capacity-lie",
    /// Half the stated sequences may live.
    SequencesLie = "sequences-lie",
    /// Outputs are there that the info denies.
    HiddenPooler = "hidden-pooler",
    /// A language model classifies sequences, too.
    HiddenClassifier = "hidden-classifier",
    /// `fork` onto a sequence that exists replaces it.
    ForkOverwrites = "fork-overwrites",
    /// A segment may go through adapters that were never loaded.
    AnyAdapter = "any-adapter",
    /// `truncate` to more than there is is taken.
    TruncateGrows = "truncate-grows",
    /// The decoder does not look at the encoder.
    IgnoresEncoder = "ignores-encoder",
    /// A fork forgets the encoder's state.
    ForkLosesEncoder = "fork-loses-encoder",
    /// An encoder keeps its inputs.
    EncoderKeeps = "encoder-keeps",
    /// A request model goes on when nobody waits.
    KeepsSending = "keeps-sending",
    /// A request model mixes up requests that run at once.
    MixesRequests = "mixes-requests",
    /// A request model answers all of a batch with the first one's answer.
    MixesBatches = "mixes-batches",
    /// A request model leaves the last of a batch without an end.
    ShortBatch = "short-batch",
    /// `call` panics.
    PanicInCall = "panic-in-call",
    /// A request model sends the head after the body.
    LateHead = "late-head",
}
