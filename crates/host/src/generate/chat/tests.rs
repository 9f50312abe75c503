//! Chat templates against what transformers makes of them (`testdata/make_chats.py`).

use drivetrain_artifacts::{ModelDir, Tokenizer, UnpackOptions};
use serde_json::{Map, json};

use super::*;

/// A renderer of the templates in a model's directory.
fn renderer(files: &[(&str, &str)]) -> ChatRenderer {
    let dir = tempfile::tempdir().unwrap();
    let words = json!({"version": "1.0", "added_tokens": [], "model": {
        "type": "WordLevel", "vocab": {"<s>": 0, "</s>": 1}, "unk_token": "<s>",
    }});
    std::fs::write(dir.path().join("tokenizer.json"), words.to_string()).unwrap();
    for (name, text) in files {
        let path = dir.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    let files = ModelDir::open(dir.path(), &UnpackOptions::default()).unwrap();
    let tokenizer = Tokenizer::read(&files).unwrap();
    ChatRenderer::new(tokenizer.chat_templates(), tokenizer.special_tokens())
}

fn of_template(template: &str) -> ChatRenderer {
    let special = json!({"bos_token": "<s>", "eos_token": "</s>"}).to_string();
    renderer(&[("chat_template.jinja", template), ("tokenizer_config.json", &special)])
}

fn chat(messages: Value) -> Chat {
    let messages = messages.as_array().cloned().unwrap_or_default();
    Chat { messages, opens_answer: true, ..Chat::default() }
}

fn message(text: &str) -> Chat {
    chat(json!([{"role": "user", "content": text}]))
}

#[test]
fn templates_render_as_in_transformers() {
    let reference: Value = serde_json::from_str(include_str!("testdata/chats.json")).unwrap();
    let mut n_wrong = 0;
    for case in reference["templates"].as_array().unwrap() {
        let renderer = of_template(case["template"].as_str().unwrap());
        let chats = reference["chats"].as_array().unwrap();
        for (asked, expect) in chats.iter().zip(case["rendered"].as_array().unwrap()) {
            let list = |key: &str| asked[key].as_array().cloned().unwrap_or_default();
            let chat = Chat {
                messages: list("messages"),
                tools: list("tools"),
                extra: asked["extra"].as_object().cloned().unwrap_or_default(),
                opens_answer: asked["opens"] == true,
                continues_last: asked["continues"] == true,
            };
            let found = renderer.render(&chat);
            let is_same = match (&found, expect["text"].as_str()) {
                (Ok(text), Some(expect)) => text == expect,
                (Err(error), None) => {
                    let message = error.to_string();
                    let expect = expect["error"].as_str().unwrap();
                    message.ends_with(expect) || !message.contains("refuses")
                }
                _ => false,
            };
            if !is_same {
                n_wrong += 1;
                println!("{}: {asked}\n  found  {found:?}\n  expect {expect}", case["name"]);
            }
        }
    }
    assert_eq!(n_wrong, 0);
}

#[test]
fn the_template_is_found_where_models_keep_it() {
    let check = |files: &[(&str, &str)], tools: bool, asked: Option<&str>, expect: &str| {
        let mut chat = message("x");
        chat.tools = if tools { vec![json!({"type": "function"})] } else { Vec::new() };
        chat.extra =
            asked.map(|name| ("chat_template".to_owned(), json!(name))).into_iter().collect();
        let found = renderer(files).render(&chat).unwrap_or_else(|error| error.to_string());
        assert!(found.contains(expect), "{found}");
    };
    let file = ("chat_template.jinja", "file");
    let more = ("additional_chat_templates/tool_use.jinja", "tools");
    let config = ("tokenizer_config.json", "{\"chat_template\": \"config\"}");
    let list = (
        "tokenizer_config.json",
        "{\"chat_template\": [{\"name\": \"default\", \"template\": \"a\"}, \
          {\"name\": \"tool_use\", \"template\": \"b\"}]}",
    );
    check(&[file, config], false, None, "file");
    check(&[config], true, None, "config");
    check(&[file, more], false, None, "file");
    check(&[file, more], true, None, "tools");
    check(&[list], false, None, "a");
    check(&[list], true, None, "b");
    check(&[list], false, Some("tool_use"), "b");
    check(&[list], false, Some("other"), "chat_template: expected one of default, tool_use");
    check(&[more], false, None, "chat_template: expected one of tool_use");
    check(&[], false, None, "messages: the model has no chat template");
}

#[test]
fn a_template_that_does_too_much_is_stopped() {
    let check = |template: &str, expect: &str| {
        let error = of_template(template).render(&message("x")).unwrap_err();
        let is_request = matches!(error, HostError::BadRequest { .. });
        assert!(is_request && error.to_string().contains(expect), "{template}: {error}");
    };
    let too_much = "does too much";
    check(
        "{% for a in range(99999) %}{% for b in range(99999) %}{{ a }}{% endfor %}{% endfor %}",
        too_much,
    );
    check(
        "{% set n = namespace(s='x') %}{% for a in range(60) %}{% set n.s = n.s ~ n.s %}{% endfor %}",
        too_much,
    );
    check(
        "{% set n = namespace(s='x') %}{% for a in range(60) %}{% set n.s = n.s + n.s %}{% endfor %}",
        too_much,
    );
    check(
        "{% set n = namespace(s='xx') %}{% for a in range(60) %}\
         {% set n.s = n.s.replace('x', n.s) %}{% endfor %}",
        TOO_LONG,
    );
    check("{{ 'x'.join(['x' * 1000000] * 1000) }}", TOO_LONG);
    check("{{ ('x' * 20000000) }}", TOO_LONG);
    check("{{ ['x' * 9000000, 'x' * 9000000] | tojson }}", TOO_LONG);
    check("{% macro m(x) %}{{ m(x) }}{% endmacro %}{{ m(1) }}", "can't be applied");
    check("{% include 'other' %}", "can't be applied");
    check("{% if %}", "is broken");
    check("{{ raise_exception('no ' ~ 1) }}", "refuses them: no 1");
    check("{{ messages[0].content.nothing.more }}", "can't be applied");
    check("{{ strftime_now }}{{ nothing() }}", "can't be applied");
}

#[test]
fn contents_of_several_parts_are_given_as_the_template_takes_them() {
    let parts = json!([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]);
    let check = |template: &str, expect: &str| {
        let chat = chat(json!([{"role": "user", "content": parts}]));
        assert_eq!(of_template(template).render(&chat).unwrap(), expect);
    };
    check("{% for m in messages %}{{ m.content }}{% endfor %}", "a\nb");
    check(
        "{% for m in messages %}{% for part in m['content'] %}[{{ part.text }}]{% endfor %}{% endfor %}",
        "[a][b]",
    );
}

#[test]
fn generation_tags_stand_for_nothing() {
    let check = |source: &str, expect: &str| {
        assert_eq!(without_generation_tags(source), expect);
    };
    check("a{% generation %}b{%- endgeneration -%}c", "a{% if true %}b{%- endif -%}c");
    check("{% set generation = 1 %}{{ generation }}", "{% set generation = 1 %}{{ generation }}");
    check("{%generation%}{%", "{% if true%}{%");
}

#[test]
fn a_message_can_not_be_begun_and_continued() {
    let mut both = message("x");
    both.continues_last = true;
    let error = of_template("{{ messages[0].content }}").render(&both).unwrap_err();
    assert!(error.to_string().contains("add_generation_prompt"), "{error}");
    both.opens_answer = false;
    let error = of_template("content").render(&both).unwrap_err();
    assert!(error.to_string().contains("does not repeat"), "{error}");
    let empty = Chat { extra: Map::new(), ..Chat::default() };
    let error = of_template("x").render(&empty).unwrap_err();
    assert!(error.to_string().contains("messages is empty"), "{error}");
}
