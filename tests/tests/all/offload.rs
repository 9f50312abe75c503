//! Models that are larger than the memory they get: their answers, what they take, what is refused.

use std::fs::OpenOptions;
use std::path::Path;
use std::process::Command;

use drivetrain_tests::{RandomLlama, Server, ServerOptions, binary, plugins, write};
use serde_json::{Value, json};

const PROMPT: &str = "the engine pulls the train up the hill";

fn serve(model: &Path, data_limit_kib: Option<u64>) -> Server {
    let models = vec![model.display().to_string()];
    Server::with(&ServerOptions { models, data_limit_kib, ..ServerOptions::default() }).unwrap()
}

/// The greedy continuation of the prompt, as token ids.
fn said(server: &Server, n: usize) -> Vec<u64> {
    let parameters = json!({"max_new_tokens": n, "details": true, "num_beams": 1});
    let body = json!({"inputs": PROMPT, "parameters": parameters}).to_string();
    let reply = server.post("/invocations", "application/json", body).unwrap();
    assert_eq!(reply.status, 200, "{}\n{}", String::from_utf8_lossy(&reply.body), server.log());
    let reply = reply.json().unwrap();
    let reply = if reply.is_array() { &reply[0] } else { &reply };
    let tokens = reply["details"]["tokens"].as_array().unwrap();
    tokens.iter().map(|token| token["id"].as_u64().unwrap()).collect()
}

/// Makes a model use what it may: a prompt that fills a batch, and a continuation up to the last position.
fn fill(server: &Server, n_positions: usize) {
    let prompt = vec!["hill"; n_positions / 6].join(" ");
    for (prompt, n) in [(prompt.as_str(), 4), (PROMPT, n_positions / 2)] {
        let parameters = json!({"max_new_tokens": n, "ignore_eos": true, "num_beams": 1});
        let body = json!({"inputs": prompt, "parameters": parameters}).to_string();
        let reply = server.post("/invocations", "application/json", body).unwrap();
        assert_eq!(reply.status, 200, "{}", String::from_utf8_lossy(&reply.body));
    }
}

/// The most memory that the process has had, in bytes.
fn peak(server: &Server) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

/// What `drivetrain plan` prints, or its error.
fn plan(model: &Path) -> Result<Value, String> {
    let mut command = Command::new(binary());
    command.arg("plan").arg(model).arg("--json").arg("--plugins").arg(plugins());
    let output = command.output().unwrap();
    match output.status.success() {
        true => Ok(serde_json::from_slice(&output.stdout).unwrap()),
        false => Err(String::from_utf8(output.stderr).unwrap()),
    }
}

/// Bytes of a part of the CPU in a plan.
fn part(plan: &Value, what: &str) -> u64 {
    let devices = plan["devices"].as_array().unwrap();
    let cpu = devices.iter().find(|device| device["name"] == "cpu").unwrap();
    let parts = cpu["parts"].as_array().unwrap();
    let bytes = parts.iter().filter(|part| part["what"] == what).map(|part| part["bytes"].as_u64());
    bytes.map(Option::unwrap).sum()
}

fn properties(model: &Path, more: &str) {
    let text = format!("option.engine=accelerate\noption.max_rolling_batch_size=1\n{more}\n");
    write(model, "serving.properties", &text);
}

#[test]
fn a_model_of_four_times_the_limit_answers_as_without_one() {
    let folder = tempfile::tempdir().unwrap();
    let shape = RandomLlama { dim: 1024, inner: 4096, n_layers: 12, max_positions: 128 };
    let model = shape.write(&folder.path().join("m")).unwrap();
    let limit = 192 << 20;
    assert!(shape.weight_bytes() >= 4 * limit, "{}", shape.weight_bytes());
    write(&model, "serving.properties", "option.engine=fastertransformer\noption.dtype=fp32\n");
    let expect = said(&serve(&model, None), 8);
    properties(&model, "");
    let server = serve(&model, Some(limit >> 10));
    assert_eq!(said(&server, 8), expect);
    // Once more: what is in memory at the end of a pass is of use to the next.
    assert_eq!(said(&server, 8), expect);
}

#[test]
fn what_is_planned_is_taken() {
    let folder = tempfile::tempdir().unwrap();
    let wide = RandomLlama { dim: 1024, inner: 3072, n_layers: 8, max_positions: 64 };
    let wide = wide.write(&folder.path().join("wide")).unwrap();
    let deep = RandomLlama { dim: 512, inner: 2048, n_layers: 24, max_positions: 96 };
    let deep = deep.write(&folder.path().join("deep")).unwrap();
    let maps = [
        "option.device_map=cpu",
        "option.device_map=disk",
        "option.device_map={\"\": \"cpu\", \"model.layers.1\": \"disk\", \"model.layers.5\": \"disk\"}",
        "option.max_memory=cpu:290MiB",
        "option.max_memory=cpu:340MiB",
        "option.max_memory={\"cpu\": \"420MiB\"}",
    ];
    let forms = ["option.dtype=fp16\noption.max_memory=cpu:200MiB", "option.load_in_8bit=true"];
    let mut seen = Vec::new();
    for (model, n_positions, more) in [(&wide, 64, forms.as_slice()), (&deep, 96, &[])] {
        for map in maps.iter().chain(more) {
            properties(model, map);
            let planned = plan(model).unwrap();
            let server = serve(model, None);
            fill(&server, n_positions);
            let ours = ["slack", "weights", "staging buffers", "activations", "caches"];
            let ours: u64 = ours.iter().map(|what| part(&planned, what)).sum();
            // What the process has besides is its own, not the plan's of this command's process.
            let log = server.log();
            let process = log.lines().find(|line| line.contains("device cpu: ")).unwrap();
            let process = process.split("process ").nth(1).unwrap();
            let process: f64 = process.split([',', ' ']).next().unwrap().parse().unwrap();
            let expect = ours as f64 + process * 1_048_576.0;
            let ratio = peak(&server) as f64 / expect;
            let mib = |bytes: f64| bytes / 1_048_576.0;
            seen.push((format!("{map}: {:.1} MiB planned", mib(expect)), ratio));
            assert!(ratio <= 1.05, "{seen:#?}");
            // The process's own memory differs by some MiB from run to run, and the slack allows for it.
            let left = expect - peak(&server) as f64;
            assert!(left <= (0.05 * expect).max(6.0 * 1_048_576.0), "{seen:#?}");
        }
    }
    println!("{seen:#?}");
}

#[test]
fn a_plan_refuses_what_would_not_fit_with_true_figures() {
    let folder = tempfile::tempdir().unwrap();
    let shape = RandomLlama { dim: 512, inner: 1536, n_layers: 4, max_positions: 64 };
    let model = shape.write(&folder.path().join("m")).unwrap();
    properties(&model, "option.max_memory=cpu:20MiB");
    let refusal = plan(&model).unwrap_err();
    assert!(refusal.contains("device cpu would hold"), "{refusal}");
    // What it says is enough is enough, and a tenth less is not.
    let needed = refusal.split("option.max_memory of cpu to ").nth(1).unwrap();
    let needed: u64 = needed.split("MiB").next().unwrap().parse().unwrap();
    // Memory of the command's own process differs by a little from run to run.
    properties(&model, &format!("option.max_memory=cpu:{}MiB", needed + 2));
    let planned = plan(&model).unwrap();
    assert!(part(&planned, "staging buffers") > 0, "{planned}");
    properties(&model, &format!("option.max_memory=cpu:{}MiB", needed * 9 / 10));
    plan(&model).unwrap_err();
    properties(&model, "option.device_map={\"\": \"cpu\", \"model.layers.9\": \"disk\"}");
    let refusal = plan(&model).unwrap_err();
    assert!(refusal.contains("\"model.layers.9\" names no module"), "{refusal}");
    properties(&model, "option.device_map={\"\": \"cpu\", \"model.layers.1.mlp\": \"disk\"}");
    let refusal = plan(&model).unwrap_err();
    assert!(refusal.contains("a layer stays on one device"), "{refusal}");
    properties(&model, "option.device_map={\"model.layers\": \"cpu\"}");
    let refusal = plan(&model).unwrap_err();
    assert!(refusal.contains("no device for model.embed_tokens.weight"), "{refusal}");
    properties(&model, "option.device_map=disk\noption.offload_folder=/proc/none");
    let refusal = plan(&model).unwrap_err();
    assert!(refusal.contains("option.offload_folder=/proc/none: it can't be written"), "{refusal}");
}

#[test]
fn a_file_that_shrinks_fails_its_model_and_not_the_server() {
    let folder = tempfile::tempdir().unwrap();
    let shape = RandomLlama { dim: 256, inner: 512, n_layers: 6, max_positions: 64 };
    let model = shape.write(&folder.path().join("m")).unwrap();
    properties(&model, "option.device_map=disk");
    let server = serve(&model, None);
    said(&server, 2);
    let weights = OpenOptions::new().write(true).open(model.join("model.safetensors")).unwrap();
    weights.set_len(weights.metadata().unwrap().len() / 2).unwrap();
    let body = json!({"inputs": PROMPT, "parameters": {"max_new_tokens": 4}}).to_string();
    let ask = || server.post("/invocations", "application/json", body.as_str()).unwrap();
    // What was read ahead may still serve the first.
    let failed = (0..3).map(|_| ask()).find(|reply| reply.status != 200).unwrap();
    assert!(failed.status >= 500, "{}", failed.status);
    server.until("why is logged", |server| server.log().contains("the file ends before")).unwrap();
    assert!(server.get("/models").is_ok(), "{}", server.log());
}
