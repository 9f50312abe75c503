//! Requests to a container.

use std::error::Error;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::header::{HOST, HeaderMap, HeaderValue};
use hyper::{Method, Request, Response, Uri};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::timeout;

/// A request to a container.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub(crate) method: Method,
    pub(crate) path: String,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

/// An answer of a container, whole.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

/// Why a container gave no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CallError {
    #[error("the container takes no connection on port {port}")]
    Connect {
        port: u16,
        #[source]
        source: Option<std::io::Error>,
    },
    #[error("the container broke the connection off")]
    Broken(#[source] hyper::Error),
    #[error("the container's answer broke off")]
    Cut(#[source] Box<dyn Error + Send + Sync>),
    #[error("the container's answer is larger than {limit} bytes")]
    TooLarge { limit: usize },
    #[error("the request can't be written: {reason}")]
    Unwritable { reason: String },
}

impl Call {
    /// A request without headers or body.
    pub(crate) fn bare(method: Method, path: impl Into<String>) -> Self {
        Self { method, path: path.into(), headers: HeaderMap::new(), body: Bytes::new() }
    }

    /// Sends it to `port`; the answer's body comes as the container sends it, and dropping it ends
    /// the connection.
    pub(crate) async fn send(
        self,
        port: u16,
        connect: Duration,
    ) -> Result<Response<Incoming>, CallError> {
        let stream = match timeout(connect, TcpStream::connect(("127.0.0.1", port))).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(source)) => return Err(CallError::Connect { port, source: Some(source) }),
            Err(_) => return Err(CallError::Connect { port, source: None }),
        };
        // Small requests should not wait for company.
        let _ = stream.set_nodelay(true);
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(CallError::Broken)?;
        tokio::spawn(async move {
            // What goes wrong is told to whoever waits for the answer.
            let _ = connection.await;
        });
        let unwritable = |reason: String| CallError::Unwritable { reason };
        let uri: Uri = self.path.parse().map_err(|error| unwritable(format!("{error}")))?;
        let host = HeaderValue::from_str(&format!("127.0.0.1:{port}"));
        let mut request = Request::new(Full::new(self.body));
        *request.method_mut() = self.method;
        *request.uri_mut() = uri;
        *request.headers_mut() = self.headers;
        request.headers_mut().insert(HOST, host.map_err(|error| unwritable(error.to_string()))?);
        sender.send_request(request).await.map_err(CallError::Broken)
    }

    /// Sends it, and reads an answer of up to `limit` bytes.
    pub(crate) async fn ask(
        self,
        port: u16,
        connect: Duration,
        limit: usize,
    ) -> Result<Answer, CallError> {
        let response = self.send(port, connect).await?;
        let (parts, body) = response.into_parts();
        let body = match Limited::new(body, limit).collect().await {
            Ok(body) => body.to_bytes(),
            Err(error) if error.is::<LengthLimitError>() => {
                return Err(CallError::TooLarge { limit });
            }
            Err(error) => return Err(CallError::Cut(error)),
        };
        Ok(Answer { status: parts.status.as_u16(), headers: parts.headers, body })
    }
}
