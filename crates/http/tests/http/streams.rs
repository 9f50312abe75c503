//! Streams over real sockets: pieces as they are made, and clients that are slow or go away.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use drivetrain_http::{Limits, Server};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::engines::{Controls, INTERNAL};
use crate::support::Served;

struct Live {
    served: Served,
    port: u16,
    stop: oneshot::Sender<()>,
    running: JoinHandle<()>,
}

async fn live(controls: &Arc<Controls>, properties: &str, settings: &[(&str, &str)]) -> Live {
    let served = Served::generating(controls, properties, settings);
    let limits = Limits { drain: Duration::from_secs(3), ..Limits::default() };
    let server =
        Server::bind(served.host.clone(), Arc::clone(&served.config), limits).await.unwrap();
    let port = server.bound()[0].address.port().unwrap();
    let (stop, stopped) = oneshot::channel();
    let running = tokio::spawn(server.run(async move {
        let _ = stopped.await;
    }));
    Live { served, port, stop, running }
}

fn request(path: &str, body: &Value) -> String {
    let body = body.to_string();
    format!(
        "POST {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\
         content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
}

fn stream_of(n_tokens: u64) -> String {
    let body = json!({"prompt": "a", "max_tokens": n_tokens, "temperature": 0, "stream": true});
    request("/v1/completions", &body)
}

impl Live {
    async fn ask(&self, request: &str) -> TcpStream {
        let mut socket = TcpStream::connect(("127.0.0.1", self.port)).await.unwrap();
        socket.write_all(request.as_bytes()).await.unwrap();
        socket
    }
}

async fn rest(socket: &mut TcpStream) -> String {
    let mut reply = Vec::new();
    tokio::time::timeout(Duration::from_secs(20), socket.read_to_end(&mut reply))
        .await
        .expect("the server closes")
        .unwrap();
    String::from_utf8(reply).unwrap()
}

/// Waits until the model has made no pass for so long; how many it made.
async fn at_rest(controls: &Controls, span: Duration) -> usize {
    let mut n_before = usize::MAX;
    loop {
        tokio::time::sleep(span).await;
        let n_passes = controls.n_passes.load(Ordering::SeqCst);
        if n_passes == n_before {
            return n_passes;
        }
        n_before = n_passes;
    }
}

/// Reads until `n` of `part` have come.
async fn read_until(socket: &mut TcpStream, part: &str, n: usize) -> String {
    let mut text = String::new();
    let mut piece = [0; 4096];
    while text.matches(part).count() < n {
        let read = tokio::time::timeout(Duration::from_secs(20), socket.read(&mut piece));
        let n_bytes = read.await.expect("something comes").unwrap();
        assert!(n_bytes > 0, "{text}");
        text.push_str(std::str::from_utf8(&piece[..n_bytes]).unwrap());
    }
    text
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pieces_come_while_the_model_works() {
    let controls = Arc::new(Controls::default());
    controls.pass_ms.store(50, Ordering::SeqCst);
    let live = live(&controls, "", &[]).await;
    let mut socket = live.ask(&stream_of(300)).await;
    let head = read_until(&mut socket, "data: ", 2).await;
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    assert!(head.contains("transfer-encoding: chunked"), "{head}");
    assert!(head.contains("content-type: text/event-stream"), "{head}");
    assert!(controls.n_passes.load(Ordering::SeqCst) < 290, "nothing came before the end");
    controls.pass_ms.store(0, Ordering::SeqCst);
    let tail = rest(&mut socket).await;
    assert!(tail.ends_with("data: [DONE]\n\n\r\n0\r\n\r\n"), "{tail:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_goes_away_ends_the_work() {
    let controls = Arc::new(Controls::default());
    controls.pass_ms.store(10, Ordering::SeqCst);
    let live = live(&controls, "", &[]).await;
    let mut socket = live.ask(&stream_of(900)).await;
    read_until(&mut socket, "data: ", 2).await;
    drop(socket);
    let n_passes = at_rest(&controls, Duration::from_millis(500)).await;
    assert!(n_passes < 900, "the work went on to its end");
    assert_eq!(live.served.post("/ping", "", b"").await.status, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_does_not_read_is_cut_off() {
    let controls = Arc::new(Controls::default());
    let settings = [("SERVING_CHUNKED_READ_TIMEOUT", "1")];
    let live = live(&controls, "", &settings).await;
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let address = format!("127.0.0.1:{}", live.port).parse().unwrap();
    let mut socket = socket.connect(address).await.unwrap();
    // Enough choices and chunks to fill what lies between the two ends.
    let prompts: Vec<String> = (0..32).map(|_| "a".to_owned()).collect();
    let body = json!({
        "prompt": prompts, "max_tokens": 900, "temperature": 0, "stream": true, "logprobs": 0,
    });
    socket.write_all(request("/v1/completions", &body).as_bytes()).await.unwrap();
    // Nobody reads, so the work comes to rest, and a second later the connection is cut.
    at_rest(&controls, Duration::from_millis(2500)).await;
    let mut reply = Vec::new();
    let end = tokio::time::timeout(Duration::from_secs(20), socket.read_to_end(&mut reply)).await;
    drop(end.expect("the connection was cut"));
    let reply = String::from_utf8_lossy(&reply);
    assert!(reply.starts_with("HTTP/1.1 200"), "{reply}");
    assert!(!reply.contains("[DONE]"), "the connection was kept");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_fails_says_so_in_its_last_frame() {
    for (path, properties, body, frame) in [
        (
            "/v1/completions",
            "",
            json!({"prompt": "a", "max_tokens": 900, "temperature": 0, "stream": true}),
            "data: {\"error\":{\"message\":",
        ),
        (
            "/invocations",
            "option.rolling_batch=auto\n",
            json!({"inputs": "a", "stream": true, "parameters": {"max_new_tokens": 900}}),
            "\"error_msg\":",
        ),
        (
            "/invocations",
            "option.async_mode=true\n",
            json!({"inputs": "a", "stream": true, "parameters": {"max_new_tokens": 900}}),
            "{\"error\":{\"message\":",
        ),
    ] {
        let controls = Arc::new(Controls::default());
        controls.pass_ms.store(10, Ordering::SeqCst);
        let live = live(&controls, properties, &[]).await;
        let mut socket = live.ask(&request(path, &body)).await;
        read_until(&mut socket, "\"text\":", 2).await;
        controls.mode.store(INTERNAL, Ordering::SeqCst);
        let tail = rest(&mut socket).await;
        assert!(tail.contains(frame), "{path}: {tail}");
        assert!(tail.contains("a bug in the engine"), "{path}: {tail}");
        assert!(tail.ends_with("0\r\n\r\n"), "{path}: {tail:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_fails_for_now_says_when_to_come_back() {
    let controls = Arc::new(Controls::default());
    let properties = "job_queue_size=1\noption.max_rolling_batch_size=1\npredict_timeout=4\n\
                      option.rolling_batch=auto\n";
    let live = live(&controls, properties, &[]).await;
    let lmi = json!({"inputs": "a", "parameters": {"max_new_tokens": 900}});
    controls.pass_ms.store(20, Ordering::SeqCst);
    let mut running = live.ask(&stream_of(900)).await;
    read_until(&mut running, "data: ", 1).await;
    // The pass under way outlasts the time that requests have.
    controls.pass_ms.store(7000, Ordering::SeqCst);
    let mut waiting = live.ask(&stream_of(900)).await;
    tokio::time::sleep(Duration::from_millis(1000)).await;
    // The queue is full.
    let reply = rest(&mut live.ask(&stream_of(9)).await).await;
    assert!(reply.starts_with("HTTP/1.1 429 "), "{reply}");
    assert!(reply.contains("retry-after: 1\r\n"), "{reply}");
    assert!(reply.contains("rate_limit_exceeded"), "{reply}");
    let reply = rest(&mut live.ask(&request("/invocations", &lmi)).await).await;
    assert!(reply.starts_with("HTTP/1.1 503 "), "{reply}");
    assert!(reply.contains("retry-after: 1\r\n"), "{reply}");
    // The time is over before the first token.
    let reply = rest(&mut waiting).await;
    assert!(reply.starts_with("HTTP/1.1 503 "), "{reply}");
    assert!(reply.contains("retry-after: 1\r\n"), "{reply}");
    assert!(reply.contains("\"code\":\"timeout\""), "{reply}");
    let tail = rest(&mut running).await;
    assert!(tail.contains("\"code\":\"timeout\""), "{tail}");
    // The server is going away.
    live.served.host.begin_drain(Instant::now() + Duration::from_secs(1));
    let body = json!({"prompt": "a"}).to_string();
    let answer = live.served.post("/v1/completions", "application/json", body.as_bytes()).await;
    assert_eq!(answer.status, 503, "{}", answer.body);
    assert_eq!(answer.headers["retry-after"], "5");
    live.stop.send(()).unwrap();
    live.running.await.unwrap();
}
