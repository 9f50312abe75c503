//! Schemas, expressions and templates that are small and take work or memory without end: each is
//! stopped, its request is refused, and the server goes on.

use std::path::Path;

use drivetrain_tests::{Server, copy_model, edit_json, write};
use serde_json::{Value, json};

fn serve(dir: &Path, tokenizer: &Value) -> Server {
    let model = copy_model("llama_gqa", &dir.join("model"));
    edit_json(&model.join("tokenizer_config.json"), tokenizer);
    write(&model, "serving.properties", "option.rolling_batch=auto\n");
    Server::start(&model).unwrap()
}

/// Whether an error says what is wrong: the field, or that the text came to the end of its grammar.
fn names(answer: &str, field: &str) -> bool {
    answer.contains(field) || answer.contains("the grammar can't be followed any further")
}

fn assert_refused(server: &Server, path: &str, body: &Value, field: &str) {
    let what = || body.to_string().chars().take(200).collect::<String>();
    let reply = server.post(path, "application/json", body.to_string());
    let reply = reply.unwrap_or_else(|error| panic!("{}: {error}\n{}", what(), server.log()));
    let answer = String::from_utf8_lossy(&reply.body).into_owned();
    assert!((400..500).contains(&reply.status), "{}: {} {answer}", what(), reply.status);
    assert!(names(&answer, field), "{}: {answer}", what());
    let right = json!({"inputs": "The engine", "parameters": {"max_new_tokens": 2}});
    let reply = server.post("/invocations", "application/json", right.to_string()).unwrap();
    assert_eq!(reply.status, 200, "after {}: {}", what(), server.log());
}

/// Asks for an answer that may well be given, since what is large here is only worked out as far as
/// the answer goes.
fn assert_bounded(server: &Server, body: &Value, field: &str) {
    let reply = server.post("/invocations", "application/json", body.to_string());
    let shown: String = body.to_string().chars().take(200).collect();
    let reply = reply.unwrap_or_else(|error| panic!("{shown}: {error}\n{}", server.log()));
    let answer = String::from_utf8_lossy(&reply.body).into_owned();
    assert!(reply.status < 500, "{shown}: {} {answer}", reply.status);
    assert!(reply.status < 400 || names(&answer, field), "{shown}: {answer}");
    let right = json!({"inputs": "The engine", "parameters": {"max_new_tokens": 2}});
    let reply = server.post("/invocations", "application/json", right.to_string()).unwrap();
    assert_eq!(reply.status, 200, "after {shown}: {}", server.log());
}

fn guided(field: &str, grammar: Value) -> Value {
    let mut parameters = json!({"max_new_tokens": 50});
    parameters[field] = grammar;
    json!({"inputs": "The engine", "parameters": parameters})
}

/// Objects in objects, a thousand deep.
fn deep() -> String {
    let open = r#"{"type":"object","properties":{"a":"#.repeat(1000);
    format!("{open}true{}", "}}".repeat(1000))
}

/// Definitions that each have the next one twice, thirty deep.
fn doubling(word: &str) -> Value {
    let mut definitions = json!({"d30": {"type": "string", "minLength": 1}});
    for idx in 0..30 {
        let next = json!({"$ref": format!("#/$defs/d{}", idx + 1)});
        definitions[format!("d{idx}")] = match word {
            "properties" => json!({
                "type": "object", "properties": {"a": next, "b": next}, "required": ["a", "b"],
            }),
            _ => json!({ word: [{"type": "object", "properties": {"a": next}}, next] }),
        };
    }
    json!({"$defs": definitions, "$ref": "#/$defs/d0"})
}

#[test]
fn expressions_that_explode() {
    let dir = tempfile::tempdir().unwrap();
    let server = serve(dir.path(), &json!({}));
    for expression in [
        "(a{1,1000}){1,1000}".to_owned(),
        "((a{1,100}){1,100}){1,100}".to_owned(),
        "(((((a{1,30}){1,30}){1,30}){1,30}){1,30}){1,30}".to_owned(),
        "a{4000000000}".to_owned(),
        r"(\p{L}{1,5000}){1,5000}x".to_owned(),
        "(a|b)*a(a|b){2000}".to_owned(),
        format!("{}a{}", "(".repeat(20_000), ")".repeat(20_000)),
    ] {
        assert_bounded(&server, &guided("guided_regex", expression.into()), "guided_regex");
    }
    for expression in ["a{1,99999999999999999999}".to_owned(), "(".repeat(30_000)] {
        let body = guided("guided_regex", expression.into());
        assert_refused(&server, "/invocations", &body, "guided_regex");
    }
}

#[test]
fn schemas_that_explode() {
    let dir = tempfile::tempdir().unwrap();
    let server = serve(dir.path(), &json!({}));
    for schema in [
        Value::from(deep()),
        doubling("allOf"),
        json!({"$ref": "#"}),
        json!({"allOf": [{"$ref": "#"}]}),
        json!({"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}),
    ] {
        assert_refused(
            &server,
            "/invocations",
            &guided("guided_json", schema.clone()),
            "guided_json",
        );
        let format = json!({"type": "json_schema", "json_schema": {"name": "x", "schema": schema}});
        let body = json!({"prompt": "The", "max_tokens": 50, "response_format": format});
        if body["response_format"]["json_schema"]["schema"].is_object() {
            assert_refused(&server, "/v1/completions", &body, "response_format");
        }
    }
}

#[test]
fn schemas_that_are_large_are_answered_or_refused() {
    let dir = tempfile::tempdir().unwrap();
    let server = serve(dir.path(), &json!({}));
    let names: Vec<String> = (0..10_000).map(|idx| format!("name {idx}")).collect();
    for schema in [
        doubling("anyOf"),
        doubling("properties"),
        json!({"type": "array", "items": {"$ref": "#"}}),
        json!({"type": "array", "minItems": 1_000_000_000, "items": {"type": "null"}}),
        json!({"type": "string", "minLength": 1_000_000_000}),
        json!({"type": "integer", "minimum": -1e300, "maximum": 1e300}),
        json!({"type": "number", "multipleOf": 1e-300}),
        json!({"enum": names}),
        json!({"type": "string", "pattern": "^(a{1,1000}){1,1000}$"}),
    ] {
        assert_bounded(&server, &guided("guided_json", schema), "guided_json");
    }
}

#[test]
fn templates_that_explode() {
    let templates = [
        (
            "loops",
            "{% for i in range(9999) %}{% for j in range(9999) %}{% for k in range(9999) %}\
                   {% endfor %}{% endfor %}{% endfor %}",
        ),
        (
            "lists",
            "{% set ns = namespace(x=[1]) %}{% for i in range(99) %}\
                   {% set ns.x = ns.x + ns.x %}{% endfor %}{{ ns.x|length }}",
        ),
        (
            "texts",
            "{% set ns = namespace(x='a') %}{% for i in range(99) %}\
                   {% set ns.x = ns.x ~ ns.x %}{% endfor %}{{ ns.x }}",
        ),
        ("product", "{{ 'a' * 100000000000 }}"),
        (
            "replace",
            "{% set ns = namespace(x='aaaaaaaa') %}{% for i in range(20) %}\
                     {% set ns.x = ns.x|replace('a', 'aaaaaaaa') %}{% endfor %}{{ ns.x }}",
        ),
        (
            "join",
            "{% set ns = namespace(x='aaaaaaaa') %}{% for i in range(20) %}\
                  {% set ns.x = ns.x|join(ns.x) %}{% endfor %}{{ ns.x }}",
        ),
        ("macros", "{% macro m(n) %}{{ m(n + 1) }}{{ m(n + 1) }}{% endmacro %}{{ m(0) }}"),
        ("range", "{{ range(100000000000)|list|length }}"),
        ("indent", "{{ ('a\n' * 1000)|indent(1000000) }}"),
        ("format", "{{ '%1000000000d'|format(1) }}"),
        ("power", "{{ 9 ** 999999999 }}"),
    ];
    let dir = tempfile::tempdir().unwrap();
    let list: Vec<Value> = templates
        .iter()
        .map(|(name, template)| json!({"name": name, "template": template}))
        .collect();
    let server = serve(dir.path(), &json!({ "chat_template": list }));
    for (name, _) in templates {
        let body = json!({
            "messages": [{"role": "user", "content": "The engine"}], "max_tokens": 2,
            "chat_template": name,
        });
        assert_refused(&server, "/v1/chat/completions", &body, "template");
    }
}
