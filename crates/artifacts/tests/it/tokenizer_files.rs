//! Tokenizers of every form but `tokenizer.json` against transformers and sentencepiece
//! (`tests/fixtures/make_tokenizers.py`).

use std::fs;
use std::path::{Path, PathBuf};

use drivetrain_artifacts::{DecodeSpecial, ModelDir, SpecialTokens, Tokenizer, UnpackOptions};
use serde_json::Value;
use tempfile::TempDir;

fn data(name: &str) -> PathBuf {
    let folder = std::env::var_os("DRIVETRAIN_TOKENIZER_CASES").map(PathBuf::from);
    folder.unwrap_or_else(|| crate::fixtures::path("tokenizers")).join(name)
}

/// A model directory with the files of a case.
fn model(case: &Value) -> TempDir {
    let dir = TempDir::new().unwrap();
    for (name, source) in case["copied"].as_object().unwrap() {
        fs::copy(data(source.as_str().unwrap()), dir.path().join(name)).unwrap();
    }
    for (name, content) in case["written"].as_object().unwrap() {
        fs::write(dir.path().join(name), content.to_string()).unwrap();
    }
    dir
}

fn read(path: &Path) -> Result<Tokenizer, String> {
    let dir = ModelDir::open(path, &UnpackOptions::default()).unwrap();
    Tokenizer::read(&dir).map_err(|error| {
        let cause = std::error::Error::source(&error).map(ToString::to_string);
        format!("{error}: {}", cause.unwrap_or_default())
    })
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

/// Differences that were found, with what they are in.
#[derive(Default)]
struct Report(Vec<String>);

impl Report {
    fn compare<T: PartialEq + std::fmt::Debug>(&mut self, place: &str, found: T, expect: T) {
        if found != expect {
            self.0.push(format!("{place}:\n   found {found:?}\n  expect {expect:?}"));
        }
    }
}

/// Byte offsets as places of characters, which Python counts.
fn characters(text: &str, offsets: &[(usize, usize)]) -> Vec<u32> {
    // An offset may fall inside a letter, of which several tokens are bytes.
    let count = |byte: usize| text.char_indices().take_while(|(at, _)| *at < byte).count() as u32;
    offsets.iter().flat_map(|(from, to)| [count(*from), count(*to)]).collect()
}

fn check_texts(
    report: &mut Report,
    name: &str,
    tokenizer: &Tokenizer,
    case: &Value,
    texts: &[Value],
) {
    for (text, row) in texts.iter().zip(case["texts"].as_array().unwrap()) {
        let text = text.as_str().unwrap();
        let place = format!("{name}: {:?}", text.chars().take(60).collect::<String>());
        let added = tokenizer.encode(text, SpecialTokens::Add).unwrap();
        report.compare(&place, &added.ids, &ids(&row[0]));
        let plain = tokenizer.encode(text, SpecialTokens::None).unwrap();
        report.compare(&format!("{place} plain"), &plain.ids, &ids(&row[1]));
        let whole = ids(&row[0]);
        check_text(report, &place, tokenizer, &whole, &row[2], &row[3]);
        if let Some(offsets) = row.get(4).filter(|_| added.ids == whole) {
            let found = characters(text, &added.offsets);
            report.compare(&format!("{place} offsets"), found, ids(offsets));
        }
    }
}

fn check_text(
    report: &mut Report,
    place: &str,
    tokenizer: &Tokenizer,
    ids: &[u32],
    skip: &Value,
    keep: &Value,
) {
    for (special, expect) in [(DecodeSpecial::Skip, skip), (DecodeSpecial::Keep, keep)] {
        let expect = expect.as_str().unwrap();
        let text = tokenizer.decode(ids, special).unwrap();
        report.compare(&format!("{place} {special:?} {ids:?}"), text.as_str(), expect);
        let mut stream = tokenizer.stream_with(special);
        let mut streamed: String = ids.iter().filter_map(|id| stream.push(*id)).collect();
        streamed.extend(stream.finish());
        report.compare(&format!("{place} {special:?} streamed {ids:?}"), streamed, text);
    }
}

fn check_case(report: &mut Report, name: &str, case: &Value, reference: &Value) {
    let dir = model(case);
    let tokenizer = match read(dir.path()) {
        Ok(tokenizer) => tokenizer,
        Err(error) => return report.0.push(format!("{name}: {error}")),
    };
    check_texts(report, name, &tokenizer, case, reference["texts"].as_array().unwrap());
    let pairs = reference["pairs"].as_array().unwrap();
    for (pair, row) in pairs.iter().zip(case["pairs"].as_array().unwrap()) {
        let (first, second) = (pair[0].as_str().unwrap(), pair[1].as_str().unwrap());
        let encoding = tokenizer.encode_pair(first, second, SpecialTokens::Add).unwrap();
        report.compare(&format!("{name}: {pair}"), encoding.ids, ids(&row[0]));
        report.compare(&format!("{name}: {pair} types"), encoding.type_ids, ids(&row[1]));
    }
    for row in case["decode"].as_array().unwrap() {
        check_text(report, &format!("{name}: decode"), &tokenizer, &ids(&row[0]), &row[1], &row[2]);
    }
    report.compare(
        &format!("{name}: size"),
        &Value::from(tokenizer.vocab_size()),
        &case["vocab_size"],
    );
    for (kind, id) in [
        ("bos", tokenizer.bos_token_id()),
        ("eos", tokenizer.eos_token_id()),
        ("pad", tokenizer.pad_token_id()),
        ("unk", tokenizer.unk_token_id()),
        ("sep", tokenizer.sep_token_id()),
        ("cls", tokenizer.cls_token_id()),
        ("mask", tokenizer.mask_token_id()),
    ] {
        report.compare(&format!("{name}: {kind}"), &Value::from(id), &case["special"][kind]);
    }
    let limit = Value::from(tokenizer.model_max_length());
    report.compare(&format!("{name}: length"), &limit, &case["model_max_length"]);
    if let Some(languages) = case.get("languages") {
        for (code, row) in languages["codes"].as_object().unwrap() {
            let text = languages["text"].as_str().unwrap();
            let found = tokenizer.encode_in(text, code).map(|encoding| encoding.ids);
            report.compare(&format!("{name}: in {code}"), found.unwrap(), ids(&row[0]));
            let id = Value::from(tokenizer.language_token_id(code));
            report.compare(&format!("{name}: {code}"), &id, &row[1]);
        }
    }
}

/// What a tokenizer says of itself makes the same tokenizer, also where a class takes nothing but the
/// vocabulary from it.
#[test]
fn every_class_reads_its_tokenizer_json() {
    let reference: Value = serde_json::from_slice(&fs::read(data("cases.json")).unwrap()).unwrap();
    let mut report = Report::default();
    for (name, case) in reference["cases"].as_object().unwrap() {
        let is_slow = case["copied"].as_object().unwrap().contains_key("vocab.json")
            && !case["copied"].as_object().unwrap().contains_key("merges.txt");
        if is_slow {
            continue;
        }
        let dir = model(case);
        let stored = read(dir.path()).unwrap().to_json().unwrap();
        fs::write(dir.path().join("tokenizer.json"), stored.to_string()).unwrap();
        for copied in case["copied"].as_object().unwrap().keys() {
            fs::remove_file(dir.path().join(copied)).unwrap();
        }
        let tokenizer = read(dir.path()).unwrap();
        let texts = reference["texts"].as_array().unwrap();
        check_texts(&mut report, name, &tokenizer, case, texts);
    }
    let n_found = report.0.len();
    assert!(n_found == 0, "{n_found} differences:\n{}", report.0.join("\n"));
}

/// Where NLLB's model is all there is, the languages have the ids that its checkpoints know: behind the
/// pieces, and the mask behind them.
#[test]
fn languages_of_nllb_stand_behind_its_pieces() {
    let dir = TempDir::new().unwrap();
    fs::copy(data("fairseq_bpe.model"), dir.path().join("sentencepiece.bpe.model")).unwrap();
    fs::write(dir.path().join("config.json"), r#"{"model_type": "nllb-moe"}"#).unwrap();
    let tokenizer = read(dir.path()).unwrap();
    // 400 pieces of the model, of which three are fairseq's first four.
    assert_eq!(tokenizer.language_token_id("ace_Arab"), Some(401));
    assert_eq!(tokenizer.language_token_id("zul_Latn"), Some(401 + 201));
    assert_eq!(tokenizer.mask_token_id(), Some(401 + 202));
    assert_eq!(tokenizer.source_language(), Some("eng_Latn"));
    let encoding = tokenizer.encode("", SpecialTokens::Add).unwrap();
    assert_eq!(encoding.ids, [tokenizer.language_token_id("eng_Latn").unwrap(), 2]);
    assert_eq!(tokenizer.languages().count(), 202);
}

#[test]
fn a_language_without_a_token_is_named() {
    let dir = TempDir::new().unwrap();
    fs::copy(data("fairseq.model"), dir.path().join("sentencepiece.bpe.model")).unwrap();
    let config = dir.path().join("tokenizer_config.json");
    fs::write(&config, r#"{"tokenizer_class": "MBartTokenizer", "tgt_lang": "de_DE"}"#).unwrap();
    let tokenizer = read(dir.path()).unwrap();
    assert_eq!(
        (tokenizer.source_language(), tokenizer.target_language()),
        (Some("en_XX"), Some("de_DE"))
    );
    let message = tokenizer.encode_in("a", "xx_XX").unwrap_err().to_string();
    let expect = "has no token for the language \"xx_XX\": expected one of ar_AR, cs_CZ";
    assert!(message.contains(expect), "{message}");
    fs::write(&config, r#"{"tokenizer_class": "MBartTokenizer", "src_lang": "xx"}"#).unwrap();
    let message = read(dir.path()).unwrap_err();
    assert!(message.contains("src_lang = \"xx\": the vocabulary has no token"), "{message}");
    fs::write(&config, r#"{"tokenizer_class": "XLMRobertaTokenizer"}"#).unwrap();
    let message = read(dir.path()).unwrap().encode_in("a", "en_XX").unwrap_err().to_string();
    assert!(message.contains("expected one of none"), "{message}");
}

#[test]
fn files_of_every_class_equal_transformers() {
    let reference: Value = serde_json::from_slice(&fs::read(data("cases.json")).unwrap()).unwrap();
    let only = std::env::var("DRIVETRAIN_TOKENIZER_ONLY").unwrap_or_default();
    let mut report = Report::default();
    for (name, case) in reference["cases"].as_object().unwrap() {
        if name.contains(&only) {
            check_case(&mut report, name, case, &reference);
        }
    }
    let n_found = report.0.len();
    assert!(n_found == 0, "{n_found} differences:\n{}", report.0.join("\n"));
}
