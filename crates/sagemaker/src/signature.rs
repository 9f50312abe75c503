//! Who asks: AWS's signature, version 4, checked by signing the request again.
//!
//! A client signs what it sends with its secret key; the same request, key, time, region and service
//! give the same signature. So the request is taken apart as the `Authorization` header says, signed
//! by AWS's own implementation, and the two are compared.
//! <https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_sigv.html>

use std::time::{Duration, SystemTime};

use aws_credential_types::Credentials as Keys;
use aws_sigv4::http_request::{SignableBody, SignableRequest, SigningSettings, sign};
use aws_sigv4::sign::v4::SigningParams;
use aws_smithy_types::DateTime;
use aws_smithy_types::date_time::Format;
use hyper::HeaderMap;
use hyper::header::AUTHORIZATION;
use hyper::http::request::Parts;

use crate::fault::{Fault, FaultKind};
use crate::options::Credentials;

/// The service that both APIs are signed for.
const SERVICE: &str = "sagemaker";
const ALGORITHM: &str = "AWS4-HMAC-SHA256";
const DATE: &str = "x-amz-date";
const TOKEN: &str = "x-amz-security-token";
/// How far the clocks of client and service may be apart.
const MAX_SKEW: Duration = Duration::from_secs(300);

/// What an `Authorization` header says.
#[derive(Debug, PartialEq, Eq)]
struct Authorization<'a> {
    key_id: &'a str,
    date: &'a str,
    region: &'a str,
    service: &'a str,
    signed: Vec<&'a str>,
    signature: &'a str,
}

/// Whether the request is signed with `credentials`, for `region` and about now.
///
/// # Errors
/// It is not signed, or not so.
pub(crate) fn check(
    credentials: &Credentials,
    region: &str,
    request: &Parts,
    body: &[u8],
    now: SystemTime,
) -> Result<(), Fault> {
    let Some(header) = request.headers.get(AUTHORIZATION) else {
        return Err(Fault::new(
            FaultKind::MissingSignature,
            "the request is not signed: give the client the keys that sagemaker-local was started with",
        ));
    };
    let authorization = header.to_str().ok().and_then(read).ok_or_else(|| {
        incomplete(
            "Authorization: expected AWS4-HMAC-SHA256 with Credential, SignedHeaders and Signature",
        )
    })?;
    if authorization.key_id != credentials.access_key_id {
        return Err(Fault::new(
            FaultKind::UnknownKey,
            "the access key id is not the one that sagemaker-local was started with",
        ));
    }
    let scope = (authorization.region, authorization.service);
    if scope != (region, SERVICE) {
        return Err(bad(format!(
            "Credential should be scoped to {region}/{SERVICE}, it is to {}/{}",
            scope.0, scope.1
        )));
    }
    if credentials.session_token.as_deref() != text(&request.headers, TOKEN) {
        return Err(Fault::new(
            FaultKind::UnknownKey,
            "the session token is not the one that sagemaker-local was started with",
        ));
    }
    let stamp = text(&request.headers, DATE).ok_or_else(|| incomplete("X-Amz-Date is missing"))?;
    let time = time_of(stamp).ok_or_else(|| incomplete("X-Amz-Date: expected 20260131T235959Z"))?;
    if !stamp.starts_with(authorization.date) {
        return Err(bad("X-Amz-Date is of another day than the credential's scope".to_owned()));
    }
    let skew = now.duration_since(time).or_else(|_| time.duration_since(now)).unwrap_or_default();
    if skew > MAX_SKEW {
        return Err(bad(format!("the signature's time is {} s off", skew.as_secs())));
    }
    let wanted = signature(credentials, &authorization, request, body, time)?;
    // Comparing takes the same time whatever differs: the digests' lengths are equal.
    let differs =
        wanted.bytes().zip(authorization.signature.bytes()).fold(0, |d, (a, b)| d | (a ^ b));
    match differs == 0 && wanted.len() == authorization.signature.len() {
        true => Ok(()),
        false => Err(bad(
            "the signature is not that of the request: check the secret access key".to_owned()
        )),
    }
}

/// The signature that the request should have.
fn signature(
    credentials: &Credentials,
    authorization: &Authorization<'_>,
    request: &Parts,
    body: &[u8],
    time: SystemTime,
) -> Result<String, Fault> {
    let identity = Keys::new(
        credentials.access_key_id.clone(),
        credentials.secret_access_key.clone(),
        credentials.session_token.clone(),
        None,
        "sagemaker-local",
    )
    .into();
    // Every header that the client says it signed is signed, and no other.
    let mut settings = SigningSettings::default();
    settings.excluded_headers = None;
    let failed =
        |error: &dyn std::error::Error| bad(format!("the request can't be signed: {error}"));
    let params = SigningParams::builder()
        .identity(&identity)
        .region(authorization.region)
        .name(authorization.service)
        .time(time)
        .settings(settings)
        .build()
        .map_err(|error| failed(&error))?
        .into();
    let mut headers = Vec::with_capacity(authorization.signed.len());
    for name in &authorization.signed {
        let value = text(&request.headers, name)
            .ok_or_else(|| incomplete("SignedHeaders names a header that is not there"))?;
        headers.push((*name, value));
    }
    let host = text(&request.headers, "host").ok_or_else(|| incomplete("Host is missing"))?;
    let path = request.uri.path_and_query().map_or("/", |path| path.as_str());
    let uri = format!("http://{host}{path}");
    let signable = SignableRequest::new(
        request.method.as_str(),
        uri,
        headers.into_iter(),
        SignableBody::Bytes(body),
    )
    .map_err(|error| failed(&error))?;
    let signed = sign(signable, &params).map_err(|error| failed(&error))?;
    Ok(signed.signature().to_owned())
}

fn read(header: &str) -> Option<Authorization<'_>> {
    let fields = header.trim().strip_prefix(ALGORITHM)?;
    let field = |name: &str| {
        let found = fields.split(',').find_map(|field| field.trim().strip_prefix(name));
        found.and_then(|rest| rest.strip_prefix('=')).filter(|value| !value.is_empty())
    };
    let mut scope = field("Credential")?.rsplitn(5, '/');
    let (end, service, region) = (scope.next()?, scope.next()?, scope.next()?);
    let (date, key_id) = (scope.next()?, scope.next()?);
    let authorization = Authorization {
        key_id,
        date,
        region,
        service,
        signed: field("SignedHeaders")?.split(';').collect(),
        signature: field("Signature")?,
    };
    (end == "aws4_request").then_some(authorization)
}

/// The time of `20260131T235959Z`.
fn time_of(stamp: &str) -> Option<SystemTime> {
    let bytes = stamp.as_bytes();
    let is_stamp = bytes.len() == 16 && stamp.is_ascii() && bytes[8] == b'T' && bytes[15] == b'Z';
    let part = |range: std::ops::Range<usize>| stamp.get(range);
    let text = is_stamp.then(|| {
        Some(format!(
            "{}-{}-{}T{}:{}:{}Z",
            part(0..4)?,
            part(4..6)?,
            part(6..8)?,
            part(9..11)?,
            part(11..13)?,
            part(13..15)?
        ))
    })??;
    let time = DateTime::from_str(&text, Format::DateTime).ok()?;
    SystemTime::try_from(time).ok()
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

fn incomplete(message: &str) -> Fault {
    Fault::new(FaultKind::IncompleteSignature, message)
}

fn bad(message: String) -> Fault {
    Fault::new(FaultKind::BadSignature, message)
}

#[cfg(test)]
mod tests;
