//! From where the settings say a model is to a path on this machine.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use drivetrain_config::{Environment, Options, ServerConfig};
use drivetrain_sources::{
    FetchOptions, Hidden, HubOptions, Limits, ModelSource, S3Options, Watch, fetch,
};

use crate::HostError;

/// Longest file that holds a token.
const MAX_TOKEN_BYTES: u64 = 4096;

/// Where a model is said to be.
pub(crate) struct Place<'a> {
    /// The setting that says it, for messages.
    pub(crate) key: &'static str,
    /// What it says: a path, `s3://bucket/prefix`, an id of the hub.
    pub(crate) text: &'a str,
    /// The revision of a hub id.
    pub(crate) revision: Option<&'a str>,
    /// The directory that a relative path starts at; the working directory where there is none.
    pub(crate) beside: Option<&'a Path>,
    /// Whether a bare name may be an id of the hub.
    pub(crate) names: Names,
    /// The model's own options.
    pub(crate) options: Option<&'a Options>,
}

/// What a text that names no scheme and no path of this machine is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Names {
    /// An id of the hub.
    Hub,
    /// A path, and nothing is there.
    Paths,
}

/// Brings what `place` names to this machine. Blocks as long as that takes; what is local is only
/// looked for.
pub(crate) fn bring(
    place: &Place<'_>,
    server: &ServerConfig,
    env: &Environment,
    watch: &dyn Watch,
) -> Result<PathBuf, HostError> {
    let text = place.text;
    let beside = |path: &Path| match place.beside {
        Some(dir) if path.is_relative() => dir.join(path),
        _ => path.to_owned(),
    };
    if !text.contains("://") && !text.starts_with("file:") {
        let path = beside(Path::new(text));
        if place.names == Names::Paths || path.exists() {
            return Ok(path);
        }
    }
    let failed = |error| HostError::Fetch {
        key: place.key,
        value: text.split('?').next().unwrap_or(text).to_owned(),
        source: Arc::new(error),
    };
    let source = ModelSource::parse(text).map_err(failed)?;
    if let ModelSource::Local(path) = &source {
        let path = beside(path);
        return match path.exists() {
            true => Ok(path),
            false => Err(HostError::Source {
                key: place.key,
                value: text.to_owned(),
                reason: format!(
                    "there is nothing at {}: give an absolute path, or one relative to the model's \
                     directory",
                    path.display()
                ),
            }),
        };
    }
    let mut options = options(server, env);
    if let ModelSource::Hub(_) = source {
        options.offline |= server.hub.offline.value;
        options.limits.place_setting = "HF_HUB_CACHE";
        if let Some(token) = place.options.and_then(|options| options.get("hf_token")) {
            options.hub.token = Some(Hidden::new(token.trim()));
        }
    }
    fetch(&source, place.revision, &options, watch).map_err(failed)
}

fn options(server: &ServerConfig, env: &Environment) -> FetchOptions {
    let hub = &server.hub;
    let token = hub.token.as_ref().map(|token| token.value.expose().trim().to_owned());
    let token = token.or_else(|| token_of(&hub.token_file)).filter(|token| !token.is_empty());
    let variables = env
        .iter()
        .filter(|(name, _)| name.starts_with("AWS_"))
        .map(|(name, value)| (name.to_owned(), Hidden::new(value)))
        .collect();
    let download_dir = server.download_dir.as_ref().unwrap_or(&server.cache_dir);
    FetchOptions {
        hub: HubOptions {
            endpoint: hub.endpoint.value.clone(),
            cache: hub.cache.value.clone(),
            token: token.map(Hidden::new),
        },
        s3: S3Options { variables, home: env.get("HOME").map(PathBuf::from) },
        download_dir: download_dir.value.clone(),
        offline: server.offline.value,
        limits: Limits::default(),
    }
}

/// What a login left behind; a file that can't be read is none.
fn token_of(path: &Path) -> Option<String> {
    let mut text = String::new();
    let file = std::fs::File::open(path).ok()?;
    file.take(MAX_TOKEN_BYTES).read_to_string(&mut text).ok()?;
    Some(text.trim().to_owned())
}

/// The files of a model by what the command line calls it, for tools that look at a model without
/// serving it: a path, an address, an id of the hub.
///
/// # Errors
/// There is nothing of that name, or it can't be brought here.
pub fn locate(
    text: &str,
    server: &ServerConfig,
    env: &Environment,
    watch: &dyn Watch,
) -> Result<PathBuf, HostError> {
    let spec = drivetrain_config::ModelSpec::at(text);
    let is_id = spec.origin == drivetrain_config::Origin::ModelId;
    let place = Place {
        key: "MODEL",
        text: spec.place(),
        revision: env.get("HF_REVISION"),
        beside: None,
        names: if is_id { Names::Hub } else { Names::Paths },
        options: None,
    };
    bring(&place, server, env, watch)
}
