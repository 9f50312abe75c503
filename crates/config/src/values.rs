//! The types behind values with a meaning: devices, element types, batching modes, formats.

use std::fmt;
use std::num::NonZeroU32;
use std::time::Duration;

/// Devices a model is loaded on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Devices {
    /// Whatever is there.
    All,
    /// These, in this order.
    Listed(Vec<Device>),
}

/// One device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Device {
    /// The processor.
    Cpu,
    /// A GPU by its number.
    Gpu(u32),
    /// An AWS Neuron core by its number.
    NeuronCore(u32),
}

impl Devices {
    pub(crate) const WANTED: &str =
        "* or a list of -1, cpu, a GPU's number, gpu0, nc0 separated with ;";

    pub(crate) fn parse(text: &str) -> Option<Self> {
        if text == "*" {
            return Some(Self::All);
        }
        let devices = text.split(';').map(|one| Device::parse(one.trim()));
        Some(Self::Listed(devices.collect::<Option<_>>()?))
    }
}

impl Device {
    fn parse(text: &str) -> Option<Self> {
        let lower = text.to_ascii_lowercase();
        let number = |digits: &str| {
            let plain = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
            plain.then(|| digits.parse().ok())?
        };
        if lower == "-1" || lower == "cpu" {
            Some(Self::Cpu)
        } else if let Some(digits) = lower.strip_prefix("nc") {
            number(digits).map(Self::NeuronCore)
        } else {
            number(lower.strip_prefix("gpu").unwrap_or(&lower)).map(Self::Gpu)
        }
    }
}

impl fmt::Display for Devices {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("*"),
            Self::Listed(devices) => {
                for (n, device) in devices.iter().enumerate() {
                    write!(f, "{}{device}", if n > 0 { ";" } else { "" })?;
                }
                Ok(())
            }
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::Gpu(number) => write!(f, "gpu{number}"),
            Self::NeuronCore(number) => write!(f, "nc{number}"),
        }
    }
}

/// Into how many partitions a model is split.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ParallelDegree {
    /// One for every device there is.
    Max,
    /// This many.
    Count(NonZeroU32),
}

impl ParallelDegree {
    pub(crate) fn parse(text: &str) -> Option<Self> {
        if text.eq_ignore_ascii_case("max") {
            return Some(Self::Max);
        }
        let plain = text.bytes().all(|b| b.is_ascii_digit());
        plain.then(|| text.parse().ok().map(Self::Count))?
    }
}

/// More than `limit` errors within `window` take the server out of service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ErrorRate {
    /// Errors that are still tolerated.
    pub limit: u32,
    /// The time they are counted over.
    pub window: Duration,
}

impl ErrorRate {
    pub(crate) const WANTED: &str = "a whole number, or number/window with an ISO 8601 window of \
                                     days, hours, minutes and seconds such as PT5M";

    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (limit, window) = match text.split_once('/') {
            None => (text, Duration::from_secs(60)),
            Some((limit, window)) => (limit, parse_iso_duration(window.trim())?),
        };
        let limit = limit.trim();
        let plain = !limit.is_empty() && limit.bytes().all(|b| b.is_ascii_digit());
        plain.then(|| Some(Self { limit: limit.parse().ok()?, window }))?
    }
}

/// `P[nD][T[nH][nM][n[.n]S]]`, positive and not empty.
fn parse_iso_duration(text: &str) -> Option<Duration> {
    let text = text.to_ascii_uppercase();
    let text = text.strip_prefix('P')?;
    let (days, time) = text.split_once('T').map_or((text, None), |(d, t)| (d, Some(t)));
    let mut seconds = 0.0_f64;
    let mut read = |mut text: &str, units: &[(char, f64)]| {
        let mut units = units.iter();
        while !text.is_empty() {
            let end = text.find(|c: char| !c.is_ascii_digit() && c != '.')?;
            let (number, rest) = text.split_at(end);
            let unit = rest.chars().next()?;
            // Units come in order and once each, so the search goes on from the last one found.
            let (_, scale) = units.find(|(name, _)| *name == unit)?;
            if number.contains('.') && unit != 'S' {
                return None;
            }
            seconds += number.parse::<f64>().ok()? * scale;
            text = rest.get(1..)?;
        }
        Some(())
    };
    read(days, &[('D', 86_400.0)])?;
    if let Some(time) = time {
        if time.is_empty() {
            return None;
        }
        read(time, &[('H', 3_600.0), ('M', 60.0), ('S', 1.0)])?;
    }
    (seconds > 0.0 && seconds <= f64::from(u32::MAX)).then(|| Duration::from_secs_f64(seconds))
}

macro_rules! named_values {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $text:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $name { $($(#[$variant_doc])* $variant,)+ }

        impl $name {
            /// Every name, in the order of messages and documentation.
            pub(crate) const NAMES: &[&str] = &[$($text),+];

            /// Reads a name, without case.
            pub(crate) fn parse(text: &str) -> Option<Self> {
                let text = text.to_ascii_lowercase();
                match text.as_str() { $($text => Some(Self::$variant),)+ _ => None }
            }

            /// The name as it is written in a properties file.
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $text,)+ }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.name())
            }
        }
    };
}

named_values! {
    /// The element type a model computes in.
    Dtype {
        /// The checkpoint's own, or what the device does best.
        Auto = "auto",
        /// 32-bit floats.
        Fp32 = "fp32",
        /// IEEE half floats.
        Fp16 = "fp16",
        /// bfloat16.
        Bf16 = "bf16",
        /// 8-bit integers with scales.
        Int8 = "int8",
    }
}

named_values! {
    /// How requests of a generating model share its steps.
    RollingBatch {
        /// Continuous batching where the model can.
        Auto = "auto",
        /// Whole requests are grouped; none joins a running group.
        Disable = "disable",
        /// DJL's plain scheduler: continuous batching here.
        Scheduler = "scheduler",
        /// DJL's tensor-parallel backend: continuous batching here.
        LmiDist = "lmi-dist",
        /// DJL's vLLM backend: continuous batching here.
        Vllm = "vllm",
        /// DJL's TensorRT-LLM backend: continuous batching here.
        Trtllm = "trtllm",
    }
}

named_values! {
    /// Whether a reply of the plain Hugging Face path is streamed.
    Streaming {
        /// The whole reply at once.
        Off = "false",
        /// Step by step.
        On = "true",
        /// Step by step with the library's own streamer; one input only.
        HuggingFace = "huggingface",
    }
}

/// How generated text is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OutputFormatter {
    /// One JSON object.
    Json,
    /// One JSON object a line.
    JsonLines,
    /// Server-sent events.
    Sse,
    /// A chat completion.
    JsonChat,
    /// Chat completion chunks, one a line.
    JsonLinesChat,
    /// Chat completion chunks as server-sent events.
    SseChat,
    /// The third-party schema.
    ThirdParty,
    /// The third-party schema, streamed.
    ThirdPartyStream,
    /// The text alone.
    None,
    /// A formatter that a handler registers under this name.
    Custom(String),
}

impl OutputFormatter {
    pub(crate) const NAMES: [&str; 9] = [
        "json",
        "jsonlines",
        "sse",
        "json_chat",
        "jsonlines_chat",
        "sse_chat",
        "3p",
        "3p_stream",
        "none",
    ];

    pub(crate) fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "json" => Self::Json,
            "jsonlines" => Self::JsonLines,
            "sse" => Self::Sse,
            "json_chat" => Self::JsonChat,
            "jsonlines_chat" => Self::JsonLinesChat,
            "sse_chat" => Self::SseChat,
            "3p" => Self::ThirdParty,
            "3p_stream" => Self::ThirdPartyStream,
            "none" => Self::None,
            "" => return None,
            name => Self::Custom(name.to_owned()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_read() {
        let listed = |text: &str| Devices::parse(text).map(|devices| devices.to_string());
        assert_eq!(listed("*").as_deref(), Some("*"));
        assert_eq!(listed("-1").as_deref(), Some("cpu"));
        assert_eq!(listed("cpu; 0;GPU1;nc2").as_deref(), Some("cpu;gpu0;gpu1;nc2"));
        for text in ["", ";", "-2", "gpu", "tpu0", "0,1", "*;0", "gpu-1", "99999999999"] {
            assert_eq!(listed(text), None, "{text}");
        }
    }

    #[test]
    fn error_rates_read() {
        let rate = |text: &str| ErrorRate::parse(text).map(|r| (r.limit, r.window.as_millis()));
        assert_eq!(rate("10"), Some((10, 60_000)));
        assert_eq!(rate("0/PT5M"), Some((0, 300_000)));
        assert_eq!(rate("3/P1DT2H3M4.5S"), Some((3, 93_784_500)));
        for text in ["", "-1", "1/", "1/5M", "1/PT", "1/P", "1/PT5", "1/PT5M2H", "1/PT0S", "x/PT1S"]
        {
            assert_eq!(rate(text), None, "{text}");
        }
    }

    #[test]
    fn degrees_read() {
        assert_eq!(ParallelDegree::parse("max"), Some(ParallelDegree::Max));
        let four = NonZeroU32::new(4).map(ParallelDegree::Count);
        assert_eq!(ParallelDegree::parse("4"), four);
        for text in ["", "0", "-1", "+1", "1.0", "all"] {
            assert_eq!(ParallelDegree::parse(text), None, "{text}");
        }
    }
}
