//! Reading the examples of the OpenAPI document as the routes do.

use serde_json::{Map, Value};

use super::chat::ChatRequest;
use super::completions::CompletionRequest;
use super::lmi::{Dialect, LmiRequest};
use super::schema::Invalid;
use super::v1::EmbeddingRequest;

/// Reads `object` as the body `name`.
pub(crate) fn read(name: &str, object: Map<String, Value>) -> Result<(), Invalid> {
    match name {
        "CompletionBody" => CompletionRequest::read(object).map(drop),
        "ChatBody" => ChatRequest::read(object, false).map(drop),
        "EmbeddingBody" => EmbeddingRequest::read(object).map(drop),
        "LmiBody" => LmiRequest::read(object, Dialect::Rolling).map(drop),
        other => panic!("{other} has no reader"),
    }
}
