//! The host path with a null engine: request parsed to engine called, answer out to bytes on the
//! socket, over loopback and keep-alive connections.
//!
//! `cargo bench -p drivetrain-http --bench host_path [-- CONNECTIONS SECONDS]`. Prints requests/s
//! and the latency seen by clients at percentiles; the reply is checked before anything is timed.

use std::error::Error;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use drivetrain_config::{Environment, ModelSpec, ServerConfig, ServerOverrides};
use drivetrain_engine::{
    Engine, EngineError, EngineInfo, LoadRequest, LoadedModel, Reply, Request, RequestModel,
    RequestModelInfo,
};
use drivetrain_host::{EngineRegistry, Host};
use drivetrain_http::{Limits, Server};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::oneshot;

const BODY: &str = "serving";

/// Answers every request with one frame at once.
struct Null;

impl Engine for Null {
    fn info(&self) -> EngineInfo {
        EngineInfo { name: "null".to_owned(), version: "1".to_owned(), ..EngineInfo::default() }
    }

    fn load(&self, _: &LoadRequest<'_>) -> Result<LoadedModel, EngineError> {
        Ok(LoadedModel::Request(Box::new(Self)))
    }
}

impl RequestModel for Null {
    fn info(&self) -> RequestModelInfo {
        RequestModelInfo { max_concurrency: 1, max_batch: 1 }
    }

    fn call(&self, _: &Request<'_>, reply: &mut dyn Reply) -> Result<(), EngineError> {
        reply.frame(b"null");
        Ok(())
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    // Without `--bench` cargo only wants to know that it runs.
    let is_bench = std::env::args().any(|argument| argument == "--bench");
    let mut arguments = std::env::args().skip(1).filter(|argument| !argument.starts_with('-'));
    let n_connections: usize = arguments.next().map_or(Ok(32), |text| text.parse())?;
    let default_seconds = if is_bench { 5 } else { 0 };
    let seconds: u64 = arguments.next().map_or(Ok(default_seconds), |text| text.parse())?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        for n_connections in [1, n_connections] {
            measure(n_connections, Duration::from_secs(seconds)).await?;
        }
        Ok(())
    })
}

async fn measure(n_connections: usize, time: Duration) -> Result<(), Box<dyn Error>> {
    let dir = tempfile::TempDir::new()?;
    std::fs::write(dir.path().join("serving.properties"), "engine=null\n")?;
    let env: Environment = [
        ("SERVING_INFERENCE_ADDRESS", "http://127.0.0.1:0"),
        ("SERVING_MANAGEMENT_ADDRESS", "http://127.0.0.1:0"),
        ("SERVING_LOAD_MODELS", "NONE"),
    ]
    .into();
    let overrides = ServerOverrides {
        sagemaker_root: PathBuf::from("/nonexistent"),
        ..ServerOverrides::default()
    };
    let config = Arc::new(ServerConfig::resolve(&overrides, &env)?.0);
    let host = Host::new(
        Arc::clone(&config),
        Environment::default(),
        EngineRegistry::with(Arc::new(Null)),
    );
    let mut spec = ModelSpec::at(dir.path().display().to_string());
    spec.name = Some("m".to_owned());
    host.load(&spec)?.wait_ready().await?;
    let server = Server::bind(host, config, Limits::default()).await?;
    let port = server.bound().first().and_then(|b| b.address.port()).ok_or("no port")?;
    let (stop, stopped) = oneshot::channel::<()>();
    let running = tokio::spawn(server.run(async move {
        let _ = stopped.await;
    }));

    let done = Arc::new(AtomicBool::new(false));
    let began = Instant::now();
    let clients: Vec<_> = (0..n_connections)
        .map(|_| {
            let done = Arc::clone(&done);
            tokio::spawn(async move { client(port, &done).await.map_err(|e| e.to_string()) })
        })
        .collect();
    tokio::time::sleep(time).await;
    done.store(true, Ordering::Relaxed);
    let mut latencies = Vec::new();
    for client in clients {
        latencies.extend(client.await??);
    }
    let elapsed = began.elapsed();
    latencies.sort_unstable();
    let at = |percent: usize| {
        latencies.get(latencies.len() * percent / 100).copied().unwrap_or_default()
    };
    println!(
        "{n_connections:4} connections: {:8.0} requests/s, p50 {:?}, p90 {:?}, p99 {:?}",
        latencies.len() as f64 / elapsed.as_secs_f64(),
        at(50),
        at(90),
        at(99),
    );
    let _ = stop.send(());
    running.await?;
    Ok(())
}

/// Sends one request after the other and takes the time of each.
async fn client(
    port: u16,
    done: &AtomicBool,
) -> Result<Vec<Duration>, Box<dyn Error + Send + Sync>> {
    let mut socket = TcpStream::connect(("127.0.0.1", port)).await?;
    socket.set_nodelay(true)?;
    let request = format!(
        "POST /invocations HTTP/1.1\r\nhost: x\r\ncontent-type: text/plain\r\ncontent-length: {}\
         \r\n\r\n{BODY}",
        BODY.len()
    );
    let mut buffer = vec![0; 4096];
    let mut latencies = Vec::with_capacity(1 << 16);
    while !done.load(Ordering::Relaxed) {
        let began = Instant::now();
        socket.write_all(request.as_bytes()).await?;
        let reply = read_reply(&mut socket, &mut buffer).await?;
        latencies.push(began.elapsed());
        if !reply.starts_with(b"HTTP/1.1 200 OK\r\n") {
            return Err(String::from_utf8_lossy(reply).into());
        }
    }
    Ok(latencies)
}

/// One reply, known by what it ends with: the body as it is, or as the only chunk, which is how it
/// comes when the machine kept the engine from finishing in time.
async fn read_reply<'a>(
    socket: &mut TcpStream,
    buffer: &'a mut [u8],
) -> Result<&'a [u8], Box<dyn Error + Send + Sync>> {
    let mut n_bytes = 0;
    loop {
        let n_read = socket.read(buffer.get_mut(n_bytes..).ok_or("long reply")?).await?;
        if n_read == 0 {
            return Err("the server closed the connection".into());
        }
        n_bytes += n_read;
        let reply = buffer.get(..n_bytes).ok_or("long reply")?;
        if reply.ends_with(b"\r\n\r\nnull") || reply.ends_with(b"\r\nnull\r\n0\r\n\r\n") {
            break;
        }
    }
    buffer.get(..n_bytes).ok_or_else(|| "long reply".into())
}
