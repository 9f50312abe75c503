//! `KEY=VALUE` arguments that set options of a model.

use anyhow::{Result, bail};

/// The arguments of `--option` as pairs, keys without their `option.` prefix.
pub(crate) fn settings(pairs: &[String]) -> Result<Vec<(String, String)>> {
    let parse = |pair: &String| match pair.split_once('=') {
        Some((key, value)) => {
            let key = key.strip_prefix("option.").unwrap_or(key);
            Ok((key.to_owned(), value.to_owned()))
        }
        None => bail!("--option {pair}: expected KEY=VALUE"),
    };
    pairs.iter().map(parse).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_may_have_their_prefix() {
        let found = settings(&["quantize=int8".into(), "option.dtype=bf16".into()]).unwrap();
        let expect = [("quantize", "int8"), ("dtype", "bf16")];
        assert!(found.iter().map(|(k, v)| (k.as_str(), v.as_str())).eq(expect));
        assert!(settings(&["quantize".into()]).is_err());
    }
}
