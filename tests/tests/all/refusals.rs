//! Requests that come when the server can't take them, or take longer than they may: the codes, and
//! that those who are in hand go on.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use drivetrain_tests::{Server, ServerOptions, Stream, copy_model, edit_json, write};
use serde_json::{Value, json};

const KV_USE: &str = "drivetrain_kv_cache_use_ratio";
const RUNNING: &str = "drivetrain_requests_running";
const WAITING: &str = "drivetrain_requests_waiting";

/// More tokens than any test waits for.
const ENDLESS: u32 = 3_000_000;

/// A server whose model generates for minutes if it is asked to.
struct Slow {
    server: Server,
    _dir: tempfile::TempDir,
}

impl Slow {
    fn start(properties: &str, env: &[(&str, &str)]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let model: PathBuf = copy_model("llama_mha", &dir.path().join("model"));
        let positions = json!({"max_position_embeddings": 4_000_000});
        edit_json(&model.join("config.json"), &positions);
        let properties = format!("option.rolling_batch=auto\n{properties}");
        write(&model, "serving.properties", &properties);
        let options = ServerOptions {
            models: vec![model.display().to_string()],
            env: env.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
            ..ServerOptions::default()
        };
        Self { server: Server::with(&options).unwrap(), _dir: dir }
    }

    /// A stream of lines in LMI's schema whose first token has come.
    fn lines(&self, n_tokens: u32) -> Stream {
        self.stream("/invocations", &lmi(n_tokens, true))
    }

    /// The same of OpenAI's events.
    fn events(&self, n_tokens: u32) -> Stream {
        self.stream("/v1/completions", &openai(n_tokens, true))
    }

    fn stream(&self, path: &str, body: &str) -> Stream {
        let mut stream = Stream::open(self.server.port(), path, body).unwrap();
        assert_eq!(stream.status(), 200);
        assert!(stream.piece().unwrap().is_some());
        stream
    }
}

fn lmi(n_tokens: u32, stream: bool) -> String {
    let parameters = json!({"max_new_tokens": n_tokens, "ignore_eos": true});
    json!({"inputs": "The engine", "parameters": parameters, "stream": stream}).to_string()
}

fn openai(n_tokens: u32, stream: bool) -> String {
    json!({
        "prompt": "The engine", "max_tokens": n_tokens, "ignore_eos": true, "temperature": 0,
        "stream": stream,
    })
    .to_string()
}

/// Both schemas: the path, the body of a request, and the status where they differ.
fn both(n_tokens: u32, stream: bool) -> [(&'static str, String); 2] {
    [("/invocations", lmi(n_tokens, stream)), ("/v1/completions", openai(n_tokens, stream))]
}

fn answer(stream: &mut Stream) -> Value {
    serde_json::from_str(&stream.rest().unwrap()).unwrap()
}

fn last_line(text: &str) -> Value {
    serde_json::from_str(text.lines().next_back().unwrap()).unwrap()
}

/// The last event with a choice, or with an error.
fn last_event(text: &str) -> Value {
    let events = text.split_terminator("\n\n").filter_map(|event| event.strip_prefix("data: "));
    let values = events.filter_map(|event| serde_json::from_str::<Value>(event).ok());
    let said = values.filter(|e| e["choices"].get(0).is_some() || !e["error"].is_null());
    said.last().unwrap()
}

#[test]
fn a_full_queue_refuses_at_once_and_serves_who_waits() {
    for (path, status) in [("/invocations", 503), ("/v1/completions", 429)] {
        let slow = Slow::start("job_queue_size=1\noption.max_rolling_batch_size=1\n", &[]);
        let running = slow.lines(ENDLESS);
        let (tell, told) = mpsc::channel();
        for _ in 0..3 {
            let (tell, port) = (tell.clone(), slow.server.port());
            thread::spawn(move || {
                let body = both(4, false).into_iter().find(|(p, _)| *p == path).unwrap().1;
                let mut stream = Stream::open(port, path, &body).unwrap();
                let retry_after = stream.header("retry-after").map(str::to_owned);
                tell.send((stream.status(), retry_after, answer(&mut stream))).unwrap();
            });
        }
        for _ in 0..2 {
            let (got, retry_after, error) = told.recv_timeout(Duration::from_secs(30)).unwrap();
            assert_eq!((got, retry_after.as_deref()), (status, Some("1")), "{path}: {error}");
            let (message, code) = match path {
                "/invocations" => (&error["error"], json!(503)),
                _ => (&error["error"]["message"], json!("rate_limit_exceeded")),
            };
            assert!(message.as_str().unwrap().contains("job_queue_size"), "{path}: {error}");
            let said =
                if path == "/invocations" { &error["code"] } else { &error["error"]["code"] };
            assert_eq!(*said, code, "{path}: {error}");
        }
        assert!(told.try_recv().is_err(), "the third one waits");
        drop(running);
        let (got, _, answer) = told.recv_timeout(Duration::from_secs(30)).unwrap();
        assert_eq!(got, 200, "{path}: {answer}");
    }
}

#[test]
fn a_full_queue_is_the_contracts_exception_for_the_pipelines() {
    let slow = Slow::start(
        "option.rolling_batch=disable\njob_queue_size=1\noption.max_rolling_batch_size=1\n",
        &[("SERVING_THROTTLE_ERROR_HTTP_CODE", "429")],
    );
    let server = &slow.server;
    let running = slow.events(ENDLESS);
    let waiting = Stream::send(server.port(), "/v1/completions", &openai(4, false)).unwrap();
    server.until("one waits", |s| s.metric(WAITING).unwrap() == Some(1.0)).unwrap();
    let reply = server.post("/invocations", "text/plain", "The engine").unwrap();
    assert_eq!(reply.status, 429);
    assert_eq!(reply.header("retry-after"), Some("1"));
    let error = reply.json().unwrap();
    assert_eq!((&error["code"], &error["type"]), (&json!(429), &json!("WlmCapacityException")));
    drop(running);
    assert_eq!(Stream::read_head(waiting).unwrap().status(), 200);
}

#[test]
fn a_request_past_its_time_is_answered_so_and_gives_its_cache_back() {
    let slow = Slow::start("option.predict_timeout=1\n", &[]);
    let server = &slow.server;
    for (path, body) in both(ENDLESS, false) {
        let reply = server.post(path, "application/json", body).unwrap();
        let error = reply.json().unwrap();
        let status = if path == "/invocations" { 400 } else { 503 };
        assert_eq!(reply.status, status, "{path}: {error}");
        assert_eq!(reply.header("retry-after"), Some("1"), "{path}");
        assert!(error.to_string().contains("within 1000 ms"), "{path}: {error}");
    }
    let line = last_line(&slow.lines(ENDLESS).rest().unwrap());
    assert_eq!(line["details"]["finish_reason"], "error", "{line}");
    let event = last_event(&slow.events(ENDLESS).rest().unwrap());
    assert_eq!(event["error"]["code"], "timeout", "{event}");
    server.until("nothing runs", |s| s.metric(RUNNING).unwrap() == Some(0.0)).unwrap();
    server.until("the cache is free", |s| s.metric(KV_USE).unwrap() == Some(0.0)).unwrap();
    for (path, body) in both(4, false) {
        let reply = server.post(path, "application/json", body).unwrap();
        assert_eq!(reply.status, 200, "{path}: {}", String::from_utf8_lossy(&reply.body));
    }
}

/// A request whose head the server has read, and whose body it waits for.
fn begin(port: u16, path: &str, n_bytes: usize) -> TcpStream {
    let mut socket = TcpStream::connect(("127.0.0.1", port)).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let head = format!(
        "POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n\
         expect: 100-continue\r\ncontent-length: {n_bytes}\r\n\r\n"
    );
    socket.write_all(head.as_bytes()).unwrap();
    let go_on = b"HTTP/1.1 100 Continue\r\n\r\n";
    let mut answer = vec![0; go_on.len()];
    socket.read_exact(&mut answer).unwrap();
    assert_eq!(answer, go_on);
    socket
}

#[test]
fn a_draining_server_ends_its_streams_and_refuses_the_rest() {
    let slow = Slow::start("option.predict_timeout=600\n", &[]);
    let server = &slow.server;
    let (mut lines, mut events) = (slow.lines(ENDLESS), slow.events(ENDLESS));
    let (mut short_lines, mut short_events) = (slow.lines(300), slow.events(300));
    let port = server.port();
    let begun = both(4, false).map(|(path, body)| (begin(port, path, body.len()), path, body));
    server.terminate().unwrap();
    server
        .until("the port is closed", |_| TcpStream::connect(("127.0.0.1", port)).is_err())
        .unwrap();
    for (mut socket, path, body) in begun {
        socket.write_all(body.as_bytes()).unwrap();
        let mut stream = Stream::read_head(socket).unwrap();
        assert_eq!(stream.status(), 503, "{path}");
        assert_eq!(stream.header("retry-after"), Some("5"), "{path}");
        let error = answer(&mut stream);
        assert!(error.to_string().contains("shutting down"), "{path}: {error}");
    }
    assert!(last_line(&short_lines.rest().unwrap())["generated_text"].is_string());
    assert_eq!(last_event(&short_events.rest().unwrap())["choices"][0]["finish_reason"], "length");
    let line = last_line(&lines.rest().unwrap());
    assert!(line["generated_text"].is_string(), "the line is no last one");
    let text = events.rest().unwrap();
    assert!(text.ends_with("data: [DONE]\n\n"));
    assert_eq!(last_event(&text)["choices"][0]["finish_reason"], "length");
    let exit = slow.server.exit(Duration::from_secs(29)).unwrap();
    assert_eq!(exit.code, Some(0), "{}", exit.log);
}

#[test]
fn a_reader_that_stalls_is_cut_off_and_others_go_on() {
    let slow =
        Slow::start("option.predict_timeout=600\n", &[("SERVING_CHUNKED_READ_TIMEOUT", "3")]);
    let server = &slow.server;
    let mut reader = slow.lines(ENDLESS);
    // Frames that are large, so that what the system holds of them is soon full.
    let body = json!({
        "prompt": "The engine", "max_tokens": ENDLESS, "ignore_eos": true, "temperature": 0,
        "stream": true, "logprobs": 20,
    });
    let stalled = slow.stream("/v1/completions", &body.to_string());
    // The gauges are set after a step, whose tokens may be read before.
    server.until("both run", |s| s.metric(RUNNING).unwrap() == Some(2.0)).unwrap();
    server
        .until("the stalled reader is gone", |server| {
            for _ in 0..100 {
                assert!(reader.piece().unwrap().is_some(), "the other goes on");
            }
            server.metric(RUNNING).unwrap() == Some(1.0)
        })
        .unwrap();
    for _ in 0..100 {
        assert!(reader.piece().unwrap().is_some(), "the other goes on");
    }
    drop((reader, stalled));
    server.until("nothing runs", |s| s.metric(RUNNING).unwrap() == Some(0.0)).unwrap();
    server.until("the cache is free", |s| s.metric(KV_USE).unwrap() == Some(0.0)).unwrap();
}
