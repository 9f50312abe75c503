//! The fields of a form body, urlencoded or multipart.

use axum::body::Body;
use axum::extract::{FromRequest, Multipart};
use axum::http::{HeaderMap, Request};
use bytes::Bytes;
use tokio::runtime::Handle;

use crate::content_type::{BodyFormat, ContentType};
use crate::failure::ApiError;
use crate::offload::{N_BYTES_INLINE, offload};
use crate::urlencoded::{self, NotUtf8};

/// Fields in the order sent: name and value.
pub(crate) type Fields = Vec<(String, Bytes)>;

/// Most fields a form may have.
const MAX_FIELDS: usize = 1024;

/// How much of a name a message repeats.
const MAX_NAME_CHARS: usize = 64;

/// The fields of `body`, or `None` when its content type has none.
///
/// # Errors
/// A form that cannot be taken apart, or has more than [`MAX_FIELDS`] fields.
pub(crate) async fn read_fields(
    headers: &HeaderMap,
    content_type: &ContentType,
    body: &Bytes,
) -> Result<Option<Fields>, ApiError> {
    let body = body.clone();
    match content_type.format {
        BodyFormat::Form => offload(body.len(), move || read_urlencoded(&body)).await.map(Some),
        BodyFormat::Multipart => {
            let n_bytes = body.len();
            let mut request = Request::new(Body::from(body));
            *request.headers_mut() = headers.clone();
            if n_bytes <= N_BYTES_INLINE {
                return read_multipart(request).await.map(Some);
            }
            // The parser is asynchronous but never waits: the body is all there.
            let runtime = Handle::current();
            offload(n_bytes, move || runtime.block_on(read_multipart(request))).await.map(Some)
        }
        _ => Ok(None),
    }
}

fn read_urlencoded(body: &[u8]) -> Result<Fields, ApiError> {
    let mut fields = Fields::new();
    for pair in urlencoded::pairs(body) {
        check_count(fields.len())?;
        let (name, value) = pair.map_err(|NotUtf8 { name }| {
            ApiError::untranslatable(format!(
                "form field {} is not percent-encoded utf-8",
                quoted(&name)
            ))
        })?;
        fields.push((name, Bytes::from(value)));
    }
    Ok(fields)
}

async fn read_multipart(request: Request<Body>) -> Result<Fields, ApiError> {
    let broken = |what: &dyn std::fmt::Display| {
        ApiError::untranslatable(format!("body is not multipart/form-data: {what}"))
    };
    let mut parser =
        Multipart::from_request(request, &()).await.map_err(|error| broken(&error.body_text()))?;
    let mut fields = Fields::new();
    while let Some(field) = parser.next_field().await.map_err(|error| broken(&error.body_text()))? {
        check_count(fields.len())?;
        let name = field.name().or(field.file_name()).unwrap_or("data").to_owned();
        let value = field.bytes().await.map_err(|error| {
            broken(&format_args!("field {}: {}", quoted(&name), error.body_text()))
        })?;
        fields.push((name, value));
    }
    Ok(fields)
}

/// A name that the client chose, for a message: quoted, its first characters only.
pub(crate) fn quoted(name: &str) -> String {
    match name.char_indices().nth(MAX_NAME_CHARS) {
        Some((end, _)) => format!("{:?}..", name.get(..end).unwrap_or_default()),
        None => format!("{name:?}"),
    }
}

fn check_count(n_fields: usize) -> Result<(), ApiError> {
    if n_fields < MAX_FIELDS {
        return Ok(());
    }
    Err(ApiError::untranslatable(format!("form has more than {MAX_FIELDS} fields")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_urlencoded_form_is_taken_apart_or_refused() {
        let fields = read_urlencoded(b"a=1&b=x+y%C3%A9&a=2&c").unwrap();
        let text: Vec<(&str, &[u8])> =
            fields.iter().map(|(name, value)| (name.as_str(), &value[..])).collect();
        let expect: [(&str, &[u8]); 4] =
            [("a", b"1"), ("b", "x yé".as_bytes()), ("a", b"2"), ("c", b"")];
        assert_eq!(text, expect);
        assert!(
            read_urlencoded(b"a=%ff").unwrap_err().message.contains("not percent-encoded utf-8")
        );
        let many = "a&".repeat(MAX_FIELDS + 1);
        assert!(
            read_urlencoded(many.as_bytes()).unwrap_err().message.contains("more than 1024 fields")
        );
    }
}
