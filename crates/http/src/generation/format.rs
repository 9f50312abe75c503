//! Which form an answer to `/invocations` takes.

use axum::http::{HeaderMap, header};
use drivetrain_config::{ModelConfig, OutputFormatter, RollingBatch};

use super::lmi::Dialect;
use super::schema::Invalid;
use super::stream::Framing;

/// What a model speaks on DJL's routes, by its settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// The Hugging Face handler's: what transformers' pipelines answer.
    Pipeline,
    /// The LMI text-generation schema.
    Lmi(Dialect),
}

impl Mode {
    /// The mode of a model.
    ///
    /// LMI's schema belongs to rolling batches. In the contract's older release a model has one
    /// where `rolling_batch` says so, in its newer one wherever nothing speaks against it; here a
    /// model that says nothing keeps the pipelines' answers, and any setting that only means
    /// something with the schema chooses it.
    pub(crate) fn of(config: &ModelConfig) -> Self {
        if config.batching.rolling.value == RollingBatch::Disable {
            return Self::Pipeline;
        }
        let is_async =
            config.options.get("async_mode").is_some_and(|v| v.eq_ignore_ascii_case("true"));
        let is_set = !config.batching.rolling.source.is_default()
            || !config.output_formatter.source.is_default();
        match (config.tgi_compat.value, is_async) {
            (true, _) => Self::Lmi(dialect(config)),
            (false, true) => Self::Lmi(Dialect::Async),
            (false, false) if is_set => Self::Lmi(Dialect::Rolling),
            (false, false) => Self::Pipeline,
        }
    }
}

/// The dialect of a model whose requests are in LMI's schema.
pub(crate) fn dialect(config: &ModelConfig) -> Dialect {
    let is_plain =
        matches!(config.output_formatter.value, OutputFormatter::Json | OutputFormatter::Sse);
    match config.tgi_compat.value && is_plain {
        true => Dialect::Tgi,
        false => Dialect::Rolling,
    }
}

/// The form of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Format {
    /// How its pieces are told apart; `None` for one document.
    pub(crate) framing: Option<Framing>,
    /// Whether it is a chat completion.
    pub(crate) is_chat: bool,
    /// Whether it is the text alone.
    pub(crate) is_bare: bool,
}

/// What decides the form.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wishes<'a> {
    /// The request's `output_formatter`.
    pub(crate) formatter: Option<&'a str>,
    /// Its `stream`.
    pub(crate) stream: bool,
    /// Whether its `Accept` names server-sent events.
    pub(crate) accepts_sse: bool,
}

impl Format {
    /// The request's `output_formatter`; else the model's, or for `stream` its streaming twin.
    ///
    /// # Errors
    /// A formatter that is none of ours.
    pub(crate) fn choose(
        wishes: Wishes<'_>,
        configured: &OutputFormatter,
        dialect: Dialect,
    ) -> Result<Self, Invalid> {
        let of = |framing, is_chat| Self { framing, is_chat, is_bare: false };
        if let Some(name) = wishes.formatter {
            return match name {
                "json" => Ok(of(None, false)),
                "jsonlines" => Ok(of(Some(Framing::Lines), false)),
                "sse" => Ok(of(Some(Framing::Sse), false)),
                "json_chat" => Ok(of(None, true)),
                "jsonlines_chat" => Ok(of(Some(Framing::Lines), true)),
                "sse_chat" => Ok(of(Some(Framing::Sse), true)),
                "none" => Ok(Self::bare(wishes.stream)),
                other => Err(Invalid::value(
                    "output_formatter",
                    &other.into(),
                    "json, jsonlines, sse, json_chat, jsonlines_chat, sse_chat or none",
                )),
            };
        }
        let lines = match wishes.accepts_sse || dialect == Dialect::Tgi {
            true => Framing::Sse,
            false => Framing::Lines,
        };
        let twin = wishes.stream.then_some(lines);
        Ok(match configured {
            OutputFormatter::Json => of(twin, false),
            OutputFormatter::JsonLines => of(Some(lines), false),
            OutputFormatter::Sse => of(Some(Framing::Sse), false),
            OutputFormatter::JsonChat => of(twin, true),
            OutputFormatter::JsonLinesChat => of(Some(lines), true),
            OutputFormatter::SseChat => of(Some(Framing::Sse), true),
            OutputFormatter::None => Self::bare(wishes.stream),
            other => {
                return Err(Invalid::new(
                    "output_formatter",
                    format!(
                        "the model's is {other:?}, which needs a handler of its own: name json, \
                         jsonlines or sse"
                    ),
                ));
            }
        })
    }

    fn bare(stream: bool) -> Self {
        Self { framing: stream.then_some(Framing::Raw), is_chat: false, is_bare: true }
    }
}

/// Whether `Accept` names server-sent events.
pub(crate) fn accepts_sse(headers: &HeaderMap) -> bool {
    headers.get_all(header::ACCEPT).iter().any(|value| {
        value.to_str().is_ok_and(|text| {
            text.split(',').any(|range| {
                let kind = range.split(';').next().unwrap_or_default().trim();
                kind.eq_ignore_ascii_case("text/event-stream")
            })
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_request_comes_before_the_stream_and_that_before_the_model() {
        let check = |formatter, stream, accepts_sse, configured: &OutputFormatter, expect: &str| {
            let wishes = Wishes { formatter, stream, accepts_sse };
            let found = Format::choose(wishes, configured, Dialect::Rolling).map(|format| {
                let framing = match format.framing {
                    None => "whole",
                    Some(Framing::Lines) => "lines",
                    Some(Framing::Sse) => "sse",
                    Some(Framing::Raw) => "raw",
                };
                let chat = if format.is_chat { " chat" } else { "" };
                format!("{framing}{chat}{}", if format.is_bare { " bare" } else { "" })
            });
            assert_eq!(found.unwrap_or_else(|error| error.field), expect);
        };
        use OutputFormatter as F;
        check(None, false, false, &F::Json, "whole");
        check(None, true, false, &F::Json, "lines");
        check(None, true, true, &F::Json, "sse");
        check(None, false, false, &F::JsonLines, "lines");
        check(None, false, false, &F::Sse, "sse");
        check(None, true, false, &F::JsonChat, "lines chat");
        check(None, false, false, &F::SseChat, "sse chat");
        check(None, false, false, &F::None, "whole bare");
        check(None, true, false, &F::None, "raw bare");
        check(Some("json"), true, true, &F::Sse, "whole");
        check(Some("sse_chat"), false, false, &F::Json, "sse chat");
        check(Some("xml"), false, false, &F::Json, "output_formatter");
        check(None, false, false, &F::Custom("mine".to_owned()), "output_formatter");
        let tgi = Wishes { formatter: None, stream: true, accepts_sse: false };
        let tgi = Format::choose(tgi, &F::Json, Dialect::Tgi).unwrap();
        assert_eq!(tgi.framing, Some(Framing::Sse));
    }
}
