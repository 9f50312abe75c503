//! Making constraints for one model.

use std::fmt;
use std::sync::{Arc, OnceLock};

use drivetrain_artifacts::Tokenizer;
use drivetrain_engine::TokenId;
use llguidance::api::{ParserLimits, TopLevelGrammar};
use llguidance::{Matcher, ParserFactory, token_bytes_from_tokenizer_json};
use serde_json::{Value, json};
use toktrie::{ApproximateTokEnv, TokEnv, TokRxInfo, TokTrie};

use super::{Constraint, Grammar, guarded, short};
use crate::HostError;

/// Longest schema, expression, list of choices or grammar, in bytes.
const MAX_GRAMMAR_BYTES: usize = 256 << 10;

/// What makes constraints for one model: its vocabulary as bytes, worked out when the first request
/// needs it.
pub(crate) struct Grammars {
    tokenizer: Tokenizer,
    eos: Arc<[TokenId]>,
    factory: OnceLock<Result<ParserFactory, String>>,
}

impl Grammars {
    /// For a model with this tokenizer, whose texts end with one of `eos`.
    pub(crate) fn new(tokenizer: Tokenizer, eos: Arc<[TokenId]>) -> Self {
        Self { tokenizer, eos, factory: OnceLock::new() }
    }

    /// A constraint to follow `grammar` from the first new token. Takes a while for large grammars,
    /// and for a model's first one.
    ///
    /// # Errors
    /// `BadRequest` if the grammar is wrong or too large, or the model's tokenizer is of a kind that
    /// can't follow one; `field` is what the client calls the grammar.
    pub(crate) fn constraint(
        &self,
        grammar: &Grammar,
        field: &str,
    ) -> Result<Constraint, HostError> {
        let refuse = |reason: &str| Err(HostError::bad_request(format!("{field}: {reason}")));
        let n_bytes = grammar.n_bytes();
        if n_bytes > MAX_GRAMMAR_BYTES {
            let reason = format!("{n_bytes} bytes: expected at most {MAX_GRAMMAR_BYTES}");
            return refuse(&reason);
        }
        if matches!(grammar, Grammar::Choice(choices) if choices.is_empty()) {
            return refuse("no choices: expected at least one text");
        }
        let factory = self.factory.get_or_init(|| self.make_factory());
        let factory = match factory {
            Ok(factory) => factory,
            Err(reason) => {
                return refuse(&format!("this model's tokenizer can't follow a grammar: {reason}"));
            }
        };
        let parser = guarded(|| {
            let parser = factory.create_parser(grammar.compiled());
            let mut matcher = Matcher::new(parser);
            match matcher.get_error() {
                Some(error) => Err(short(&error)),
                None => matcher.is_accepting().map(|_| matcher).map_err(|e| short(&e.to_string())),
            }
        });
        match parser {
            Ok(matcher) => Ok(Constraint::new(matcher)),
            Err(reason) => refuse(&reason),
        }
    }

    fn make_factory(&self) -> Result<ParserFactory, String> {
        let definition = self.tokenizer.to_json().map_err(|error| error.to_string())?;
        guarded(|| {
            let words = match names_pieces(&definition) {
                true => self.piece_bytes(),
                false => token_bytes_from_tokenizer_json(&definition)
                    .map_err(|error| short(&error.to_string()))?,
            };
            let n_words = words.len() as u32;
            let eos: Vec<_> = self.eos.iter().copied().filter(|id| *id < n_words).collect();
            let Some(&first) = eos.first() else {
                return Err("the model has no end token".to_owned());
            };
            let trie = TokTrie::from(&TokRxInfo::new(n_words, first), &words).with_eos_tokens(&eos);
            let env: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
            let mut factory =
                ParserFactory::new_simple(&env).map_err(|error| short(&error.to_string()))?;
            factory.quiet();
            *factory.limits_mut() = ParserLimits { verbose_errors: false, ..Default::default() };
            Ok(factory)
        })
    }

    /// The bytes of tokens that are pieces of text, in which U+2581 stands for a space.
    fn piece_bytes(&self) -> Vec<Vec<u8>> {
        let bytes = |id| {
            let token = self.tokenizer.id_to_token(id).unwrap_or_default();
            match self.tokenizer.is_special(id) {
                true => [&[TokTrie::SPECIAL_TOKEN_MARKER], token.as_bytes()].concat(),
                false => token.replace('\u{2581}', " ").into_bytes(),
            }
        };
        (0..self.tokenizer.vocab_size()).map(bytes).collect()
    }
}

/// Whether a tokenizer's decoder only turns U+2581 into spaces, as sentencepiece's unigrams have it;
/// llguidance reads the other kinds itself.
fn names_pieces(definition: &Value) -> bool {
    let decoder = &definition["decoder"];
    let nested = decoder["decoders"].as_array();
    let all = nested.into_iter().flatten().chain([decoder]);
    let has = |kind: &str| all.clone().any(|decoder| decoder["type"] == kind);
    has("Metaspace") && !has("ByteFallback") && !has("ByteLevel")
}

impl fmt::Debug for Grammars {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Grammars").field("eos", &self.eos).finish_non_exhaustive()
    }
}

impl Grammar {
    fn n_bytes(&self) -> usize {
        match self {
            Self::JsonObject => 0,
            Self::JsonSchema(schema) => schema.to_string().len(),
            Self::Regex(text) | Self::Lark(text) => text.len(),
            Self::Choice(choices) => choices.iter().map(|choice| choice.len() + 1).sum(),
        }
    }

    fn compiled(&self) -> TopLevelGrammar {
        match self {
            Self::JsonObject => TopLevelGrammar::from_json_schema(json!({ "type": "object" })),
            Self::JsonSchema(schema) => TopLevelGrammar::from_json_schema(schema.clone()),
            Self::Regex(expression) => TopLevelGrammar::from_regex(expression),
            Self::Choice(choices) => TopLevelGrammar::from_lark(alternatives(choices)),
            Self::Lark(grammar) => TopLevelGrammar::from_lark(grammar.clone()),
        }
    }
}

/// A Lark grammar of these texts.
fn alternatives(choices: &[String]) -> String {
    let mut grammar = String::from("start: ");
    for (idx, choice) in choices.iter().enumerate() {
        grammar.push_str(if idx == 0 { "" } else { " | " });
        grammar.push_str(&Value::from(choice.as_str()).to_string());
    }
    grammar
}
