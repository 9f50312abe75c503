//! The environment of a container: the image's, what SageMaker adds, and what the model sets.

use std::collections::BTreeMap;
use std::path::Path;

use drivetrain_config::Environment;

use crate::options::Options;
use crate::records::{Mode, Model};

/// What an image or a role would bring, and this machine does. Settings of a server or a model are
/// not among it: in a container they come from the model alone.
const KEPT: [&str; 24] = [
    "PATH",
    "HOME",
    "USER",
    "LOGNAME",
    "SHELL",
    "LANG",
    "TZ",
    "TMPDIR",
    "LD_LIBRARY_PATH",
    "VIRTUAL_ENV",
    "PYENV_ROOT",
    "PYENV_VERSION",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "REQUESTS_CA_BUNDLE",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
    "http_proxy",
    "https_proxy",
    "no_proxy",
    "OMP_NUM_THREADS",
    "RUST_BACKTRACE",
    "PYTHONDONTWRITEBYTECODE",
];
const KEPT_PREFIXES: [&str; 7] = ["AWS_", "HF_", "LC_", "PIP_", "DRIVETRAIN_", "CUDA_", "NVIDIA_"];

/// Where a container finds its model, in the words of whoever sets its environment.
const ML: &str = "/opt/ml";

/// The variables of the container of `model`, whose `/opt/ml` is `ml`.
pub(super) fn of(options: &Options, model: &Model, ml: &Path) -> BTreeMap<String, String> {
    let mut variables = kept(&options.env);
    let mut set = |name: &str, value: &str| {
        variables.insert(name.to_owned(), value.to_owned());
    };
    set("AWS_REGION", &options.region);
    set("AWS_DEFAULT_REGION", &options.region);
    set("SAGEMAKER_REGION", &options.region);
    if let Some(endpoint) = &options.s3_endpoint {
        set("AWS_ENDPOINT_URL_S3", endpoint);
    }
    set("DJL_CACHE_DIR", &options.work_dir.join("cache").to_string_lossy());
    if model.container.mode == Mode::MultiModel {
        set("SAGEMAKER_MULTI_MODEL", "true");
    }
    if model.is_isolated {
        for name in ["SERVING_OFFLINE", "HF_HUB_OFFLINE", "DJL_OFFLINE"] {
            set(name, "true");
        }
    }
    let ml = ml.to_string_lossy();
    for (name, value) in model.container.environment.iter().flatten() {
        variables.insert(name.clone(), placed(value, &ml));
    }
    variables
}

/// What of this process's environment a container gets.
fn kept(env: &Environment) -> BTreeMap<String, String> {
    let is_kept = |name: &str| {
        KEPT.contains(&name) || KEPT_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
    };
    env.iter()
        .filter(|(name, _)| is_kept(name))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

/// A value with the container's directory in place of `/opt/ml`, wherever that stands as a directory.
fn placed(value: &str, ml: &str) -> String {
    let mut placed = String::with_capacity(value.len());
    let mut rest = value;
    while let Some(at) = rest.find(ML) {
        let (before, after) = (&rest[..at], &rest[at + ML.len()..]);
        let goes_on = |c: char| c.is_alphanumeric() || "-_.".contains(c);
        let is_whole =
            !after.starts_with(goes_on) && !before.ends_with(|c: char| goes_on(c) || c == '/');
        placed.push_str(before);
        placed.push_str(if is_whole { ml } else { ML });
        rest = after;
    }
    placed.push_str(rest);
    placed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_models_directory_stands_for_the_containers() {
        let check = |value, wanted| assert_eq!(placed(value, "/w"), wanted, "{value}");
        check("/opt/ml/model", "/w/model");
        check("/opt/ml", "/w");
        check("test::Python=/opt/ml/model", "test::Python=/w/model");
        check("/opt/ml/model,/opt/ml/model/b", "/w/model,/w/model/b");
        check("/opt/mlx", "/opt/mlx");
        check("/data/opt/ml/model", "/data/opt/ml/model");
        check("s3://bucket/opt/ml", "s3://bucket/opt/ml");
        check("", "");
    }

    #[test]
    fn settings_of_this_shell_stay_here() {
        let env = Environment::from([
            ("PATH", "/bin"),
            ("OPTION_TASK", "x"),
            ("SERVING_LOAD_MODELS", "x"),
            ("SAGEMAKER_BIND_TO_PORT", "1"),
            ("HF_TOKEN", "t"),
        ]);
        let names: Vec<String> = kept(&env).into_keys().collect();
        assert_eq!(names, ["HF_TOKEN", "PATH"]);
    }
}
