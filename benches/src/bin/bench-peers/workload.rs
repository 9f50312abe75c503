//! What is computed: models with their work. What is here is data.

use crate::entrants::Family;

/// A model, and what is asked of it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Model {
    /// What it is called here.
    pub(crate) name: &'static str,
    /// Its name in `make_model.py`.
    pub(crate) shape: &'static str,
    pub(crate) family: Family,
    /// Tokens of the vocabulary.
    pub(crate) vocab: u32,
    /// Parameters in millions.
    pub(crate) n_millions: u64,
    /// Work by name, as `drivetrain_benches::Work` reads it.
    pub(crate) works: &'static [(&'static str, &'static str)],
}

impl Model {
    /// Whether it can be a GGUF file.
    pub(crate) fn has_gguf(&self) -> bool {
        self.family != Family::Bart
    }
}

/// What each entrant is asked first, and its result compared with the yardstick's.
pub(crate) fn check_of(family: Family) -> &'static str {
    match family {
        Family::Bart => "hidden:2x48",
        Family::Llama | Family::Offloaded => "prefill:48",
    }
}

/// The whole comparison.
pub(crate) const WHOLE: &[Model] = &[
    Model {
        name: "bart-large",
        shape: "bart-large",
        family: Family::Bart,
        vocab: 50_265,
        n_millions: 406,
        works: &[
            ("features-1x128", "hidden:1x128"),
            ("features-1x512", "hidden:1x512"),
            ("features-8x512", "hidden:8x512"),
            ("summary-greedy", "generate:512+64"),
            ("summary-beam4", "generate:512+64/4"),
        ],
    },
    Model {
        name: "smollm2-135m",
        shape: "smollm2-135m",
        family: Family::Llama,
        vocab: 49_152,
        n_millions: 135,
        works: &[
            ("prefill-512", "prefill:512"),
            ("decode-1", "generate:16+64"),
            ("decode-16", "generate:16x16+32"),
        ],
    },
    Model {
        name: "llama-1b",
        shape: "llama-1b",
        family: Family::Llama,
        vocab: 128_256,
        n_millions: 1236,
        works: &[
            ("prefill-512", "prefill:512"),
            ("decode-1", "generate:16+32"),
            ("decode-16", "generate:16x16+16"),
        ],
    },
    Model {
        name: "llama-1b-offloaded",
        shape: "llama-1b",
        family: Family::Offloaded,
        vocab: 128_256,
        n_millions: 1236,
        works: &[
            ("prefill-1x128", "prefill:1x128"),
            ("prefill-8x128", "prefill:8x128"),
            ("decode-1", "generate:16+8"),
            ("decode-8", "generate:8x16+8"),
        ],
    },
];

/// A look at whether everything works.
pub(crate) const SMALL: &[Model] = &[
    Model {
        name: "bart-base",
        shape: "bart-base",
        family: Family::Bart,
        vocab: 50_265,
        n_millions: 139,
        works: &[
            ("features-1x64", "hidden:1x64"),
            ("features-2x128", "hidden:2x128"),
            ("summary-greedy", "generate:64+8"),
            ("summary-beam4", "generate:64+8/4"),
        ],
    },
    Model {
        name: "smollm2-135m",
        shape: "smollm2-135m",
        family: Family::Llama,
        vocab: 49_152,
        n_millions: 135,
        works: &[
            ("prefill-64", "prefill:64"),
            ("decode-1", "generate:16+8"),
            ("decode-4", "generate:4x16+8"),
        ],
    },
];
