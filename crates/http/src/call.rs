//! An inference request, taken in: what DJL calls the input's content and properties.

use axum::body::Body;
use axum::extract::{FromRequest, Request};
use axum::http::{HeaderMap, header, request};
use bytes::Bytes;
use drivetrain_host::Task;

use crate::app::App;
use crate::body::read_body;
use crate::content_type::{BodyFormat, ContentType};
use crate::failure::ApiError;
use crate::fields::{Fields, read_fields};
use crate::input::{TaskInput, decode_body, decode_fields};
use crate::items::{TaskItems, decode_items};
use crate::offload::offload;
use crate::urlencoded;

const CUSTOM_ATTRIBUTES: &str = "x-amzn-sagemaker-custom-attributes";
const HANDLER: &str = "handler";

/// An inference request whose body has been read.
#[derive(Debug)]
pub(crate) struct Call {
    parts: request::Parts,
    query: Vec<(String, String)>,
    /// Judged only where the body is read: an engine that answers whole requests may take a body
    /// of a type that nobody here knows.
    content_type: Result<ContentType, ApiError>,
    /// The body; empty when it was a form.
    body: Bytes,
    fields: Option<Fields>,
}

impl FromRequest<App> for Call {
    type Rejection = ApiError;

    async fn from_request(request: Request<Body>, app: &App) -> Result<Self, ApiError> {
        let (parts, body) = request.into_parts();
        let query = parse_query(parts.uri.query().unwrap_or_default())?;
        let content_type = ContentType::of(&parts.headers);
        if !app.allow_handler_override {
            refuse_handler(&parts.headers)?;
        }
        let mut body = read_body(&parts.headers, body, app.body_limits).await?;
        let fields = match &content_type {
            Ok(content_type) if !body.is_empty() => {
                read_fields(&parts.headers, content_type, &body).await?
            }
            _ => None,
        };
        if fields.is_some() {
            body = Bytes::new();
        }
        Ok(Self { parts, query, content_type, body, fields })
    }
}

impl Call {
    /// The request's headers.
    pub(crate) fn headers(&self) -> &HeaderMap {
        &self.parts.headers
    }

    /// A parameter of the query.
    pub(crate) fn query(&self, name: &str) -> Option<&str> {
        self.query.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// A parameter that may come as a query parameter, a header, or a content entry; of these the
    /// first.
    pub(crate) fn parameter(&self, name: &str) -> Option<String> {
        if let Some(value) = self.query(name) {
            return Some(value.to_owned());
        }
        if let Some(value) = self.parts.headers.get(name) {
            return Some(header_text(value.as_bytes()));
        }
        let (_, value) = self.fields.as_ref()?.iter().find(|(key, _)| key == name)?;
        std::str::from_utf8(value).ok().map(str::to_owned)
    }

    /// The body, if it is JSON and comes without a content encoding; a copy costs nothing.
    pub(crate) fn json_body(&self) -> Option<(ContentType, Bytes)> {
        let is_encoded = self
            .parts
            .headers
            .get(header::CONTENT_ENCODING)
            .is_some_and(|encoding| !encoding.as_bytes().eq_ignore_ascii_case(b"identity"));
        let content_type = self.content_type.as_ref().ok()?;
        let is_json = content_type.format == BodyFormat::Json && self.fields.is_none();
        (is_json && !is_encoded).then(|| (content_type.clone(), self.body.clone()))
    }

    /// The texts and parameters for a native task, taken out of the call.
    ///
    /// # Errors
    /// The body holds none, or its content type says nothing that can be read.
    pub(crate) async fn task_input(&mut self) -> Result<TaskInput, ApiError> {
        if let Some(encoding) = self.parts.headers.get(header::CONTENT_ENCODING)
            && !encoding.as_bytes().eq_ignore_ascii_case(b"identity")
        {
            return Err(ApiError::untranslatable(format!(
                "content-encoding: {}: send the body without one",
                header_text(encoding.as_bytes())
            )));
        }
        let content_type = self.content_type.clone()?;
        if let Some(fields) = self.fields.take() {
            let n_bytes = fields.iter().map(|(name, value)| name.len() + value.len()).sum();
            return offload(n_bytes, move || decode_fields(&fields)).await;
        }
        let body = std::mem::take(&mut self.body);
        if body.is_empty()
            && let Some((_, text)) =
                self.query.iter().find(|(key, _)| key == "inputs" || key == "data")
        {
            let fields = [("inputs".to_owned(), Bytes::from(text.clone()))];
            return decode_fields(&fields);
        }
        offload(body.len(), move || decode_body(&content_type, &body)).await
    }

    /// The inputs and parameters for a task whose inputs may be more than texts, taken out of the
    /// call.
    ///
    /// # Errors
    /// As [`Self::task_input`].
    pub(crate) async fn task_items(&mut self, task: Task) -> Result<TaskItems, ApiError> {
        match (self.json_body(), &self.content_type) {
            (Some((content_type, body)), _) if !body.is_empty() => {
                self.body = Bytes::new();
                offload(body.len(), move || decode_items(&content_type, &body, task)).await
            }
            (None, Ok(content_type)) if content_type.format == BodyFormat::Csv => {
                let (content_type, body) = (content_type.clone(), std::mem::take(&mut self.body));
                offload(body.len(), move || decode_items(&content_type, &body, task)).await
            }
            _ => self.task_input().await.map(TaskItems::from),
        }
    }

    /// The content entries for an engine that answers whole requests: the query's parameters, then
    /// a form's fields or the body under the name `data`, even if it is empty.
    pub(crate) fn content(&mut self) -> Vec<(String, Bytes)> {
        let query = std::mem::take(&mut self.query);
        let mut content: Vec<(String, Bytes)> =
            query.into_iter().map(|(name, value)| (name, Bytes::from(value))).collect();
        match self.fields.take() {
            Some(fields) => content.extend(fields),
            None => content.push(("data".to_owned(), std::mem::take(&mut self.body))),
        }
        content
    }

    /// The properties for an engine that answers whole requests: each header, with the custom
    /// attributes taken apart, and `requestId`.
    pub(crate) fn properties(&self, request_id: &str) -> Vec<(String, String)> {
        let mut properties = Vec::with_capacity(self.parts.headers.len() + 1);
        for (name, value) in &self.parts.headers {
            if name.as_str() == CUSTOM_ATTRIBUTES {
                let text = header_text(value.as_bytes());
                properties.extend(
                    custom_attributes(&text).map(|(key, value)| (key.to_owned(), value.to_owned())),
                );
            } else {
                properties.push((name.as_str().to_owned(), header_text(value.as_bytes())));
            }
        }
        properties.push(("requestId".to_owned(), request_id.to_owned()));
        properties
    }
}

/// The query's parameters in order.
///
/// # Errors
/// A query that is not percent-encoded UTF-8.
pub(crate) fn parse_query(query: &str) -> Result<Vec<(String, String)>, ApiError> {
    urlencoded::pairs(query.as_bytes())
        .map(|pair| pair.map_err(|_| ApiError::invalid_message()))
        .collect()
}

fn refuse_handler(headers: &HeaderMap) -> Result<(), ApiError> {
    let in_attributes = headers.get_all(CUSTOM_ATTRIBUTES).iter().any(|value| {
        custom_attributes(&header_text(value.as_bytes()))
            .any(|(name, _)| name.eq_ignore_ascii_case(HANDLER))
    });
    if in_attributes || headers.contains_key(HANDLER) {
        return Err(ApiError::bad_request(
            "a request may not choose the handler: drop the property \"handler\", or set \
             ALLOW_REQUEST_HANDLER_OVERRIDE=true on the server",
        ));
    }
    Ok(())
}

fn custom_attributes(text: &str) -> impl Iterator<Item = (&str, &str)> {
    text.split(';')
        .filter_map(|piece| piece.split_once('='))
        .map(|(name, value)| (name.trim(), value.trim()))
        .filter(|(name, _)| !name.is_empty())
}

/// A header's value as text. HTTP allows bytes beyond ASCII and gives them no meaning; those that
/// are not UTF-8 read as ISO 8859-1.
fn header_text(value: &[u8]) -> String {
    match std::str::from_utf8(value) {
        Ok(text) => text.to_owned(),
        Err(_) => encoding_rs::mem::decode_latin1(value).into_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failure::FailureKind;

    #[test]
    fn a_query_is_decoded_or_refused() {
        assert_eq!(
            parse_query("a=1&b=x%20y+z&a=2").unwrap(),
            [("a", "1"), ("b", "x y z"), ("a", "2")].map(|(k, v)| (k.to_owned(), v.to_owned()))
        );
        assert_eq!(parse_query("a=%EF%BF%BD").unwrap(), [("a".to_owned(), "\u{fffd}".to_owned())]);
        assert_eq!(parse_query("a=%ff").unwrap_err().kind, FailureKind::InvalidMessage);
    }

    #[test]
    fn custom_attributes_are_pairs() {
        let pairs: Vec<_> = custom_attributes("a=1; b = x=y ;dropped;=z;").collect();
        assert_eq!(pairs, [("a", "1"), ("b", "x=y")]);
    }

    #[test]
    fn a_handler_is_refused_wherever_it_comes_from() {
        let headers = |name: &'static str, value: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(name, axum::http::HeaderValue::from_static(value));
            headers
        };
        assert!(refuse_handler(&headers("handler", "x")).is_err());
        assert!(refuse_handler(&headers(CUSTOM_ATTRIBUTES, "a=1;handler=x")).is_err());
        assert!(refuse_handler(&headers(CUSTOM_ATTRIBUTES, "handler")).is_ok());
        assert!(refuse_handler(&headers("x-handler", "x")).is_ok());
    }
}
