//! `InvokeEndpointAsync`: the request is taken at once, and its answer written where the endpoint's
//! configuration says.
//!
//! As many invocations as the configuration allows run at once; the others wait, up to the time to
//! live that each was given. Inputs come from `s3://` or, here, from `file://`, or with the request;
//! answers and failures go to either.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use drivetrain_sources::{ModelSource, read_object, write_object};
use hyper::HeaderMap;
use hyper::header::HeaderValue;
use serde_json::json;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};
use uuid::Uuid;

use super::invoke::Ask;
use super::{Invocation, headers, variant};
use crate::endpoint::{Answer, Deployment, Variant};
use crate::fault::{Fault, chain};
use crate::reply::{self, Reply};
use crate::service::Service;

const INPUT: &str = "x-amzn-sagemaker-inputlocation";
const OUTPUT: &str = "x-amzn-sagemaker-outputlocation";
const FAILURE: &str = "x-amzn-sagemaker-failurelocation";
const TIME_TO_LIVE: &str = "x-amzn-sagemaker-requestttlseconds";
const TIMEOUT: &str = "x-amzn-sagemaker-invocationtimeoutseconds";
/// Largest body that comes with the request, in bytes.
const INLINE_BYTES: usize = 128_000;
/// Largest input and answer, in bytes.
const MAX_BYTES: usize = 1 << 30;
/// Seconds that an invocation may wait, where it does not say.
const LIFE: u64 = 6 * 3600;

/// An invocation that was taken, and where its answer goes.
struct Job {
    service: Arc<Service>,
    variant: Arc<Variant>,
    places: Arc<Semaphore>,
    invocation: Invocation,
    input: Option<String>,
    output: String,
    failure: Option<String>,
    expires: Instant,
    time: Duration,
}

/// Takes an invocation, and answers with where its answer will be.
pub(super) fn accept(
    service: &Arc<Service>,
    deployment: &Arc<Deployment>,
    invocation: Invocation,
) -> Result<Reply, Fault> {
    let (config, places) = deployment.asynchronous()?;
    let asked = &invocation.headers;
    let input = headers::text(asked, INPUT).map(str::to_owned);
    match (&input, invocation.body.len()) {
        (None, 0) => return Err(Fault::validation("InputLocation or Body: one of them is needed")),
        (Some(_), n) if n > 0 => {
            return Err(Fault::validation("give one of InputLocation and Body, not both"));
        }
        (None, n) if n > INLINE_BYTES => return Err(super::too_large(INLINE_BYTES)),
        (Some(input), _) => check_place("InputLocation", input)?,
        _ => {}
    }
    let life = seconds(asked, TIME_TO_LIVE, 60..=21_600)?.unwrap_or(LIFE);
    let time = seconds(asked, TIMEOUT, 1..=3600)?.map(Duration::from_secs);
    let id = Uuid::new_v4().to_string();
    let below = |prefix: &str, end: &str| format!("{}/{id}{end}", prefix.trim_end_matches('/'));
    let output = match config.output() {
        "" => return Err(Fault::validation("OutputConfig.S3OutputPath: answers need a place")),
        prefix => below(prefix, ".out"),
    };
    let failure = config.failure().map(|prefix| below(prefix, "-error.out"));
    let inference_id =
        headers::text(asked, headers::INFERENCE_ID).map_or_else(|| id.clone(), str::to_owned);
    let mut reply =
        reply::of_json(crate::fault::Api::Runtime, 202, &json!({ "InferenceId": inference_id }));
    let told = [(OUTPUT, Some(&output)), (FAILURE, failure.as_ref())];
    for (name, place) in told {
        if let Some(place) = place.and_then(|place| HeaderValue::from_str(place).ok()) {
            reply.headers_mut().insert(name, place);
        }
    }
    let job = Job {
        service: Arc::clone(service),
        variant: variant(deployment, asked)?,
        places: Arc::clone(places),
        input,
        output,
        failure,
        expires: Instant::now() + Duration::from_secs(life),
        time: time.unwrap_or(service.options.limits.asynchronous),
        invocation,
    };
    tokio::spawn(job.run());
    Ok(reply)
}

impl Job {
    async fn run(mut self) {
        let endpoint = self.invocation.endpoint.clone();
        let written = match self.answer().await {
            Ok(answer) => {
                let content_type = headers::content_type(&answer.headers);
                let content_type = content_type.as_ref().and_then(|value| value.to_str().ok());
                tracing::info!(endpoint, output = self.output, "answered later");
                write(&self.service, &self.output, answer.body, content_type).await
            }
            Err(fault) => {
                let reason = &fault.message;
                tracing::warn!(endpoint, output = self.output, reason, "not answered");
                match &self.failure {
                    Some(place) => {
                        let text = Bytes::from(fault.message);
                        write(&self.service, place, text, Some("text/plain")).await
                    }
                    None => Ok(()),
                }
            }
        };
        if let Err(reason) = written {
            tracing::error!(endpoint, reason, "the answer can't be written");
        }
    }

    async fn answer(&mut self) -> Result<Answer, Fault> {
        let place = timeout_at(self.expires, Arc::clone(&self.places).acquire_owned()).await;
        let Ok(Ok(_place)) = place else {
            return Err(Fault::validation("the request waited longer than it may"));
        };
        if let Some(input) = &self.input {
            self.invocation.body = read(&self.service, input)
                .await
                .map_err(|reason| Fault::validation(format!("InputLocation {input}: {reason}")))?;
        }
        let ask = Ask {
            variant: &self.variant,
            invocation: &self.invocation,
            api: "InvokeEndpointAsync",
            limits: &self.service.options.limits,
            time: self.time,
            answer_bytes: MAX_BYTES,
        };
        ask.answer().await
    }
}

/// A number of seconds in a header.
fn seconds(
    headers: &HeaderMap,
    name: &str,
    allowed: std::ops::RangeInclusive<u64>,
) -> Result<Option<u64>, Fault> {
    let Some(text) = headers::text(headers, name) else { return Ok(None) };
    match text.parse().ok().filter(|seconds| allowed.contains(seconds)) {
        Some(seconds) => Ok(Some(seconds)),
        None => Err(Fault::validation(format!(
            "{name}: {text}: expected {} to {} seconds",
            allowed.start(),
            allowed.end()
        ))),
    }
}

fn check_place(field: &str, place: &str) -> Result<(), Fault> {
    match ModelSource::parse(place) {
        Ok(ModelSource::S3(location)) if !location.key().is_empty() => Ok(()),
        Ok(ModelSource::Local(_)) if place.starts_with("file://") => Ok(()),
        _ => Err(Fault::validation(format!(
            "{field} {place:?}: expected s3://bucket/key or file:///path"
        ))),
    }
}

async fn read(service: &Service, place: &str) -> Result<Bytes, String> {
    let options = service.fetch_options();
    match ModelSource::parse(place) {
        Ok(ModelSource::S3(location)) => {
            let read = read_object(&location, &options, MAX_BYTES as u64).await;
            read.map_err(|error| chain(&error))
        }
        Ok(ModelSource::Local(path)) => apart(move || read_file(&path)).await,
        _ => Err("expected s3://bucket/key or file:///path".to_owned()),
    }
}

async fn write(
    service: &Service,
    place: &str,
    bytes: Bytes,
    content_type: Option<&str>,
) -> Result<(), String> {
    let options = service.fetch_options();
    match ModelSource::parse(place) {
        Ok(ModelSource::S3(location)) => {
            let written = write_object(&location, &options, bytes, content_type).await;
            written.map_err(|error| chain(&error))
        }
        Ok(ModelSource::Local(path)) => apart(move || write_file(&path, &bytes)).await,
        _ => Err(format!("{place}: expected s3://bucket/prefix or file:///directory")),
    }
}

/// Runs what may wait for the disk where waiting is allowed.
async fn apart<T: Send + 'static>(
    work: impl FnOnce() -> std::io::Result<T> + Send + 'static,
) -> Result<T, String> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done.map_err(|error| error.to_string()),
        Err(error) => Err(error.to_string()),
    }
}

fn read_file(path: &Path) -> std::io::Result<Bytes> {
    use std::io::{Error, ErrorKind, Read};
    let mut bytes = Vec::new();
    std::fs::File::open(path)?.take(MAX_BYTES as u64 + 1).read_to_end(&mut bytes)?;
    match bytes.len() > MAX_BYTES {
        true => Err(Error::new(ErrorKind::FileTooLarge, "is larger than 1 GiB")),
        false => Ok(Bytes::from(bytes)),
    }
}

/// Writes a file that is whole as soon as it has its name.
fn write_file(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent)?;
    }
    let mut fresh: PathBuf = path.to_owned();
    fresh.set_extension("part");
    std::fs::write(&fresh, bytes)?;
    std::fs::rename(&fresh, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_the_services_bounds() {
        let check = |text: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(TIMEOUT, HeaderValue::from_static(text));
            seconds(&headers, TIMEOUT, 1..=3600)
        };
        assert_eq!(check("3600").unwrap(), Some(3600));
        for text in ["0", "3601", "-1", "x", "1.5"] {
            assert!(check(text).is_err(), "{text}");
        }
        assert_eq!(seconds(&HeaderMap::new(), TIMEOUT, 1..=3600).unwrap(), None);
    }

    #[test]
    fn inputs_are_objects_or_files() {
        for place in ["s3://bucket/key", "file:///tmp/x"] {
            assert!(check_place("InputLocation", place).is_ok(), "{place}");
        }
        for place in ["s3://bucket", "/tmp/x", "org/name", "https://h/x.tar.gz", ""] {
            assert!(check_place("InputLocation", place).is_err(), "{place}");
        }
    }
}
