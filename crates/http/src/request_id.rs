//! The id a request goes by in logs and in its reply.

use axum::http::{HeaderMap, HeaderName, HeaderValue};
use uuid::Uuid;

/// Longest id taken from a client.
const MAX_BYTES: usize = 128;

const INFERENCE_ID: HeaderName = HeaderName::from_static("x-amzn-sagemaker-inference-id");

/// The id of a request; printable ASCII.
#[derive(Clone, Debug)]
pub(crate) struct RequestId(HeaderValue);

impl RequestId {
    /// The id in the header `key`, else SageMaker's inference id, else a fresh one. One that is
    /// empty, too long or not printable is not taken over.
    pub(crate) fn of(headers: &HeaderMap, key: &HeaderName) -> Self {
        [key, &INFERENCE_ID]
            .into_iter()
            .filter_map(|name| headers.get(name))
            .find(|value| !value.is_empty() && value.len() <= MAX_BYTES && value.to_str().is_ok())
            .map_or_else(Self::fresh, |value| Self(value.clone()))
    }

    /// A random one.
    pub(crate) fn fresh() -> Self {
        let mut buffer = Uuid::encode_buffer();
        let text = Uuid::new_v4().hyphenated().encode_lower(&mut buffer);
        Self(HeaderValue::from_str(text).expect("a uuid is hexadecimal digits and hyphens"))
    }

    /// The id as text.
    pub(crate) fn as_str(&self) -> &str {
        self.0.to_str().unwrap_or_default()
    }

    /// The id as a header's value.
    pub(crate) fn header_value(&self) -> HeaderValue {
        self.0.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_configured_header_wins_and_rubbish_is_replaced() {
        let key = HeaderName::from_static("x-request-id");
        let mut headers = HeaderMap::new();
        assert_eq!(RequestId::of(&headers, &key).as_str().len(), 36);
        headers.insert(INFERENCE_ID, HeaderValue::from_static("from-sagemaker"));
        assert_eq!(RequestId::of(&headers, &key).as_str(), "from-sagemaker");
        headers.insert(&key, HeaderValue::from_static("mine"));
        assert_eq!(RequestId::of(&headers, &key).as_str(), "mine");
        for bad in [&b"\xff"[..], b"", &[b'a'; 129]] {
            headers.insert(&key, HeaderValue::from_bytes(bad).unwrap());
            assert_eq!(RequestId::of(&headers, &key).as_str(), "from-sagemaker");
        }
    }
}
