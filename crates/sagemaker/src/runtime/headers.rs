//! Headers of an invocation: which reach the container, and which come back.

use hyper::HeaderMap;
use hyper::header::{ACCEPT, CONTENT_TYPE, HeaderName, HeaderValue};

use crate::fault::Fault;

pub(super) const TARGET_MODEL: &str = "x-amzn-sagemaker-target-model";
pub(super) const TARGET_VARIANT: &str = "x-amzn-sagemaker-target-variant";
pub(super) const INFERENCE_ID: &str = "x-amzn-sagemaker-inference-id";
pub(super) const CUSTOM_ATTRIBUTES: &str = "x-amzn-sagemaker-custom-attributes";
const SESSION_ID: &str = "x-amzn-sagemaker-session-id";
const NEW_SESSION_ID: &str = "x-amzn-sagemaker-new-session-id";
const CLOSED_SESSION_ID: &str = "x-amzn-sagemaker-closed-session-id";
const COMPONENT: &str = "x-amzn-sagemaker-inference-component";
const HOSTNAME: &str = "x-amzn-sagemaker-target-container-hostname";
const FORWARDED_API: HeaderName = HeaderName::from_static("x-amzn-sagemaker-forwarded-api");
const VARIANT: HeaderName = HeaderName::from_static("x-amzn-invoked-production-variant");

/// What a session's first request says.
const NEW_SESSION: &[u8] = b"NEW_SESSION";

/// Headers that reach the container; others are SageMaker's, or unknown to it.
const TO_CONTAINER: [&str; 6] =
    ["content-type", "accept", CUSTOM_ATTRIBUTES, INFERENCE_ID, SESSION_ID, TARGET_MODEL];

/// Headers that come back as they are.
const FROM_CONTAINER: [&str; 4] =
    ["content-type", CUSTOM_ATTRIBUTES, NEW_SESSION_ID, CLOSED_SESSION_ID];

/// Longest values.
const LENGTHS: [(&str, usize); 3] =
    [(CUSTOM_ATTRIBUTES, 1024), (INFERENCE_ID, 64), (SESSION_ID, 256)];

/// A header's value, where it is a text.
pub(super) fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok()).filter(|value| !value.is_empty())
}

/// Looks at what the service itself looks at.
///
/// # Errors
/// A value is too long, or asks for what there is none of.
pub(super) fn check(headers: &HeaderMap) -> Result<(), Fault> {
    for (name, most) in LENGTHS {
        let Some(value) = headers.get(name) else { continue };
        if value.len() > most || value.to_str().is_err() {
            return Err(Fault::validation(format!(
                "{name}: expected up to {most} visible ASCII characters"
            )));
        }
    }
    for name in [COMPONENT, HOSTNAME] {
        if headers.contains_key(name) {
            return Err(Fault::validation(format!(
                "{name}: endpoints have one container a variant here, and no inference components"
            )));
        }
    }
    Ok(())
}

/// The headers that the container gets; `api` is the call's name.
pub(super) fn to_container(headers: &HeaderMap, api: &'static str) -> HeaderMap {
    let mut kept = HeaderMap::new();
    for name in TO_CONTAINER {
        if let Some(value) = headers.get(name) {
            kept.insert(HeaderName::from_static(name), value.clone());
        }
    }
    // What HTTP libraries say by themselves says nothing of the answer that is wanted.
    if kept.get(ACCEPT).is_some_and(|accept| accept.as_bytes() == b"*/*") {
        kept.remove(ACCEPT);
    }
    kept.insert(FORWARDED_API, HeaderValue::from_static(api));
    kept
}

/// The headers that the client gets.
pub(super) fn to_client(asked: &HeaderMap, answered: &HeaderMap, variant: &str) -> HeaderMap {
    let mut kept = HeaderMap::new();
    for name in FROM_CONTAINER {
        if let Some(value) = answered.get(name) {
            kept.insert(HeaderName::from_static(name), value.clone());
        }
    }
    // A container of the older contract answers a new session under the name that it was asked by.
    let is_new = asked.get(SESSION_ID).is_some_and(|id| id.as_bytes() == NEW_SESSION);
    if let (true, false, Some(id)) =
        (is_new, kept.contains_key(NEW_SESSION_ID), answered.get(SESSION_ID))
    {
        kept.insert(HeaderName::from_static(NEW_SESSION_ID), id.clone());
    }
    if let Ok(variant) = HeaderValue::from_str(variant) {
        kept.insert(VARIANT, variant);
    }
    kept
}

/// The content type of an answer.
pub(super) fn content_type(headers: &HeaderMap) -> Option<HeaderValue> {
    headers.get(CONTENT_TYPE).cloned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)))
            .collect()
    }

    #[test]
    fn unknown_headers_are_stripped() {
        let asked = map(&[
            ("content-type", "text/plain"),
            ("authorization", "AWS4"),
            ("x-own", "1"),
            ("accept", "*/*"),
            ("x-amzn-sagemaker-custom-attributes", "a=b"),
            ("x-amzn-sagemaker-target-variant", "v"),
        ]);
        let sent = to_container(&asked, "InvokeEndpoint");
        let mut names: Vec<&str> = sent.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        let wanted = ["content-type", CUSTOM_ATTRIBUTES, "x-amzn-sagemaker-forwarded-api"];
        assert_eq!(names, wanted);
        let answered = map(&[("content-type", "text/plain"), ("server", "x")]);
        let back = to_client(&asked, &answered, "AllTraffic");
        assert_eq!(back.len(), 2, "{back:?}");
        assert_eq!(back[VARIANT], "AllTraffic");
    }

    #[test]
    fn a_new_session_is_told_under_its_own_name() {
        let asked = map(&[("x-amzn-sagemaker-session-id", "NEW_SESSION")]);
        let answered = map(&[("x-amzn-sagemaker-session-id", "id; Expires=x")]);
        assert_eq!(to_client(&asked, &answered, "v")[NEW_SESSION_ID], "id; Expires=x");
        assert!(!to_client(&map(&[]), &answered, "v").contains_key(NEW_SESSION_ID));
    }

    #[test]
    fn values_have_the_services_lengths() {
        let long = HeaderValue::from_str(&"a".repeat(1025)).unwrap();
        let mut headers = HeaderMap::new();
        headers.insert(HeaderName::from_static(CUSTOM_ATTRIBUTES), long);
        assert!(check(&headers).unwrap_err().message.contains("1024"));
        assert!(check(&map(&[(COMPONENT, "c")])).is_err());
        assert!(check(&map(&[(INFERENCE_ID, "i")])).is_ok());
    }
}
