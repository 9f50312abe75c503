//! The tasks of heads, and those with languages and prefixes, over HTTP against what transformers'
//! pipelines and sentence-transformers answered.

use std::path::{Path, PathBuf};

use drivetrain_tests::{Server, copy_dir, edit_json, fixture, write};
use serde_json::{Value, json};

/// Tolerance on scores, and on the numbers of vectors.
const SCORES: f64 = 1e-4;

/// A folder of `heads`: a model, or what another fixture answers under some settings.
struct Recorded {
    name: String,
    model: PathBuf,
    json: Value,
}

impl Recorded {
    /// Every folder whose model is there and of a family that is served; the others are named.
    fn all() -> Vec<Self> {
        let mut all = Vec::new();
        let mut skipped = Vec::new();
        let mut folders: Vec<PathBuf> = std::fs::read_dir(fixture("heads"))
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.join("pipelines.json").exists())
            .collect();
        folders.sort();
        for folder in folders {
            let name = folder.file_name().unwrap().to_string_lossy().into_owned();
            let json = read(&folder.join("pipelines.json"));
            let model = match json["model"].as_str() {
                Some(other) => fixture(other),
                None => folder,
            };
            let served = model.join("config.json").exists() && is_served(&model);
            if served {
                all.push(Self { name, model, json });
            } else {
                skipped.push(name);
            }
        }
        if !skipped.is_empty() {
            println!("skipped, of families that are not served: {}", skipped.join(", "));
        }
        all
    }

    /// Serves the model for each of its tasks, and says what is wrong with the answers.
    fn faults(&self) -> Vec<String> {
        let cases = self.json["cases"].as_array().unwrap();
        let mut tasks: Vec<&str> =
            cases.iter().map(|case| case["task"].as_str().unwrap()).collect();
        tasks.dedup();
        tasks.sort_unstable();
        tasks.dedup();
        let mut faults = Vec::new();
        for task in tasks {
            let dir = tempfile::tempdir().unwrap();
            let model = copy_model(&self.model, &dir.path().join("model"));
            for (key, file) in
                [("config", "config.json"), ("tokenizer_config", "tokenizer_config.json")]
            {
                if self.json[key].is_object() {
                    edit_json(&model.join(file), &self.json[key]);
                }
            }
            write(&model, "serving.properties", &format!("option.task={task}\n"));
            let server = Server::start(&model).unwrap();
            for case in cases.iter().filter(|case| case["task"] == task) {
                let body = case["body"].to_string();
                let reply = server.post("/invocations", "application/json", body.clone()).unwrap();
                let fault = if reply.status == 200 {
                    difference("", &reply.json().unwrap(), &case["reply"])
                } else {
                    Some(String::from_utf8_lossy(&reply.body).into_owned())
                };
                faults.extend(fault.map(|fault| {
                    let body: String = body.chars().take(300).collect();
                    format!("{}, {task}, {body}: {fault}", self.name)
                }));
            }
        }
        faults
    }
}

/// Copies a model with its folders of modules.
fn copy_model(from: &Path, to: &Path) -> PathBuf {
    let to = copy_dir(from, to);
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            copy_dir(&path, &to.join(path.file_name().unwrap()));
        }
    }
    let _ = std::fs::remove_file(to.join("pipelines.json"));
    to
}

fn read(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn is_served(model: &Path) -> bool {
    let family = read(&model.join("config.json"))["model_type"].as_str().unwrap().to_owned();
    drivetrain_transformer::model_types().any(|known| known == family)
}

/// Where `got` is something else than `want`.
fn difference(place: &str, got: &Value, want: &Value) -> Option<String> {
    match (got, want) {
        (Value::Number(a), Value::Number(b)) => {
            let (a, b) = (a.as_f64().unwrap(), b.as_f64().unwrap());
            // A logit that is told as it is may be large.
            let is_near = (a - b).abs() <= SCORES * b.abs().max(1.0);
            (!is_near).then(|| format!("{place} is {a}, {b} wanted"))
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            let mut each = a.iter().zip(b).enumerate();
            each.find_map(|(idx, (a, b))| difference(&format!("{place}[{idx}]"), a, b))
        }
        (Value::Object(a), Value::Object(b)) => {
            if a.keys().collect::<Vec<_>>() != b.keys().collect::<Vec<_>>() {
                return Some(format!("{place} is {got}, {want} wanted"));
            }
            a.iter().find_map(|(key, a)| difference(&format!("{place}.{key}"), a, &b[key]))
        }
        _ => (got != want).then(|| format!("{place} is {got}, {want} wanted")),
    }
}

fn check(matches: impl Fn(&str) -> bool) {
    let all = Recorded::all();
    let own: Vec<&Recorded> = all.iter().filter(|recorded| matches(&recorded.name)).collect();
    assert!(!own.is_empty());
    let faults: Vec<String> = own.into_iter().flat_map(Recorded::faults).collect();
    let n = faults.len();
    assert!(faults.is_empty(), "{n} differ:\n{}", faults[..n.min(12)].join("\n"));
}

#[test]
fn labels_are_those_of_the_pipelines() {
    check(|name| {
        ["labels", "multilabel", "one", "regression", "nli"].iter().any(|k| name.ends_with(k))
    });
}

#[test]
fn entities_are_those_of_the_pipelines() {
    check(|name| name.ends_with("tags"));
}

#[test]
fn answers_are_those_of_the_pipelines() {
    check(|name| name.ends_with("spans"));
}

#[test]
fn masks_are_filled_as_the_pipelines_fill_them() {
    check(|name| name.ends_with("mask"));
}

#[test]
fn sentences_are_embedded_as_sentence_transformers_embeds_them() {
    check(|name| name.starts_with("sentences"));
}

#[test]
fn prefixes_and_languages_are_those_of_the_pipelines() {
    check(|name| name.ends_with("tasks"));
}

#[test]
fn a_class_says_the_task_and_a_route_its_model() {
    let serve = |name: &str| Server::start(&fixture(name)).unwrap();
    let server = serve("heads/bert_labels");
    let reply = server.post("/predictions/bert_labels", "text/plain", "The engine").unwrap();
    assert!(reply.json().unwrap()[0]["label"].is_string());
    let reply = server.post("/rerank", "application/json", r#"{"query": "a", "texts": ["b"]}"#);
    let reply = reply.unwrap();
    assert_eq!(reply.status, 400);
    let message = reply.json().unwrap()["message"].as_str().unwrap().to_owned();
    assert!(message.contains("text-classification") && message.contains("option.task=rerank"));
    // Modules say that the model is one for sentences.
    let server = serve("heads/sentences_mean");
    let body = json!({"inputs": ["Tests", "Rain"]}).to_string();
    let embedded = server.post("/embed", "application/json", body.clone()).unwrap().json().unwrap();
    let invoked = server.post("/invocations", "application/json", body).unwrap().json().unwrap();
    assert_eq!(embedded, invoked);
    let body = json!({"input": "Tests", "dimensions": 4}).to_string();
    let reply = server.post("/v1/embeddings", "application/json", body).unwrap().json().unwrap();
    assert_eq!(reply["data"][0]["embedding"].as_array().unwrap().len(), 4);
    let ids = json!({"input": [[2, 30, 3], [2, 31, 3]]}).to_string();
    let reply = server.post("/v1/embeddings", "application/json", ids).unwrap().json().unwrap();
    assert_eq!(
        (reply["data"].as_array().unwrap().len(), &reply["usage"]["prompt_tokens"]),
        (2, &json!(6))
    );
}

#[test]
fn what_a_task_does_not_take_is_named() {
    let ask = |server: &Server, body: Value| {
        let reply = server.post("/invocations", "application/json", body.to_string()).unwrap();
        assert_eq!(reply.status, 400, "{body}");
        reply.json().unwrap()["message"].as_str().unwrap().to_owned()
    };
    let serve = |name: &str| Server::start(&fixture(name)).unwrap();
    let check = |server: &Server, cases: &[(Value, &str)]| {
        for (body, wanted) in cases {
            let message = ask(server, body.clone());
            assert!(message.contains(wanted), "{body}: {message}");
        }
    };
    check(
        &serve("heads/bert_spans"),
        &[
            (json!({"inputs": "text"}), "inputs[0] is no object: give {\"question\""),
            (json!({"question": "q"}), "inputs[0] has no key \"context\""),
            (json!({"question": "q", "context": ""}), "may not be empty"),
            (json!({"question": 5, "context": "c"}), "inputs[0].question=5: expected a string"),
            (
                json!({"inputs": {"question": "q", "context": "c"}, "parameters": {"max_seq_len": 99}}),
                "max_seq_len=99",
            ),
            (
                json!({"inputs": {"question": "q", "context": "c c c c c c c c"},
                    "parameters": {"max_seq_len": 8, "doc_stride": 6}}),
                "parameters.doc_stride",
            ),
        ],
    );
    check(
        &serve("heads/bert_labels"),
        &[
            (json!({"inputs": {"txt": "a"}}), "inputs[0] has the key \"txt\""),
            (json!({"inputs": ["a", 5]}), "inputs[1] is 5"),
            (json!({"inputs": "a", "parameters": {"top_k": 0}}), "parameters.top_k=0"),
            (json!({"inputs": "a", "parameters": {"function_to_apply": "x"}}), "function_to_apply"),
            (json!({"inputs": "word ".repeat(100)}), "parameters.truncation"),
        ],
    );
    check(
        &serve("heads/bert_mask"),
        &[
            (json!({"inputs": "no mask"}), "write [MASK]"),
            (json!({"inputs": "[MASK]", "parameters": {"targets": [1]}}), "parameters.targets"),
        ],
    );
    check(
        &serve("heads/bert_tags"),
        &[
            (json!({"inputs": "a", "parameters": {"aggregation_strategy": "x"}}), "\"average\""),
            (json!({"inputs": "a", "parameters": {"stride": 4}}), "aggregation_strategy"),
            (json!({"inputs": [["a", "b"]]}), "is_split_into_words"),
        ],
    );
}

#[test]
fn a_model_without_the_head_says_what_it_can_do() {
    let dir = tempfile::tempdir().unwrap();
    let model = copy_dir(&fixture("heads/bert_labels"), &dir.path().join("model"));
    write(&model, "serving.properties", "option.task=question-answering\n");
    let error = Server::start(&model).unwrap_err();
    let error = format!("{error:?}");
    for wanted in
        ["ForQuestionAnswering", "BertForSequenceClassification", "text-classification, zero-shot"]
    {
        assert!(error.contains(wanted), "{error}");
    }
}
