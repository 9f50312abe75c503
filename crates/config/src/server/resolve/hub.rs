//! The Hugging Face hub's settings, read as its Python client reads them.

use std::path::PathBuf;

use super::Machine;
use crate::environment::Environment;
use crate::error::ConfigError;
use crate::layers::Layers;
use crate::server::Hub;
use crate::source::{Source, Sourced};

/// Variables that put the hub off limits, and the values that do, in capitals.
const OFFLINE_VARIABLES: [&str; 2] = ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"];
const TRUE_VALUES: [&str; 4] = ["1", "ON", "YES", "TRUE"];

pub(super) fn settings(
    l: &mut Layers,
    env: &Environment,
    machine: &Machine,
) -> Result<Hub, ConfigError> {
    let home: Option<Sourced<PathBuf>> = l.get_opt("hf_home")?;
    let home = home.map(|home| home.map(|path| in_home(env, path)));
    let home = home.unwrap_or_else(|| Sourced::built_in(default_home(env, machine)));
    let token_file = env.get("HF_TOKEN_PATH").map(|path| in_home(env, path.into()));
    let cache: Option<Sourced<PathBuf>> = l.get_opt("hf_hub_cache")?;
    let cache = cache.map(|cache| cache.map(|path| in_home(env, path)));
    Ok(Hub {
        endpoint: l.get("hf_endpoint")?,
        token: l.get_opt("hf_token")?,
        token_file: token_file.unwrap_or_else(|| home.value.join("token")),
        cache: cache.unwrap_or_else(|| home.map(|home| home.join("hub"))),
        offline: offline(l, env)?,
    })
}

fn offline(l: &mut Layers, env: &Environment) -> Result<Sourced<bool>, ConfigError> {
    let all: Sourced<bool> = l.get("offline")?;
    let by_variable = OFFLINE_VARIABLES.iter().find(|variable| {
        let value = env.get(variable).map(str::to_ascii_uppercase);
        value.is_some_and(|value| TRUE_VALUES.contains(&value.as_str()))
    });
    Ok(match by_variable {
        Some(variable) if !all.value => {
            Sourced::new(true, Source::Env { variable: (*variable).to_owned() })
        }
        _ => all,
    })
}

fn default_home(env: &Environment, machine: &Machine) -> PathBuf {
    if machine.container.is_some() {
        return std::env::temp_dir().join(".cache/huggingface");
    }
    let cache = env.get("XDG_CACHE_HOME").map(|path| in_home(env, path.into()));
    let cache = cache.or_else(|| Some(PathBuf::from(env.get("HOME")?).join(".cache")));
    cache.unwrap_or_else(|| std::env::temp_dir().join(".cache")).join("huggingface")
}

/// A leading `~` is the user's home.
fn in_home(env: &Environment, path: PathBuf) -> PathBuf {
    match (path.strip_prefix("~"), env.get("HOME")) {
        (Ok(rest), Some(home)) => PathBuf::from(home).join(rest),
        _ => path,
    }
}
