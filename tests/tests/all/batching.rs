//! Dynamic batches of an encoder: requests that come together are computed together.

use std::thread;

use drivetrain_tests::{Reference, Server, copy_model, fixture, largest_difference, write};
use serde_json::json;

const SUM: &str = "drivetrain_batch_sequences_sum";
const COUNT: &str = "drivetrain_batch_sequences_count";

fn serve(properties: &str) -> (Server, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let model = copy_model("bert", &dir.path().join("model"));
    write(&model, "serving.properties", &format!("option.task=feature-extraction\n{properties}"));
    (Server::start(&model).unwrap(), dir)
}

/// Asks for the hidden states of the recorded prompt `idx` and compares them.
fn ask(port: u16, reference: &Reference, idx: usize) {
    let body = json!({"inputs": reference.prompt(idx).unwrap()}).to_string();
    let headers = [("Content-Type", "application/json")];
    let reply = drivetrain_tests::request(port, "POST", "/invocations", &headers, body.as_bytes());
    let got = reply.unwrap().json().unwrap();
    let want = reference.rows(&format!("last_hidden_state.{idx}")).unwrap();
    let difference = largest_difference(&got[0][0], &want).unwrap();
    assert!(difference <= 1e-4, "prompt {idx} differs by {difference}");
}

fn passes(server: &Server) -> (f64, f64) {
    let of = |name| server.metric(name).unwrap().unwrap_or(0.0);
    (of(COUNT), of(SUM))
}

#[test]
fn eight_requests_are_one_forward_pass() {
    // Long enough that all eight are there on any machine; the eighth ends the wait.
    let (server, _dir) = serve("batch_size=8\nmax_batch_delay=30000\n");
    let reference = Reference::read(&fixture("bert")).unwrap();
    let port = server.port();
    for round in 1..=2 {
        thread::scope(|scope| {
            for idx in 0..8 {
                let reference = &reference;
                scope.spawn(move || ask(port, reference, idx % 4));
            }
        });
        server.until("the pass is counted", |server| passes(server).0 >= f64::from(round)).unwrap();
        assert_eq!(passes(&server), (f64::from(round), f64::from(8 * round)));
    }
}

#[test]
fn a_lone_request_waits_no_longer_than_the_delay() {
    let (server, _dir) = serve("batch_size=8\nmax_batch_delay=50\n");
    let reference = Reference::read(&fixture("bert")).unwrap();
    ask(server.port(), &reference, 0);
    server.until("the pass is counted", |server| passes(server).0 >= 1.0).unwrap();
    assert_eq!(passes(&server), (1.0, 1.0));
}
