//! An archive behind an `http` or `https` address.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use reqwest::header::HeaderMap;
use reqwest::{Method, StatusCode, Url};

use crate::download::{self, Fault, Object, ReadError};
use crate::error::SourceError;
use crate::http::{Client, Explain, Follow, HttpFile, passing, plain_etag, text};
use crate::mirror::{Entry, Mirror};
use crate::options::FetchOptions;
use crate::source::HttpLocation;
use crate::watch::Counters;
use crate::{names, retry};

/// How often an archive that changes meanwhile is looked up, and one that can't be had asked for.
const MAX_TRIES: u32 = 4;
const PATIENCE: Duration = Duration::from_secs(30);

/// The archive's file, brought here if need be.
pub(crate) async fn fetch(
    location: &HttpLocation,
    options: &FetchOptions,
    counters: &Arc<Counters>,
) -> Result<PathBuf, SourceError> {
    let place = location.to_string();
    let mirror = Mirror::new(&options.download_dir, location.url());
    let latest = || mirror.latest().map(|(dir, _)| dir.join(location.name()));
    if options.offline {
        return latest().ok_or_else(|| SourceError::Offline {
            place,
            reason: format!("is not in {}, and the network is off limits", mirror.dir().display()),
        });
    }
    let url = Url::parse(location.url()).map_err(|error| SourceError::Unreadable {
        source_text: place.clone(),
        reason: format!("is no address: {error}"),
    })?;
    names::check(&place, std::iter::once(location.name()))?;
    let client = Arc::new(Client::new(options.limits.connect_timeout, None)?);
    for _ in 0..MAX_TRIES {
        let (etag, size) = match describe(&client, &url, &place).await {
            Ok(described) => described,
            Err(error) => return latest().filter(|_| error.is_unreachable()).ok_or(error),
        };
        let limit = options.limits.max_bytes;
        if size > limit {
            return Err(SourceError::TooLarge { place, found: size, unit: "bytes", limit });
        }
        let entry = Entry::new(location.name(), &etag, size);
        let object = Object {
            name: entry.name.clone(),
            size,
            sha256: None,
            blob: mirror.blob(&entry),
            lock: mirror.lock(&entry.blob),
            begun: None,
            remote: Arc::new(HttpFile {
                client: Arc::clone(&client),
                url: url.clone(),
                size,
                etag: etag.clone(),
                content_etag: Mutex::new(None),
                explain: explain(&place),
            }),
            etag,
        };
        match download::all(&place, vec![object], &options.limits, counters).await {
            Ok(()) => return Ok(mirror.publish(&[entry])?.join(location.name())),
            Err(Fault::Changed(_)) => {}
            Err(Fault::Source(error)) => return Err(error),
        }
    }
    Err(SourceError::Changing { place, n_times: MAX_TRIES })
}

/// Version and size.
async fn describe(client: &Client, url: &Url, place: &str) -> Result<(String, u64), SourceError> {
    let mut n_failures = 0;
    loop {
        let sent = client.send(Method::HEAD, url, None, Follow::ToContent);
        let (after, cause) = match tokio::time::timeout(PATIENCE, sent).await {
            Ok(Ok(answer)) => match passing(&answer.response) {
                Some(ReadError::Again { after, cause }) => (after, cause),
                _ => return described(&answer, place),
            },
            Ok(Err(cause)) => (None, cause),
            Err(_) => (None, "no answer within 30 s".into()),
        };
        n_failures += 1;
        if n_failures >= MAX_TRIES {
            return Err(SourceError::Unreachable {
                place: place.to_owned(),
                reason: format!("does not answer, {n_failures} tries: check address and network"),
                source: Some(cause),
            });
        }
        tokio::time::sleep(retry::wait(n_failures, after)).await;
    }
}

fn described(answer: &crate::http::Answer, place: &str) -> Result<(String, u64), SourceError> {
    let response = &answer.response;
    let headers = response.headers();
    if !response.status().is_success() {
        return Err(explain(place)(response.status(), headers));
    }
    let size = text(headers, "content-length").and_then(|size| size.trim().parse().ok());
    // The first host's tag goes before that of where it leads, as with every later answer.
    let first = answer.redirected.as_ref().unwrap_or(headers);
    let etag = text(first, "etag").or_else(|| text(headers, "last-modified"));
    match size {
        Some(size) => Ok((etag.map(plain_etag).unwrap_or_default().to_owned(), size)),
        None => Err(SourceError::Refused {
            place: place.to_owned(),
            reason: "the server does not say how large it is".to_owned(),
            source: None,
        }),
    }
}

fn explain(place: &str) -> Explain {
    let place = place.to_owned();
    Arc::new(move |status: StatusCode, _: &HeaderMap| SourceError::Refused {
        place: place.clone(),
        reason: format!(
            "the server answers {status}: check the address, and that it grants access"
        ),
        source: None,
    })
}
