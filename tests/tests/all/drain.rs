//! SIGTERM: running work ends whole, new connections are refused, the exit code is 0.

use std::net::TcpStream;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use drivetrain_tests::{Reply, Server, copy_model, edit_json, write};
use serde_json::json;

/// A LLaMA whose context is long enough to generate for minutes.
fn endless(dir: &tempfile::TempDir) -> PathBuf {
    let model = copy_model("llama_mha", &dir.path().join("model"));
    let positions = json!({"max_position_embeddings": 4_000_000});
    edit_json(&model.join("config.json"), &positions);
    write(&model, "serving.properties", "option.predict_timeout=600\n");
    model
}

/// Asks for `n_tokens` in another thread and returns once the server is at work on it.
fn ask(server: &Server, n_tokens: u32) -> thread::JoinHandle<anyhow::Result<Reply>> {
    let port = server.port();
    let body = json!({
        "inputs": "The engine",
        "parameters": {"max_new_tokens": n_tokens, "min_new_tokens": n_tokens},
    });
    let asking = thread::spawn(move || {
        drivetrain_tests::request(
            port,
            "POST",
            "/invocations",
            &[("Content-Type", "application/json")],
            body.to_string().as_bytes(),
        )
    });
    thread::sleep(Duration::from_millis(300));
    asking
}

#[test]
fn a_generation_in_hand_is_finished() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(&endless(&dir)).unwrap();
    let asking = ask(&server, 6000);
    assert!(!asking.is_finished(), "the generation is long enough to be in hand");
    server.terminate().unwrap();
    let port = server.port();
    thread::sleep(Duration::from_millis(200));
    assert!(TcpStream::connect(("127.0.0.1", port)).is_err(), "new connections are refused");
    let reply = asking.join().unwrap().unwrap();
    assert_eq!(reply.status, 200);
    assert_eq!(reply.header("x-finish-reason"), None);
    assert!(reply.json().unwrap()[0]["generated_text"].as_str().unwrap().len() > 1500);
    let exit = server.exit(Duration::from_secs(29)).unwrap();
    assert_eq!(exit.code, Some(0), "{}", exit.log);
}

#[test]
fn a_generation_without_end_is_cut_off_well_formed() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(&endless(&dir)).unwrap();
    let asking = ask(&server, 3_000_000);
    let began = Instant::now();
    server.terminate().unwrap();
    let exit = server.exit(Duration::from_secs(29)).unwrap();
    assert!(began.elapsed() < Duration::from_secs(29));
    assert_eq!(exit.code, Some(0), "{}", exit.log);
    let reply = asking.join().unwrap().unwrap();
    assert_eq!(reply.status, 200);
    assert_eq!(reply.header("x-finish-reason"), Some("shutdown"));
    assert!(reply.json().unwrap()[0]["generated_text"].is_string());
}

#[test]
fn an_idle_server_ends_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(&endless(&dir)).unwrap();
    let idle_connection = TcpStream::connect(("127.0.0.1", server.port())).unwrap();
    server.terminate().unwrap();
    let exit = server.exit(Duration::from_secs(5)).unwrap();
    assert_eq!(exit.code, Some(0), "{}", exit.log);
    drop(idle_connection);
}
