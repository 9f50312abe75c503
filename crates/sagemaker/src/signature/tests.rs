//! Signatures against those of boto3, recorded, and against requests that were changed on their way.

use hyper::Request;
use hyper::header::{HeaderName, HeaderValue};

use super::*;

fn credentials() -> Credentials {
    Credentials {
        access_key_id: "AKIATESTKEY".to_owned(),
        secret_access_key: "verysecret".to_owned(),
        session_token: None,
    }
}

const BODY: &str = "I think my dog is really cute!";
const STAMP: &str = "20261127T162009Z";
const AUTHORIZATION_VALUE: &str = "AWS4-HMAC-SHA256 Credential=AKIATESTKEY/20261127/eu-central-1/sagemaker/aws4_request, \
    SignedHeaders=accept;content-type;host;x-amz-date;x-amzn-sagemaker-inference-id, \
    Signature=7118be9f012abc7f316c3655d7c26c6d3b9de6c1a5bb19573afce57448735a0a";

fn request(changes: &[(&'static str, &str)]) -> Parts {
    let (mut parts, ()) = Request::post("http://127.0.0.1:4571/endpoints/e%20x/invocations")
        .body(())
        .unwrap()
        .into_parts();
    let mut set = |name: &'static str, value: &str| {
        let value = HeaderValue::from_str(value).unwrap();
        parts.headers.insert(HeaderName::from_static(name), value);
    };
    set("host", "127.0.0.1:4571");
    set("content-type", "text/plain");
    set("accept", "application/json");
    set("x-amzn-sagemaker-inference-id", "id-1");
    set("x-amz-date", STAMP);
    set("authorization", AUTHORIZATION_VALUE);
    for (name, value) in changes {
        set(name, value);
    }
    parts
}

fn seconds_after(seconds: u64) -> SystemTime {
    time_of(STAMP).unwrap() + Duration::from_secs(seconds)
}

fn verdict(changes: &[(&'static str, &str)], body: &str, after: u64) -> Result<(), FaultKind> {
    let parts = request(changes);
    let region = "eu-central-1";
    check(&credentials(), region, &parts, body.as_bytes(), seconds_after(after))
        .map_err(|fault| fault.kind)
}

#[test]
fn what_boto3_signed_is_taken() {
    assert_eq!(verdict(&[], BODY, 0), Ok(()));
    assert_eq!(verdict(&[], BODY, 299), Ok(()));
    // A header that was not signed may change on the way.
    assert_eq!(verdict(&[("x-forwarded-for", "::1"), ("user-agent", "y")], BODY, 0), Ok(()));
}

#[test]
fn what_was_changed_on_its_way_is_not() {
    let bad = Err(FaultKind::BadSignature);
    assert_eq!(verdict(&[], "another body", 0), bad);
    assert_eq!(verdict(&[("content-type", "application/json")], BODY, 0), bad);
    assert_eq!(verdict(&[("host", "other")], BODY, 0), bad);
    assert_eq!(verdict(&[], BODY, 301), bad);
    let other_region = AUTHORIZATION_VALUE.replace("eu-central-1", "us-east-1");
    assert_eq!(verdict(&[("authorization", &other_region)], BODY, 0), bad);
    let other_service = AUTHORIZATION_VALUE.replace("/sagemaker/", "/s3/");
    assert_eq!(verdict(&[("authorization", &other_service)], BODY, 0), bad);
    let cut = &AUTHORIZATION_VALUE[..AUTHORIZATION_VALUE.len() - 1];
    assert_eq!(verdict(&[("authorization", cut)], BODY, 0), bad);
    let parts = request(&[]);
    let other = Credentials { secret_access_key: "other".to_owned(), ..credentials() };
    let fault = check(&other, "eu-central-1", &parts, BODY.as_bytes(), seconds_after(0));
    assert_eq!(fault.unwrap_err().kind, FaultKind::BadSignature);
}

#[test]
fn who_is_not_known_is_told_so() {
    let other_key = AUTHORIZATION_VALUE.replace("AKIATESTKEY", "AKIAOTHER");
    let verdict_of = |changes: &[(&'static str, &str)]| verdict(changes, BODY, 0).unwrap_err();
    assert_eq!(verdict_of(&[("authorization", &other_key)]), FaultKind::UnknownKey);
    assert_eq!(verdict_of(&[("x-amz-security-token", "t")]), FaultKind::UnknownKey);
    let mut parts = request(&[]);
    parts.headers.remove("authorization");
    let fault = check(&credentials(), "eu-central-1", &parts, b"", seconds_after(0)).unwrap_err();
    assert_eq!(fault.kind, FaultKind::MissingSignature);
}

#[test]
fn what_is_no_signature_is_refused() {
    for header in [
        "",
        "Basic dXNlcjpwYXNz",
        "AWS4-HMAC-SHA256",
        "AWS4-HMAC-SHA256 Credential=a/b, SignedHeaders=host, Signature=0",
        "AWS4-HMAC-SHA256 Credential=k/20260131/r/s/other, SignedHeaders=host, Signature=0",
        "AWS4-HMAC-SHA256 Credential=k/20260131/r/s/aws4_request, SignedHeaders=host",
    ] {
        let found = verdict(&[("authorization", header)], BODY, 0);
        assert_eq!(found, Err(FaultKind::IncompleteSignature), "{header}");
    }
    let unsent = AUTHORIZATION_VALUE.replace("SignedHeaders=", "SignedHeaders=x-unsent;");
    let found = verdict(&[("authorization", &unsent)], BODY, 0);
    assert_eq!(found, Err(FaultKind::IncompleteSignature));
    for stamp in ["", "yesterday", "20261301T000000Z", "20260131T2359599", "20260131t235959Z"] {
        let found = verdict(&[("x-amz-date", stamp)], BODY, 0);
        assert_eq!(found, Err(FaultKind::IncompleteSignature), "{stamp}");
    }
}
