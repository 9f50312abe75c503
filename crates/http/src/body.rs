//! Reading a request's body: bounded in size and in time, and copied at most once.

use std::time::Duration;

use axum::body::{Body, HttpBody};
use axum::http::{HeaderMap, header};
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use tokio::time::{Instant, timeout_at};

use crate::failure::{ApiError, FailureKind};

/// How much of a body is read, and for how long.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BodyLimits {
    /// `max_request_size`, in bytes.
    pub(crate) max_bytes: u64,
    /// Between two pieces.
    pub(crate) piece_timeout: Duration,
    /// For the whole body.
    pub(crate) total_timeout: Duration,
}

/// How long the rest of a body that is too large is read and dropped, so that a client that is
/// still sending gets to read why it was refused.
const LINGER: Duration = Duration::from_millis(500);

/// The whole of `body`. Memory is taken as bytes arrive, never on the word of `Content-Length`.
///
/// # Errors
/// `BodyTooLarge` as soon as the announced or actual size passes the limit; `BodyTimeout`;
/// `InvalidMessage` for a body whose framing is broken.
pub(crate) async fn read_body(
    headers: &HeaderMap,
    mut body: Body,
    limits: BodyLimits,
) -> Result<Bytes, ApiError> {
    if body.size_hint().lower() > limits.max_bytes {
        let announced = body.size_hint().lower();
        if !headers.contains_key(header::EXPECT) {
            discard(&mut body, limits.max_bytes).await;
        }
        return Err(too_large(&format!("{announced} bytes"), limits.max_bytes));
    }
    let end = Instant::now() + limits.total_timeout;
    let mut first = Bytes::new();
    let mut rest = BytesMut::new();
    loop {
        let piece_end = end.min(Instant::now() + limits.piece_timeout);
        let frame = match timeout_at(piece_end, body.frame()).await {
            Ok(Some(Ok(frame))) => frame,
            Ok(Some(Err(_))) => return Err(ApiError::invalid_message()),
            Ok(None) => break,
            Err(_) => {
                return Err(ApiError::new(
                    FailureKind::BodyTimeout,
                    format!(
                        "the body did not arrive in time: {} bytes so far, the next piece may take \
                         {} s and the whole {} s",
                        first.len() + rest.len(),
                        limits.piece_timeout.as_secs(),
                        limits.total_timeout.as_secs()
                    ),
                ));
            }
        };
        let Ok(data) = frame.into_data() else { continue };
        let n_read = first.len() + rest.len() + data.len();
        if n_read as u64 > limits.max_bytes {
            drop((first, rest));
            discard(&mut body, limits.max_bytes).await;
            return Err(too_large("the body", limits.max_bytes));
        }
        if first.is_empty() && rest.is_empty() {
            first = data;
        } else {
            if rest.is_empty() {
                rest.extend_from_slice(&first);
                first = Bytes::new();
            }
            rest.extend_from_slice(&data);
        }
    }
    Ok(if rest.is_empty() { first } else { rest.freeze() })
}

fn too_large(what: &str, max_bytes: u64) -> ApiError {
    ApiError::new(
        FailureKind::BodyTooLarge,
        format!("{what} exceeds the limit of {max_bytes} bytes: raise max_request_size"),
    )
}

async fn discard(body: &mut Body, max_bytes: u64) {
    let end = Instant::now() + LINGER;
    let mut n_dropped = 0;
    while let Ok(Some(Ok(frame))) = timeout_at(end, body.frame()).await {
        n_dropped += frame.data_ref().map_or(0, Bytes::len) as u64;
        if n_dropped > max_bytes.max(1 << 20) {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::stream;

    use super::*;

    const LIMITS: BodyLimits = BodyLimits {
        max_bytes: 6,
        piece_timeout: Duration::from_millis(40),
        total_timeout: Duration::from_millis(200),
    };

    fn pieces(pieces: &[&'static str]) -> Body {
        let pieces: Vec<_> =
            pieces.iter().map(|p| Ok::<_, std::convert::Infallible>(Bytes::from(*p))).collect();
        Body::from_stream(stream::iter(pieces))
    }

    #[tokio::test]
    async fn pieces_are_joined_up_to_the_limit() {
        let headers = HeaderMap::new();
        for (body, expect) in [
            (pieces(&[]), ""),
            (pieces(&["abc"]), "abc"),
            (pieces(&["", "ab", "c", "", "def"]), "abcdef"),
        ] {
            assert_eq!(read_body(&headers, body, LIMITS).await.unwrap(), expect);
        }
        let error = read_body(&headers, pieces(&["abc", "defg"]), LIMITS).await.unwrap_err();
        assert_eq!(error.kind, FailureKind::BodyTooLarge);
        let error = read_body(&headers, Body::from("abcdefg"), LIMITS).await.unwrap_err();
        assert_eq!(error.message, "7 bytes exceeds the limit of 6 bytes: raise max_request_size");
    }

    #[tokio::test]
    async fn a_body_that_stalls_or_trickles_is_given_up() {
        let headers = HeaderMap::new();
        let stalled = Body::from_stream(stream::pending::<Result<Bytes, std::io::Error>>());
        let error = read_body(&headers, stalled, LIMITS).await.unwrap_err();
        assert_eq!(error.kind, FailureKind::BodyTimeout);
        let trickle = Body::from_stream(stream::unfold((), |()| async {
            tokio::time::sleep(Duration::from_millis(20)).await;
            Some((Ok::<_, std::io::Error>(Bytes::new()), ()))
        }));
        let error = read_body(&headers, trickle, LIMITS).await.unwrap_err();
        assert_eq!(error.kind, FailureKind::BodyTimeout);
    }
}
