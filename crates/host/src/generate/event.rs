//! What comes back of a request for generated text.

use crate::FinishReason;

/// A prompt as the model reads it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PromptInfo {
    /// Its text: what was given, what the template made, or what the given tokens say.
    pub text: String,
    /// Its tokens, special ones included.
    pub ids: Vec<u32>,
}

/// One of the likeliest tokens at a place.
#[derive(Clone, Debug, PartialEq)]
pub struct TopToken {
    /// Its id.
    pub id: u32,
    /// Its own text, alone.
    pub text: String,
    /// Its log-probability under the model, before any sampling rule.
    pub logprob: f32,
}

/// A token of a prompt or of an answer, kept where details were asked for.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenDetail {
    /// Its id.
    pub id: u32,
    /// Its own text, alone: pieces of a letter are shown as U+FFFD.
    pub text: String,
    /// Its bytes, where it is a piece of text.
    pub bytes: Vec<u8>,
    /// Its log-probability under the model, before any sampling rule; none for a prompt's first
    /// token, or where it was not asked for.
    pub logprob: Option<f32>,
    /// Whether it is a special token, which the text leaves out.
    pub is_special: bool,
    /// The likeliest tokens at its place, best first; empty unless asked for.
    pub top: Vec<TopToken>,
}

/// What happens in a generation, in order.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Event {
    /// A prompt's tokens with their log-probabilities, where `prompt_logprobs` asked for them.
    /// Before anything else of that prompt.
    Prompt {
        /// Which prompt.
        prompt: usize,
        /// All of its tokens.
        tokens: Vec<TokenDetail>,
    },
    /// A new token.
    Token {
        /// Which prompt.
        prompt: usize,
        /// Which of the prompt's choices.
        choice: usize,
        /// The token.
        token: TokenDetail,
        /// The text that is certain now and was not before; may be empty, and holds what earlier
        /// tokens held back.
        text: String,
    },
    /// A choice has ended. The last event of that choice; `completion.text` may hold a little more
    /// than the texts so far, which `text` says.
    Done {
        /// The text that was held back until now.
        text: String,
        /// The whole.
        completion: Completion,
    },
}

/// A choice that has ended.
#[derive(Clone, Debug, PartialEq)]
pub struct Completion {
    /// Which prompt.
    pub prompt: usize,
    /// Which of its choices.
    pub choice: usize,
    /// The text of the new tokens alone.
    pub text: String,
    /// Prompt and continuation as transformers' pipeline joins them; none unless asked for
    /// (`return_full_text`), and for encoder-decoder models.
    pub full_text: Option<String>,
    /// Why it ended.
    pub finish: FinishReason,
    /// The stop string or stop token that ended it.
    pub stop: Option<StopCause>,
    /// Tokens of the prompt, special ones included.
    pub n_prompt_tokens: usize,
    /// The new tokens, an end token included.
    pub ids: Vec<u32>,
    /// The new tokens one by one; empty unless `logprobs` or details were asked for.
    pub tokens: Vec<TokenDetail>,
    /// The sum of the new tokens' log-probabilities, where they were asked for.
    pub logprob: Option<f64>,
    /// A beam's score.
    pub score: Option<f32>,
    /// The seed that sampling followed from; none for greedy and beam search.
    pub seed: Option<u64>,
}

/// What ended a choice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StopCause {
    /// A stop string.
    Text(String),
    /// A stop token that is no end token of the model's.
    Token(u32),
}
