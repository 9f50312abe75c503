//! What OpenAI's endpoints share: the model's names, sampling parameters, usage, and the times and
//! ids in replies.

use std::time::{SystemTime, UNIX_EPOCH};

use drivetrain_host::{AdapterChoice, GenerateRequest, ModelHandle, Naming, Prompt};
use serde::Serialize;
use serde_json::{Map, Value, json};
use utoipa::ToSchema;

use super::lmi::request_is_zero;
use super::schema::{Fields, Invalid, MAX_CHOICES};
use crate::app::App;
use crate::failure::{ApiError, FailureKind};
use crate::request_id::RequestId;

/// Most tokens that `logit_bias` may name.
const MAX_BIASES: usize = 1024;
/// The name that LMI serves a model under when nothing says another.
const LMI_NAME: &str = "lmi";

/// Tokens of a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, ToSchema)]
pub(crate) struct Usage {
    /// Of the prompts.
    pub(crate) prompt_tokens: usize,
    /// New ones.
    pub(crate) completion_tokens: usize,
    /// Both.
    pub(crate) total_tokens: usize,
}

impl Usage {
    /// The sum of both is made here.
    pub(crate) fn new(prompt_tokens: usize, completion_tokens: usize) -> Self {
        let total_tokens = prompt_tokens + completion_tokens;
        Self { prompt_tokens, completion_tokens, total_tokens }
    }
}

/// What every object of a reply begins with.
#[derive(Clone, Debug)]
pub(crate) struct Head {
    /// The reply's id.
    pub(crate) id: String,
    /// When it was made, in seconds of Unix time.
    pub(crate) created: u64,
    /// The model's name.
    pub(crate) model: String,
}

impl Head {
    /// The head of a reply to the request `id`; its own id begins with `prefix`.
    pub(crate) fn new(prefix: &str, id: &RequestId, model: &str) -> Self {
        let id = format!("{prefix}-{}", id.as_str());
        Self { id, created: unix_time(), model: model.to_owned() }
    }
}

/// Seconds of Unix time.
pub(crate) fn unix_time() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Which of a streamed reply's further pieces are wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct StreamOptions {
    /// Whether a last chunk counts the tokens.
    pub(crate) include_usage: bool,
    /// Whether each chunk does, as vLLM has it.
    pub(crate) continuous_usage: bool,
}

/// Reads `stream_options`.
///
/// # Errors
/// Without `stream`, or with flags that are none.
pub(crate) fn stream_options(fields: &mut Fields) -> Result<StreamOptions, Invalid> {
    let Some(Value::Object(options)) = fields.take("stream_options") else {
        return Ok(StreamOptions::default());
    };
    if !fields.flag("stream") {
        return Err(Invalid::new("stream_options", "only with stream=true"));
    }
    let flag = |name: &str| match options.get(name) {
        None | Some(Value::Null) => Ok(false),
        Some(Value::Bool(flag)) => Ok(*flag),
        Some(other) => {
            Err(Invalid::value(format!("stream_options.{name}"), other, "true or false"))
        }
    };
    Ok(StreamOptions {
        include_usage: flag("include_usage")?,
        continuous_usage: flag("continuous_usage_stats")?,
    })
}

/// Settles what OpenAI's API and transformers say differently: the temperature decides whether
/// tokens are sampled, and all of them are sampled from unless a limit is given.
///
/// # Errors
/// A `logit_bias` or a `response_format` of another form; `n` above `best_of`.
pub(crate) fn settle(fields: &mut Fields) -> Result<(), Invalid> {
    let bias = fields.take("logit_bias");
    let format = fields.take("response_format");
    let host = &mut fields.host;
    if let Some(Value::Object(bias)) = bias {
        check_bias(&bias)?;
        host.insert("logit_bias".to_owned(), Value::Object(bias));
    }
    if let Some(Value::Object(format)) = format {
        check_format(&format)?;
        if format.get("type").and_then(Value::as_str) != Some("text") {
            host.insert("response_format".to_owned(), Value::Object(format));
        }
    }
    let count = |name: &str| host.get(name).and_then(Value::as_u64);
    if let (n, Some(best_of)) = (count("n").unwrap_or(1), count("best_of"))
        && n > best_of
    {
        return Err(Invalid::new("best_of", format!("{best_of} is below n={n}: raise it to n")));
    }
    let searches = host.get("use_beam_search") == Some(&Value::Bool(true));
    let samples = !searches && !request_is_zero(host.get("temperature"));
    host.insert("do_sample".to_owned(), samples.into());
    if samples {
        host.entry("temperature".to_owned()).or_insert_with(|| 1.0.into());
        host.entry("top_p".to_owned()).or_insert_with(|| 1.0.into());
        host.entry("top_k".to_owned()).or_insert_with(|| 0.into());
    } else {
        host.remove("temperature");
    }
    if host.get("top_k").and_then(Value::as_i64) == Some(-1) {
        host.insert("top_k".to_owned(), 0.into());
    }
    Ok(())
}

fn check_bias(bias: &Map<String, Value>) -> Result<(), Invalid> {
    if bias.len() > MAX_BIASES {
        return Err(Invalid::new(
            "logit_bias",
            format!("has {} tokens: give at most {MAX_BIASES}", bias.len()),
        ));
    }
    for (token, value) in bias {
        let field = || format!("logit_bias[{}]", crate::fields::quoted(token));
        if token.parse::<u32>().is_err() {
            return Err(Invalid::new(field(), "expected a token's id as the key"));
        }
        if !value.as_f64().is_some_and(|value| (-100.0..=100.0).contains(&value)) {
            return Err(Invalid::value(field(), value, "a number from -100 to 100"));
        }
    }
    Ok(())
}

fn check_format(format: &Map<String, Value>) -> Result<(), Invalid> {
    match format.get("type").and_then(Value::as_str) {
        Some("text" | "json_object") => Ok(()),
        Some("json_schema") => match format.get("json_schema").and_then(|s| s.get("schema")) {
            Some(Value::Object(_) | Value::Bool(_)) => Ok(()),
            Some(other) => Err(Invalid::value(
                "response_format.json_schema.schema",
                other,
                "a json schema, which is an object",
            )),
            None => Err(Invalid::new(
                "response_format.json_schema.schema",
                "missing: give a json schema",
            )),
        },
        Some(other) => Err(Invalid::value(
            "response_format.type",
            &Value::from(other),
            "\"text\", \"json_object\" or \"json_schema\"",
        )),
        None => Err(Invalid::new(
            "response_format.type",
            "expected \"text\", \"json_object\" or \"json_schema\"",
        )),
    }
}

/// The request for the host.
pub(crate) fn host_request(
    id: &RequestId,
    prompts: Vec<Prompt>,
    fields: Fields,
    naming: Naming,
    is_streamed: bool,
) -> GenerateRequest {
    // vLLM serves lower numbers first.
    let priority = fields.here.get("priority").and_then(Value::as_i64).unwrap_or(0);
    GenerateRequest {
        id: id.as_str().to_owned(),
        prompts,
        parameters: fields.host,
        naming,
        priority: i32::try_from(-priority).unwrap_or(0),
        deadline: None,
        is_streamed,
    }
}

/// How many choices each prompt has.
pub(crate) fn n_choices(fields: &Fields) -> usize {
    let n = fields.host.get("n").and_then(Value::as_u64).unwrap_or(1);
    n.clamp(1, MAX_CHOICES) as usize
}

/// The model that `name` means: its own name, `option.served_model_name`, `option.modelName`, or
/// `lmi` where only one is loaded. Without a name the only one.
///
/// # Errors
/// `ModelNotFound`, or `BadRequest` where there are several and none is named.
pub(crate) fn find_model(app: &App, name: Option<&str>) -> Result<ModelHandle, ApiError> {
    let Some(name) = name.filter(|name| !name.is_empty()) else {
        return Ok(app.host.default_model()?);
    };
    if let Ok(model) = app.host.model(name, None) {
        return Ok(model);
    }
    let aliased = app
        .host
        .models()
        .into_iter()
        .find(|model| aliases(model).iter().any(|alias| alias == name));
    if let Some(model) = aliased {
        return Ok(model);
    }
    let adapted = app.host.models().into_iter().find(|model| model.find_adapter(name).is_ok());
    if let Some(model) = adapted {
        return Ok(model.through(AdapterChoice::One(name.to_owned())));
    }
    match app.host.default_model() {
        Ok(model) if name == LMI_NAME => Ok(model),
        _ => Err(ApiError {
            field: Some("model".to_owned()),
            ..ApiError::new(
                FailureKind::ModelNotFound,
                format!(
                    "The model {} does not exist: GET /v1/models lists those that do",
                    crate::fields::quoted(name)
                ),
            )
        }),
    }
}

/// Further names that a model's settings give it.
pub(crate) fn aliases(model: &ModelHandle) -> Vec<String> {
    let Some(config) = model.config() else { return Vec::new() };
    let mut names = Vec::new();
    if let Some(text) = config.options.get("served_model_name") {
        let list = text.trim().trim_start_matches('[').trim_end_matches(']').split(',');
        names.extend(
            list.map(|name| name.trim().trim_matches(['"', '\'']).to_owned())
                .filter(|name| !name.is_empty()),
        );
    }
    if let Some(name) = &config.display_name {
        names.push(name.value.clone());
    }
    names
}

/// The chunk that counts the tokens, after the last choice's.
pub(crate) fn usage_chunk(object: &str, head: &Head, usage: Usage) -> Value {
    json!({
        "id": head.id,
        "object": object,
        "created": head.created,
        "model": head.model,
        "choices": [],
        "usage": usage,
    })
}
