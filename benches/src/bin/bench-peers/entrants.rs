//! Who takes part: the engines by library, the other libraries by runner. What is here is data.

/// The type of the weights, and of the products with them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Format {
    F32,
    Bf16,
    Int8,
    Q8Zero,
    Q4Zero,
}

impl Format {
    /// All, in the order of tables.
    pub(crate) const ALL: [Self; 5] =
        [Self::F32, Self::Bf16, Self::Int8, Self::Q8Zero, Self::Q4Zero];

    /// How it is written.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::Int8 => "int8",
            Self::Q8Zero => "q8_0",
            Self::Q4Zero => "q4_0",
        }
    }

    /// Bits of a weight, scales included.
    pub(crate) fn bits(self) -> u64 {
        match self {
            Self::F32 => 32,
            Self::Bf16 => 16,
            Self::Int8 | Self::Q8Zero => 9,
            Self::Q4Zero => 5,
        }
    }

    /// The least cosine with torch's f32 that is taken for the same result. Weights of 4 bits move a
    /// model with random weights, which has no redundancy, by much more than a trained one.
    pub(crate) fn least_cosine(self) -> f64 {
        match self {
            Self::F32 => 0.999,
            Self::Bf16 | Self::Int8 | Self::Q8Zero => 0.98,
            Self::Q4Zero => 0.8,
        }
    }
}

/// Which models a library is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Family {
    /// Encoder and decoder.
    Bart,
    /// Decoder only.
    Llama,
    /// Decoder only, of which a quarter is in memory and the rest is read from the disk for each pass.
    Offloaded,
}

/// The quarter of `llama-1b` that stays in memory, as a device map: embeddings, which are the head, too,
/// and a layer. The runner of `hf_accelerate` has the same.
const QUARTER: &str = "{\"\":\"disk\",\"model.embed_tokens\":\"cpu\",\"lm_head\":\"cpu\",\
                       \"model.norm\":\"cpu\",\"model.layers.0\":\"cpu\"}";

/// A format that an entrant computes in.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Offer {
    /// The format.
    pub(crate) format: Format,
    /// What `make_model.py` makes for it.
    pub(crate) form: &'static str,
    /// Options of the engine, passed on as they are.
    pub(crate) options: &'static [(&'static str, &'static str)],
}

/// An engine of Drivetrain's.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Engine {
    /// Its name; the library is that of the package `drivetrain-NAME`.
    pub(crate) name: &'static str,
    pub(crate) families: &'static [Family],
    pub(crate) offers: &'static [Offer],
}

/// Another library.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Peer {
    /// Its name; it runs by `NAME_runner.py`, and is installed from `requirements/NAME.txt`, if that is
    /// there.
    pub(crate) name: &'static str,
    pub(crate) families: &'static [Family],
    pub(crate) offers: &'static [Offer],
}

const fn offer(format: Format, form: &'static str) -> Offer {
    Offer { format, form, options: &[] }
}

/// The engines; the first one is what the others are there to be compared with.
pub(crate) const ENGINES: &[Engine] = &[
    Engine {
        name: "fastertransformer",
        families: &[Family::Bart, Family::Llama],
        offers: &[
            Offer { format: Format::F32, form: "hf", options: &[("dtype", "fp32")] },
            Offer { format: Format::Bf16, form: "hf", options: &[("dtype", "bf16")] },
            Offer { format: Format::Int8, form: "hf", options: &[("quantize", "int8")] },
            offer(Format::Q8Zero, "gguf-q8_0"),
            offer(Format::Q4Zero, "gguf-q4_0"),
        ],
    },
    Engine {
        name: "accelerate",
        families: &[Family::Bart, Family::Llama],
        offers: &[Offer { format: Format::F32, form: "hf", options: &[("dtype", "fp32")] }],
    },
    Engine {
        name: "accelerate",
        families: &[Family::Offloaded],
        offers: &[Offer { format: Format::Bf16, form: "hf", options: &[("device_map", QUARTER)] }],
    },
];

/// The yardstick: every other entrant's result is compared with its f32.
pub(crate) const YARDSTICK: &str = "torch";

/// The other libraries.
pub(crate) const PEERS: &[Peer] = &[
    Peer {
        name: YARDSTICK,
        families: &[Family::Bart, Family::Llama],
        offers: &[offer(Format::F32, "hf"), offer(Format::Bf16, "hf")],
    },
    Peer {
        name: "hf_accelerate",
        families: &[Family::Offloaded],
        offers: &[offer(Format::Bf16, "hf")],
    },
    Peer {
        name: "ctranslate2",
        families: &[Family::Bart, Family::Llama],
        offers: &[offer(Format::F32, "ct2-f32"), offer(Format::Int8, "ct2-int8")],
    },
    Peer {
        name: "llama_cpp",
        families: &[Family::Llama],
        offers: &[offer(Format::Q8Zero, "gguf-q8_0"), offer(Format::Q4Zero, "gguf-q4_0")],
    },
    Peer {
        name: "openvino",
        families: &[Family::Bart],
        offers: &[offer(Format::F32, "openvino-f32"), offer(Format::Int8, "openvino-int8")],
    },
    Peer {
        name: "onnxruntime",
        families: &[Family::Bart],
        offers: &[offer(Format::F32, "onnx-f32")],
    },
];
