//! From a conversation to one text, by the model's chat template.
//!
//! Templates are Jinja as transformers' `apply_chat_template` sets it up, and come with the model,
//! so they are not trusted: each rendering has a budget of work and memory, and a template reaches
//! nothing but what it is given.
//!
//! Source: transformers 5.24.0, `utils/chat_template_utils.py`.

mod clock;
mod messages;
mod python;

use std::collections::BTreeMap;
use std::error::Error as _;
use std::fmt;
use std::time::SystemTime;

use drivetrain_artifacts::ChatTemplates;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Serde, Value as Any};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, State};
use minijinja_contrib::pycompat::unknown_method_callback;
use serde_json::Value;

use super::Chat;
use crate::HostError;

/// Work that one rendering may do: instructions, and 64 bytes of text made count as one. A
/// conversation of a thousand messages takes a tenth of it.
const FUEL: u64 = 2_000_000;

/// Largest text that a template may make, in bytes.
const MAX_TEXT: usize = 16 << 20;

/// What is put behind a message that is to be continued, to find its end again.
const CONTINUE_MARK: &str = "CONTINUE_FINAL_MESSAGE_TAG ";

/// A model's chat templates, ready to be filled.
pub(crate) struct ChatRenderer {
    env: Environment<'static>,
    templates: BTreeMap<String, Template>,
    /// The named special tokens, which templates call by name.
    special: Vec<(String, Any)>,
}

struct Template {
    source: String,
    /// Whether it takes a content apart itself; otherwise it is given texts alone.
    takes_parts: bool,
    /// Why it can't be used.
    fault: Option<String>,
}

/// What `raise_exception` was called with.
#[derive(Debug)]
struct Raised(String);

impl fmt::Display for Raised {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Raised {}

impl ChatRenderer {
    /// Takes the templates of a model. One that is no Jinja is found out when it is asked for.
    pub(crate) fn new<'a>(
        templates: &ChatTemplates,
        special: impl Iterator<Item = (&'a str, &'a str)>,
    ) -> Self {
        let mut env = environment();
        let mut known = BTreeMap::new();
        for (name, source) in templates.iter() {
            let source = source.replace("\r\n", "\n").replace('\r', "\n");
            let source = without_generation_tags(&source);
            let fault = env
                .add_template_owned(name.to_owned(), source.clone())
                .err()
                .map(|error| describe(&error));
            if let Some(fault) = &fault {
                tracing::warn!(template = name, fault, "the chat template is broken");
            }
            let takes_parts = loops_over_content(&source);
            known.insert(name.to_owned(), Template { source, takes_parts, fault });
        }
        let special = special.map(|(name, text)| (name.to_owned(), Any::from(text))).collect();
        Self { env, templates: known, special }
    }

    /// The text of a conversation.
    ///
    /// # Errors
    /// `BadRequest`: the messages are of a wrong form, the template refuses them, can't be applied
    /// to them or does too much, or the model has none.
    pub(crate) fn render(&self, chat: &Chat) -> Result<String, HostError> {
        let (name, template) = self.choose(chat)?;
        if let Some(fault) = &template.fault {
            return Err(HostError::bad_request(format!(
                "messages: the model's chat template is broken: {fault}"
            )));
        }
        if chat.opens_answer && chat.continues_last {
            return Err(HostError::bad_request(
                "continue_final_message=true: the last message can't be continued where \
                 add_generation_prompt=true begins a new one; set one of them to false",
            ));
        }
        let mut messages = messages::normalised(&chat.messages, template.takes_parts)?;
        let last = if chat.continues_last {
            if !template.source.contains("content") {
                return Err(HostError::bad_request(
                    "continue_final_message=true: the model's chat template reads no content",
                ));
            }
            Some(messages::mark_last(&mut messages, CONTINUE_MARK)?)
        } else {
            None
        };
        let text = self.fill(name, chat, &messages)?;
        match last {
            Some(last) => continued(text, &last),
            None => Ok(text),
        }
    }

    /// Whether there is a template that conversations are made text with.
    pub(crate) fn has_template(&self) -> bool {
        self.templates.contains_key("default")
    }

    /// The template that the request wants, else the one for tools, else the usual one.
    fn choose(&self, chat: &Chat) -> Result<(&str, &Template), HostError> {
        let asked = match chat.extra.get("chat_template") {
            None | Some(Value::Null) => None,
            Some(Value::String(name)) => Some(name.as_str()),
            Some(_) => {
                return Err(HostError::bad_request("chat_template: expected a template's name"));
            }
        };
        let entry = |name: &str| self.templates.get_key_value(name);
        let found = match asked {
            Some(name) => entry(name),
            None if chat.tools.is_empty() => entry("default"),
            None => entry("tool_use").or_else(|| entry("default")),
        };
        found.map(|(name, template)| (name.as_str(), template)).ok_or_else(|| {
            HostError::bad_request(if self.templates.is_empty() {
                "messages: the model has no chat template: give a prompt, or add \
                 chat_template.jinja to the model's files"
                    .to_owned()
            } else {
                let names: Vec<&str> = self.templates.keys().map(String::as_str).collect();
                format!("chat_template: expected one of {}", names.join(", "))
            })
        })
    }

    fn fill(&self, name: &str, chat: &Chat, messages: &[Value]) -> Result<String, HostError> {
        let list = |values: &[Value]| match values {
            [] => Any::from(()),
            values => Any::from(Serde(values)),
        };
        let mut context: BTreeMap<&str, Any> =
            self.special.iter().map(|(name, text)| (name.as_str(), text.clone())).collect();
        context.insert("documents", Any::from(()));
        let extra = chat.extra.iter().filter(|(name, _)| name.as_str() != "chat_template");
        context.extend(extra.map(|(name, value)| (name.as_str(), Any::from(Serde(value)))));
        context.insert("messages", Any::from(Serde(messages)));
        context.insert("tools", list(&chat.tools));
        context.insert("add_generation_prompt", Any::from(chat.opens_answer));
        let template = self.env.get_template(name).map_err(|error| refusal(&error))?;
        let text = template.render(Any::from_pairs(context)).map_err(|error| refusal(&error))?;
        if text.len() > MAX_TEXT {
            return Err(HostError::bad_request(format!(
                "messages: the model's chat template can't be applied: {TOO_LONG}"
            )));
        }
        Ok(text)
    }
}

const TOO_LONG: &str = "the text would be longer than 16 MiB";

fn environment() -> Environment<'static> {
    let mut env = Environment::new();
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
    match syntax {
        Ok(syntax) => env.set_syntax(syntax),
        Err(error) => debug_assert!(false, "{error}"),
    }
    env.set_auto_escape_callback(|_| AutoEscape::None);
    env.set_fuel(Some(FUEL));
    env.set_unknown_method_callback(method);
    env.set_formatter(|out, _, value| python::write_str(out, value));
    env.add_filter("tojson", python::to_json);
    env.add_filter("string", |value: &Any| python::to_str(value));
    env.add_test("sequence", |value: &Any| value.len().is_some());
    env.add_test("iterable", |value: &Any| value.as_str().is_some() || value.try_iter().is_ok());
    env.add_function("raise_exception", |message: &Any| -> Result<Any, Error> {
        let message = python::to_str(message)?;
        Err(Error::new(ErrorKind::InvalidOperation, message.clone()).with_source(Raised(message)))
    });
    env.add_function("strftime_now", |format: &str| clock::strftime(format, SystemTime::now()));
    env
}

/// Python's methods, none of which may make a text that is too long before its size is looked at.
fn method(state: &mut State, value: &Any, name: &str, args: &[Any]) -> Result<Any, Error> {
    let size = match (name, value.as_str()) {
        ("replace", Some(text)) => {
            let arg = |idx: usize| args.get(idx).and_then(Any::as_str).unwrap_or_default();
            let n = if arg(0).is_empty() { text.len() + 1 } else { text.matches(arg(0)).count() };
            n.saturating_mul(arg(1).len()).saturating_add(text.len())
        }
        ("join", Some(between)) => {
            let items = args.first().map(Any::try_iter).transpose()?;
            let each = |item: Any| item.as_str().map_or(16, str::len) + between.len();
            items.into_iter().flatten().fold(0, |sum: usize, item| sum.saturating_add(each(item)))
        }
        _ => 0,
    };
    if size > MAX_TEXT {
        return Err(Error::new(ErrorKind::InvalidOperation, TOO_LONG));
    }
    unknown_method_callback(state, value, name, args)
}

/// What a template's failure is to a client.
fn refusal(error: &Error) -> HostError {
    let mut cause = error.source();
    while let Some(inner) = cause {
        if let Some(Raised(message)) = inner.downcast_ref() {
            return HostError::bad_request(format!(
                "messages: the model's chat template refuses them: {message}"
            ));
        }
        cause = inner.source();
    }
    HostError::bad_request(if error.kind() == ErrorKind::OutOfFuel {
        "messages: the model's chat template does too much with them: send fewer or shorter ones"
            .to_owned()
    } else {
        format!("messages: the model's chat template can't be applied: {}", describe(error))
    })
}

fn describe(error: &Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    text
}

/// The text up to the end of the last message, whose content was `last`.
fn continued(mut text: String, last: &str) -> Result<String, HostError> {
    let end = text.rfind(CONTINUE_MARK.trim_end()).filter(|_| text.contains(last.trim()));
    let Some(end) = end else {
        return Err(HostError::bad_request(
            "continue_final_message=true: the model's chat template does not repeat the last \
             message as it is, so it can't be continued",
        ));
    };
    let keeps_space = text.get(end..).is_some_and(|rest| rest.starts_with(CONTINUE_MARK));
    text.truncate(end);
    if !keeps_space {
        text.truncate(text.trim_end().len());
    }
    Ok(text)
}

/// The template with what stands between `generation` tags, which mark the text that a model is
/// trained on, as if it stood there alone.
fn without_generation_tags(source: &str) -> String {
    let mut rest = source;
    let mut out = String::with_capacity(source.len());
    while let Some(start) = rest.find("{%") {
        let (before, tag) = rest.split_at(start + 2);
        out.push_str(before);
        let inner = tag.trim_start_matches(['-', '+']);
        out.push_str(&tag[..tag.len() - inner.len()]);
        let word = inner.trim_start();
        let stands_for = [("endgeneration", " endif"), ("generation", " if true")];
        let found = stands_for.into_iter().find_map(|(name, instead)| {
            let end = word.strip_prefix(name)?;
            let close = end.trim_start();
            let ends = ["%}", "-%}", "+%}"].iter().any(|mark| close.starts_with(mark));
            ends.then_some((end, instead))
        });
        rest = match found {
            Some((end, instead)) => {
                out.push_str(instead);
                end
            }
            None => inner,
        };
    }
    out.push_str(rest);
    out
}

/// Whether a `for` goes over a content, so that the template knows contents of several parts.
fn loops_over_content(source: &str) -> bool {
    source.split("{%").skip(1).any(|tag| {
        let tag = tag.split("%}").next().unwrap_or_default();
        let words = tag.trim_start_matches(['-', '+']).trim_start();
        let over = words.strip_prefix("for ").and_then(|words| words.split_once(" in "));
        over.is_some_and(|(_, over)| over.contains("content"))
    })
}

impl fmt::Debug for ChatRenderer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChatRenderer").field("names", &self.templates.keys()).finish()
    }
}

#[cfg(test)]
mod tests;
