//! The tokens that a class puts around a text.
//!
//! Source: transformers 5.24.0, `models/*/tokenization_*.py`.

use serde_json::{Map, Value, json};

use super::class::Class;
use super::languages::Languages;
use super::settings::Settings;
use super::special::SpecialSettings;

/// What the class's post-processor is made of.
pub(super) struct Around<'a> {
    pub(super) class: Class,
    /// Whether the vocabulary comes from `tokenizer.json`.
    pub(super) is_stored: bool,
    pub(super) special: &'a SpecialSettings,
    pub(super) settings: &'a Settings,
    pub(super) languages: Option<&'a Languages>,
}

impl Around<'_> {
    /// The post-processor that a class puts in place of the stored one, if it does. Most classes
    /// have their own; elsewhere `add_bos_token` and `add_eos_token` decide, but only for
    /// vocabularies without a `tokenizer.json`, or where that has no post-processor.
    pub(super) fn post_processor(&self, backend: &tokenizers::Tokenizer) -> Option<Value> {
        let named = |name: &str| {
            let text = self.special.text(name)?;
            Some((text.to_owned(), backend.token_to_id(text)?))
        };
        let roberta = |sep: &str, cls: &str, trim: bool, prefix: bool| {
            Some(json!({
                "type": "RobertaProcessing", "sep": named(sep)?, "cls": named(cls)?,
                "trim_offsets": trim, "add_prefix_space": prefix,
            }))
        };
        let (a, b) = (sequence("A", 0), sequence("B", 0));
        match self.class {
            Class::Bert => {
                let (cls, sep) = (named("cls_token")?, named("sep_token")?);
                let single = [token(&cls, 0), a, token(&sep, 0)];
                let pair = [&single[..], &[sequence("B", 1), token(&sep, 1)]].concat();
                Some(template(&single, &pair, &[cls, sep]))
            }
            Class::Roberta => roberta(
                "sep_token",
                "cls_token",
                self.settings.trim_offsets.unwrap_or(true),
                self.settings.add_prefix_space.unwrap_or(false),
            ),
            Class::Mpnet => roberta("sep_token", "cls_token", true, false),
            Class::Clip => roberta("eos_token", "bos_token", false, false),
            Class::T5 => {
                let eos = named("eos_token")?;
                let single = [a, token(&eos, 0)];
                let pair = [&single[..], &[b, token(&eos, 0)]].concat();
                Some(template(&single, &pair, &[eos]))
            }
            Class::Pegasus => {
                let eos = named("eos_token")?;
                let end = token(&eos, 0);
                Some(template(&[a.clone(), end.clone()], &[a, b, end], &[eos]))
            }
            Class::XlmRoberta | Class::Camembert => {
                let (bos, eos) = (named("bos_token")?, named("eos_token")?);
                let single = [token(&bos, 0), a, token(&eos, 0)];
                let pair = [&single[..], &[token(&eos, 0), b, token(&eos, 0)]].concat();
                Some(template(&single, &pair, &[bos, eos]))
            }
            Class::Mbart | Class::Mbart50 | Class::Nllb => {
                let eos = named("eos_token")?;
                let language = self.languages?.source_token();
                let (code, end) = (token(&language, 0), token(&eos, 0));
                let (before, behind) = match self.languages?.stands_behind() {
                    true => (vec![], vec![end, code]),
                    false => (vec![code], vec![end]),
                };
                let single = [&before[..], std::slice::from_ref(&a), &behind].concat();
                let pair = [&before[..], &[a, b], &behind].concat();
                Some(template(&single, &pair, &[language, eos]))
            }
            _ => self.ends(backend, named),
        }
    }

    /// The tokens for a text's start and end, where they are asked for.
    fn ends(
        &self,
        backend: &tokenizers::Tokenizer,
        named: impl Fn(&str) -> Option<(String, u32)>,
    ) -> Option<Value> {
        if backend.get_post_processor().is_some() {
            return None;
        }
        let asked = |flag: Option<bool>, name: &str| match flag.unwrap_or(false) && !self.is_stored
        {
            true => named(name),
            false => None,
        };
        let bos = asked(self.settings.add_bos_token, "bos_token");
        let eos = asked(self.settings.add_eos_token, "eos_token");
        let around = |name, type_id| -> Vec<Value> {
            let before = bos.as_ref().map(|bos| token(bos, type_id));
            let after = eos.as_ref().map(|eos| token(eos, type_id));
            before.into_iter().chain([sequence(name, type_id)]).chain(after).collect()
        };
        let (single, second) = (around("A", 0), around("B", 1));
        let pair = [&single[..], &second[..]].concat();
        let tokens: Vec<_> = bos.iter().chain(&eos).cloned().collect();
        Some(template(&single, &pair, &tokens))
    }
}

fn token((text, _): &(String, u32), type_id: u32) -> Value {
    json!({"SpecialToken": {"id": text, "type_id": type_id}})
}

fn sequence(name: &str, type_id: u32) -> Value {
    json!({"Sequence": {"id": name, "type_id": type_id}})
}

fn template(single: &[Value], pair: &[Value], tokens: &[(String, u32)]) -> Value {
    let tokens: Map<String, Value> = tokens
        .iter()
        .map(|(text, id)| (text.clone(), json!({"id": text, "ids": [id], "tokens": [text]})))
        .collect();
    json!({"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": tokens})
}
