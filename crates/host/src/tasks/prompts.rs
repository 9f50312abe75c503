//! The prompts of a request for generated text as tokens.

use drivetrain_artifacts::{DecodeSpecial, SpecialTokens};
use drivetrain_engine::{ModelKind, TokenId};

use super::context::{Encoding, TaskContext};
use super::text::bounded;
use crate::HostError;
use crate::generate::{GenerateRequest, Naming, Prompt, PromptInfo};
use crate::logits::Params;

/// Most prompts of one request.
const MAX_PROMPTS: usize = 1024;

/// What every prompt of a request shares.
pub(super) struct Shared<'a> {
    pub(super) params: Params<'a>,
    pub(super) naming: Naming,
    encoding: Encoding,
    /// Tokens of a prompt that are kept, the last ones.
    keeps_last: Option<usize>,
    n_prompts: usize,
}

impl TaskContext {
    /// Reads what all prompts share.
    pub(super) fn shared<'a>(
        &self,
        request: &GenerateRequest,
        params: Params<'a>,
    ) -> Result<Shared<'a>, HostError> {
        let info = &self.limits().info;
        let limit = match info.kind {
            ModelKind::EncoderDecoder => info.max_encoder_positions,
            _ => info.max_positions,
        };
        let encoding = Encoding::read(self, params, limit as usize)?;
        let mut keeps_last = None;
        for name in ["truncate_prompt_tokens", "truncate"] {
            keeps_last = keeps_last.or(params.whole(name, 1)?.map(|n| n as usize));
        }
        let n_prompts = request.prompts.len();
        Ok(Shared { params, naming: request.naming, encoding, keeps_last, n_prompts })
    }

    /// A prompt's text and tokens, at least one.
    pub(super) fn read_prompt(
        &self,
        idx: usize,
        prompt: &Prompt,
        shared: &Shared<'_>,
    ) -> Result<PromptInfo, HostError> {
        let place = match prompt {
            Prompt::Chat(_) => "messages".to_owned(),
            _ if shared.n_prompts == 1 => "the prompt".to_owned(),
            _ => format!("prompt {idx}"),
        };
        match prompt {
            Prompt::Text(text) => {
                let special = shared.encoding.special;
                let mut ids = self.prompt_ids(&place, text, special, shared)?;
                if ids.is_empty() {
                    // As `generate` without input: the start token stands for it.
                    ids.push(self.start(&place)?);
                }
                Ok(PromptInfo { text: text.clone(), ids })
            }
            Prompt::Chat(chat) => {
                let text = self.chat.render(chat)?;
                let adds = shared.params.flag("add_special_tokens")? == Some(true);
                let special = if adds { SpecialTokens::Add } else { SpecialTokens::None };
                let ids = self.prompt_ids(&place, &text, special, shared)?;
                if ids.is_empty() {
                    return Err(HostError::bad_request(
                        "messages: the model's chat template makes an empty text of them",
                    ));
                }
                Ok(PromptInfo { text, ids })
            }
            Prompt::Tokens(ids) => {
                let ids = self.given_ids(&place, ids, shared)?;
                Ok(PromptInfo { text: self.text.decode(&ids, DecodeSpecial::Keep)?, ids })
            }
        }
    }

    /// The tokens of a text, cut as the request says.
    fn prompt_ids(
        &self,
        place: &str,
        text: &str,
        special: SpecialTokens,
        shared: &Shared<'_>,
    ) -> Result<Vec<TokenId>, HostError> {
        let how = &shared.encoding;
        let (limit, model) = (how.limit, self.model());
        let truncation = shared.naming.shown("truncation");
        let long = |found: String| {
            HostError::bad_request(format!(
                "{place} has {found} and model {model} takes {limit} tokens: shorten it, or set \
                 {truncation} to true"
            ))
        };
        let text = match shared.keeps_last {
            Some(n) => last_bytes(text, n.min(limit)),
            None => bounded(text, limit, how.truncates)
                .map_err(|_| long(format!("{} bytes", text.len())))?,
        };
        let mut encoded = self.text.encode(text, special)?;
        let cut = how.cut_limit.min(limit);
        let fits = match shared.keeps_last {
            Some(n) => encoded.cut_head(n),
            None if how.truncates => encoded.cut(cut),
            None => true,
        };
        if !fits {
            let n = shared.keeps_last.unwrap_or(cut);
            return Err(HostError::bad_request(format!(
                "{place}: {n} tokens leave no room for the text beside the special ones"
            )));
        }
        match encoded.ids.len() {
            n if n > limit => Err(long(format!("{n} tokens"))),
            _ => Ok(encoded.ids),
        }
    }

    /// Tokens that were given as such, if the model has them all and takes as many.
    fn given_ids(
        &self,
        place: &str,
        ids: &[TokenId],
        shared: &Shared<'_>,
    ) -> Result<Vec<TokenId>, HostError> {
        let (limit, vocab) = (shared.encoding.limit, self.limits().info.vocab);
        if ids.is_empty() {
            return Err(HostError::bad_request(format!(
                "{place} is empty: give at least one token"
            )));
        }
        if let Some(id) = ids.iter().find(|id| **id >= vocab) {
            return Err(HostError::bad_request(format!(
                "{place} has token {id}: expected ids below {vocab}"
            )));
        }
        let n_cut = shared.keeps_last.map_or(0, |n| ids.len().saturating_sub(n));
        let ids = ids.get(n_cut..).unwrap_or_default();
        if ids.len() <= limit {
            return Ok(ids.to_vec());
        }
        if shared.encoding.truncates {
            return Ok(ids.get(..limit).unwrap_or_default().to_vec());
        }
        Err(HostError::bad_request(format!(
            "{place} has {} tokens and model {} takes {limit} tokens: shorten it",
            ids.len(),
            self.model()
        )))
    }

    /// The token that stands for an empty prompt.
    fn start(&self, place: &str) -> Result<TokenId, HostError> {
        let is_answering = self.limits().info.kind == ModelKind::EncoderDecoder;
        let bos = self.defaults.bos_token_id.or_else(|| self.text.bos());
        bos.filter(|_| !is_answering).ok_or_else(|| {
            HostError::bad_request(format!(
                "{place} gives no tokens, and model {} has no bos_token_id to start from: give a \
                 text that is not empty",
                self.model()
            ))
        })
    }
}

/// Whether there are prompts, and no more than may be.
pub(super) fn check_prompts(prompts: &[Prompt]) -> Result<(), HostError> {
    match prompts.len() {
        0 => Err(HostError::bad_request("there is no prompt: give at least one")),
        n if n > MAX_PROMPTS => Err(HostError::bad_request(format!(
            "{n} prompts: expected at most {MAX_PROMPTS} in one request"
        ))),
        _ => Ok(()),
    }
}

/// The end of a text, as much as `n_tokens` could ever hold.
fn last_bytes(text: &str, n_tokens: usize) -> &str {
    let n_bytes = n_tokens.saturating_mul(64).max(256 << 10);
    let start = text.ceil_char_boundary(text.len().saturating_sub(n_bytes));
    text.get(start..).unwrap_or_default()
}
