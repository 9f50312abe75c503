//! From a request's body to the inputs of tasks that take more than texts: pairs, questions with
//! their contexts, conversations, words, tokens.

use bytes::Bytes;
use drivetrain_host::{Input, Task};
use serde_json::{Map, Value};

use crate::bounded::{Budget, parse_object, parse_value};
use crate::content_type::{BodyFormat, ContentType};
use crate::failure::ApiError;
use crate::input::{MAX_INPUTS, TaskInput, decode_body};

/// Most values, nested ones included, in a body.
const MAX_VALUES: usize = 1 << 20;
/// Parameters that a request to rerank has beside its query, as text-embeddings-inference has them.
const RERANK: [&str; 4] = ["raw_scores", "return_text", "truncate", "truncation_direction"];

/// A decoded body.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct TaskItems {
    /// The inputs; at least one.
    pub(crate) inputs: Vec<Input>,
    /// The keyword arguments of the task.
    pub(crate) parameters: Map<String, Value>,
    /// Whether the body has one input by itself and not a list.
    pub(crate) is_single: bool,
}

impl From<TaskInput> for TaskItems {
    fn from(input: TaskInput) -> Self {
        let inputs = input.inputs.into_iter().map(Input::Text).collect();
        Self { inputs, parameters: input.parameters, is_single: false }
    }
}

impl TaskItems {
    /// Inputs and parameters that are apart already.
    ///
    /// # Errors
    /// An input that is none, which the message names.
    pub(crate) fn of(inputs: Value, parameters: Map<String, Value>) -> Result<Self, ApiError> {
        of_inputs(inputs, parameters)
    }
}

/// Whether a task's inputs may be more than texts, or its reply tells one input from a list of one.
pub(crate) fn takes_items(task: Task) -> bool {
    task != Task::FeatureExtraction && (!task.generates() || task == Task::Conversational)
}

/// Reads a body that is not a form.
///
/// # Errors
/// As [`decode_body`]; or an input that is none, which the message names.
pub(crate) fn decode_items(
    content_type: &ContentType,
    body: &Bytes,
    task: Task,
) -> Result<TaskItems, ApiError> {
    match content_type.format {
        BodyFormat::Json if !body.is_empty() => {
            let text = content_type.decode(body)?;
            let value = parse_value(&text, Budget::new("body", MAX_VALUES)).map_err(|error| {
                ApiError::untranslatable(format!(
                    "body is not json: {error}: send json, or plain text with the header \
                     content-type: text/plain"
                ))
            })?;
            of_value(value, task)
        }
        BodyFormat::Csv if task == Task::QuestionAnswering && !body.is_empty() => {
            of_rows(&content_type.decode(body)?)
        }
        _ => decode_body(content_type, body).map(TaskItems::from),
    }
}

fn of_value(value: Value, task: Task) -> Result<TaskItems, ApiError> {
    let Value::Object(mut map) = value else {
        return of_inputs(value, Map::new());
    };
    let mut parameters = match map.remove("parameters") {
        None | Some(Value::Null) => Map::new(),
        Some(Value::Object(parameters)) => parameters,
        Some(_) => {
            return Err(ApiError::untranslatable("body: expected \"parameters\" to be an object"));
        }
    };
    if task == Task::Rerank {
        for name in RERANK {
            if let Some(value) = map.remove(name) {
                parameters.insert(name.to_owned(), value);
            }
        }
    }
    match map.remove("inputs") {
        Some(inputs) => of_inputs(inputs, parameters),
        None if map.is_empty() => Err(ApiError::untranslatable(
            "body has no key \"inputs\": found no keys; send {\"inputs\": .., \"parameters\": {..}}",
        )),
        // The whole object is the input.
        None => Ok(TaskItems { inputs: vec![Input::Object(map)], parameters, is_single: true }),
    }
}

fn of_inputs(inputs: Value, parameters: Map<String, Value>) -> Result<TaskItems, ApiError> {
    let Value::Array(list) = inputs else {
        let input = item("inputs", inputs)?;
        return Ok(TaskItems { inputs: vec![input], parameters, is_single: true });
    };
    if list.is_empty() {
        return Err(ApiError::untranslatable(
            "the list of inputs is empty: give at least one text",
        ));
    }
    if list.len() > MAX_INPUTS {
        return Err(ApiError::untranslatable(format!(
            "\"inputs\" has more than {MAX_INPUTS} texts: send fewer in a request"
        )));
    }
    // A list of ids is one text.
    if list.iter().all(Value::is_u64) {
        let input = item("inputs", Value::Array(list))?;
        return Ok(TaskItems { inputs: vec![input], parameters, is_single: true });
    }
    let each = list.into_iter().enumerate();
    let inputs = each.map(|(idx, value)| item(&format!("inputs[{idx}]"), value));
    Ok(TaskItems { inputs: inputs.collect::<Result<_, _>>()?, parameters, is_single: false })
}

fn item(place: &str, value: Value) -> Result<Input, ApiError> {
    let wanted = |found: &Value| {
        let found: String = found.to_string().chars().take(60).collect();
        ApiError::untranslatable(format!(
            "body: {place} is {found}: expected a string, an object, or a list of words or of \
             token ids"
        ))
    };
    match value {
        Value::String(text) => Ok(Input::Text(text)),
        Value::Object(map) => Ok(Input::Object(map)),
        Value::Array(list) if !list.is_empty() => {
            let words = list.iter().map(|word| word.as_str().map(str::to_owned));
            if let Some(words) = words.collect::<Option<Vec<String>>>() {
                return Ok(Input::Words(words));
            }
            let ids = list.iter().map(|id| id.as_u64().and_then(|id| u32::try_from(id).ok()));
            match ids.collect::<Option<Vec<u32>>>() {
                Some(ids) => Ok(Input::Tokens(ids)),
                None => Err(wanted(&Value::Array(list))),
            }
        }
        other => Err(wanted(&other)),
    }
}

/// A table whose rows are objects, the first one naming the columns; one `inputs` is a list of texts.
fn of_rows(text: &str) -> Result<TaskItems, ApiError> {
    let broken = |error: csv::Error| ApiError::untranslatable(format!("body is not csv: {error}"));
    let mut reader = csv::ReaderBuilder::new().from_reader(text.as_bytes());
    let headers = reader.headers().map_err(broken)?.clone();
    if !headers.iter().any(|name| matches!(name.trim(), "question" | "context")) {
        return Err(ApiError::untranslatable(
            "csv header has neither \"question\" nor \"context\": the first row names the columns",
        ));
    }
    let mut inputs = Vec::new();
    for record in reader.records() {
        if inputs.len() == MAX_INPUTS {
            return Err(ApiError::untranslatable(format!(
                "body has more than {MAX_INPUTS} inputs: send fewer in a request"
            )));
        }
        let record = record.map_err(broken)?;
        let fields = headers.iter().zip(&record);
        let row = fields.map(|(name, value)| (name.trim().to_owned(), Value::from(value)));
        inputs.push(Input::Object(row.collect()));
    }
    if inputs.is_empty() {
        return Err(ApiError::untranslatable("the list of inputs is empty: give at least one row"));
    }
    Ok(TaskItems { inputs, parameters: Map::new(), is_single: false })
}

/// Reads the document of a route that is for one task alone.
///
/// # Errors
/// Text that is no JSON object of a bounded size.
pub(crate) fn decode_object(
    content_type: &ContentType,
    body: &Bytes,
) -> Result<Map<String, Value>, ApiError> {
    let text = content_type.decode(body)?;
    parse_object(&text, Budget::new("body", MAX_VALUES))
        .map_err(|error| ApiError::bad_request(format!("body is not a json object: {error}")))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(value: Value, task: Task) -> Result<TaskItems, String> {
        of_value(value, task).map_err(|error| error.message)
    }

    #[test]
    fn inputs_are_texts_objects_words_or_tokens() {
        let task = Task::TextClassification;
        let check = |value: Value, expect: &[Input], is_single: bool| {
            let items = read(value.clone(), task).unwrap();
            assert_eq!((items.inputs.as_slice(), items.is_single), (expect, is_single), "{value}");
        };
        let object = |value: Value| Input::Object(value.as_object().unwrap().clone());
        check(json!("a"), &["a".into()], true);
        check(json!({"inputs": "a"}), &["a".into()], true);
        check(json!({"inputs": ["a"]}), &["a".into()], false);
        check(json!(["a", "b"]), &["a".into(), "b".into()], false);
        check(json!({"question": "q"}), &[object(json!({"question": "q"}))], true);
        check(json!({"inputs": [{"text": "a"}]}), &[object(json!({"text": "a"}))], false);
        check(
            json!({"inputs": [["a", "b"]]}),
            &[Input::Words(vec!["a".into(), "b".into()])],
            false,
        );
        check(json!({"inputs": [1, 2]}), &[Input::Tokens(vec![1, 2])], true);
        check(
            json!({"inputs": [[1], [2]]}),
            &[Input::Tokens(vec![1]), Input::Tokens(vec![2])],
            false,
        );
    }

    #[test]
    fn parameters_stand_apart() {
        let items = read(
            json!({"query": "q", "texts": ["t"], "raw_scores": true, "parameters": {"x": 1}}),
            Task::Rerank,
        )
        .unwrap();
        assert_eq!(Value::Object(items.parameters), json!({"x": 1, "raw_scores": true}));
        let Input::Object(map) = &items.inputs[0] else { panic!() };
        assert_eq!(map.len(), 2);
    }

    #[test]
    fn what_is_no_input_is_named() {
        for (value, wanted) in [
            (json!({}), "no key \"inputs\""),
            (json!({"inputs": []}), "empty"),
            (json!({"inputs": 5}), "inputs is 5"),
            (json!({"inputs": ["a", 7]}), "inputs[1] is 7"),
            (json!({"inputs": [["a", 7]]}), "inputs[0] is [\"a\",7]"),
            (json!({"inputs": "a", "parameters": [1]}), "\"parameters\" to be an object"),
            (json!({"inputs": [null]}), "inputs[0] is null"),
        ] {
            let error = read(value, Task::TextClassification).unwrap_err();
            assert!(error.contains(wanted), "{error}");
        }
    }

    #[test]
    fn rows_of_a_table_are_questions() {
        let items = of_rows("question,context\nq,\"a, b\"\n").unwrap();
        let expect = json!({"question": "q", "context": "a, b"});
        assert_eq!(items.inputs, [Input::Object(expect.as_object().unwrap().clone())]);
        assert!(of_rows("a,b\n1,2\n").unwrap_err().message.contains("neither"));
    }
}
