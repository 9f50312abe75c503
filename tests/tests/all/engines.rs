//! Engines as a user meets them: the list, a wrong name, a broken file, the conformance suite.

use std::process::{Command, Output};

use drivetrain_tests::{ServerOptions, binary, copy_model, fixture, library, root, write};

fn drivetrain(args: &[&str]) -> Output {
    Command::new(binary()).args(args).output().unwrap()
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// A folder with both engines in it.
fn folder_of_engines() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for package in ["drivetrain-accelerate", "drivetrain-example"] {
        let library = library(package);
        std::fs::copy(&library, dir.path().join(library.file_name().unwrap())).unwrap();
    }
    dir
}

#[test]
fn the_list_names_both_engines_and_their_abi() {
    let dir = folder_of_engines();
    let output = drivetrain(&["engines", "--plugins", dir.path().to_str().unwrap()]);
    let text = text(&output);
    assert!(output.status.success(), "{text}");
    for name in ["accelerate", "example"] {
        let line = text.lines().find(|line| line.starts_with(name)).expect(&text);
        assert!(line.contains(" 1.0 "), "the ABI version is on the line: {line}");
    }
}

#[test]
fn a_broken_library_stops_no_other() {
    let dir = folder_of_engines();
    let whole = std::fs::read(library("drivetrain-example")).unwrap();
    std::fs::write(dir.path().join("libtext.so"), "no library at all\n").unwrap();
    std::fs::write(dir.path().join("libempty.so"), "").unwrap();
    std::fs::write(dir.path().join("libcut.so"), &whole[..whole.len() / 3]).unwrap();
    // Intact headers over damaged insides: the system's loader runs into these.
    for (idx, garbage) in [0x00_u8, 0xff, 0xcc].into_iter().enumerate() {
        let mut damaged = whole.clone();
        let n = damaged.len();
        damaged[n / 20..].chunks_mut(4096).step_by(3).for_each(|page| page.fill(garbage));
        std::fs::write(dir.path().join(format!("libdamaged{idx}.so")), damaged).unwrap();
    }
    let output = drivetrain(&["engines", "--plugins", dir.path().to_str().unwrap()]);
    let text = text(&output);
    assert!(output.status.success(), "{text}");
    for name in ["libtext.so", "libempty.so", "libcut.so", "libdamaged0.so", "libdamaged1.so"] {
        assert!(text.contains(name), "{name} is reported:\n{text}");
    }
    let server = drivetrain_tests::Server::with(&ServerOptions {
        plugins: Some(dir.path().to_path_buf()),
        ..ServerOptions::default()
    })
    .unwrap();
    let reply = server.post("/invocations", "text/plain", "serving").unwrap();
    assert_eq!(reply.status, 200);
}

#[test]
fn an_unknown_engine_fails_that_model_and_lists_the_engines() {
    let dir = tempfile::tempdir().unwrap();
    let model = copy_model("bart", &dir.path().join("model"));
    write(&model, "serving.properties", "option.engine=nonesuch\n");
    let options = ServerOptions {
        models: vec![model.display().to_string(), fixture("gpt2").display().to_string()],
        ..ServerOptions::default()
    };
    let alone = drivetrain_tests::Server::spawn(&options).unwrap();
    let exit = alone.exit(std::time::Duration::from_secs(30)).unwrap();
    assert_eq!(exit.code, Some(1), "{}", exit.log);
    for word in ["nonesuch", "accelerate", "example"] {
        assert!(exit.log.contains(word), "{word} is in the message:\n{}", exit.log);
    }

    // Without waiting for the models, the other one is served and `/ping` tells of the failure.
    let options = ServerOptions {
        env: vec![("SERVING_WAIT_MODEL_LOADING".into(), "false".into())],
        ..options
    };
    let server = drivetrain_tests::Server::with(&options).unwrap();
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    let ping = loop {
        let ping = server.get("/ping").unwrap();
        let other = ping.json().unwrap()["gpt2"]["status"] == "Healthy";
        if (ping.status == 500 && other) || std::time::Instant::now() > deadline {
            break ping;
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    };
    assert_eq!(ping.status, 500);
    assert_eq!(ping.json().unwrap()["model"]["status"], "FAILED");
    let body = r#"{"inputs": "The server", "parameters": {"max_new_tokens": 2}}"#;
    let reply = server.post("/predictions/gpt2", "application/json", body).unwrap();
    assert_eq!(reply.status, 200, "{}", String::from_utf8_lossy(&reply.body));
}

#[test]
fn the_example_engine_serves_its_model() {
    let dir = tempfile::tempdir().unwrap();
    let model = drivetrain_tests::copy_dir(
        &root().join("plugins/example/model"),
        &dir.path().join("example"),
    );
    let server = drivetrain_tests::Server::start(&model).unwrap();
    let body = r#"{"inputs": "the ", "parameters": {"max_new_tokens": 8}}"#;
    let reply = server.post("/invocations", "application/json", body).unwrap();
    let text = reply.json().unwrap()[0]["generated_text"].as_str().map(str::to_owned);
    assert!(text.as_deref().is_some_and(|text| text.starts_with("the ")), "{text:?}");
}

/// A model as an article's container has it, shared out to two ranks: the answer is that of one.
#[test]
fn deepspeed_shares_a_model_out() {
    let answer = |properties: &str| {
        let dir = tempfile::tempdir().unwrap();
        let model = copy_model("gpt2", &dir.path().join("model"));
        write(&model, "serving.properties", properties);
        let server = drivetrain_tests::Server::start(&model).unwrap();
        let body = r#"{"inputs": "The server", "parameters": {"max_new_tokens": 8}}"#;
        let reply = server.post("/invocations", "application/json", body).unwrap();
        assert_eq!(reply.status, 200, "{}", text_of(&reply.body));
        text_of(&reply.body)
    };
    let shared = answer("engine=DeepSpeed\noption.tensor_parallel_degree=2\n");
    assert_eq!(shared, answer("option.engine=fastertransformer\n"));
    let model = fixture("gpt2");
    let model = model.to_str().unwrap();
    let plugins = drivetrain_tests::plugins();
    let degree = ["--option", "tensor_parallel_degree=2", "--engine", "deepspeed"];
    let arguments =
        [&["plan", model, "--plugins", plugins.to_str().unwrap()], &degree[..]].concat();
    let output = drivetrain(&arguments);
    assert!(output.status.success(), "{}", text(&output));
    assert!(text(&output).contains("rank 1"), "{}", text(&output));
}

fn text_of(body: &[u8]) -> String {
    String::from_utf8_lossy(body).into_owned()
}

#[test]
fn both_engines_conform() {
    let example = library("drivetrain-example");
    let accelerate = library("drivetrain-accelerate");
    let cases = [
        (&example, root().join("plugins/example/model")),
        (&accelerate, fixture("bart")),
        (&accelerate, fixture("gpt2")),
        (&accelerate, fixture("llama_gqa")),
        (&accelerate, fixture("bert")),
    ];
    for (library, model) in cases {
        let (library, model) = (library.to_str().unwrap(), model.to_str().unwrap());
        let output = drivetrain(&["plugin", "check", library, "--model", model]);
        assert!(output.status.success(), "{library} with {model}:\n{}", text(&output));
    }
}

#[test]
fn a_wrong_engine_does_not_conform_and_hears_why() {
    let wrong = library("drivetrain-wrong-engines");
    let model = root().join("crates/conformance/wrong/model");
    let run = |fault: &str| {
        let option = format!("fault={fault}");
        let library = wrong.to_str().unwrap();
        let model = model.to_str().unwrap();
        drivetrain(&["plugin", "check", library, "--model", model, "--option", &option])
    };
    let right = run("none");
    assert!(right.status.success(), "without a fault it conforms:\n{}", text(&right));
    let faults = [
        ("leaks-sequence", "sequence"),
        ("panic-in-forward", "panic"),
        ("missing-row", "rows"),
        ("extra-row", "rows"),
    ];
    for (fault, reason) in faults {
        let output = run(fault);
        let text = text(&output);
        assert_eq!(output.status.code(), Some(1), "{fault}:\n{text}");
        assert!(text.contains(reason), "{fault}: {reason} is named:\n{text}");
    }
}
