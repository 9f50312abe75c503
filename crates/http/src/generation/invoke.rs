//! Generated text on DJL's routes: which schema a request is in, and its answer.

use axum::body::Body;
use axum::http::{HeaderValue, Response, header};
use drivetrain_config::{ModelConfig, Streaming};
use drivetrain_host::{FinishReason, GenerateRequest, ModelHandle, Naming, Prompt};
use serde::Serialize;
use serde_json::{Map, Value};

use super::chat::{ChatChunks, ChatForm, ChatRequest, ToolSyntax, chat_answer};
use super::completions::{CompletionChunks, CompletionRequest, completed};
use super::format::{Format, Mode, Wishes, accepts_sse, dialect};
use super::glance::Glance;
use super::lmi::{Dialect, LmiLines, LmiRequest, Outputs, document};
use super::openai::{Head, host_request};
use super::running::{Running, Whole};
use super::schema::{Invalid, OPENAI_NAMES};
use super::stream::{Framing, respond};
use super::text::BareText;
use crate::app::App;
use crate::bounded::{Budget, parse_object};
use crate::call::Call;
use crate::failure::{ApiError, ErrorForm, FailureKind};
use crate::offload::offload;
use crate::request_id::RequestId;

/// Most values in a body.
const MAX_VALUES: usize = 1 << 18;
/// New tokens of a streamed pipeline where the request does not say how many.
const STREAMED_NEW_TOKENS: u64 = 50;
/// Set to `shutdown` when the answer is shorter than asked for because the server is going away.
const FINISH_REASON: &str = "x-finish-reason";

/// Answers `call` if it is in a schema of generated text; `None` if the pipelines answer it.
///
/// # Errors
/// What went wrong before the first byte.
pub(crate) async fn answer(
    app: &App,
    model: &ModelHandle,
    id: &RequestId,
    call: &mut Call,
) -> Result<Option<Response<Body>>, ApiError> {
    let Some(config) = model.config() else { return Ok(None) };
    let mode = Mode::of(&config);
    let glance = glance(call).await?;
    let talk = Talk { app, model, id, config: &config, accepts_sse: accepts_sse(call.headers()) };
    let lmi = |error: ApiError| error.written_as(ErrorForm::Lmi);
    if let Some(glance) = glance {
        let is_lmi = mode != Mode::Pipeline;
        if glance.messages && (is_lmi || !glance.inputs) {
            let object = read_object(call).await.map_err(|error| unparsed(&error.message))?;
            return talk.chat(object, &glance).await.map(Some).map_err(lmi);
        }
        if glance.prompt && (is_lmi || !glance.inputs) {
            let object = read_object(call).await.map_err(|error| unparsed(&error.message))?;
            return talk.completion(object, &glance).await.map(Some).map_err(lmi);
        }
        let mode = match mode {
            Mode::Pipeline if glance.wants_lmi => Mode::Lmi(dialect(&config)),
            mode => mode,
        };
        if let Mode::Lmi(dialect) = mode {
            let object = read_object(call).await.map_err(|error| unparsed(&error.message))?;
            return talk.lmi(object, dialect).await.map(Some).map_err(lmi);
        }
    } else if let Mode::Lmi(dialect) = mode {
        let object = read_texts(call).await.map_err(|error| unparsed(&error.message))?;
        return talk.lmi(object, dialect).await.map(Some).map_err(lmi);
    }
    if config.enable_streaming.value == Streaming::Off {
        return Ok(None);
    }
    let input = call.task_input().await?;
    talk.outputs(input.inputs, input.parameters).await.map(Some)
}

/// The keys of a JSON body; `None` for anything else.
pub(super) async fn glance(call: &Call) -> Result<Option<Glance>, ApiError> {
    let Some((content_type, body)) = call.json_body() else { return Ok(None) };
    offload(body.len(), move || {
        Ok(content_type.decode(&body).ok().and_then(|text| Glance::at(&text)))
    })
    .await
}

/// The body as an object.
pub(super) async fn read_object(call: &Call) -> Result<Map<String, Value>, ApiError> {
    let Some((content_type, body)) = call.json_body() else {
        return Err(ApiError::bad_request(
            "content-type: expected application/json, without a content-encoding",
        ));
    };
    if body.is_empty() {
        return Err(ApiError::bad_request("the request body is empty: send a json object"));
    }
    offload(body.len(), move || {
        let text = content_type.decode(&body)?;
        parse_object(&text, Budget::new("body", MAX_VALUES))
            .map_err(|error| ApiError::bad_request(format!("body is not a json object: {error}")))
    })
    .await
}

/// A body that is no JSON object as one of LMI's.
async fn read_texts(call: &mut Call) -> Result<Map<String, Value>, ApiError> {
    let mut input = call.task_input().await?;
    let inputs = match input.inputs.len() {
        1 => input.inputs.pop().map_or(Value::Null, Value::String),
        _ => Value::from(input.inputs),
    };
    let mut object = Map::new();
    object.insert("inputs".to_owned(), inputs);
    object.insert("parameters".to_owned(), Value::Object(input.parameters));
    Ok(object)
}

/// A request that LMI's handlers refuse to read.
fn unparsed(message: &str) -> ApiError {
    ApiError::new(FailureKind::Unparsed, format!("Input Parsing failed: {message}"))
        .written_as(ErrorForm::Lmi)
}

fn invalid(invalid: Invalid) -> ApiError {
    ApiError { field: Some(invalid.field), ..unparsed(&invalid.message) }
}

/// A request and whom it is to.
struct Talk<'a> {
    app: &'a App,
    model: &'a ModelHandle,
    id: &'a RequestId,
    config: &'a ModelConfig,
    accepts_sse: bool,
}

impl Talk<'_> {
    async fn chat(
        &self,
        object: Map<String, Value>,
        glance: &Glance,
    ) -> Result<Response<Body>, ApiError> {
        let format = self.format(glance)?;
        let mut object = object;
        object.remove("output_formatter");
        let mut request = ChatRequest::read(object, keeps_parts(self.config)).map_err(invalid)?;
        request.how.options.include_usage = true;
        chat(self.app, self.model, self.id, request, format.framing).await
    }

    async fn completion(
        &self,
        object: Map<String, Value>,
        glance: &Glance,
    ) -> Result<Response<Body>, ApiError> {
        let format = self.format(glance)?;
        let mut object = object;
        object.remove("output_formatter");
        let request = CompletionRequest::read(object).map_err(invalid)?;
        completion(self.app, self.model, self.id, request, format.framing).await
    }

    fn format(&self, glance: &Glance) -> Result<Format, ApiError> {
        let formatter = glance.formatter.as_deref();
        let wishes = Wishes { formatter, stream: glance.stream, accepts_sse: self.accepts_sse };
        Format::choose(wishes, &self.config.output_formatter.value, Dialect::Async).map_err(invalid)
    }

    async fn lmi(
        &self,
        object: Map<String, Value>,
        dialect: Dialect,
    ) -> Result<Response<Body>, ApiError> {
        let mut request = LmiRequest::read(object, dialect).map_err(invalid)?;
        let wishes = Wishes {
            formatter: request.formatter.as_deref(),
            stream: request.stream,
            accepts_sse: self.accepts_sse,
        };
        let configured = &self.config.output_formatter.value;
        let format = Format::choose(wishes, configured, dialect).map_err(invalid)?;
        let framing = format.framing.filter(|_| !request.is_held_back());
        if framing.is_some() && request.is_list {
            return Err(invalid(Invalid::new(
                "inputs",
                "one prompt at a time is streamed: give a string, or do not stream",
            )));
        }
        request.ask_for_details(framing.is_some() && !format.is_bare);
        let host = GenerateRequest {
            id: self.id.as_str().to_owned(),
            prompts: std::mem::take(&mut request.prompts),
            parameters: request.parameters.clone(),
            naming: request.naming,
            priority: 0,
            deadline: None,
            is_streamed: framing.is_some(),
        };
        let running = Running::start(self.model, host).await?;
        let limit = self.app.frame_timeout;
        if let Some(framing) = framing {
            let prompt = running.prompts().first().cloned().unwrap_or_default();
            if format.is_bare {
                return Ok(respond(running, BareText, framing, limit));
            }
            if format.is_chat {
                let form = ChatForm { n_choices: 1, ..ChatForm::default() };
                let n_prompt = prompt.ids.len();
                let head = self.head();
                let printer = ChatChunks::new(head, form, framing, ToolSyntax::Hermes, n_prompt);
                return Ok(respond(running, printer, framing, limit));
            }
            let max_positions = self.max_positions();
            let printer = LmiLines::new(request, dialect, framing, prompt, max_positions);
            return Ok(respond(running, printer, framing, limit));
        }
        let whole = running.finish().await?;
        if format.is_chat {
            let form = ChatForm { n_choices: 1, ..ChatForm::default() };
            let answer = chat_answer(&self.head(), &form, ToolSyntax::Hermes, &whole);
            return json(&answer, &whole);
        }
        let mut replies = document(&request, dialect, &whole);
        if format.is_bare {
            let texts: Vec<String> = replies.into_iter().map(|r| r.generated_text).collect();
            let mut response = Response::new(Body::from(texts.join("\n")));
            let kind = HeaderValue::from_static(Framing::Raw.content_type());
            response.headers_mut().insert(header::CONTENT_TYPE, kind);
            return Ok(response);
        }
        match replies.pop() {
            Some(one) if replies.is_empty() && !request.is_list && dialect != Dialect::Tgi => {
                json(&one, &whole)
            }
            last => {
                replies.extend(last);
                json(&replies, &whole)
            }
        }
    }

    async fn outputs(
        &self,
        inputs: Vec<String>,
        mut parameters: Map<String, Value>,
    ) -> Result<Response<Body>, ApiError> {
        let n_inputs = inputs.len();
        if !parameters.contains_key("max_length") {
            parameters
                .entry("max_new_tokens".to_owned())
                .or_insert_with(|| STREAMED_NEW_TOKENS.into());
        }
        let request = GenerateRequest {
            id: self.id.as_str().to_owned(),
            prompts: inputs.into_iter().map(Prompt::Text).collect(),
            parameters,
            naming: Naming::default(),
            priority: 0,
            deadline: None,
            is_streamed: true,
        };
        let running = Running::start(self.model, request).await?;
        Ok(respond(running, Outputs::new(n_inputs), Framing::Lines, self.app.frame_timeout))
    }

    fn head(&self) -> Head {
        Head::new("chatcmpl", self.id, self.model.name())
    }

    fn max_positions(&self) -> u64 {
        self.model.token_info().map_or(u64::from(u32::MAX), |info| u64::from(info.max_positions))
    }
}

/// Whether the parts of messages are left to the template.
pub(super) fn keeps_parts(config: &ModelConfig) -> bool {
    config.options.get("chat_template_content_format").is_some_and(|format| format == "openai")
}

/// The answer to a conversation, in frames or whole.
///
/// # Errors
/// What went wrong before the first byte.
pub(super) async fn chat(
    app: &App,
    model: &ModelHandle,
    id: &RequestId,
    request: ChatRequest,
    framing: Option<Framing>,
) -> Result<Response<Body>, ApiError> {
    let ChatRequest { chat, mut fields, naming, how, .. } = request;
    if !fields.host.contains_key("max_new_tokens")
        && let Some(info) = model.token_info()
    {
        // The rest of the context, as far as the cache goes.
        let most = u64::from(info.max_positions).min(info.kv_capacity_tokens);
        fields.host.insert("max_length".to_owned(), most.into());
    }
    let named = model.config().and_then(|config| {
        let name = config.options.get("tool_call_parser")?;
        let syntax = ToolSyntax::of_name(name);
        if syntax.is_none() {
            tracing::warn!(
                parser = name,
                "option.tool_call_parser: expected hermes, llama3_json or mistral"
            );
        }
        syntax
    });
    let prompts = vec![Prompt::Chat(Box::new(chat))];
    let host = host_request(id, prompts, fields, naming, framing.is_some());
    let head = Head::new("chatcmpl", id, model.name());
    let running = Running::start(model, host).await?;
    let prompt = running.prompts().first();
    let syntax =
        named.unwrap_or_else(|| ToolSyntax::of_prompt(prompt.map_or("", |p| p.text.as_str())));
    match framing {
        Some(framing) => {
            let n_prompt = prompt.map_or(0, |prompt| prompt.ids.len());
            let printer = ChatChunks::new(head, how, framing, syntax, n_prompt);
            Ok(respond(running, printer, framing, app.frame_timeout))
        }
        None => {
            let whole = running.finish().await?;
            json(&chat_answer(&head, &how, syntax, &whole), &whole)
        }
    }
}

/// The answer to prompts, in frames or whole.
///
/// # Errors
/// What went wrong before the first byte.
pub(super) async fn completion(
    app: &App,
    model: &ModelHandle,
    id: &RequestId,
    request: CompletionRequest,
    framing: Option<Framing>,
) -> Result<Response<Body>, ApiError> {
    let CompletionRequest { prompts, fields, how, .. } = request;
    let host = host_request(id, prompts, fields, OPENAI_NAMES, framing.is_some());
    let head = Head::new("cmpl", id, model.name());
    let running = Running::start(model, host).await?;
    match framing {
        Some(framing) => {
            let prompts = running.prompts().to_vec();
            let printer = CompletionChunks::new(head, how, framing, prompts);
            Ok(respond(running, printer, framing, app.frame_timeout))
        }
        None => {
            let whole = running.finish().await?;
            json(&completed(&head, how, &whole), &whole)
        }
    }
}

/// A document.
fn json(value: &impl Serialize, whole: &Whole) -> Result<Response<Body>, ApiError> {
    let body = serde_json::to_vec(value).map_err(|error| {
        ApiError::new(FailureKind::Internal, format!("writing the reply: {error}"))
    })?;
    let mut response = Response::new(Body::from(body));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if whole.completions.iter().any(|done| done.finish == FinishReason::Shutdown) {
        let name = FinishReason::Shutdown.name();
        headers.insert(FINISH_REASON, HeaderValue::from_static(name));
    }
    Ok(response)
}
