//! The plain values of `tokenizer_config.json`.

use super::class::Class;
use crate::error::ArtifactError;
use crate::json::JsonFile;

/// Most sentinel or pre-training tokens that a config may ask for.
const MAX_EXTRA_TOKENS: u32 = 10_000;

/// What `tokenizer_config.json` says beside special tokens; `None` where it says nothing.
#[derive(Clone, Debug, Default)]
pub(super) struct Settings {
    pub(super) model_max_length: Option<u32>,
    pub(super) clean_up: bool,
    pub(super) clean_up_bpe: bool,
    pub(super) split_special_tokens: bool,
    pub(super) add_bos_token: Option<bool>,
    pub(super) add_eos_token: Option<bool>,
    pub(super) add_prefix_space: Option<bool>,
    pub(super) trim_offsets: Option<bool>,
    pub(super) legacy: Option<bool>,
    /// BERT: whether letters are lowered, accents go, Chinese letters are words.
    pub(super) do_lower_case: Option<bool>,
    pub(super) strip_accents: Option<bool>,
    pub(super) tokenize_chinese_chars: Option<bool>,
    /// T5: how many sentinels there are.
    pub(super) extra_ids: u32,
    /// Pegasus: the id of the first piece that its model has beyond two.
    pub(super) offset: u32,
    pub(super) mask_token_sent: Option<String>,
    /// The languages that a text is in and that it is translated to.
    pub(super) src_lang: Option<String>,
    pub(super) tgt_lang: Option<String>,
    /// NLLB: whether the language stands behind the text.
    pub(super) legacy_behaviour: bool,
    /// M2M100: the list of languages, `m2m100` or `wmt21`.
    pub(super) language_codes: Option<String>,
}

impl Settings {
    pub(super) fn read(config: &JsonFile, class: Class) -> Result<Self, ArtifactError> {
        let length = config.opt_f64_any(&["model_max_length", "max_len"])?;
        let length = length.or((class == Class::Marian).then_some(512.0));
        let flag = |key| Ok::<bool, ArtifactError>(config.opt_bool(key)?.unwrap_or(false));
        let text = |key| Ok::<_, ArtifactError>(config.opt_str(key)?.map(str::to_owned));
        let count = |key, usual| match config.opt_u32(key)?.unwrap_or(usual) {
            count if count <= MAX_EXTRA_TOKENS => Ok(count),
            _ => Err(config.invalid(key, format!("a number from 0 to {MAX_EXTRA_TOKENS}"))),
        };
        Ok(Self {
            // transformers writes 1e30 for "none".
            model_max_length: length
                .filter(|length| (1.0..=f64::from(u32::MAX)).contains(length))
                .map(|length| length as u32),
            clean_up: flag("clean_up_tokenization_spaces")?,
            clean_up_bpe: flag(
                "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output",
            )?,
            split_special_tokens: flag("split_special_tokens")?,
            add_bos_token: config.opt_bool("add_bos_token")?,
            add_eos_token: config.opt_bool("add_eos_token")?,
            add_prefix_space: config.opt_bool("add_prefix_space")?,
            trim_offsets: config.opt_bool("trim_offsets")?,
            legacy: config.opt_bool("legacy")?,
            do_lower_case: config.opt_bool("do_lower_case")?,
            strip_accents: config.opt_bool("strip_accents")?,
            tokenize_chinese_chars: config.opt_bool("tokenize_chinese_chars")?,
            extra_ids: count("extra_ids", 100)?,
            offset: count("offset", 103)?,
            mask_token_sent: text("mask_token_sent")?,
            src_lang: text("src_lang")?,
            tgt_lang: text("tgt_lang")?,
            legacy_behaviour: flag("legacy_behaviour")?,
            language_codes: text("language_codes")?,
        })
    }
}
