//! `/v1/embeddings`: one vector a text, as the task sentence-embedding makes it; of a model whose
//! task is feature-extraction the mean of its tokens' last hidden states, of length 1 unless
//! `option.normalize` is false.

use axum::Extension;
use axum::body::Body;
use axum::extract::State;
use axum::http::Response;
use drivetrain_host::{Features, Input, ModelHandle, Task, TaskReply, TaskRequest};
use serde::Serialize;
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::models::document;
use super::{invalid, ready};
use crate::app::App;
use crate::call::Call;
use crate::documents::{EmbeddingBody, OpenAiError};
use crate::failure::{ApiError, FailureKind};
use crate::generation::invoke::read_object;
use crate::generation::schema::{Field, Invalid, Kind, here, ignore_unknown, nobody, read};
use crate::request_id::RequestId;

/// Most texts in one request.
const MAX_INPUTS: usize = 2048;
/// From this many numbers on, pooling takes long enough to leave the event loop for.
const N_VALUES_INLINE: usize = 1 << 16;

/// The request's fields.
pub(crate) const EMBEDDING: &[Field] = &[
    here(
        "input",
        Kind::Any,
        "A text or a list of texts, none of them empty; or token ids in their place.",
    ),
    here("model", Kind::Text, "The model's name."),
    here("encoding_format", Kind::Text, "`float`, or `base64` of little-endian f32."),
    here(
        "dimensions",
        Kind::Whole(1, i32::MAX as i64),
        "The first so many columns; refused unless it is the model's own number, or its task is sentence-embedding.",
    ),
    here("truncate_prompt_tokens", Kind::Whole(-1, -1), "-1 cuts texts to what the model takes."),
    nobody("user", "Accepted; nobody reads it."),
];

/// The answer.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct EmbeddingList {
    /// `list`.
    object: &'static str,
    data: Vec<Embedding>,
    model: String,
    usage: EmbeddingUsage,
}

/// The vector of a text.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Embedding {
    /// `embedding`.
    object: &'static str,
    index: usize,
    embedding: Vector,
}

/// Numbers, or their bytes in base64.
#[derive(Debug, Serialize, ToSchema)]
#[serde(untagged)]
pub(crate) enum Vector {
    /// Numbers.
    Floats(Vec<f32>),
    /// Little-endian f32 in base64.
    Base64(String),
}

/// Tokens of a request.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct EmbeddingUsage {
    prompt_tokens: usize,
    total_tokens: usize,
}

/// A request, read.
#[derive(Debug, PartialEq)]
pub(crate) struct EmbeddingRequest {
    inputs: Vec<Input>,
    model: Option<String>,
    is_base64: bool,
    dimensions: Option<u64>,
    truncates: bool,
}

impl EmbeddingRequest {
    /// Reads the document of a request.
    ///
    /// # Errors
    /// The first field of a wrong type or out of range.
    pub(crate) fn read(object: Map<String, Value>) -> Result<Self, Invalid> {
        let mut fields = read(object, &[EMBEDDING], "", ignore_unknown)?;
        let inputs = inputs(fields.take("input"))?;
        let is_base64 = match fields.text("encoding_format") {
            None | Some("float") => false,
            Some("base64") => true,
            Some(other) => {
                let wanted = "\"float\" or \"base64\"";
                return Err(Invalid::value("encoding_format", &other.into(), wanted));
            }
        };
        Ok(Self {
            inputs,
            model: fields.text("model").map(str::to_owned),
            is_base64,
            dimensions: fields.whole("dimensions"),
            truncates: fields.here.contains_key("truncate_prompt_tokens"),
        })
    }
}

fn inputs(input: Option<Value>) -> Result<Vec<Input>, Invalid> {
    const WANTED: &str = "a string that is not empty";
    const IDS: &str = "a list of token ids, none of them negative";
    match input {
        None => {
            Err(Invalid::new("input", "missing: give a string, a list of strings or token ids"))
        }
        Some(Value::String(text)) if !text.is_empty() => Ok(vec![text.into()]),
        Some(Value::Array(list)) => {
            if list.is_empty() || list.len() > MAX_INPUTS {
                let what = format!("has {} texts: give 1 to {MAX_INPUTS}", list.len());
                return Err(Invalid::new("input", what));
            }
            if list.iter().all(Value::is_number) {
                let ids =
                    ids(&list).ok_or_else(|| Invalid::new("input", format!("expected {IDS}")))?;
                return Ok(vec![Input::Tokens(ids)]);
            }
            let texts = list.into_iter().enumerate().map(|(idx, value)| match value {
                Value::String(text) if !text.is_empty() => Ok(Input::Text(text)),
                Value::Array(list) if !list.is_empty() => {
                    let place = format!("input[{idx}]");
                    let ids =
                        ids(&list).ok_or_else(|| Invalid::new(place, format!("expected {IDS}")))?;
                    Ok(Input::Tokens(ids))
                }
                other => Err(Invalid::value(format!("input[{idx}]"), &other, WANTED)),
            });
            texts.collect()
        }
        Some(other) => Err(Invalid::value("input", &other, WANTED)),
    }
}

fn ids(list: &[Value]) -> Option<Vec<u32>> {
    list.iter().map(|id| id.as_u64().and_then(|id| u32::try_from(id).ok())).collect()
}

/// `POST /v1/embeddings`.
#[utoipa::path(
    post,
    path = "/v1/embeddings",
    tag = "openai",
    request_body(content = EmbeddingBody, content_type = "application/json"),
    responses(
        (status = 200, description = "The vectors", body = EmbeddingList),
        (status = 400, description = "A field is wrong; `param` names it", body = OpenAiError),
        (status = 404, description = "No such model", body = OpenAiError),
        (status = 429, description = "As many requests wait as may; see Retry-After",
            body = OpenAiError),
        (status = 503, description = "Not now; see Retry-After", body = OpenAiError),
    )
)]
pub(crate) async fn embeddings(
    State(app): State<App>,
    Extension(id): Extension<RequestId>,
    call: Call,
) -> Result<Response<Body>, ApiError> {
    let request = EmbeddingRequest::read(read_object(&call).await?).map_err(invalid)?;
    let model = ready(&app, &call, request.model.as_deref(), |task| match task {
        Task::FeatureExtraction | Task::SentenceEmbedding => Ok(()),
        other => Err(format!(
            "does {other}: /v1/embeddings needs option.task=sentence-embedding or feature-extraction"
        )),
    })?;
    if model.task() == Some(Task::SentenceEmbedding) {
        return sentences(&model, &id, request).await;
    }
    if request.inputs.iter().any(|input| matches!(input, Input::Tokens(_))) {
        let what = "token ids are taken with option.task=sentence-embedding alone: send the texts";
        return Err(invalid(Invalid::new("input", what)));
    }
    if let (Some(wanted), Some(info)) = (request.dimensions, model.token_info())
        && wanted != u64::from(info.dim)
    {
        let own = format!("{}, which is the model's own: its vectors can't be cut", info.dim);
        return Err(invalid(Invalid::value("dimensions", &wanted.into(), &own)));
    }
    let mut parameters = Map::new();
    if request.truncates {
        parameters.insert("truncation".to_owned(), true.into());
    }
    let task = TaskRequest {
        id: id.as_str().to_owned(),
        inputs: request.inputs,
        is_single: false,
        parameters,
        deadline: None,
    };
    let TaskReply::Features(features) = model.submit(task).await.map_err(ApiError::of_task)? else {
        return Err(ApiError::new(FailureKind::Internal, "the model's answer is no features"));
    };
    let config = model.config();
    let normalise = !config
        .as_ref()
        .and_then(|config| config.options.get("normalize"))
        .is_some_and(|value| value.eq_ignore_ascii_case("false"));
    let n_tokens = features.iter().map(|one| one.n_tokens).sum();
    let n_values = features.iter().map(|one| one.values.len()).sum::<usize>();
    let pool = move || features.iter().map(|one| pooled(one, normalise)).collect::<Vec<_>>();
    let vectors = if n_values > N_VALUES_INLINE {
        tokio::task::spawn_blocking(pool)
            .await
            .map_err(|error| ApiError::new(FailureKind::Internal, format!("pooling: {error}")))?
    } else {
        pool()
    };
    list(&model, vectors, n_tokens, request.is_base64)
}

/// The vectors of a model that has sentence-transformers' modules, or is asked to be one.
async fn sentences(
    model: &ModelHandle,
    id: &RequestId,
    request: EmbeddingRequest,
) -> Result<Response<Body>, ApiError> {
    let mut parameters = Map::new();
    if let Some(n) = request.dimensions {
        parameters.insert("dimensions".to_owned(), n.into());
    }
    let task = TaskRequest {
        id: id.as_str().to_owned(),
        inputs: request.inputs,
        is_single: false,
        parameters,
        deadline: None,
    };
    let TaskReply::Embeddings(rows) = model.submit(task).await.map_err(ApiError::of_task)? else {
        return Err(ApiError::new(FailureKind::Internal, "the model's answer is no vectors"));
    };
    let n_tokens = rows.iter().map(|row| row.n_tokens).sum();
    let vectors = rows.into_iter().map(|row| row.values).collect();
    list(model, vectors, n_tokens, request.is_base64)
}

fn list(
    model: &ModelHandle,
    vectors: Vec<Vec<f32>>,
    n_tokens: usize,
    is_base64: bool,
) -> Result<Response<Body>, ApiError> {
    let mut data = Vec::with_capacity(vectors.len());
    for (index, vector) in vectors.into_iter().enumerate() {
        if vector.iter().any(|x| !x.is_finite()) {
            let message = format!("the model's hidden states of input[{index}] are not finite");
            return Err(ApiError::new(FailureKind::Unserialisable, message));
        }
        let embedding = match is_base64 {
            true => Vector::Base64(base64(&vector)),
            false => Vector::Floats(vector),
        };
        data.push(Embedding { object: "embedding", index, embedding });
    }
    document(&EmbeddingList {
        object: "list",
        data,
        model: model.name().to_owned(),
        usage: EmbeddingUsage { prompt_tokens: n_tokens, total_tokens: n_tokens },
    })
}

/// The mean over the tokens, `[dim]`; summed in f64, so that long texts lose nothing.
fn pooled(features: &Features, normalise: bool) -> Vec<f32> {
    let mut sums = vec![0.0_f64; features.dim];
    for row in features.rows() {
        for (sum, value) in sums.iter_mut().zip(row) {
            *sum += f64::from(*value);
        }
    }
    let n_tokens = features.n_tokens.max(1) as f64;
    sums.iter_mut().for_each(|sum| *sum /= n_tokens);
    let norm = sums.iter().map(|x| x * x).sum::<f64>().sqrt();
    let scale = if normalise && norm > 0.0 { 1.0 / norm } else { 1.0 };
    sums.into_iter().map(|x| (x * scale) as f32).collect()
}

/// The little-endian bytes of `values` in base64, padded.
fn base64(values: &[f32]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let bits = group.iter().fold(0_u32, |bits, byte| (bits << 8) | u32::from(*byte));
        let bits = bits << (8 * (3 - group.len()));
        for idx in 0..4 {
            let letter = (bits >> (18 - 6 * idx)) & 63;
            let is_padding = idx > group.len();
            let letter = LETTERS.get(letter as usize).copied().unwrap_or(b'=');
            text.push(if is_padding { '=' } else { char::from(letter) });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_averaged_and_scaled() {
        let features = Features { n_tokens: 2, dim: 2, values: vec![1.0, 2.0, 5.0, 6.0] };
        assert_eq!(pooled(&features, false), [3.0, 4.0]);
        assert_eq!(pooled(&features, true), [0.6, 0.8]);
        let nothing = Features { n_tokens: 1, dim: 2, values: vec![0.0, 0.0] };
        assert_eq!(pooled(&nothing, true), [0.0, 0.0]);
    }

    #[test]
    fn base64_is_what_python_makes_of_the_same_bytes() {
        // base64.b64encode(struct.pack("<3f", 1.0, -2.5, 0.1)), and of the first one and two.
        assert_eq!(base64(&[1.0, -2.5, 0.1]), "AACAPwAAIMDNzMw9");
        assert_eq!(base64(&[1.0]), "AACAPw==");
        assert_eq!(base64(&[1.0, -2.5]), "AACAPwAAIMA=");
        assert_eq!(base64(&[]), "");
    }
}
