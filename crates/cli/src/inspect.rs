//! `drivetrain inspect`: what a model's files say, read without loading it.

mod accuracy;
mod keys;
mod model;
mod sheet;

use anyhow::Result;
use drivetrain_artifacts::{ModelConfig, ModelDir, Tokenizer, UnpackOptions, Weights};
use drivetrain_config::{Environment, ServerConfig, ServerOverrides};
use drivetrain_transformer::Architecture;

use crate::args::Inspect;
use crate::progress::DownloadBar;
use keys::Readings;
use sheet::{Sheet, bytes_text, group};

pub(crate) use sheet::printable;

/// Prints what a model is, what it can be served as, what memory it takes, and which keys of its
/// config were read, left to their defaults or not read at all.
///
/// A part that can't be read is a line that says so; what a model can't do without is an error,
/// after what was found until then.
pub(crate) fn inspect(args: &Inspect) -> Result<()> {
    let env = Environment::from_process();
    crate::logging::start(&env, "warn");
    let (server, _) = ServerConfig::resolve(&ServerOverrides::default(), &env)?;
    let path = drivetrain_host::locate(&args.model, &server, &env, &DownloadBar::default())?;
    let dir = ModelDir::open(&path, &UnpackOptions::default())?;
    let config = ModelConfig::read(&dir)?;
    let mut sheet = Sheet::default();
    let mut result = fill(&mut sheet, &dir, &config);
    if args.accuracy && result.is_ok() {
        let tokenizer = Tokenizer::read_for(&dir, Some(&config.json))?;
        let files = (&dir, &tokenizer);
        result = accuracy::measure(&mut sheet, args, files, (&server, &env));
    }
    sheet.print(args.json);
    result
}

fn fill(sheet: &mut Sheet, dir: &ModelDir, config: &ModelConfig) -> Result<()> {
    sheet.text("model", dir.source().display());
    if dir.source() != dir.location() {
        sheet.text("unpacked to", dir.path().display());
    }
    sheet.text("family", &config.model_type);
    sheet.list("architectures", config.architectures.clone());
    let readings = Readings::new(config);
    let described = Architecture::from_config(&readings.description);
    let weights = Weights::open(dir);
    match (&described, &weights) {
        (Ok(architecture), Ok(weights)) => {
            model::describe(sheet, dir, &readings.text, architecture, weights);
        }
        (Ok(architecture), Err(_)) => model::shape(sheet, architecture),
        (Err(error), _) => {
            sheet.text("description", format!("none: {}", chain(error)));
            model::plain_task(sheet, config);
        }
    }
    if let Ok(weights) = &weights {
        files(sheet, weights);
    }
    let tokenizer = Tokenizer::read_for(dir, Some(&readings.text.json));
    match &tokenizer {
        Ok(tokenizer) => tokens(sheet, tokenizer),
        Err(error) => {
            sheet.text("tokenizer", format!("none that can be read: {}", chain(error)));
        }
    }
    readings.report(sheet, dir, config, described.is_ok());
    weights?;
    Ok(())
}

/// An error with its causes.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    text
}

/// What the weight files hold.
fn files(sheet: &mut Sheet, weights: &Weights) {
    let by_type: Vec<String> = weights
        .dtypes()
        .iter()
        .map(|(dtype, n_elements)| format!("{} {}", group(*n_elements), dtype.name()))
        .collect();
    let by_type_json: serde_json::Map<String, serde_json::Value> =
        weights.dtypes().iter().map(|(t, n)| (t.name().to_owned(), (*n).into())).collect();
    let stored = weights.total_bytes();
    let text = format!(
        "{} in {} tensors, {}",
        by_type.join(", "),
        group(weights.len() as u64),
        bytes_text(stored)
    );
    let files: Vec<String> = weights.files().iter().map(|f| f.display().to_string()).collect();
    let json = serde_json::json!({
        "elements": by_type_json, "tensors": weights.len(), "bytes": stored, "files": &files,
    });
    sheet.lines("weights", std::iter::once(text).chain(files).collect(), json);
}

fn tokens(sheet: &mut Sheet, tokenizer: &Tokenizer) {
    let mut text = format!("{} ids", group(u64::from(tokenizer.vocab_size())));
    let mut json = serde_json::json!({
        "ids": tokenizer.vocab_size(),
        "file": tokenizer.path().display().to_string(),
        "max_length": tokenizer.model_max_length(),
    });
    if let Some(longest) = tokenizer.model_max_length() {
        text.push_str(&format!(", at most {longest} tokens"));
    }
    let special = [
        ("bos", tokenizer.bos_token_id()),
        ("eos", tokenizer.eos_token_id()),
        ("pad", tokenizer.pad_token_id()),
        ("unk", tokenizer.unk_token_id()),
        ("mask", tokenizer.mask_token_id()),
    ];
    for (name, id) in special {
        if let Some(id) = id {
            text.push_str(&format!(", {name} {id}"));
            json[name] = id.into();
        }
    }
    sheet.lines("tokenizer", vec![text, tokenizer.path().display().to_string()], json);
    let templates = tokenizer.chat_templates().iter().map(|(name, _)| name.to_owned()).collect();
    sheet.list("chat template", templates);
    let languages: Vec<String> = tokenizer.languages().map(str::to_owned).collect();
    if !languages.is_empty() {
        sheet.list("languages", languages);
    }
}
