//! One bucket, with its credentials, and what its errors mean.

use std::time::Duration;

use object_store::aws::{AmazonS3, AmazonS3Builder, AmazonS3ConfigKey, resolve_bucket_region};
use object_store::{BackoffConfig, ClientOptions, Error, RetryConfig};

use super::credentials;
use crate::error::{Cause, SourceError, shorten};
use crate::http::install_tls;
use crate::options::{Limits, S3Options};
use crate::source::S3Location;

/// What is never printed, wherever a library may put it.
const SECRET_SETTINGS: [&str; 4] = [
    "aws_access_key_id",
    "aws_secret_access_key",
    "aws_session_token",
    "aws_sse_customer_key_base64",
];

/// The region where none is named and the bucket does not say.
const DEFAULT_REGION: &str = "us-east-1";
/// Longest that a bucket may take to say its region.
const REGION_PATIENCE: Duration = Duration::from_secs(10);

/// A bucket.
#[derive(Debug)]
pub(super) struct Bucket {
    pub(super) store: AmazonS3,
    name: String,
    secrets: Vec<crate::options::Hidden>,
}

impl Bucket {
    pub(super) async fn open(
        location: &S3Location,
        options: &S3Options,
        limits: &Limits,
    ) -> Result<Self, SourceError> {
        install_tls();
        let place = location.to_string();
        let settings = credentials::settings(options, &place)?;
        let has = |names: &[&str]| settings.iter().any(|(name, _)| names.contains(&name.as_str()));
        let endpoint = settings.iter().find(|(name, _)| {
            ["aws_endpoint_url_s3", "aws_endpoint_url", "aws_endpoint"].contains(&name.as_str())
        });
        let is_plain = endpoint.is_some_and(|(_, url)| url.expose().starts_with("http://"));
        let client = ClientOptions::new()
            .with_allow_http(is_plain)
            .with_connect_timeout(limits.connect_timeout)
            .with_timeout_disabled();
        let has_keys =
            has(&["aws_access_key_id", "aws_web_identity_token_file", "aws_skip_signature"])
                || has(&[
                    "aws_container_credentials_relative_uri",
                    "aws_container_credentials_full_uri",
                ]);
        if !has_keys && !credentials::may_ask_machine(options) {
            return Err(SourceError::Refused {
                place,
                reason: format!("there are no credentials: {NO_CREDENTIALS}"),
                source: None,
            });
        }
        let mut builder = AmazonS3Builder::new();
        for (name, value) in &settings {
            if let Ok(key) = name.parse::<AmazonS3ConfigKey>() {
                builder = builder.with_config(key, value.expose());
            }
        }
        if !has(&["aws_region", "aws_default_region"]) {
            let region = match endpoint {
                Some(_) => DEFAULT_REGION.to_owned(),
                None => region(location.bucket(), &client).await,
            };
            builder = builder.with_region(region);
        }
        let secrets = settings
            .iter()
            .filter(|(name, _)| SECRET_SETTINGS.contains(&name.as_str()))
            .map(|(_, value)| value.clone())
            .collect();
        let store = builder
            .with_bucket_name(location.bucket())
            .with_client_options(client)
            .with_retry(patience())
            .build()
            .map_err(|error| SourceError::Refused {
                place,
                reason: "the AWS settings can't be used".to_owned(),
                source: Some(error.into()),
            })?;
        Ok(Self { store, name: location.bucket().to_owned(), secrets })
    }

    /// An error's text without what must not be printed.
    pub(super) fn hide(&self, error: &dyn std::error::Error) -> String {
        let mut text = error.to_string();
        let mut next = error.source();
        while let Some(cause) = next {
            let cause_text = cause.to_string();
            if !text.contains(&cause_text) {
                text.push_str(": ");
                text.push_str(&cause_text);
            }
            next = cause.source();
        }
        for secret in &self.secrets {
            text = text.replace(secret.expose(), "******");
        }
        match text.char_indices().nth(600) {
            Some((idx, _)) => format!("{}…", &text[..idx]),
            None => text,
        }
    }

    /// What an error means to a user.
    pub(super) fn explain(&self, error: Error, place: &str) -> SourceError {
        let place = place.to_owned();
        let text = self.hide(&error);
        let source: Option<Cause> = Some(text.clone().into());
        let name = &self.name;
        let refused =
            |reason: String, source| SourceError::Refused { place: place.clone(), reason, source };
        // Of a list the library tells no kinds of errors apart, but it quotes the answer.
        let answers = |status: &str| text.contains(&format!("status code: {status}"));
        match error {
            _ if text.contains("NoSuchBucket") => refused(
                format!("there is no bucket {name}: check its name, region and account"),
                None,
            ),
            Error::NotFound { .. } => {
                refused("there is no such object: check bucket and key".to_owned(), None)
            }
            _ if matches!(
                error,
                Error::PermissionDenied { .. } | Error::Unauthenticated { .. }
            ) || answers("401")
                || answers("403") =>
            {
                let reason = format!(
                    "access is denied: the credentials need s3:ListBucket on {name} and \
                     s3:GetObject on what is in it"
                );
                refused(reason, source)
            }
            // The library refuses a whole list for one key that can't be a path.
            Error::InvalidPath { source } => refused(
                format!(
                    "a key under it can't be the name of a file ({}): rename the object, or give a \
                     prefix without it",
                    shorten(&source.to_string())
                ),
                None,
            ),
            Error::Generic { .. } if text.contains("credential") || text.contains("169.254") => {
                SourceError::Unreachable {
                    place,
                    reason: format!("no credentials could be had: {NO_CREDENTIALS}"),
                    source,
                }
            }
            _ => SourceError::Unreachable {
                place,
                reason: "S3 does not answer as it should: check network, region and \
                         AWS_ENDPOINT_URL"
                    .to_owned(),
                source,
            },
        }
    }

    pub(super) fn silent(&self, place: &str) -> SourceError {
        SourceError::Unreachable {
            place: place.to_owned(),
            reason: "S3 does not answer".to_owned(),
            source: None,
        }
    }
}

/// How to grant access, for messages.
const NO_CREDENTIALS: &str = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, name a profile with \
    AWS_PROFILE, give the container or machine a role, or set AWS_SKIP_SIGNATURE=true for a public \
    bucket";

/// The library's own tries; ours come around them.
fn patience() -> RetryConfig {
    RetryConfig {
        backoff: BackoffConfig {
            init_backoff: Duration::from_millis(100),
            max_backoff: Duration::from_secs(10),
            base: 2.0,
        },
        max_retries: 5,
        retry_timeout: Duration::from_secs(60),
    }
}

/// Where a bucket is, by its own word.
async fn region(bucket: &str, client: &ClientOptions) -> String {
    let asked = tokio::time::timeout(REGION_PATIENCE, resolve_bucket_region(bucket, client)).await;
    match asked {
        Ok(Ok(region)) => region,
        _ => {
            tracing::warn!(
                bucket,
                region = DEFAULT_REGION,
                "the bucket's region could not be found out: set AWS_REGION"
            );
            DEFAULT_REGION.to_owned()
        }
    }
}
