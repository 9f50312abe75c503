//! The container contract through the real binary: ports, health, errors, and that nothing a client
//! sends takes the server down.

use std::process::Command;

use drivetrain_tests::{Reply, Server, ServerOptions, copy_model, fixture, model, write};
use serde_json::json;

fn shipped() -> Server {
    Server::with(&ServerOptions::default()).unwrap()
}

fn text(reply: &Reply) -> String {
    String::from_utf8_lossy(&reply.body).into_owned()
}

/// The server still answers as it should.
fn assert_alive(server: &Server) {
    let reply = server.post("/invocations", "text/plain", "serving").unwrap();
    assert_eq!(text(&reply), r#"[{"generated_text":"sˈɝvɪŋ"}]"#);
    assert_eq!(server.get("/ping").unwrap().status, 200);
}

#[test]
fn curl_gets_what_the_readme_shows() {
    let server = shipped();
    let url = format!("http://localhost:{}", server.port());
    let curl = |args: &[&str]| {
        let output = Command::new("curl").arg("-sS").args(args).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let status = curl(&["-o", "/dev/null", "-w", "%{http_code}", &format!("{url}/ping")]);
    assert_eq!(status, "200");
    let ping = curl(&[&format!("{url}/ping")]);
    let readme = std::fs::read_to_string(drivetrain_tests::root().join("README.md")).unwrap();
    assert!(readme.contains(ping.trim()), "the README shows another /ping than\n{ping}");
    let plain = "Content-Type: text/plain";
    let reply = curl(&["-H", plain, "-d", "serving", &format!("{url}/invocations")]);
    assert!(readme.contains(reply.trim()), "the README shows another reply than\n{reply}");
}

#[test]
fn sagemakers_port_is_honoured() {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut child = Command::new(drivetrain_tests::binary())
        .arg("serve")
        .arg(model("bart-g2p"))
        .arg("--plugins")
        .arg(drivetrain_tests::plugins())
        .env("SAGEMAKER_BIND_TO_PORT", port.to_string())
        .stderr(std::process::Stdio::null())
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    let reply = loop {
        match drivetrain_tests::request(port, "GET", "/ping", &[], b"") {
            Ok(reply) => break Some(reply),
            Err(_) if std::time::Instant::now() < deadline => {
                std::thread::sleep(std::time::Duration::from_millis(20));
            }
            Err(_) => break None,
        }
    };
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(reply.map(|reply| reply.status), Some(200));
}

#[test]
fn a_port_in_use_is_exit_code_2() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let output = Command::new(drivetrain_tests::binary())
        .args(["serve", "--host", "127.0.0.1", "--port", &port, "--plugins"])
        .arg(drivetrain_tests::plugins())
        .output()
        .unwrap();
    let log = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{log}");
    assert!(log.contains(&port), "the message names the address:\n{log}");
}

#[test]
fn bodies_that_are_not_what_they_say_are_refused() {
    let server = shipped();
    let deep = "[".repeat(100_000);
    let cases: &[(&str, &[u8])] = &[
        ("application/json", b"{\"inputs\": "),
        ("application/json", b"not json"),
        ("application/json", b"\xff\xfe"),
        ("application/json", deep.as_bytes()),
        ("application/json", b"[]"),
        ("application/json", b"{}"),
        ("application/json", b"{\"inputs\": 3}"),
        ("application/json", b"{\"inputs\": [\"a\", null]}"),
        ("application/json", b"{\"inputs\": \"a\", \"parameters\": 3}"),
        ("application/json", b"{\"inputs\": \"a\", \"parameters\": {\"max_new_tokens\": -1}}"),
        ("application/json", b"{\"inputs\": \"a\", \"parameters\": {\"max_new_tokens\": \"x\"}}"),
        ("application/json", b""),
        ("text/plain", b""),
        ("text/plain", b"\xc3\x28"),
        ("text/csv", b"no,such,column\n1,2,3\n"),
    ];
    for (content_type, body) in cases {
        let shown = String::from_utf8_lossy(&body[..body.len().min(60)]).into_owned();
        let reply = server.post("/invocations", content_type, body).unwrap();
        assert!((400..500).contains(&reply.status), "{content_type} {shown}: {}", reply.status);
        let error = reply.json().unwrap();
        assert_eq!(error["code"], reply.status, "{content_type} {shown}: {error}");
        assert!(error["message"].as_str().is_some_and(|m| m.len() > 10), "{shown}: {error}");
        assert_alive(&server);
    }
}

#[test]
fn a_prompt_longer_than_the_model_is_refused_with_the_lengths() {
    let server = shipped();
    let reply = server.post("/invocations", "text/plain", "word".repeat(1000)).unwrap();
    assert_eq!(reply.status, 400, "{}", text(&reply));
    let message = reply.json().unwrap()["message"].as_str().unwrap().to_owned();
    assert!(message.contains("4002") && message.contains("96"), "{message}");
    assert_alive(&server);
}

#[test]
fn an_oversized_body_is_413() {
    let env = vec![("SERVING_MAX_REQUEST_SIZE".to_owned(), "1000".to_owned())];
    let server = Server::with(&ServerOptions { env, ..ServerOptions::default() }).unwrap();
    let reply = server.post("/invocations", "text/plain", "a".repeat(2000)).unwrap();
    assert_eq!(reply.status, 413);
    let chunked = "POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Type: text/plain\r\n\
                   Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n";
    let chunk = format!("400\r\n{}\r\n", "a".repeat(1024));
    let reply = server.raw(format!("{chunked}{chunk}{chunk}0\r\n\r\n").as_bytes()).unwrap();
    let reply = String::from_utf8_lossy(&reply).into_owned();
    assert!(reply.starts_with("HTTP/1.1 413"), "{reply}");
    assert_alive(&server);
}

#[test]
fn unknown_routes_models_and_verbs() {
    let server = shipped();
    let cases = [
        ("GET", "/nothing", 404, "ResourceNotFoundException"),
        ("GET", "/invocations", 405, "MethodNotAllowedException"),
        ("POST", "/predictions/nobody", 404, "ModelNotFoundException"),
        ("POST", "/models/nobody/invoke", 404, "ModelNotFoundException"),
    ];
    for (method, path, status, kind) in cases {
        let reply = server.request(method, path, &[("Content-Type", "text/plain")], b"a").unwrap();
        assert_eq!(reply.status, status, "{method} {path}: {}", text(&reply));
        let error = reply.json().unwrap();
        assert_eq!((&error["code"], &error["type"]), (&json!(status), &json!(kind)));
    }
    assert_alive(&server);
}

#[test]
fn requests_that_are_no_http_are_survived() {
    let server = shipped();
    for bytes in [
        &b"\0\0\0\0\0\0\0\0\r\n\r\n"[..],
        b"GET /ping HTTP/9.9\r\n\r\n",
        b"POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n",
        b"POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999\r\n\r\n",
    ] {
        let reply = server.raw(bytes).unwrap();
        let shown = String::from_utf8_lossy(&reply).into_owned();
        assert!(reply.is_empty() || shown.starts_with("HTTP/1.1 4"), "{shown}");
        assert_alive(&server);
    }
}

#[test]
fn several_models_are_served_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let features = copy_model("bert", &dir.path().join("bert"));
    write(&features, "serving.properties", "option.task=feature-extraction\n");
    let models = vec![
        format!("words={}", model("bart-g2p").display()),
        fixture("gpt2").display().to_string(),
        features.display().to_string(),
    ];
    let server = Server::with(&ServerOptions { models, ..ServerOptions::default() }).unwrap();
    let ping = server.get("/ping").unwrap().json().unwrap();
    for name in ["words", "gpt2", "bert"] {
        assert_eq!(ping[name]["status"], "Healthy", "{ping}");
    }
    let reply = server.post("/predictions/words", "text/plain", "serving").unwrap();
    assert_eq!(text(&reply), r#"[{"generated_text":"sˈɝvɪŋ"}]"#);
    let reply = server.post("/invocations", "text/plain", "serving").unwrap();
    assert_eq!(reply.status, 400, "no model is meant: {}", text(&reply));
}
