//! The usual chain: variables, a web identity, the profile's files, the container's or machine's role.
//!
//! `object_store` knows all but the files, which are read here. What a profile may ask for beyond
//! keys (a role assumed by another profile, single sign-on, a program to run) is refused by name.

use std::path::PathBuf;

use super::profile::{Profile, Profiles};
use crate::error::SourceError;
use crate::options::{Hidden, S3Options};

/// Variables and what a profile adds to them, as `(name, value)` with names in lower case.
pub(super) fn settings(
    options: &S3Options,
    place: &str,
) -> Result<Vec<(String, Hidden)>, SourceError> {
    let mut settings: Vec<(String, Hidden)> = options
        .variables
        .iter()
        .filter(|(_, value)| !value.expose().is_empty())
        .map(|(name, value)| (name.to_ascii_lowercase(), value.clone()))
        .collect();
    let has = |settings: &[(String, Hidden)], names: &[&str]| {
        settings.iter().any(|(name, _)| names.contains(&name.as_str()))
    };
    let (name, profile) = match chosen_profile(options, place)? {
        Some(found) => found,
        None => return Ok(settings),
    };
    let has_identity = has(&settings, &["aws_access_key_id"])
        || (has(&settings, &["aws_web_identity_token_file"]) && has(&settings, &["aws_role_arn"]));
    let mut add = |names: &[&str], key: &str| {
        if let Some(value) = profile.get(key).filter(|_| !has(&settings, names)) {
            settings.push((names.first().copied().unwrap_or(key).to_owned(), Hidden::new(value)));
        }
    };
    add(&["aws_region", "aws_default_region"], "region");
    add(&["aws_endpoint_url", "aws_endpoint_url_s3"], "endpoint_url");
    if has_identity {
        return Ok(settings);
    }
    if profile.get("aws_access_key_id").is_some() {
        add(&["aws_access_key_id"], "aws_access_key_id");
        add(&["aws_secret_access_key"], "aws_secret_access_key");
        add(&["aws_session_token"], "aws_session_token");
        return Ok(settings);
    }
    if profile.get("web_identity_token_file").is_some() {
        add(&["aws_web_identity_token_file"], "web_identity_token_file");
        add(&["aws_role_arn"], "role_arn");
        add(&["aws_role_session_name"], "role_session_name");
        return Ok(settings);
    }
    let beyond = ["role_arn", "sso_session", "sso_start_url", "credential_process"];
    match beyond.iter().find(|key| profile.get(key).is_some()) {
        None => Ok(settings),
        Some(key) => Err(SourceError::Refused {
            place: place.to_owned(),
            reason: format!(
                "the AWS profile {name} gets its keys by {key}, which is not done here: set \
                 AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN to what `aws \
                 configure export-credentials --profile {name}` prints"
            ),
            source: None,
        }),
    }
}

/// Whether anything but the container's or the machine's role grants access.
pub(super) fn may_ask_machine(options: &S3Options) -> bool {
    let disabled = variable(options, "AWS_EC2_METADATA_DISABLED");
    !disabled.is_some_and(|value| value.eq_ignore_ascii_case("true"))
}

/// The profile that is named, or `default` where that is there.
fn chosen_profile(
    options: &S3Options,
    place: &str,
) -> Result<Option<(String, Profile)>, SourceError> {
    let named =
        variable(options, "AWS_PROFILE").or_else(|| variable(options, "AWS_DEFAULT_PROFILE"));
    let name = named.unwrap_or("default").to_owned();
    let path = |setting: &str, file: &str| {
        let set = variable(options, setting).map(|path| in_home(options, path));
        set.or_else(|| Some(options.home.as_ref()?.join(".aws").join(file)))
    };
    let credentials = path("AWS_SHARED_CREDENTIALS_FILE", "credentials");
    let config = path("AWS_CONFIG_FILE", "config");
    let profile = Profiles::read(credentials.as_deref(), config.as_deref())?.take(&name);
    match profile {
        Some(profile) => Ok(Some((name, profile))),
        None if named.is_none() => Ok(None),
        None => Err(SourceError::Refused {
            place: place.to_owned(),
            reason: format!(
                "AWS_PROFILE names the profile {name:?}, which is neither in {} nor in {}",
                shown(credentials),
                shown(config)
            ),
            source: None,
        }),
    }
}

fn shown(path: Option<PathBuf>) -> String {
    path.map_or_else(|| "~/.aws".to_owned(), |path| path.display().to_string())
}

fn in_home(options: &S3Options, path: &str) -> PathBuf {
    match (path.strip_prefix("~/"), &options.home) {
        (Some(rest), Some(home)) => home.join(rest),
        _ => PathBuf::from(path),
    }
}

fn variable<'a>(options: &'a S3Options, name: &str) -> Option<&'a str> {
    let found = options.variables.iter().find(|(known, _)| known == name);
    found.map(|(_, value)| value.expose()).filter(|value| !value.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Case {
        folder: tempfile::TempDir,
    }

    impl Case {
        fn new(credentials: &str, config: &str) -> Self {
            let folder = tempfile::tempdir().unwrap();
            let dir = folder.path().join(".aws");
            std::fs::create_dir(&dir).unwrap();
            std::fs::write(dir.join("credentials"), credentials).unwrap();
            std::fs::write(dir.join("config"), config).unwrap();
            Self { folder }
        }

        /// The settings as `name=value` in order.
        fn check(&self, variables: &[(&str, &str)], wanted: &str) {
            let options = S3Options {
                variables: variables
                    .iter()
                    .map(|(name, value)| ((*name).to_owned(), Hidden::new(*value)))
                    .collect(),
                home: Some(self.folder.path().to_owned()),
            };
            let found = match settings(&options, "s3://bucket") {
                Ok(found) => {
                    let mut lines: Vec<String> = found
                        .iter()
                        .map(|(name, value)| format!("{}={}", name, value.expose()))
                        .collect();
                    lines.sort();
                    lines.join(" ")
                }
                Err(error) => error.to_string(),
            };
            match wanted.strip_suffix('*') {
                Some(start) => assert!(found.starts_with(start), "{found}"),
                None => assert_eq!(found, wanted),
            }
        }
    }

    const CREDENTIALS: &str = "[default]\naws_access_key_id = AKID\naws_secret_access_key=SK\n\
        # a comment\n[other]\naws_access_key_id=AKO\naws_secret_access_key=SO\n\
        aws_session_token = a=b==\n";
    const CONFIG: &str = "[default]\nregion=eu-west-1\n[profile other]\nregion = us-west-2\n\
        s3 =\n  max_concurrent_requests = 20\n[profile sso]\nsso_session = x\n\
        [profile web]\nrole_arn=arn:r\nweb_identity_token_file=/t\n";

    #[test]
    fn variables_go_before_a_profile() {
        let case = Case::new(CREDENTIALS, CONFIG);
        case.check(&[], "aws_access_key_id=AKID aws_region=eu-west-1 aws_secret_access_key=SK");
        case.check(
            &[("AWS_PROFILE", "other")],
            "aws_access_key_id=AKO aws_profile=other aws_region=us-west-2 aws_secret_access_key=SO \
             aws_session_token=a=b==",
        );
        case.check(
            &[("AWS_ACCESS_KEY_ID", "E"), ("AWS_SECRET_ACCESS_KEY", "S"), ("AWS_REGION", "r")],
            "aws_access_key_id=E aws_region=r aws_secret_access_key=S",
        );
        case.check(
            &[("AWS_PROFILE", "web"), ("AWS_DEFAULT_REGION", "r")],
            "aws_default_region=r aws_profile=web aws_role_arn=arn:r aws_web_identity_token_file=/t",
        );
    }

    #[test]
    fn what_a_profile_may_not_ask_for_is_named() {
        let case = Case::new(CREDENTIALS, CONFIG);
        case.check(
            &[("AWS_PROFILE", "sso")],
            "s3://bucket: the AWS profile sso gets its keys by sso_session, which is not done here*",
        );
        case.check(
            &[("AWS_PROFILE", "none")],
            "s3://bucket: AWS_PROFILE names the profile \"none\"*",
        );
        Case::new("", "").check(&[], "");
    }
}
