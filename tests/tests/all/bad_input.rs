//! Bodies that are nearly right, made from the OpenAPI document and a seed: whatever they hold, the
//! answer is no failure of the server's, comes, and names what is wrong.

use std::fmt::Write as _;
use std::path::Path;

use drivetrain_tests::{Random, Reply, Server, copy_model, write};
use serde_json::{Map, Value};

const SEED: u64 = 20_261_127;
const N_BODIES: usize = 400;

/// A JSON object as text, whose values may be what no JSON value is.
type Raw = Vec<(String, String)>;

/// The bodies that a route documents.
struct Target {
    /// A right body.
    base: Map<String, Value>,
    /// The fields it may have, those of `parameters` with a dot.
    fields: Vec<String>,
}

impl Target {
    fn read(document: &Value, path: &str) -> Self {
        let mut schema = &document["paths"][path]["post"]["requestBody"]["content"]["application/json"]
            ["schema"];
        if let Some(reference) = schema["$ref"].as_str() {
            schema = document.pointer(reference.strip_prefix('#').unwrap()).unwrap();
        }
        if let Some(any) = schema["anyOf"].as_array() {
            schema = &any[0];
        }
        let example = schema["examples"].get(0).unwrap_or(&schema["example"]);
        let base = example.as_object().unwrap_or_else(|| panic!("{path}: {schema}")).clone();
        let mut fields = Vec::new();
        for (name, field) in schema["properties"].as_object().unwrap() {
            fields.push(name.clone());
            let inner = field["properties"].as_object();
            fields.extend(inner.into_iter().flat_map(Map::keys).map(|key| format!("{name}.{key}")));
        }
        assert!(fields.len() > 3, "{path}: {fields:?}");
        Self { base, fields }
    }

    /// The right body with `field` set to the text `value`.
    fn with(&self, field: &str, value: &str) -> String {
        let raw = |object: &Map<String, Value>| -> Raw {
            object.iter().map(|(key, value)| (key.clone(), value.to_string())).collect()
        };
        let mut body = raw(&self.base);
        match field.split_once('.') {
            None => set(&mut body, field, value.to_owned()),
            Some((outer, inner)) => {
                let mut object = self.base.get(outer).and_then(Value::as_object).map(raw);
                let object = object.get_or_insert_default();
                set(object, inner, value.to_owned());
                set(&mut body, outer, text(object));
            }
        }
        text(&body)
    }
}

fn set(object: &mut Raw, key: &str, value: String) {
    match object.iter_mut().find(|(name, _)| name == key) {
        Some((_, old)) => *old = value,
        None => object.push((key.to_owned(), value)),
    }
}

fn text(object: &Raw) -> String {
    let mut text = String::from("{");
    for (idx, (key, value)) in object.iter().enumerate() {
        let comma = if idx > 0 { "," } else { "" };
        write!(text, "{comma}{}:{value}", Value::from(key.as_str())).unwrap();
    }
    text.push('}');
    text
}

/// A value that hardly fits: of a wrong type, out of every range, deep, long, or no JSON.
fn odd(random: &mut Random, depth: usize) -> String {
    const PLAIN: [&str; 34] = [
        "null",
        "true",
        "false",
        "0",
        "-0.0",
        "1",
        "-1",
        "2",
        "1.5",
        "0.1",
        "1e-320",
        "1e308",
        "-1e308",
        "1e400",
        "NaN",
        "Infinity",
        "2147483647",
        "2147483648",
        "-2147483649",
        "9007199254740993",
        "9223372036854775807",
        "-9223372036854775808",
        "18446744073709551615",
        "18446744073709551616",
        "\"\"",
        "\" \"",
        "\"auto\"",
        "\"1\"",
        "\"\\u0000\"",
        "\"\\ud800\"",
        "\"\\udfff\\ud800\"",
        "\"\u{202e}\u{feff}\u{10ffff}\"",
        "[]",
        "{}",
    ];
    match random.below(12) {
        0 if depth < 4 => {
            let n_items = random.below(4);
            let items: Vec<String> = (0..n_items).map(|_| odd(random, depth + 1)).collect();
            format!("[{}]", items.join(","))
        }
        1 if depth < 4 => {
            let keys =
                ["type", "role", "content", "text", "name", "function", "json_schema", "schema"];
            let object: Raw = (0..random.below(4))
                .map(|_| ((*random.choose(&keys)).to_owned(), odd(random, depth + 1)))
                .collect();
            text(&object)
        }
        2 if depth == 0 => {
            let depth = [60, 120, 5_000, 200_000][random.below(4)];
            format!("{}1{}", "[".repeat(depth), "]".repeat(depth))
        }
        3 if depth == 0 => {
            let n_items = [1_025, 70_000, 300_000][random.below(3)];
            let item = ["1", "\"a\"", "[]", "{}"][random.below(4)];
            format!("[{item}{}]", format!(",{item}").repeat(n_items))
        }
        4 if depth == 0 => format!("\"{}\"", "a".repeat([300, 5_000, 1_000_000][random.below(3)])),
        5 if depth == 0 => {
            let digits = "9".repeat([30, 4_000][random.below(2)]);
            let sign = ["", "-"][random.below(2)];
            format!("{sign}{digits}")
        }
        _ => (*random.choose(&PLAIN)).to_owned(),
    }
}

fn shown(text: &str) -> String {
    text.chars().take(300).collect()
}

/// What an error says: its message, and the field where it has one.
fn said(reply: &Reply) -> String {
    let Ok(error) = reply.json() else { return String::new() };
    let message = [&error["message"], &error["error"]["message"], &error["error"]];
    let message = message.into_iter().find_map(Value::as_str).unwrap_or_default();
    format!("{message} {}", error["error"]["param"].as_str().unwrap_or_default())
}

/// Sends bodies with one odd field each, and with several.
fn sweep(server: &Server, path: &str, model: Option<&str>) {
    let document = server.get("/openapi.json").unwrap().json().unwrap();
    let mut target = Target::read(&document, path);
    match model {
        Some(name) => drop(target.base.insert("model".to_owned(), name.into())),
        None => drop(target.base.remove("model")),
    }
    let mut random = Random::new(SEED);
    let ask = |body: &[u8]| server.post(path, "application/json", body);
    let right = ask(Value::from(target.base.clone()).to_string().as_bytes()).unwrap();
    assert_eq!(right.status, 200, "{path}: {}", String::from_utf8_lossy(&right.body));
    for idx in 0..N_BODIES {
        let field = match idx.checked_sub(target.fields.len() * 2) {
            None => &target.fields[idx % target.fields.len()],
            Some(_) => random.choose(&target.fields),
        };
        let mut body = target.with(field, &odd(&mut random, 0)).into_bytes();
        let is_torn = random.below(12) == 0;
        if is_torn {
            let at = random.below(body.len());
            body[at] = random.below(256) as u8;
        }
        let what = format!(
            "seed {SEED}, body {idx} to {path}: {}",
            shown(&String::from_utf8_lossy(&body))
        );
        let reply = ask(&body).unwrap_or_else(|error| panic!("{what}: {error}\n{}", server.log()));
        let answer = shown(&String::from_utf8_lossy(&reply.body));
        assert!(reply.status < 500, "{what}: {} {answer}", reply.status);
        if reply.status < 400 || is_torn {
            continue;
        }
        let said = said(&reply);
        let name = field.rsplit('.').next().unwrap();
        let is_unreadable =
            said.contains("body is not json") || said.contains("body is not a json");
        assert!(said.contains(name) || is_unreadable, "{what}: {} {answer}", reply.status);
    }
    let again = ask(Value::from(target.base).to_string().as_bytes()).unwrap();
    assert_eq!(again.status, 200, "{}", server.log());
    assert_eq!(server.get("/ping").unwrap().status, 200);
    assert!(!server.log().contains("panicked"), "{}", server.log());
}

fn chat_server(dir: &Path, properties: &str) -> Server {
    let model = copy_model("llama_gqa", &dir.join("odd"));
    write(&model, "serving.properties", properties);
    Server::start(&model).unwrap()
}

#[test]
fn odd_fields_of_invocations() {
    let dir = tempfile::tempdir().unwrap();
    sweep(&chat_server(dir.path(), "option.rolling_batch=auto\n"), "/invocations", None);
}

#[test]
fn odd_fields_of_pipelines() {
    let dir = tempfile::tempdir().unwrap();
    sweep(&chat_server(dir.path(), "option.rolling_batch=disable\n"), "/invocations", None);
}

#[test]
fn odd_fields_of_completions() {
    let dir = tempfile::tempdir().unwrap();
    sweep(&chat_server(dir.path(), ""), "/v1/completions", Some("odd"));
}

#[test]
fn odd_fields_of_chat_completions() {
    let dir = tempfile::tempdir().unwrap();
    sweep(&chat_server(dir.path(), ""), "/v1/chat/completions", Some("odd"));
}

#[test]
fn odd_fields_of_embeddings() {
    let dir = tempfile::tempdir().unwrap();
    let model = copy_model("bert", &dir.path().join("odd"));
    write(&model, "serving.properties", "option.task=feature-extraction\n");
    sweep(&Server::start(&model).unwrap(), "/v1/embeddings", Some("odd"));
}

#[test]
fn bytes_that_are_no_text_and_heads_without_end() {
    let dir = tempfile::tempdir().unwrap();
    let server = chat_server(dir.path(), "option.rolling_batch=auto\n");
    let mut random = Random::new(SEED);
    for path in ["/invocations", "/v1/completions", "/v1/chat/completions", "/v1/embeddings"] {
        for _ in 0..20 {
            let n_bytes = 1 + random.below(400);
            let body: Vec<u8> = (0..n_bytes).map(|_| random.number() as u8).collect();
            let reply = server.post(path, "application/json", &body).unwrap();
            assert!((400..500).contains(&reply.status), "{path} {body:?}: {}", reply.status);
        }
        for n_headers in [101, 5_000] {
            let headers: String = (0..n_headers).fold(String::new(), |mut all, idx| {
                write!(all, "x-h{idx}: {}\r\n", "v".repeat(idx % 90)).unwrap();
                all
            });
            let head = format!(
                "POST {path} HTTP/1.1\r\nhost: x\r\n{headers}content-length: 2\r\n\r\n{{}}"
            );
            let reply = server.raw(head.as_bytes()).unwrap_or_default();
            let reply = String::from_utf8_lossy(&reply).into_owned();
            assert!(reply.is_empty() || reply.starts_with("HTTP/1.1 4"), "{n_headers}: {reply}");
        }
    }
    let reply = server.post("/invocations", "application/json", r#"{"inputs": "The engine"}"#);
    assert_eq!(reply.unwrap().status, 200);
}
