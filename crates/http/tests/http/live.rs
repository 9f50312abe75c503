//! Real sockets: what a client can do to a connection, and how the server goes down.

use std::io::ErrorKind;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use drivetrain_config::{Address, ServerConfig};
use drivetrain_http::{Limits, Server};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::engines::{Controls, Counting, Obedient};
use crate::support::{Log, Served};

const LIMITS: Limits = Limits {
    head: Duration::from_millis(300),
    body_piece: Duration::from_millis(300),
    body: Duration::from_millis(900),
    write: Duration::from_millis(500),
    drain: Duration::from_secs(2),
    max_connections: 64,
};

struct Live {
    _served: Served,
    port: u16,
    stop: oneshot::Sender<()>,
    running: JoinHandle<()>,
}

impl Live {
    async fn start(served: Served) -> Self {
        Self::with_limits(served, LIMITS).await
    }

    async fn with_limits(served: Served, limits: Limits) -> Self {
        let server =
            Server::bind(served.host.clone(), Arc::clone(&served.config), limits).await.unwrap();
        let bound = server.bound().to_vec();
        let port = bound[0].address.port().unwrap();
        assert_eq!(bound[0].to_string(), format!("BOTH API bind to: http://127.0.0.1:{port}"));
        let (stop, stopped) = oneshot::channel();
        let running = tokio::spawn(server.run(async move {
            let _ = stopped.await;
        }));
        Self { _served: served, port, stop, running }
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(("127.0.0.1", self.port)).await.unwrap()
    }

    /// Sends `bytes` and reads until the server closes.
    async fn exchange(&self, bytes: &[u8]) -> String {
        let mut socket = self.connect().await;
        socket.write_all(bytes).await.unwrap();
        rest(&mut socket).await
    }
}

async fn rest(socket: &mut TcpStream) -> String {
    let mut reply = Vec::new();
    tokio::time::timeout(Duration::from_secs(10), socket.read_to_end(&mut reply))
        .await
        .expect("the server closes")
        .unwrap();
    String::from_utf8(reply).unwrap()
}

/// A request whose connection closes after it.
fn last(path: &str, body: &str) -> String {
    format!(
        "POST {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: text/plain\r\n\
         content-length: {}\r\n\r\n{body}",
        body.len()
    )
}

fn counting() -> (Arc<Controls>, Served) {
    let controls = Arc::new(Controls::default());
    let served = Served::new(Counting(Arc::clone(&controls)), "text2text-generation", &[]);
    (controls, served)
}

fn generate(n_tokens: u32) -> String {
    let body =
        format!(r#"{{"inputs": "serving", "parameters": {{"max_new_tokens": {n_tokens}}}}}"#);
    format!(
        "POST /invocations HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n{body}",
        body.len()
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shutdown_finishes_what_runs_and_refuses_what_is_new() {
    let (controls, served) = counting();
    controls.pass_ms.store(20, Ordering::SeqCst);
    let live = Live::start(served).await;
    let mut busy = live.connect().await;
    busy.write_all(generate(30).as_bytes()).await.unwrap();
    let mut idle = live.connect().await;
    idle.write_all(b"GET /ping HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    let mut head = [0; 12];
    idle.read_exact(&mut head).await.unwrap();
    assert_eq!(&head, b"HTTP/1.1 200");
    tokio::time::sleep(Duration::from_millis(100)).await;
    let began = Instant::now();
    live.stop.send(()).unwrap();
    rest(&mut idle).await;
    assert!(began.elapsed() < Duration::from_millis(300), "an idle connection was kept");
    // The listener may close a little later than the idle connections.
    let knock = async || TcpStream::connect(("127.0.0.1", live.port)).await.map_err(|e| e.kind());
    while !matches!(knock().await, Err(ErrorKind::ConnectionRefused)) {
        assert!(began.elapsed() < Duration::from_millis(500), "the listener was kept");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let reply = rest(&mut busy).await;
    assert!(reply.starts_with("HTTP/1.1 200 OK\r\n"), "{reply}");
    assert!(reply.ends_with("\"}]"), "{reply}");
    assert!(!reply.contains("x-finish-reason"), "{reply}");
    live.running.await.unwrap();
    assert!(began.elapsed() < Duration::from_millis(1900));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_generation_that_takes_too_long_is_cut_off_well_formed() {
    let (controls, served) = counting();
    controls.pass_ms.store(20, Ordering::SeqCst);
    let live = Live::start(served).await;
    let mut busy = live.connect().await;
    busy.write_all(generate(900).as_bytes()).await.unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    let began = Instant::now();
    live.stop.send(()).unwrap();
    let reply = rest(&mut busy).await;
    assert!(reply.starts_with("HTTP/1.1 200 OK\r\n"), "{reply}");
    assert!(reply.contains("x-finish-reason: shutdown\r\n"), "{reply}");
    let (_, body) = reply.split_once("\r\n\r\n").unwrap();
    let body: serde_json::Value = serde_json::from_str(body).unwrap();
    assert!(!body[0]["generated_text"].as_str().unwrap().is_empty());
    live.running.await.unwrap();
    let took = began.elapsed();
    assert!(took > Duration::from_millis(500) && took < Duration::from_millis(2000), "{took:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_head_or_a_body_that_trickles_is_given_up() {
    let live = Live::start(counting().1).await;
    let began = Instant::now();
    let mut slow_head = live.connect().await;
    slow_head.write_all(b"POST /invocations HTTP/1.1\r\nhost:").await.unwrap();
    let reply = rest(&mut slow_head).await;
    assert!(!reply.contains("200"), "{reply}");
    assert!(began.elapsed() < Duration::from_secs(2));
    let slow_body = live
        .exchange(b"POST /invocations HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\nabc")
        .await;
    assert!(slow_body.starts_with("HTTP/1.1 400"), "{slow_body}");
    assert!(slow_body.contains("did not arrive in time: 3 bytes so far"), "{slow_body}");
    assert!(live.exchange(last("/invocations", "a").as_bytes()).await.contains("200 OK"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_over_the_limit_is_refused_however_it_comes() {
    let settings = [("SERVING_MAX_REQUEST_SIZE", "1000")];
    let live = Live::start(Served::new(Counting::default(), "feature-extraction", &settings)).await;
    let head = "POST /invocations HTTP/1.1\r\nhost: x\r\ncontent-type: text/plain\r\n";
    let chunk = format!("190\r\n{}\r\n", "a".repeat(400));
    let chunked = format!("{head}transfer-encoding: chunked\r\n\r\n{}0\r\n\r\n", chunk.repeat(3));
    let announced = format!("{head}content-length: 200000000000\r\n\r\nabc");
    let expecting = format!("{head}expect: 100-continue\r\ncontent-length: 200000000000\r\n\r\n");
    for request in [chunked, announced, expecting] {
        let reply = live.exchange(request.as_bytes()).await;
        assert!(reply.starts_with("HTTP/1.1 413 "), "{reply}");
        assert!(reply.contains("\"code\": 413"), "{reply}");
        assert!(reply.contains("connection: close"), "{reply}");
    }
    let small =
        format!("{head}transfer-encoding: chunked\r\nconnection: close\r\n\r\n{chunk}0\r\n\r\n");
    assert!(live.exchange(small.as_bytes()).await.starts_with("HTTP/1.1 200"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pipelined_requests_are_answered_in_order() {
    let live = Live::start(Served::new(Obedient::default(), "text-generation", &[])).await;
    let one = |body: &str| last("/invocations", body).replace("connection: close\r\n", "");
    let both = format!("{}{}{}", one("sleep 50"), one("stream 3"), last("/invocations", "echo"));
    let reply = live.exchange(both.as_bytes()).await;
    assert_eq!(reply.matches("HTTP/1.1 200 OK").count(), 3, "{reply}");
    let places: Vec<usize> = ["slept", "transfer-encoding: chunked", "2;", "[data] echo"]
        .map(|text| reply.find(text).unwrap())
        .to_vec();
    assert!(places.is_sorted(), "{reply}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_that_are_no_http_get_the_contracts_400() {
    let live = Live::start(counting().1).await;
    for bytes in [
        &b"rubbish\r\n\r\n"[..],
        b"GET /ping HTTP/1.1\r\nbad header\r\n\r\n",
        b"POST /invocations HTTP/1.1\r\ncontent-length: x\r\n\r\n",
    ] {
        let reply = live.exchange(bytes).await;
        assert!(reply.starts_with("HTTP/1.1 400 Bad Request\r\n"), "{reply}");
        assert!(reply.contains("\"message\": \"Invalid HTTP message.\""), "{reply}");
    }
    let many = "x-y: z\r\n".repeat(500);
    let reply = live.exchange(format!("GET /ping HTTP/1.1\r\n{many}\r\n").as_bytes()).await;
    assert!(reply.starts_with("HTTP/1.1 431 "), "{reply}");
    assert!(reply.contains("\"code\": 431"), "{reply}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_error_closes_the_connection_and_a_success_keeps_it() {
    let live = Live::start(counting().1).await;
    let ping = "GET /ping HTTP/1.1\r\nhost: x\r\n\r\n";
    let missing = "GET /missing HTTP/1.1\r\nhost: x\r\n\r\n";
    let reply = live.exchange(format!("{ping}{ping}{missing}").as_bytes()).await;
    assert_eq!(reply.matches("HTTP/1.1 200 OK").count(), 2, "{reply}");
    assert_eq!(reply.matches("HTTP/1.1 404 Not Found").count(), 1, "{reply}");
    assert_eq!(reply.matches("connection: close").count(), 1, "{reply}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_goes_away_stops_its_work() {
    let (controls, served) = counting();
    controls.pass_ms.store(10, Ordering::SeqCst);
    let live = Live::start(served).await;
    let mut socket = live.connect().await;
    socket.write_all(generate(900).as_bytes()).await.unwrap();
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(controls.n_passes.load(Ordering::SeqCst) > 2);
    drop(socket);
    tokio::time::sleep(Duration::from_millis(200)).await;
    let n_passes = controls.n_passes.load(Ordering::SeqCst);
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(controls.n_passes.load(Ordering::SeqCst), n_passes, "the work goes on");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ping_answers_at_once_while_the_model_is_busy() {
    let (controls, served) = counting();
    controls.pass_ms.store(1000, Ordering::SeqCst);
    let live = Live::start(served).await;
    let mut busy = live.connect().await;
    busy.write_all(generate(3).as_bytes()).await.unwrap();
    tokio::time::sleep(Duration::from_millis(50)).await;
    let began = Instant::now();
    let reply = live.exchange(b"GET /ping HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await;
    assert!(reply.contains("Healthy"), "{reply}");
    assert!(began.elapsed() < Duration::from_millis(500), "{:?}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_does_not_read_is_given_up() {
    let controls = Arc::new(Controls::default());
    let served = Served::new(Obedient(Arc::clone(&controls)), "text-generation", &[]);
    let live = Live::start(served).await;
    let mut socket = live.connect().await;
    socket.write_all(last("/invocations", "flood").as_bytes()).await.unwrap();
    tokio::time::sleep(Duration::from_millis(1500)).await;
    let n_frames = controls.n_frames.load(Ordering::SeqCst);
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(controls.n_frames.load(Ordering::SeqCst), n_frames);
    live.stop.send(()).unwrap();
    tokio::time::timeout(Duration::from_secs(1), live.running).await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_unix_socket_serves_and_is_cleaned_up() {
    let served = counting().1;
    let dir = tempfile::TempDir::new().unwrap();
    let path: PathBuf = dir.path().join("server.sock");
    let mut config = ServerConfig::clone(&served.config);
    config.inference_address.value = Address::Unix(path.clone());
    config.management_address.value = Address::Unix(path.clone());
    // A socket that a server which was killed left behind does not stand in the way.
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let server = Server::bind(served.host.clone(), Arc::new(config), LIMITS).await.unwrap();
    let (stop, stopped) = oneshot::channel::<()>();
    let running = tokio::spawn(server.run(async move {
        let _ = stopped.await;
    }));
    let mut socket = UnixStream::connect(&path).await.unwrap();
    socket.write_all(last("/invocations", "a").as_bytes()).await.unwrap();
    let mut reply = String::new();
    socket.read_to_string(&mut reply).await.unwrap();
    assert!(reply.starts_with("HTTP/1.1 200 OK"), "{reply}");
    stop.send(()).unwrap();
    running.await.unwrap();
    assert!(!path.exists());
}

#[tokio::test]
async fn an_address_in_use_and_tls_are_refused_by_name() {
    let served = counting().1;
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut config = ServerConfig::clone(&served.config);
    let port = taken.local_addr().unwrap().port();
    let address = format!("http://127.0.0.1:{port}");
    config.inference_address.value = Address::parse(&address).unwrap();
    config.management_address.value = Address::parse(&address).unwrap();
    let error =
        Server::bind(served.host.clone(), Arc::new(config.clone()), LIMITS).await.unwrap_err();
    assert!(error.to_string().contains(&address), "{error}");
    config.inference_address.value = Address::parse("https://127.0.0.1:0").unwrap();
    let error = Server::bind(served.host.clone(), Arc::new(config), LIMITS).await.unwrap_err();
    assert!(error.to_string().contains("inference_address=https://127.0.0.1:0"), "{error}");
}

#[tokio::test]
async fn separate_addresses_have_separate_routes() {
    let served = counting().1;
    let mut config = ServerConfig::clone(&served.config);
    config.management_address.value = Address::parse("http://localhost:0").unwrap();
    let server = Server::bind(served.host.clone(), Arc::new(config), LIMITS).await.unwrap();
    let kinds: Vec<&str> = server.bound().iter().map(|bound| bound.kind).collect();
    assert_eq!(kinds, ["INFERENCE", "MANAGEMENT"]);
    let ports: Vec<u16> =
        server.bound().iter().map(|bound| bound.address.port().unwrap()).collect();
    let running = tokio::spawn(server.run(std::future::pending()));
    for (port, path, status) in [
        (ports[0], "/ping", 200),
        (ports[0], "/models", 404),
        (ports[1], "/ping", 404),
        (ports[1], "/models", 200),
    ] {
        let mut socket = TcpStream::connect(("localhost", port)).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        socket.write_all(request.as_bytes()).await.unwrap();
        let reply = rest(&mut socket).await;
        assert!(reply.starts_with(&format!("HTTP/1.1 {status} ")), "{path}: {reply}");
    }
    running.abort();
}

#[tokio::test]
async fn every_request_leaves_a_line_in_the_access_log() {
    let (log, _guard) = Log::of_this_thread();
    let live = Live::start(counting().1).await;
    live.exchange(last("/predictions/m?a=1", "a").as_bytes()).await;
    live.exchange(last("/predictions/other", "a").as_bytes()).await;
    let log = log.text();
    let lines: Vec<&str> = log.lines().filter(|line| line.contains(" access: ")).collect();
    let [first, second] = lines[..] else { panic!("{log}") };
    assert!(first.contains(" \"POST /predictions/m?a=1 HTTP/1.1\" 200 "), "{first}");
    assert!(first.contains(" access: 127.0.0.1:"), "{first}");
    assert!(second.contains(" \"POST /predictions/other HTTP/1.1\" 404 "), "{second}");
    assert!(log.contains(&format!("BOTH API bind to: http://127.0.0.1:{}", live.port)), "{log}");
}
