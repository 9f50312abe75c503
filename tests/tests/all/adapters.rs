//! Low-rank adapters over HTTP: registered, named by requests, merged, against what PEFT answers.

use std::path::{Path, PathBuf};
use std::sync::Barrier;

use drivetrain_tests::{
    Hub, Reply, Repository, Server, ServerOptions, copy_dir, copy_model, edit_json, fixture, write,
};
use serde_json::{Value, json};

const JSON: &str = "application/json";

fn adapter(name: &str) -> PathBuf {
    fixture("adapters").join(name)
}

/// Texts with the tokens that PEFT adds to them, through the adapter `name`.
fn recorded(name: &str) -> Vec<(String, Vec<u64>)> {
    let text = std::fs::read(adapter(name).join("reference.json")).unwrap();
    let reference: Value = serde_json::from_slice(&text).unwrap();
    let texts = reference["texts"].as_array().unwrap();
    let case = |text: &Value| {
        let new = text["new"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap()).collect();
        (text["prompt"].as_str().unwrap().to_owned(), new)
    };
    texts.iter().map(case).collect()
}

fn body(prompt: &str, adapters: &Value) -> String {
    let mut body = json!({
        "inputs": prompt,
        "parameters": {"max_new_tokens": 12, "details": true, "num_beams": 1},
    });
    if !adapters.is_null() {
        body["adapters"] = adapters.clone();
    }
    body.to_string()
}

/// The new tokens of an answer.
fn new_tokens(reply: &Reply) -> Vec<u64> {
    assert_eq!(reply.status, 200, "{}", String::from_utf8_lossy(&reply.body));
    let reply = reply.json().unwrap();
    let reply = if reply.is_array() { &reply[0] } else { &reply };
    let tokens = reply["details"]["tokens"].as_array().unwrap();
    tokens.iter().map(|token| token["id"].as_u64().unwrap()).collect()
}

fn ask(server: &Server, prompt: &str, adapters: &Value) -> Reply {
    server.post("/invocations", JSON, body(prompt, adapters)).unwrap()
}

/// What the model says without an adapter.
fn plain(server: &Server) -> Vec<Vec<u64>> {
    let cases = recorded("llama_all");
    cases.iter().map(|(prompt, _)| new_tokens(&ask(server, prompt, &Value::Null))).collect()
}

/// Whether requests that name the adapter `name` get what PEFT recorded for `fixture`.
fn check(server: &Server, name: &Value, fixture: &str) {
    for (prompt, new) in recorded(fixture) {
        assert_eq!(new_tokens(&ask(server, &prompt, name)), new, "{name} {fixture} {prompt}");
    }
}

/// A server of the fixture `base` with adapters, under these settings.
fn serve(folder: &Path, base: &str, properties: &str, inside: &[(&str, &str)]) -> Server {
    let model = copy_model(base, &folder.join("m"));
    write(&model, "serving.properties", &format!("option.enable_lora=true\n{properties}"));
    for (name, fixture) in inside {
        std::fs::create_dir_all(model.join("adapters")).unwrap();
        copy_dir(&adapter(fixture), &model.join("adapters").join(name));
    }
    Server::start(&model).unwrap()
}

fn post(server: &Server, path: &str) -> Reply {
    server.post(path, JSON, "").unwrap()
}

fn text(reply: &Reply) -> String {
    String::from_utf8_lossy(&reply.body).into_owned()
}

#[test]
fn adapters_of_the_directory_and_of_the_api_answer_as_peft_does() {
    let folder = tempfile::tempdir().unwrap();
    let properties = "option.max_cpu_loras=8";
    let inside = [("all", "llama_all"), ("other", "llama_other")];
    let server = serve(folder.path(), "llama_gqa", properties, &inside);
    let without = plain(&server);
    for (name, fixture) in [("rooted", "llama_rooted"), ("tables", "llama_tables")] {
        let src = adapter(fixture).display().to_string();
        let reply = post(&server, &format!("/models/m/adapters?name={name}&src={src}"));
        assert_eq!((reply.status, text(&reply)), (200, format!("Adapter {name} registered")));
    }
    for name in ["all", "other", "rooted", "tables"] {
        check(&server, &json!(name), &format!("llama_{name}"));
        check(&server, &json!([name]), &format!("llama_{name}"));
    }
    assert_eq!(plain(&server), without);
    // The header goes before the query, and that before the body.
    let (prompt, new) = recorded("llama_other").remove(0);
    let reply = server
        .request(
            "POST",
            "/invocations?adapter=all",
            &[("content-type", JSON), ("x-amzn-sagemaker-adapter-identifier", "other")],
            body(&prompt, &json!("rooted")).as_bytes(),
        )
        .unwrap();
    assert_eq!(new_tokens(&reply), new);
    let reply = server.post("/invocations?adapter=other", JSON, body(&prompt, &json!("all")));
    assert_eq!(new_tokens(&reply.unwrap()), new);
    // OpenAI's API names it as the model.
    let models = server.get("/v1/models").unwrap().json().unwrap();
    let cards = models["data"].as_array().unwrap();
    assert!(cards.iter().any(|card| card["id"] == "tables" && card["parent"] == "m"), "{models}");
    let ask = |model: &str| {
        let body = json!({"model": model, "prompt": prompt, "max_tokens": 12, "temperature": 0});
        let reply = server.post("/v1/completions", JSON, body.to_string()).unwrap();
        assert_eq!(reply.status, 200, "{}", text(&reply));
        reply.json().unwrap()["choices"][0]["text"].clone()
    };
    assert_ne!(ask("other"), ask("m"));
    assert_ne!(ask("other"), ask("all"));
}

#[test]
fn many_at_once_each_through_its_own_answer_as_alone() {
    let folder = tempfile::tempdir().unwrap();
    let inside = [("all", "llama_all"), ("other", "llama_other"), ("tables", "llama_tables")];
    let server = serve(folder.path(), "llama_gqa", "option.max_loras=2", &inside);
    let without = plain(&server);
    let cases: Vec<(Value, String, Vec<u64>)> = ["all", "other", "tables"]
        .iter()
        .flat_map(|name| {
            let cases = recorded(&format!("llama_{name}")).into_iter();
            cases.map(|(prompt, new)| (json!(name), prompt, new)).collect::<Vec<_>>()
        })
        .chain(
            recorded("llama_all")
                .into_iter()
                .zip(without)
                .map(|((prompt, _), new)| (Value::Null, prompt, new)),
        )
        .collect();
    let start = Barrier::new(cases.len());
    std::thread::scope(|scope| {
        for (name, prompt, new) in &cases {
            let (server, start) = (&server, &start);
            scope.spawn(move || {
                start.wait();
                for _ in 0..4 {
                    assert_eq!(&new_tokens(&ask(server, prompt, name)), new, "{name} {prompt}");
                }
            });
        }
    });
    // A list is one adapter for each input.
    let each = recorded("llama_all").into_iter().zip(recorded("llama_other"));
    for ((prompt, all), (_, other)) in each {
        let body = json!({
            "inputs": [prompt, prompt], "adapters": ["all", "other"],
            "parameters": {"max_new_tokens": 12, "details": true},
        });
        let reply = server.post("/invocations", JSON, body.to_string()).unwrap();
        assert_eq!(reply.status, 200, "{}", text(&reply));
        let reply = reply.json().unwrap();
        for (idx, new) in [all, other].iter().enumerate() {
            let tokens = reply[idx]["details"]["tokens"].as_array().unwrap();
            let found: Vec<u64> = tokens.iter().map(|t| t["id"].as_u64().unwrap()).collect();
            assert_eq!(&found, new, "{prompt} {idx}: {reply}");
        }
    }
}

#[test]
fn the_adapter_routes_follow_the_contract() {
    let folder = tempfile::tempdir().unwrap();
    let server = serve(folder.path(), "llama_gqa", "option.max_loras=1", &[]);
    let src = adapter("llama_all").display().to_string();
    let alias = [("x-amzn-sagemaker-adapter-alias", "nice")];
    let path = format!("/adapters?name=a&src={src}&pin=true&whatever=1");
    let reply = server.request("POST", &path, &alias, b"").unwrap();
    assert_eq!((reply.status, text(&reply).as_str()), (200, "Adapter a registered"));
    check(&server, &json!("nice"), "llama_all");
    let shown = json!({"name": "a", "src": src, "preload": true, "pin": true});
    let get = |path: &str| {
        let reply = server.get(path).unwrap();
        (reply.status, reply.json().unwrap())
    };
    assert_eq!(get("/adapters"), (200, json!({"adapters": [shown]})));
    assert_eq!(get("/models/m/adapters/a"), (200, shown));
    let refused = |method: &str, path: &str, status: u16, expect: &str| {
        let reply = server.request(method, path, &[], b"").unwrap();
        let found = text(&reply);
        assert!(reply.status == status && found.contains(expect), "{path}: {found}");
    };
    refused("POST", &format!("/adapters?name=a&src={src}"), 409, "registered already");
    refused("POST", "/adapters?name=b&src=s3://bucket/b", 409, "local path");
    refused("POST", "/adapters?src=x", 400, "Parameter name is required.");
    refused("POST", "/adapters?name=b", 400, "Parameter src is required.");
    refused("POST", &format!("/adapters?name=b&src={src}"), 507, "No free lora slots");
    refused("GET", "/adapters/b", 404, "The adapter b was not found");
    refused("DELETE", "/models/m/adapters/b", 404, "The adapter b was not found");
    refused("GET", "/models/x/adapters", 404, "The model x was not found");
    let dora = adapter("llama_dora").display().to_string();
    refused("DELETE", "/adapters/b", 404, "The adapter b was not found");
    let other = adapter("llama_other").display().to_string();
    let reply = post(&server, &format!("/adapters/a/update?src={other}&pin=false"));
    assert_eq!((reply.status, text(&reply).as_str()), (200, "Adapter a updated"));
    check(&server, &json!("a"), "llama_other");
    refused("POST", &format!("/adapters?name=d&src={dora}"), 424, "use_dora");
    let body_form = json!({"name": "t", "src": adapter("llama_tables").display().to_string()});
    let reply = server.post("/adapters", JSON, body_form.to_string()).unwrap();
    assert_eq!(reply.status, 200, "{}", text(&reply));
    check(&server, &json!("t"), "llama_tables");
    let reply = server.request("DELETE", "/adapters/nice", &[], b"").unwrap();
    assert_eq!((reply.status, text(&reply).as_str()), (200, "Adapter nice unregistered"));
    let reply = ask(&server, "x", &json!("a"));
    assert_eq!(reply.status, 424, "{}", text(&reply));
    assert!(text(&reply).contains("Adapter a is not registered"), "{}", text(&reply));
    let reply = ask(&server, "x", &json!({"a": 1}));
    assert!(reply.status == 400 && text(&reply).contains("adapters: expected"), "{}", text(&reply));
    let reply = server.get("/ping").unwrap();
    assert_eq!(reply.status, 200, "{}", text(&reply));
}

#[test]
fn an_encoder_decoder_has_adapters_on_both_sides() {
    let folder = tempfile::tempdir().unwrap();
    let server = serve(folder.path(), "bart", "", &[("both", "bart_both")]);
    check(&server, &json!("both"), "bart_both");
    let (prompt, new) = recorded("bart_both").remove(0);
    assert_ne!(new_tokens(&ask(&server, &prompt, &json!(""))), new);
}

#[test]
fn without_the_option_adapters_mean_nothing() {
    let server = Server::start(&fixture("llama_gqa")).unwrap();
    let reply = ask(&server, "x", &json!("nobody"));
    assert_eq!(new_tokens(&reply), new_tokens(&ask(&server, "x", &Value::Null)));
    let reply = server.get("/adapters").unwrap();
    assert!(
        reply.status == 400 && text(&reply).contains("LoRA is not enabled."),
        "{}",
        text(&reply)
    );
}

#[test]
fn an_adapter_is_served_merged_into_its_base() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["llama_dora", "llama_saved", "llama_tables"] {
        // Its base is named by a path, lies beside it, or is in the same directory.
        let model = copy_dir(&adapter(name), &folder.path().join(name));
        match name {
            "llama_dora" => {
                let base = json!({"base_model_name_or_path": fixture("llama_gqa")});
                edit_json(&model.join("adapter_config.json"), &base);
            }
            "llama_saved" => {
                copy_model("llama_gqa", &folder.path().join("base"));
                let base = json!({"base_model_name_or_path": "../base"});
                edit_json(&model.join("adapter_config.json"), &base);
                write(&model, "serving.properties", "option.is_peft_model=true\n");
            }
            _ => drop(copy_model("llama_gqa", &model)),
        }
        let server = Server::start(&model).unwrap();
        check(&server, &Value::Null, name);
    }
}

#[test]
fn the_base_of_an_adapter_comes_from_the_hub() {
    let hub = Hub::new();
    let folder = tempfile::tempdir().unwrap();
    let base = copy_model("llama_gqa", &folder.path().join("base"));
    hub.put("tiny/llama", Repository::of(&base));
    let model = copy_dir(&adapter("llama_all"), &folder.path().join("m"));
    let named = json!({"base_model_name_or_path": "tiny/llama"});
    edit_json(&model.join("adapter_config.json"), &named);
    let options = |offline: &str| ServerOptions {
        models: vec![model.display().to_string()],
        env: vec![
            ("HF_ENDPOINT".to_owned(), hub.api.url()),
            ("HF_HOME".to_owned(), folder.path().join("hub").display().to_string()),
            ("HF_HUB_OFFLINE".to_owned(), offline.to_owned()),
        ],
        ..ServerOptions::default()
    };
    let server = Server::with(&options("0")).unwrap();
    check(&server, &Value::Null, "llama_all");
    drop(server);
    let server = Server::with(&options("1")).unwrap();
    check(&server, &Value::Null, "llama_all");
}
