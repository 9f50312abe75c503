//! The hub's protocol: what a revision holds, and what a file is.

use std::sync::Arc;

use reqwest::header::HeaderMap;
use reqwest::{Method, StatusCode, Url};
use serde::Deserialize;

use crate::download::ReadError;
use crate::error::{Cause, SourceError, shorten};
use crate::http::{
    Answer, Client, ERROR_CODE, Explain, Follow, LINKED_ETAG, LINKED_SIZE, REPO_COMMIT, own_words,
    passing, plain_etag, text,
};
use crate::options::FetchOptions;
use crate::retry;
use crate::source::{HubId, shown_url};

/// Largest description of a revision; a thousand bytes a file would be much.
const MAX_ANSWER_BYTES: usize = 64 << 20;
/// Tries to look something up. Fewer than for content: nothing has been invested yet.
const MAX_TRIES: u32 = 5;

/// One repository of the hub, at one revision.
pub(super) struct Api {
    client: Arc<Client>,
    endpoint: Url,
    id: String,
    revision: String,
    has_token: bool,
}

/// What a revision holds.
#[derive(Debug)]
pub(super) struct Revision {
    pub(super) commit: String,
    pub(super) files: Vec<String>,
}

/// What a file is.
#[derive(Debug)]
pub(super) struct Description {
    /// Names its content.
    pub(super) etag: String,
    /// Whether that is the SHA-256 of the content.
    pub(super) is_sha256: bool,
    /// In bytes.
    pub(super) size: u64,
}

#[derive(Deserialize)]
struct RevisionAnswer {
    sha: String,
    #[serde(default)]
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
struct Sibling {
    rfilename: String,
}

impl Api {
    pub(super) fn new(
        id: &HubId,
        revision: &str,
        options: &FetchOptions,
    ) -> Result<Self, SourceError> {
        let endpoint = options.hub.endpoint.trim_end_matches('/');
        let url = Url::parse(endpoint).ok().filter(|url| {
            matches!(url.scheme(), "http" | "https") && url.has_host() && url.query().is_none()
        });
        let endpoint = url.ok_or_else(|| SourceError::Unreadable {
            source_text: format!("HF_ENDPOINT={}", shown_url(endpoint)),
            reason: "expected the address of a hub, such as https://huggingface.co".to_owned(),
        })?;
        let token = options.hub.token.clone().map(|token| (endpoint.clone(), token));
        let has_token = token.is_some();
        let client = Arc::new(Client::new(options.limits.connect_timeout, token)?);
        let (id, revision) = (id.id().to_owned(), revision.to_owned());
        Ok(Self { client, endpoint, id, revision, has_token })
    }

    /// The model, for messages.
    pub(super) fn place(&self) -> String {
        format!("{} at {}", self.id, self.revision)
    }

    pub(super) fn revision_name(&self) -> &str {
        &self.revision
    }

    pub(super) fn client(&self) -> Arc<Client> {
        Arc::clone(&self.client)
    }

    /// The address of a file.
    pub(super) fn file_url(&self, commit: &str, name: &str) -> Url {
        let parts = self.id.split('/').chain(["resolve", commit]).chain(name.split('/'));
        self.url(parts)
    }

    /// Looks the revision up.
    pub(super) async fn revision(&self) -> Result<Revision, SourceError> {
        let parts = ["api", "models"].into_iter().chain(self.id.split('/'));
        let url = self.url(parts.chain(["revision", &self.revision]));
        let answer = self.ask(Method::GET, &url, Follow::ToContent, None, true).await?;
        let body = answer.1;
        let found: RevisionAnswer = serde_json::from_slice(&body).map_err(|error| {
            let reason = format!(
                "{} answers with something else than the hub does: is HF_ENDPOINT right?",
                shown_url(url.as_str())
            );
            SourceError::Refused { place: self.place(), reason, source: Some(error.into()) }
        })?;
        if !is_name(&found.sha) {
            return Err(
                self.odd(None, format!("the commit {:?} can't be one", shorten(&found.sha)))
            );
        }
        let files = found.siblings.into_iter().map(|file| file.rfilename).collect();
        Ok(Revision { commit: found.sha, files })
    }

    /// Looks a file up.
    pub(super) async fn describe(
        &self,
        commit: &str,
        name: &str,
    ) -> Result<Description, SourceError> {
        let url = self.file_url(commit, name);
        let answer = self.ask(Method::HEAD, &url, Follow::ToDescription, Some(name), false).await?;
        let response = answer.0.response;
        let headers = response.headers();
        let linked = text(headers, LINKED_ETAG);
        let etag = linked.or_else(|| text(headers, "etag")).map(plain_etag);
        let Some(etag) = etag.filter(|etag| is_name(etag)) else {
            let found = etag.map_or_else(|| "none".to_owned(), |e| format!("{:?}", shorten(e)));
            return Err(
                self.odd(Some(name), format!("its ETag is {found}, which names no content"))
            );
        };
        if let Some(other) = text(headers, REPO_COMMIT).filter(|other| *other != commit) {
            let reason = format!("commit {} was answered, {commit} was asked for", shorten(other));
            return Err(self.odd(Some(name), reason));
        }
        let size = text(headers, LINKED_SIZE).or_else(|| {
            text(headers, "content-length").filter(|_| !response.status().is_redirection())
        });
        let Some(size) = size.and_then(|size| size.trim().parse().ok()) else {
            return Err(self.odd(Some(name), "its size was not answered".to_owned()));
        };
        let is_hex = etag.len() == 64 && etag.bytes().all(|b| b.is_ascii_hexdigit());
        let is_sha256 = linked.is_some() && is_hex;
        Ok(Description { etag: etag.to_owned(), is_sha256, size })
    }

    /// Asks until there is an answer that stands.
    async fn ask(
        &self,
        method: Method,
        url: &Url,
        follow: Follow,
        file: Option<&str>,
        with_body: bool,
    ) -> Result<(Answer, Vec<u8>), SourceError> {
        let mut n_failures = 0;
        loop {
            let (after, cause) = match self.try_ask(method.clone(), url, follow, with_body).await {
                Ok(answered) => {
                    let response = &answered.0.response;
                    let status = response.status();
                    let described = follow == Follow::ToDescription && status.is_redirection();
                    match status.is_success() || described {
                        true => return Ok(answered),
                        false => return Err(self.explain(file)(status, response.headers())),
                    }
                }
                Err(ReadError::Again { after, cause }) => (after, cause),
                Err(ReadError::Refused(error)) => return Err(error),
                Err(_) => (None, "the answer makes no sense".into()),
            };
            n_failures += 1;
            if n_failures >= MAX_TRIES {
                return Err(SourceError::Unreachable {
                    place: self.place(),
                    reason: format!(
                        "the hub at {} does not answer, {n_failures} tries: check the network and \
                         HF_ENDPOINT, or name a local directory",
                        shown_url(self.endpoint.as_str())
                    ),
                    source: Some(cause),
                });
            }
            let wait = retry::wait(n_failures, after);
            tracing::debug!(model = self.id, %cause, wait_ms = wait.as_millis() as u64,
                "the hub did not answer: trying again");
            tokio::time::sleep(wait).await;
        }
    }

    async fn try_ask(
        &self,
        method: Method,
        url: &Url,
        follow: Follow,
        with_body: bool,
    ) -> Result<(Answer, Vec<u8>), ReadError> {
        const PATIENCE: std::time::Duration = std::time::Duration::from_secs(30);
        let ask = async {
            let sent = self.client.send(method, url, None, follow).await;
            let mut answer = sent.map_err(ReadError::again)?;
            if let Some(error) = passing(&answer.response) {
                return Err(error);
            }
            let mut body = Vec::new();
            if with_body && answer.response.status().is_success() {
                body = read_body(&mut answer).await.map_err(ReadError::again)?;
            }
            Ok((answer, body))
        };
        let late = |_| ReadError::again("no answer within 30 s");
        tokio::time::timeout(PATIENCE, ask).await.map_err(late)?
    }

    /// Tells a user what a refusal means.
    pub(super) fn explain(&self, file: Option<&str>) -> Explain {
        let place = match file {
            Some(file) => format!("{} {}", self.place(), shorten(file)),
            None => self.place(),
        };
        let (id, revision, has_token) = (self.id.clone(), self.revision.clone(), self.has_token);
        let page = format!("{}/{id}", shown_url(self.endpoint.as_str()).trim_end_matches('/'));
        Arc::new(move |status: StatusCode, headers: &HeaderMap| {
            let code = text(headers, ERROR_CODE).unwrap_or_default();
            let reason = match (status.as_u16(), code) {
                (_, "GatedRepo") if has_token => format!(
                    "is gated: accept its terms at {page} with the account that the token in \
                     HF_TOKEN belongs to"
                ),
                (_, "GatedRepo") => format!(
                    "is gated: accept its terms at {page}, and set HF_TOKEN to a token of that account"
                ),
                (404, "RevisionNotFound") => format!(
                    "the repository has no revision {revision}: set option.revision to a branch, a \
                     tag or a commit that it has"
                ),
                (404, "EntryNotFound") => {
                    "the repository lists this file and does not have it".into()
                }
                (401, _) if has_token => {
                    "the hub does not accept the token in HF_TOKEN for it, or \
                     has no such repository: check the token and the id"
                        .to_owned()
                }
                (401, _) | (404, "RepoNotFound") => format!(
                    "the hub has no public repository {id}, and there is no such path here: check \
                     the id, and for a private one set HF_TOKEN"
                ),
                (403, _) => format!(
                    "the token in HF_TOKEN may not read it: give the token access to {id}, or accept \
                     its terms at {page}"
                ),
                (404, _) => format!(
                    "the hub has no repository {id} with this revision, and there is no such path \
                     here: check the id and option.revision"
                ),
                _ => format!("the hub answers {status}"),
            };
            let reason = format!("{reason}{}", own_words(headers));
            SourceError::Refused { place: place.clone(), reason, source: None }
        })
    }

    fn odd(&self, file: Option<&str>, reason: String) -> SourceError {
        let place = match file {
            Some(file) => format!("{} {}", self.place(), shorten(file)),
            None => self.place(),
        };
        let reason = format!("{reason}: is HF_ENDPOINT a hub?");
        SourceError::Refused { place, reason, source: None }
    }

    fn url<'a>(&self, parts: impl Iterator<Item = &'a str>) -> Url {
        let mut url = self.endpoint.clone();
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty().extend(parts);
        }
        url
    }
}

async fn read_body(answer: &mut Answer) -> Result<Vec<u8>, Cause> {
    let mut body = Vec::new();
    while let Some(chunk) =
        answer.response.chunk().await.map_err(|error| Cause::from(error.without_url()))?
    {
        if body.len() + chunk.len() > MAX_ANSWER_BYTES {
            return Err(format!("the answer is larger than {MAX_ANSWER_BYTES} bytes").into());
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// Whether a text from outside may become the name of a file in the cache.
fn is_name(text: &str) -> bool {
    let fits = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
    (1..=128).contains(&text.len()) && text.bytes().all(fits) && !text.starts_with('.')
}
