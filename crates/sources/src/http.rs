//! Requests over HTTP: redirects, the token's reach, and a file that is read in ranges.
//!
//! `hf-hub` has a client for the hub, and none of its versions does what is needed here: pieces of a
//! file in parallel that go on after a kill, a check of the version on every piece, `Retry-After`, an
//! order to stop. So this is `reqwest` (which `object_store` brings anyway), with redirects followed
//! by hand: a token goes to the host it is meant for and nowhere else.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::future::BoxFuture;
use futures::{StreamExt, TryStreamExt};
use reqwest::header::{self, HeaderMap};
use reqwest::{Method, Response, StatusCode, Url};

use crate::download::{Body, ReadError, Remote};
use crate::error::{Cause, SourceError, shorten};
use crate::options::Hidden;
use crate::retry;
use crate::source::shown_url;

const MAX_REDIRECTS: u32 = 8;
/// The hub's own headers: sum and size of a file that is stored elsewhere, commit, kind of error.
pub(crate) const LINKED_ETAG: &str = "x-linked-etag";
pub(crate) const LINKED_SIZE: &str = "x-linked-size";
pub(crate) const REPO_COMMIT: &str = "x-repo-commit";
pub(crate) const ERROR_CODE: &str = "x-error-code";
pub(crate) const ERROR_MESSAGE: &str = "x-error-message";

/// A client whose token goes to one host.
#[derive(Debug)]
pub(crate) struct Client {
    inner: reqwest::Client,
    token: Option<(Url, Hidden)>,
}

/// How far redirects are followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Follow {
    /// To the content.
    ToContent,
    /// To the answer that says what the content is: not to another host, nor beyond a linked sum.
    ToDescription,
}

/// An answer, and what the first redirect on the way to it said.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) response: Response,
    /// The headers of the first answer, where that was a redirect.
    pub(crate) redirected: Option<HeaderMap>,
    /// Whether another host gave the answer.
    pub(crate) elsewhere: bool,
}

/// Chooses the one implementation of TLS, which needs neither OpenSSL nor a C toolchain.
pub(crate) fn install_tls() {
    // An error says that the process has one already.
    let _ = rustls::crypto::ring::default_provider().install_default();
}

impl Client {
    /// A client; `token` goes to the host of its address.
    pub(crate) fn new(
        connect_timeout: Duration,
        token: Option<(Url, Hidden)>,
    ) -> Result<Self, SourceError> {
        install_tls();
        let inner = reqwest::Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(connect_timeout)
            .pool_max_idle_per_host(64)
            .user_agent(concat!("drivetrain/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|error| SourceError::Unreachable {
                place: "network".to_owned(),
                reason: "no client for HTTPS can be made: are the certificates of authorities \
                         installed (ca-certificates, or SSL_CERT_FILE)?"
                    .to_owned(),
                source: Some(error.into()),
            })?;
        Ok(Self { inner, token })
    }

    /// Sends a request without a body, and follows its redirects.
    pub(crate) async fn send(
        &self,
        method: Method,
        url: &Url,
        range: Option<&Range<u64>>,
        follow: Follow,
    ) -> Result<Answer, Cause> {
        let mut at = url.clone();
        let mut redirected = None;
        for _ in 0..MAX_REDIRECTS {
            let mut request = self
                .inner
                .request(method.clone(), at.clone())
                .header(header::ACCEPT_ENCODING, "identity");
            if let Some(range) = range {
                let last = range.end.saturating_sub(1);
                request = request.header(header::RANGE, format!("bytes={}-{last}", range.start));
            }
            if let Some((_, token)) = self.token.as_ref().filter(|(host, _)| same_host(host, &at)) {
                request = request.bearer_auth(token.expose());
            }
            let response = request.send().await.map_err(|error| without_url(error, &at))?;
            let Some(next) = next_stop(&at, &response)? else {
                let elsewhere = !same_host(url, &at);
                return Ok(Answer { response, redirected, elsewhere });
            };
            let described = response.headers().contains_key(LINKED_ETAG);
            if follow == Follow::ToDescription && (described || !same_host(&at, &next)) {
                return Ok(Answer { response, redirected, elsewhere: false });
            }
            redirected.get_or_insert_with(|| response.headers().clone());
            at = next;
        }
        Err(format!("more than {MAX_REDIRECTS} redirects").into())
    }
}

/// Where a redirect leads; `None` for any other answer.
fn next_stop(at: &Url, response: &Response) -> Result<Option<Url>, Cause> {
    let is_redirect = matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308);
    let Some(location) = response.headers().get(header::LOCATION).filter(|_| is_redirect) else {
        return Ok(None);
    };
    let bad = || Cause::from("a redirect leads to no address");
    let next = at.join(location.to_str().map_err(|_| bad())?).map_err(|_| bad())?;
    if next.scheme() != "https" && (at.scheme() == "https" || next.scheme() != "http") {
        return Err(format!(
            "a redirect from {} to {} is not followed: it leads away from https",
            shown_url(at.as_str()),
            shown_url(next.as_str())
        )
        .into());
    }
    Ok(Some(next))
}

fn same_host(a: &Url, b: &Url) -> bool {
    a.scheme() == b.scheme()
        && a.host() == b.host()
        && a.port_or_known_default() == b.port_or_known_default()
}

/// The address is taken out of an error: its query may be what grants access.
pub(crate) fn without_url(error: reqwest::Error, url: &Url) -> Cause {
    struct At(String, reqwest::Error);
    impl std::fmt::Debug for At {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            std::fmt::Display::fmt(self, f)
        }
    }
    impl std::fmt::Display for At {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            write!(f, "{}: {}", self.0, self.1)
        }
    }
    impl std::error::Error for At {
        fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
            self.1.source()
        }
    }
    Box::new(At(shown_url(url.as_str()), error.without_url()))
}

/// A header's text.
pub(crate) fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

/// An entity tag without its quotes, weak or not.
pub(crate) fn plain_etag(etag: &str) -> &str {
    etag.trim().trim_start_matches("W/").trim_matches('"')
}

/// What a status says of another try: `Some` where it may go better later.
pub(crate) fn passing(response: &Response) -> Option<ReadError> {
    let status = response.status();
    let may_pass = status.is_server_error()
        || matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT);
    may_pass.then(|| ReadError::Again {
        after: text(response.headers(), "retry-after").and_then(retry::retry_after),
        cause: format!("the server answers {status}").into(),
    })
}

/// How a refusal is told to a user.
pub(crate) type Explain = Arc<dyn Fn(StatusCode, &HeaderMap) -> SourceError + Send + Sync>;

/// A file behind an address.
pub(crate) struct HttpFile {
    pub(crate) client: Arc<Client>,
    pub(crate) url: Url,
    pub(crate) size: u64,
    /// The tag that the address's own host gives; the content may come from another one.
    pub(crate) etag: String,
    /// The tag of who sends the content, from its first answer on.
    pub(crate) content_etag: Mutex<Option<String>>,
    pub(crate) explain: Explain,
}

impl HttpFile {
    async fn open(&self, range: Range<u64>, whole: bool) -> Result<Body, ReadError> {
        let all = range == (0..self.size);
        let asked = Some(&range).filter(|_| !(whole || all));
        let sent = self.client.send(Method::GET, &self.url, asked, Follow::ToContent).await;
        let answer = sent.map_err(ReadError::again)?;
        let response = answer.response;
        let status = response.status();
        match status {
            StatusCode::PARTIAL_CONTENT if asked.is_some() => {
                match text(response.headers(), "content-range").and_then(content_range) {
                    Some((start, _, size)) if start == range.start && size == self.size => {}
                    Some((_, _, size)) if size != self.size => return Err(ReadError::Changed),
                    _ => return Err(ReadError::again("another range came than was asked for")),
                }
            }
            StatusCode::OK if asked.is_none() => {
                if response.content_length().is_some_and(|length| length != self.size) {
                    return Err(ReadError::Changed);
                }
            }
            StatusCode::OK => return Err(ReadError::NoRanges),
            StatusCode::RANGE_NOT_SATISFIABLE | StatusCode::PRECONDITION_FAILED => {
                return Err(ReadError::Changed);
            }
            // The address of the content holds for a while; the next try gets a new one.
            StatusCode::FORBIDDEN | StatusCode::UNAUTHORIZED if answer.elsewhere => {
                return Err(ReadError::again(format!("the content's host answers {status}")));
            }
            _ => {
                return Err(passing(&response).unwrap_or_else(|| {
                    ReadError::Refused((self.explain)(status, response.headers()))
                }));
            }
        }
        self.check_version(answer.redirected.as_ref(), response.headers())?;
        let url = self.url.clone();
        Ok(response.bytes_stream().map_err(move |error| without_url(error, &url)).boxed())
    }

    /// Whether this is still the file that was looked up.
    fn check_version(
        &self,
        redirected: Option<&HeaderMap>,
        content: &HeaderMap,
    ) -> Result<(), ReadError> {
        let own = redirected.unwrap_or(content);
        let own = text(own, LINKED_ETAG).or_else(|| text(own, "etag"));
        if own.is_some_and(|etag| plain_etag(etag) != self.etag) {
            return Err(ReadError::Changed);
        }
        let Some(content) = text(content, "etag").filter(|_| redirected.is_some()) else {
            return Ok(());
        };
        let mut known = self.content_etag.lock().unwrap_or_else(PoisonError::into_inner);
        match known.get_or_insert_with(|| content.to_owned()) == content {
            true => Ok(()),
            false => Err(ReadError::Changed),
        }
    }
}

impl Remote for HttpFile {
    fn read(&self, range: Range<u64>, whole: bool) -> BoxFuture<'_, Result<Body, ReadError>> {
        Box::pin(self.open(range, whole))
    }

    fn forget(&self) {
        *self.content_etag.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

/// First byte, last byte and size of `bytes 0-9/100`.
fn content_range(value: &str) -> Option<(u64, u64, u64)> {
    let (range, size) = value.trim().strip_prefix("bytes ")?.split_once('/')?;
    let (start, last) = range.split_once('-')?;
    Some((start.parse().ok()?, last.parse().ok()?, size.parse().ok()?))
}

/// What a server's own words add to a message, if it has any.
pub(crate) fn own_words(headers: &HeaderMap) -> String {
    text(headers, ERROR_MESSAGE).map_or_else(String::new, |words| format!(" ({})", shorten(words)))
}
