//! `drivetrain inspect`: what a model's files say, read without loading it.

use anyhow::Result;
use drivetrain_artifacts::{ModelConfig, ModelDir, Tokenizer, UnpackOptions, Weights};
use drivetrain_config::{Environment, ServerConfig, ServerOverrides};
use drivetrain_host::Task;

use crate::args::Inspect;
use crate::progress::DownloadBar;

/// Prints architecture, parameters, dtypes, tokenizer, task and memory need.
pub(crate) fn inspect(args: &Inspect) -> Result<()> {
    let env = Environment::from_process();
    crate::logging::start(&env, "warn");
    let (server, _) = ServerConfig::resolve(&ServerOverrides::default(), &env)?;
    let path = drivetrain_host::locate(&args.model, &server, &env, &DownloadBar::default())?;
    let dir = ModelDir::open(&path, &UnpackOptions::default())?;
    let config = ModelConfig::read(&dir)?;
    let weights = Weights::open(&dir)?;

    line("model", dir.source().display());
    if dir.source() != dir.location() {
        line("unpacked to", dir.path().display());
    }
    line("family", &config.model_type);
    line("architectures", config.architectures.join(", "));
    line("task", task(&config));
    line("parameters", group(weights.n_parameters()));
    let dtypes: Vec<String> = weights
        .dtypes()
        .iter()
        .map(|(dtype, n_elements)| format!("{} {}", group(*n_elements), dtype.name()))
        .collect();
    line("weights", format!("{} in {} tensors", dtypes.join(", "), weights.len()));
    for file in weights.files() {
        line("", file.display());
    }
    let as_f32 = weights.n_parameters().saturating_mul(4);
    line(
        "memory need",
        format!(
            "{} mapped, {} computed as f32, KV cache apart",
            bytes_text(weights.total_bytes()),
            bytes_text(as_f32)
        ),
    );
    match Tokenizer::read(&dir) {
        Ok(tokenizer) => line("tokenizer", describe(&tokenizer)),
        Err(error) => {
            line("tokenizer", format!("none that can be read: {:#}", anyhow::anyhow!(error)))
        }
    }
    Ok(())
}

fn task(config: &ModelConfig) -> String {
    match Task::of_architectures(&config.architectures) {
        Some(task) => format!("{task} (inferred; option.task decides)"),
        None => "none follows from the architectures: set option.task".to_owned(),
    }
}

fn describe(tokenizer: &Tokenizer) -> String {
    let mut text = format!("{} ids", group(u64::from(tokenizer.vocab_size())));
    if let Some(longest) = tokenizer.model_max_length() {
        text.push_str(&format!(", at most {longest} tokens"));
    }
    let special = [
        ("bos", tokenizer.bos_token_id()),
        ("eos", tokenizer.eos_token_id()),
        ("pad", tokenizer.pad_token_id()),
        ("unk", tokenizer.unk_token_id()),
    ];
    for (name, id) in special {
        if let Some(id) = id {
            text.push_str(&format!(", {name} {id}"));
        }
    }
    if tokenizer.chat_template().is_some() {
        text.push_str(", chat template");
    }
    text
}

fn line(name: &str, value: impl std::fmt::Display) {
    println!("{name:<14}{value}");
}

/// 1234567 as `1,234,567`.
fn group(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (idx, digit) in digits.chars().enumerate() {
        if idx > 0 && (digits.len() - idx).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A size in the largest binary unit that leaves at least 1.
fn bytes_text(bytes: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes as f64;
    let mut unit_idx = 0;
    while value >= 1024.0 && unit_idx + 1 < units.len() {
        value /= 1024.0;
        unit_idx += 1;
    }
    if unit_idx == 0 { format!("{bytes} B") } else { format!("{value:.1} {}", units[unit_idx]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_read_well() {
        assert_eq!(group(0), "0");
        assert_eq!(group(999), "999");
        assert_eq!(group(1_433_184), "1,433,184");
        assert_eq!(bytes_text(512), "512 B");
        assert_eq!(bytes_text(3 << 30), "3.0 GiB");
    }
}
