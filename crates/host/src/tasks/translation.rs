//! `translation` and `translation_xx_to_yy`: as `text2text-generation`, between the languages that
//! `src_lang` and `tgt_lang` name, for models that know several.
//!
//! Source: transformers 4.57, `pipelines/text2text_generation.py`, `TranslationPipeline`.

use drivetrain_artifacts::SpecialTokens;
use serde_json::Value;

use super::context::{Prepared, TaskContext};
use super::facts::LanguagePlace;
use super::text::Encoded;
use super::{TaskRequest, text2text_generation};
use crate::HostError;
use crate::logits::Params;
use crate::scheduler::Work;

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
    if context.facts.languages == LanguagePlace::None {
        // As the pipeline: a model of one pair has no use for their names.
        return text2text_generation::prepare(context, request, params);
    }
    let mut request = request.clone();
    if let Some(target) = target {
        let id = language(context, "tgt_lang", target)?;
        request.parameters.entry("forced_bos_token_id").or_insert(id.into());
    }
    let Some(source) = source else {
        let params = Params::new(&request.parameters, params.naming());
        return text2text_generation::prepare(context, &request, params);
    };
    let id = language(context, "src_lang", source)?;
    let params = Params::new(&request.parameters, params.naming());
    let encode = |text: &str| encode_in(context, text, id);
    text2text_generation::prepare_with(context, &request, params, &encode)
}

/// The id of a language's token.
fn language(context: &TaskContext, name: &str, code: &str) -> Result<u32, HostError> {
    let known = [code.to_owned(), format!("__{code}__")];
    let found = known.iter().find_map(|token| context.text.token_to_id(token));
    found.filter(|id| *id < context.limits().info.vocab).ok_or_else(|| {
        HostError::bad_request(format!(
            "parameters.{name}={code:?}: model {} has no token for this language; it takes codes \
             such as those in its tokenizer's files (en_XX, eng_Latn or en)",
            context.model()
        ))
    })
}

/// The tokens of a text in the language whose token is `id`.
fn encode_in(context: &TaskContext, text: &str, id: u32) -> Result<Encoded, HostError> {
    let mut encoded = context.text.encode(text, SpecialTokens::None)?;
    let around = |encoded: &mut Encoded, at: usize, id: u32| {
        encoded.ids.insert(at, id);
        encoded.type_ids.clear();
        encoded.special.insert(at, true);
    };
    if let Some(eos) = context.text.eos() {
        let n = encoded.ids.len();
        around(&mut encoded, n, eos);
    }
    let at = if context.facts.languages == LanguagePlace::Behind { encoded.ids.len() } else { 0 };
    around(&mut encoded, at, id);
    Ok(encoded)
}
