//! `translation` and `translation_xx_to_yy`: as `text2text-generation`, between the languages that
//! `src_lang` and `tgt_lang` name, for models that know several.
//!
//! Source: transformers 4.57, `pipelines/text2text_generation.py`, `TranslationPipeline`.

use serde_json::Value;

use super::context::{Prepared, TaskContext};
use super::{TaskRequest, text2text_generation};
use crate::HostError;
use crate::logits::Params;
use crate::scheduler::Work;

/// Languages that a message names.
const MAX_SHOWN: usize = 24;

pub(super) fn prepare(
    context: &TaskContext,
    request: &TaskRequest,
    params: Params<'_>,
) -> Result<(Vec<Work>, Prepared), HostError> {
    let text = |name: &str| match params.get(name) {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.as_str())),
        Some(value) => Err(HostError::bad_request(format!(
            "parameters.{name}={value}: expected the code of a language, as a string"
        ))),
    };
    let (mut source, mut target) = (text("src_lang")?, text("tgt_lang")?);
    if source.is_none()
        && target.is_none()
        && let Some((from, to)) = &context.pair
    {
        (source, target) = (Some(from.as_str()), Some(to.as_str()));
    }
    let known = context.text.languages();
    if known.is_empty() {
        // As the pipeline: a model of one pair has no use for their names.
        return text2text_generation::prepare(context, request, params);
    }
    let id = |name: &str, code: &str| {
        let id = context.text.language_id(code).filter(|id| *id < context.limits().info.vocab);
        id.ok_or_else(|| {
            let mut shown = known.iter().take(MAX_SHOWN).cloned().collect::<Vec<_>>().join(", ");
            if known.len() > MAX_SHOWN {
                shown.push_str(", ..");
            }
            HostError::bad_request(format!(
                "parameters.{name}={code:?}: model {} has no such language: expected one of {shown}",
                context.model()
            ))
        })
    };
    let mut request = request.clone();
    if let Some(target) = target.or_else(|| context.text.target_language()) {
        let id = id("tgt_lang", target)?;
        request.parameters.entry("forced_bos_token_id").or_insert(id.into());
    }
    let params = Params::new(&request.parameters, params.naming());
    match source {
        None => text2text_generation::prepare(context, &request, params),
        Some(source) => {
            id("src_lang", source)?;
            let encode = |text: &str| context.text.encode_in(text, source);
            text2text_generation::prepare_with(context, &request, params, &encode)
        }
    }
}
