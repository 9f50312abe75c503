//! A request for generated text.

use std::borrow::Cow;
use std::time::Instant;

use serde_json::{Map, Value};

/// A request to a model that generates, whatever protocol it came by.
#[derive(Clone, Debug, Default)]
pub struct GenerateRequest {
    /// The request's id, for logs.
    pub id: String,
    /// What is continued, or what an encoder-decoder model answers to; at least one.
    pub prompts: Vec<Prompt>,
    /// How, by the names of transformers' `generate` where it has one and of vLLM's sampling
    /// parameters where it has not.
    pub parameters: Map<String, Value>,
    /// What the client calls the parameters, for messages.
    pub naming: Naming,
    /// Requests of a higher one come first; 0 is usual.
    pub priority: i32,
    /// When the answer is of no use any more. The model's `predict_timeout` bounds it anyway.
    pub deadline: Option<Instant>,
    /// Whether tokens are wanted as they come. Then parameters under which they come only at the
    /// end (beams, `best_of`) are refused.
    pub is_streamed: bool,
}

/// What is continued or answered.
#[derive(Clone, Debug, PartialEq)]
pub enum Prompt {
    /// A text, with the special tokens that the tokenizer puts around it.
    Text(String),
    /// Tokens, as they are.
    Tokens(Vec<u32>),
    /// A conversation, which the model's chat template makes a text of, special tokens included.
    Chat(Box<Chat>),
}

/// A conversation.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Chat {
    /// The messages, a list of objects with `role` and `content`, as OpenAI's API has them.
    pub messages: Vec<Value>,
    /// The tools the model may call; empty for none.
    pub tools: Vec<Value>,
    /// Further values for the template (`chat_template_kwargs`, `documents`).
    pub extra: Map<String, Value>,
    /// Whether the answer's head is put at the end: `add_generation_prompt`.
    pub opens_answer: bool,
    /// Whether the last message is left open and continued: `continue_final_message`.
    pub continues_last: bool,
}

/// What a client calls the parameters.
#[derive(Clone, Copy, Debug)]
pub struct Naming {
    /// Before each name.
    pub prefix: &'static str,
    /// Our names, and the client's where they differ.
    pub renamed: &'static [(&'static str, &'static str)],
}

impl Default for Naming {
    /// `parameters.max_new_tokens`: transformers' names under `parameters`.
    fn default() -> Self {
        Self { prefix: "parameters.", renamed: &[] }
    }
}

impl Naming {
    /// The client's name of our `name`.
    pub fn shown<'a>(&self, name: &'a str) -> Cow<'a, str> {
        let renamed =
            self.renamed.iter().find(|(ours, _)| *ours == name).map(|(_, theirs)| *theirs);
        match renamed {
            Some(theirs) => Cow::Owned(format!("{}{theirs}", self.prefix)),
            None if self.prefix.is_empty() => Cow::Borrowed(name),
            None => Cow::Owned(format!("{}{name}", self.prefix)),
        }
    }
}
