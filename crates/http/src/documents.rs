//! `/openapi.json`: what the routes take and give, made from the code that serves them.
//!
//! The bodies of generation are tables of fields; their schemas are read off the same rows that
//! check requests.

use std::sync::OnceLock;

use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde_json::{Value, json};
use utoipa::openapi::path::ParameterIn;
use utoipa::openapi::schema::{AnyOfBuilder, Schema};
use utoipa::openapi::{HttpMethod, OpenApi, RefOr};
use utoipa::{Modify, OpenApi as _, PartialSchema, Path, ToSchema};

use crate::generation::schema::{SAMPLING, object_schema};
use crate::generation::v1::{EMBEDDING, EmbeddingList, ModelCard, ModelCards};
use crate::generation::{
    CHAT, COMPLETION, ChatAnswer, Completed, LmiReply, PARAMETERS, REQUEST, v1,
};
use crate::inference::{self, EmbedBody, RerankBody};
use crate::{adapters, management, metrics, ping, predictions, registration, sagemaker};

/// An error of DJL's routes.
#[derive(Serialize, ToSchema)]
pub(crate) struct DjlError {
    /// The status.
    code: u16,
    /// The class of the failure.
    r#type: String,
    /// What is wrong, and what is allowed.
    message: String,
}

/// An error of OpenAI's routes.
#[derive(Serialize, ToSchema)]
pub(crate) struct OpenAiError {
    error: OpenAiErrorBody,
}

/// What went wrong.
#[derive(Serialize, ToSchema)]
pub(crate) struct OpenAiErrorBody {
    /// What is wrong, and what is allowed.
    message: String,
    /// `invalid_request_error`, `rate_limit_error` or `server_error`.
    r#type: String,
    /// The field that is wrong.
    param: Option<String>,
    /// A word for programs.
    code: Option<String>,
}

/// The body of `/v1/completions`.
pub(crate) struct CompletionBody;

impl PartialSchema for CompletionBody {
    fn schema() -> RefOr<Schema> {
        let mut object =
            object_schema(&[COMPLETION, SAMPLING], &["prompt"], "A request for completions.");
        object.examples = vec![example("/v1/completions")];
        RefOr::T(Schema::Object(object))
    }
}

impl ToSchema for CompletionBody {}

/// The body of `/v1/chat/completions`.
pub(crate) struct ChatBody;

impl PartialSchema for ChatBody {
    fn schema() -> RefOr<Schema> {
        let mut object =
            object_schema(&[CHAT, SAMPLING], &["messages"], "A request for chat completions.");
        object.examples = vec![example("/v1/chat/completions")];
        RefOr::T(Schema::Object(object))
    }
}

impl ToSchema for ChatBody {}

/// The body of `/v1/embeddings`.
pub(crate) struct EmbeddingBody;

impl PartialSchema for EmbeddingBody {
    fn schema() -> RefOr<Schema> {
        let mut object = object_schema(&[EMBEDDING], &["input"], "A request for embeddings.");
        object.examples = vec![example("/v1/embeddings")];
        RefOr::T(Schema::Object(object))
    }
}

impl ToSchema for EmbeddingBody {}

/// The body of `/invocations` in the LMI schema; the pipelines take the same two keys.
pub(crate) struct LmiBody;

impl PartialSchema for LmiBody {
    fn schema() -> RefOr<Schema> {
        let mut object = object_schema(&[REQUEST], &["inputs"], "Text, and how to answer it.");
        let parameters = object_schema(&[PARAMETERS], &[], "How to generate.");
        object.properties.insert("parameters".to_owned(), RefOr::T(Schema::Object(parameters)));
        object.examples = vec![example("/invocations")];
        RefOr::T(Schema::Object(object))
    }
}

impl ToSchema for LmiBody {}

/// The body of `/invocations`, in any of its schemas.
pub(crate) struct InvocationBody;

impl PartialSchema for InvocationBody {
    fn schema() -> RefOr<Schema> {
        let any = AnyOfBuilder::new()
            .item(LmiBody::schema())
            .item(ChatBody::schema())
            .item(CompletionBody::schema());
        RefOr::T(Schema::AnyOf(any.build()))
    }
}

impl ToSchema for InvocationBody {}

/// A body that its route takes.
fn example(path: &str) -> Value {
    match path {
        "/v1/completions" => json!({
            "model": "m", "prompt": "Once upon a time", "max_tokens": 32, "temperature": 0.8,
            "stop": ["\n"], "stream": false,
        }),
        "/v1/chat/completions" => json!({
            "model": "m",
            "messages": [
                {"role": "system", "content": "You answer in one sentence."},
                {"role": "user", "content": [{"type": "text", "text": "What is a scheduler?"}]},
            ],
            "max_completion_tokens": 64, "stream": true,
            "stream_options": {"include_usage": true},
        }),
        "/v1/embeddings" => json!({"model": "m", "input": ["one text", "another"]}),
        _ => json!({
            "inputs": "Once upon a time",
            "parameters": {"max_new_tokens": 32, "details": true, "stop_sequences": ["\n"]},
        }),
    }
}

#[derive(utoipa::OpenApi)]
#[openapi(
    info(
        title = "Drivetrain",
        description = "SageMaker's container contract, DJL Serving's APIs and OpenAI's."
    ),
    paths(
        ping::ping,
        sagemaker::invocations,
        sagemaker::invoke,
        predictions::predict,
        management::list,
        management::describe,
        registration::register,
        registration::unregister,
        adapters::list,
        adapters::register,
        adapters::describe,
        adapters::update,
        adapters::unregister,
        v1::completions,
        v1::chat_completions,
        v1::embeddings,
        v1::list,
        v1::one,
        inference::embed,
        inference::rerank,
        metrics::metrics,
        metrics::server_metrics,
        openapi,
    ),
    components(schemas(
        DjlError,
        OpenAiError,
        OpenAiErrorBody,
        CompletionBody,
        ChatBody,
        EmbeddingBody,
        InvocationBody,
        Completed,
        ChatAnswer,
        EmbeddingList,
        EmbedBody,
        RerankBody,
        ModelCard,
        ModelCards,
        LmiReply,
    )),
    modifiers(&Twins)
)]
struct Document;

/// Routes that one handler serves under several paths.
struct Twins;

impl Modify for Twins {
    fn modify(&self, document: &mut OpenApi) {
        let versioned = "/predictions/{name}/{version}";
        let any = vec![HttpMethod::Get, HttpMethod::Post, HttpMethod::Put];
        let operation = predictions::__path_predict::operation();
        document.paths.add_path_operation(versioned, any, operation);
        let operation = management::__path_describe::operation();
        let get = vec![HttpMethod::Get];
        document.paths.add_path_operation("/models/{name}/{version}", get, operation);
        let adapters = [
            ("/adapters", HttpMethod::Get, adapters::__path_list::operation()),
            ("/adapters", HttpMethod::Post, adapters::__path_register::operation()),
            ("/adapters/{adapter}", HttpMethod::Get, adapters::__path_describe::operation()),
            ("/adapters/{adapter}", HttpMethod::Delete, adapters::__path_unregister::operation()),
            ("/adapters/{adapter}/update", HttpMethod::Post, adapters::__path_update::operation()),
        ];
        for (path, method, mut operation) in adapters {
            // The model is the one of the start.
            if let Some(parameters) = &mut operation.parameters {
                parameters.retain(|parameter| match parameter {
                    RefOr::T(one) => one.name != "name" || one.parameter_in != ParameterIn::Path,
                    RefOr::Ref(_) => true,
                });
            }
            document.paths.add_path_operation(path, vec![method], operation);
        }
        for path in ["/", "/invocations", "/models/{name}/invoke", "/predictions/{name}", versioned]
            .into_iter()
            .chain([
                "/v1/chat/completions",
                "/v1/completions",
                "/v1/embeddings",
                "/embed",
                "/rerank",
            ])
        {
            let operation = predictions::__path_options::operation();
            document.paths.add_path_operation(path, vec![HttpMethod::Options], operation);
        }
    }
}

/// The document's text.
fn text() -> &'static str {
    static TEXT: OnceLock<String> = OnceLock::new();
    TEXT.get_or_init(|| {
        Document::openapi().to_json().unwrap_or_else(|error| {
            tracing::error!("the OpenAPI document has no json form: {error}");
            "{}".to_owned()
        })
    })
}

/// `GET /openapi.json`.
#[utoipa::path(
    get,
    path = "/openapi.json",
    tag = "operations",
    responses((status = 200, description = "This document", content_type = "application/json",
        body = Object))
)]
pub(crate) async fn openapi() -> Response {
    let mut response = text().into_response();
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, json);
    response
}

#[cfg(test)]
mod tests;
