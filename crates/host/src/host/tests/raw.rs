//! Models that answer whole requests themselves.

use std::sync::atomic::{AtomicBool, AtomicUsize};

use bytes::Bytes;
use drivetrain_engine::{
    Call, Engine, EngineInfo, LoadRequest, LoadedModel, Reply, Request, RequestModel,
    RequestModelInfo,
};

use super::*;
use crate::{RawHead, RawRequest};

/// Repeats its first entry as often as the property `times` says; fails on the entry `bad`.
#[derive(Debug, Default)]
struct Echo {
    n_sent: Arc<AtomicUsize>,
    was_stopped: Arc<AtomicBool>,
}

impl RequestModel for Echo {
    fn info(&self) -> RequestModelInfo {
        RequestModelInfo { max_concurrency: 2, max_batch: 1 }
    }

    fn call(&self, request: &Request<'_>, reply: &mut dyn Reply) -> Result<(), EngineError> {
        let times = request.properties.iter().find(|(k, _)| *k == "times").map_or("1", |(_, v)| v);
        let (_, bytes) = request.content[0];
        assert_ne!(bytes, b"panic");
        if bytes == b"sleep" {
            std::thread::sleep(Duration::from_millis(6500));
        }
        reply.head(201, "Made", &[("x", "y")]);
        for _ in 0..times.parse::<usize>().unwrap() {
            if !reply.frame(bytes) {
                self.was_stopped.store(true, Ordering::SeqCst);
                return Ok(());
            }
            self.n_sent.fetch_add(1, Ordering::SeqCst);
        }
        if bytes == b"bad" { Err(EngineError::bad_input("bad entry")) } else { Ok(()) }
    }
}

/// Answers each request with the number of requests it came with.
struct Gather;

impl RequestModel for Gather {
    fn info(&self) -> RequestModelInfo {
        RequestModelInfo { max_concurrency: 1, max_batch: 3 }
    }

    fn call(&self, request: &Request<'_>, reply: &mut dyn Reply) -> Result<(), EngineError> {
        self.call_batch(&mut [Call { request: *request, reply }]).remove(0)
    }

    fn call_batch(&self, calls: &mut [Call<'_>]) -> Vec<Result<(), EngineError>> {
        let n = calls.len();
        // Whoever comes first in the batch: none of it is answered.
        assert!(calls.iter().all(|call| call.request.content[0].1 != b"panic"));
        let answer = |call: &mut Call<'_>| {
            let (_, bytes) = call.request.content[0];
            if bytes == b"bad" {
                return Err(EngineError::bad_input("bad entry"));
            }
            call.reply.frame(&[bytes, format!(" of {n}").as_bytes()].concat());
            Ok(())
        };
        calls.iter_mut().map(answer).collect()
    }
}

struct GatherEngine;

impl Engine for GatherEngine {
    fn info(&self) -> EngineInfo {
        EngineInfo { name: "gather".to_owned(), ..EngineInfo::default() }
    }

    fn load(&self, _: &LoadRequest<'_>) -> Result<LoadedModel, EngineError> {
        Ok(LoadedModel::Request(Box::new(Gather)))
    }
}

struct EchoEngine(Arc<AtomicUsize>, Arc<AtomicBool>);

impl Engine for EchoEngine {
    fn info(&self) -> EngineInfo {
        EngineInfo { name: "echo".to_owned(), ..EngineInfo::default() }
    }

    fn load(&self, _: &LoadRequest<'_>) -> Result<LoadedModel, EngineError> {
        let (n_sent, was_stopped) = (Arc::clone(&self.0), Arc::clone(&self.1));
        Ok(LoadedModel::Request(Box::new(Echo { n_sent, was_stopped })))
    }
}

fn ask(text: &'static str, times: &str) -> RawRequest {
    RawRequest {
        properties: vec![("times".to_owned(), times.to_owned())],
        content: vec![("data".to_owned(), Bytes::from_static(text.as_bytes()))],
        ..RawRequest::default()
    }
}

/// A host with one model that echoes, which lives as long as the host does.
async fn serve_echo(properties: &str, echo: impl Engine + 'static) -> (Host, ModelHandle, TempDir) {
    let cli = ServerOverrides { sagemaker_root: "/nonexistent".into(), ..Default::default() };
    let (server, _) = ServerConfig::resolve(&cli, &Environment::default()).unwrap();
    let registry = EngineRegistry::with(Arc::new(echo));
    let host = Host::new(Arc::new(server), Environment::default(), registry);
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("serving.properties"), properties).unwrap();
    let model = host.load(&ModelSpec::at(dir.path().to_str().unwrap())).unwrap();
    model.wait_ready().await.unwrap();
    (host, model, dir)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_stops_calls_and_refuses_what_waits() {
    let was_stopped = Arc::new(AtomicBool::new(false));
    let (host, model, _dir) =
        serve_echo("", EchoEngine(Arc::default(), Arc::clone(&was_stopped))).await;
    let submit = |text: &'static str| {
        let model = model.clone();
        tokio::spawn(async move { model.submit_raw(ask(text, "1")).await })
    };
    // One reads nothing more, one shows no life, and one waits for both.
    let mut unread = model.submit_raw(ask("ab", "1000000")).await.unwrap();
    let stuck = submit("sleep");
    tokio::time::sleep(Duration::from_millis(100)).await;
    let queued = submit("ab");
    wait_until(|| host.n_requests() == 3);
    let begun = Instant::now();
    host.begin_drain(begun + Duration::from_millis(100));
    assert!(matches!(queued.await.unwrap(), Err(HostError::ShuttingDown)));
    wait_until(|| was_stopped.load(Ordering::SeqCst));
    while let Some(frame) = unread.frames.next().await {
        assert!(frame.is_ok());
    }
    drop(unread);
    assert!(matches!(stuck.await.unwrap(), Err(HostError::ShuttingDown)));
    host.drained().await;
    assert!(begun.elapsed() < Duration::from_secs(5));
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_without_a_sign_of_life_are_seen() {
    let echo = EchoEngine(Arc::default(), Arc::default());
    let (_host, model, _dir) = serve_echo("option.predict_timeout=1\n", echo).await;
    let submit = || {
        let model = model.clone();
        tokio::spawn(async move { model.submit_raw(ask("sleep", "1")).await })
    };
    let calls = [submit(), submit()];
    wait_until(|| matches!(model.status(), ModelStatus::Unhealthy { .. }));
    wait_until(|| model.status() == ModelStatus::Ready);
    for call in calls {
        assert!(matches!(call.await.unwrap(), Err(HostError::Timeout { .. })));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn frames_come_in_order_and_with_back_pressure() {
    let (n_sent, was_stopped) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
    let engine = EchoEngine(Arc::clone(&n_sent), Arc::clone(&was_stopped));
    let (host, model, _dir) = serve_echo("", engine).await;
    assert!(model.is_request_model() && model.task().is_none());

    let mut reply = model.submit_raw(ask("ab", "3")).await.unwrap();
    let headers = vec![("x".to_owned(), "y".to_owned())];
    assert_eq!(reply.head, RawHead { status: 201, reason: "Made".to_owned(), headers });
    let mut body = Vec::new();
    while let Some(frame) = reply.frames.next().await {
        body.extend_from_slice(&frame.unwrap());
    }
    assert_eq!(body, b"ababab");
    drop(reply);

    n_sent.store(0, Ordering::SeqCst);
    let reply = model.submit_raw(ask("ab", "1000000")).await.unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(n_sent.load(Ordering::SeqCst) <= 17);
    assert_eq!(host.n_requests(), 1);
    drop(reply);
    wait_until(|| was_stopped.load(Ordering::SeqCst) && host.n_requests() == 0);

    let error = model.submit_raw(ask("bad", "0")).await.unwrap_err();
    assert!(matches!(error, HostError::Engine(_)), "{error:?}");
    let mut late = model.submit_raw(ask("bad", "1")).await.unwrap();
    assert!(late.frames.next().await.unwrap().is_ok());
    assert!(late.frames.next().await.unwrap().is_err());
    assert!(late.frames.next().await.is_none());
    let error = model.submit_raw(ask("panic", "1")).await.unwrap_err();
    assert!(error.to_string().contains("panicked"), "{error}");
    assert!(model.submit(request(&["a"], json!({}))).await.is_err());
    assert!(model.submit_raw(ask("ok", "1")).await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_are_gathered_into_batches() {
    let (_host, model, _dir) =
        serve_echo("batch_size=8\nmax_batch_delay=2000\n", GatherEngine).await;
    let submit = |text: &'static str| {
        let model = model.clone();
        tokio::spawn(async move {
            let mut reply = model.submit_raw(ask(text, "1")).await?;
            let frame = reply.frames.next().await.unwrap()?;
            Ok::<_, HostError>(String::from_utf8(frame.to_vec()).unwrap())
        })
    };
    // The model takes three at once; one of them fails alone.
    let begun = Instant::now();
    let [a, b, c] = ["a", "bad", "c"].map(submit);
    assert_eq!(a.await.unwrap().unwrap(), "a of 3");
    assert!(matches!(b.await.unwrap(), Err(HostError::Engine(_))));
    assert_eq!(c.await.unwrap().unwrap(), "c of 3");
    assert!(begun.elapsed() < Duration::from_secs(2), "a full batch waits no longer");
    // A panic ends those it takes along, and nobody else.
    let [a, b, c] = ["panic", "b", "c"].map(submit);
    for end in [a, b, c] {
        let error = end.await.unwrap().unwrap_err();
        assert!(error.to_string().contains("panicked"), "{error}");
    }
    let begun = Instant::now();
    assert_eq!(submit("alone").await.unwrap().unwrap(), "alone of 1");
    assert!(begun.elapsed() >= Duration::from_secs(2), "it waited for company");
}
