//! What the client wants its answer to be written as.

use axum::http::{HeaderMap, header};

use crate::failure::ApiError;

/// How a native task's answer is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ReplyFormat {
    /// `application/json`.
    Json,
    /// `text/csv`: for answers that are a list of objects.
    Csv,
}

impl ReplyFormat {
    /// The answer's content type.
    pub(crate) fn content_type(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::Csv => "text/csv",
        }
    }
}

/// Reads `Accept`: of what we write, the one the client likes best, JSON when it does not care.
///
/// # Errors
/// None of the types it names is one we write.
pub(crate) fn accept(headers: &HeaderMap) -> Result<ReplyFormat, ApiError> {
    let mut best: Option<(f32, ReplyFormat)> = None;
    let mut asked = false;
    for value in headers.get_all(header::ACCEPT) {
        let text =
            value.to_str().map_err(|_| ApiError::bad_request("accept is not visible ascii"))?;
        for range in text.split(',').map(str::trim).filter(|range| !range.is_empty()) {
            asked = true;
            let mut parts = range.split(';').map(str::trim);
            let format = match parts.next().unwrap_or_default().to_ascii_lowercase().as_str() {
                "*/*" | "application/*" | "application/json" | "*" => ReplyFormat::Json,
                "text/csv" | "text/*" => ReplyFormat::Csv,
                _ => continue,
            };
            let quality = parts
                .find_map(|part| part.strip_prefix("q=").or_else(|| part.strip_prefix("Q=")))
                .map_or(1.0, |q| q.trim().parse::<f32>().unwrap_or(0.0));
            if quality > 0.0 && best.is_none_or(|(other, _)| quality > other) {
                best = Some((quality, format));
            }
        }
    }
    match best {
        Some((_, format)) => Ok(format),
        None if !asked => Ok(ReplyFormat::Json),
        None => {
            let found: Vec<&str> = headers
                .get_all(header::ACCEPT)
                .iter()
                .filter_map(|value| value.to_str().ok())
                .collect();
            Err(ApiError::bad_request(format!(
                "accept: {}: this model answers with application/json or, for lists of objects, \
                 text/csv",
                found.join(", ")
            )))
        }
    }
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    fn check(value: &'static str, expect: Option<ReplyFormat>) {
        let mut headers = HeaderMap::new();
        headers.insert(header::ACCEPT, HeaderValue::from_static(value));
        assert_eq!(accept(&headers).ok(), expect, "{value}");
    }

    #[test]
    fn the_best_liked_format_wins() {
        assert_eq!(accept(&HeaderMap::new()).unwrap(), ReplyFormat::Json);
        check("", Some(ReplyFormat::Json));
        check("*/*", Some(ReplyFormat::Json));
        check("application/json", Some(ReplyFormat::Json));
        check("application/json, text/plain, */*", Some(ReplyFormat::Json));
        check("text/html,application/xml;q=0.9,*/*;q=0.8", Some(ReplyFormat::Json));
        check("text/csv", Some(ReplyFormat::Csv));
        check("application/json;q=0.1, TEXT/CSV", Some(ReplyFormat::Csv));
        check("text/csv;q=0, */*", Some(ReplyFormat::Json));
        check("image/png", None);
        check("application/json;q=0", None);
        check("tensor/npz", None);
    }
}
