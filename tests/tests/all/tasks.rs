//! Every task over HTTP, on each family, against transformers' recorded answers.

use std::path::Path;

use drivetrain_tests::{
    Reference, Server, ServerOptions, copy_model, fixture, largest_difference, model, write,
};
use serde_json::{Value, json};

fn serve(name: &str, task: &str) -> (Server, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let model = copy_model(name, &dir.path().join("model"));
    write(&model, "serving.properties", &format!("option.task={task}\n"));
    (Server::start(&model).unwrap(), dir)
}

fn ask(server: &Server, inputs: impl Into<Value>, parameters: Value) -> Value {
    let body = json!({ "inputs": inputs.into(), "parameters": parameters }).to_string();
    let reply = server.post("/invocations", "application/json", body).unwrap();
    assert_eq!(reply.status, 200, "{}", String::from_utf8_lossy(&reply.body));
    reply.json().unwrap()
}

#[test]
fn decoders_generate_what_transformers_generates() {
    for name in ["gpt2", "llama_mha", "llama_gqa", "llama3_rope"] {
        let reference = Reference::read(&fixture(name)).unwrap();
        let (server, _dir) = serve(name, "text-generation");
        for idx in 0..2 {
            let prompt = reference.prompt(idx).unwrap();
            let got = ask(&server, prompt, json!({"max_new_tokens": 16}));
            let want = reference.greedy(idx, "text_with_prompt").unwrap();
            assert_eq!(got, json!([{ "generated_text": want }]), "{name}, prompt {idx}");
            let parameters = json!({"max_new_tokens": 16, "return_full_text": false});
            let got = ask(&server, prompt, parameters);
            let want = reference.greedy(idx, "text").unwrap();
            assert_eq!(got, json!([{ "generated_text": want }]), "{name}, prompt {idx}");
        }
    }
}

#[test]
fn bart_answers_text_to_text_and_summarises() {
    let reference = Reference::read(&fixture("bart")).unwrap();
    for (task, key) in
        [("text2text-generation", "generated_text"), ("summarization", "summary_text")]
    {
        let (server, _dir) = serve("bart", task);
        let prompts = [reference.prompt(0).unwrap(), reference.prompt(1).unwrap()];
        let got = ask(&server, json!(prompts), json!({"max_new_tokens": 16}));
        let got = got.as_array().unwrap();
        assert_eq!(got.len(), 2);
        for (idx, got) in got.iter().enumerate() {
            assert_eq!(got[key], reference.greedy(idx, "text").unwrap(), "{task}, prompt {idx}");
        }
    }
}

#[test]
fn hidden_states_of_every_kind_of_model() {
    for (name, n_prompts) in [("bert", 4), ("gpt2", 2), ("llama_gqa", 2)] {
        let reference = Reference::read(&fixture(name)).unwrap();
        let (server, _dir) = serve(name, "feature-extraction");
        for idx in 0..n_prompts {
            let got = ask(&server, reference.prompt(idx).unwrap(), json!({}));
            let want = reference.rows(&format!("last_hidden_state.{idx}")).unwrap();
            let difference = largest_difference(&got[0][0], &want).unwrap();
            assert!(difference <= 1e-4, "{name}, prompt {idx} differs by {difference}");
        }
    }
}

#[test]
fn the_shipped_model_gives_all_recorded_words() {
    let table = std::fs::read_to_string(model("bart-g2p").join("heldout_200.tsv")).unwrap();
    let server = Server::with(&ServerOptions::default()).unwrap();
    let mut wrong = Vec::new();
    let mut n_words = 0;
    for line in table.lines().skip(1) {
        let columns: Vec<&str> = line.split('\t').collect();
        let (word, want) = (columns[0], columns[2]);
        let reply = server.post("/invocations", "text/plain", word).unwrap().json().unwrap();
        if reply[0]["generated_text"] != want {
            wrong.push(format!("{word}: {reply}, {want} wanted"));
        }
        n_words += 1;
    }
    assert_eq!((n_words, wrong.as_slice()), (200, [].as_slice()));
}

#[test]
fn a_model_without_properties_has_its_task_inferred() {
    let shipped: &Path = &model("bart-g2p");
    let server = Server::start(shipped).unwrap();
    let reply = server.post("/predictions/bart_g2p", "text/plain", "serving").unwrap();
    assert_eq!(reply.json().unwrap(), json!([{ "generated_text": "sˈɝvɪŋ" }]));
}
