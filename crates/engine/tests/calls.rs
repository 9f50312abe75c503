//! What crosses the boundary of a library: values, errors, panics, in both directions.

mod built;

use std::error::Error;
use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use built::library;
use drivetrain_engine::{
    AdapterId, Batch, Call, DevicePlan, Engine, EngineError, EngineLibrary, ErrorKind,
    HostServices, LoadPlan, LoadRequest, LoadedModel, LogLevel, MetricKind, Options, Outputs,
    PlacedModule, PlannedPart, Reply, Request, RequestModel, Segment, SeqId, Services, TokenModel,
    Wanted,
};

/// A host that writes down what it is told, or panics.
#[derive(Default)]
struct Host {
    told: Mutex<Vec<String>>,
    panics: bool,
}

impl Host {
    fn tell(&self, text: String) {
        assert!(!self.panics, "the host is broken");
        self.told.lock().unwrap_or_else(PoisonError::into_inner).push(text);
    }

    fn told(&self) -> Vec<String> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl HostServices for Host {
    fn log(&self, level: LogLevel, message: &str) {
        self.tell(format!("{level:?} {message}"));
    }

    fn metric(&self, kind: MetricKind, name: &str, value: f64) {
        self.tell(format!("{kind:?} {name} {value}"));
    }

    fn progress(&self, stage: &str, done: u64, total: u64) {
        self.tell(format!("{stage} {done}/{total}"));
    }

    fn cancelled(&self) -> bool {
        assert!(!self.panics, "the host is broken");
        false
    }
}

fn request<'a>(host: &Arc<Host>, options: &'a [(&'a str, &'a str)]) -> LoadRequest<'a> {
    LoadRequest {
        model_name: "mine",
        model_dir: Path::new("models/ä b"),
        adapter_dir: None,
        options: Options::new(options),
        n_threads: NonZeroUsize::MIN,
        services: Services::new(Arc::clone(host) as _),
    }
}

fn open(name: &str) -> EngineLibrary {
    EngineLibrary::open(&library(name)).expect("the library opens")
}

fn load(host: &Arc<Host>, options: &[(&str, &str)]) -> Result<LoadedModel, EngineError> {
    open("faulty").load(&request(host, options))
}

fn plan(host: &Arc<Host>, options: &[(&str, &str)]) -> Result<Option<LoadPlan>, EngineError> {
    open("faulty").plan(&request(host, options))
}

fn token_model(place: &str) -> Box<dyn TokenModel> {
    match load(&Arc::default(), &[("panic", place)]) {
        Ok(LoadedModel::Token(model)) => model,
        other => panic!("{other:?}"),
    }
}

fn request_model(host: &Arc<Host>, place: &str) -> Box<dyn RequestModel> {
    match load(host, &[("kind", "request"), ("panic", place)]) {
        Ok(LoadedModel::Request(model)) => model,
        other => panic!("{other:?}"),
    }
}

fn forward(model: &mut dyn TokenModel) -> (Result<(), EngineError>, [f32; 15], usize) {
    let wanted = Wanted::AllLogits;
    let segment = Segment {
        sequence: SeqId(1),
        first_token: 0,
        n_tokens: 2,
        position: 0,
        wanted,
        adapter: AdapterId::NONE,
    };
    let tokens = [1, 2];
    let mut logits = [0.0; 15];
    let segments = [segment];
    let batch = Batch::new(&segments, &tokens, &[]).expect("the batch is right");
    let mut out = Outputs::new(&mut logits, 5, &mut [], 2);
    let result = model.forward(&batch, &mut out);
    let n_taken = out.n_logits_taken();
    if result.is_ok() {
        assert_eq!(logits[0], tokens.as_ptr() as usize as f32, "the tokens were copied");
    }
    (result, logits, n_taken)
}

#[track_caller]
fn panicked<T>(result: Result<T, EngineError>, place: &str) {
    let error = result.err().expect("a panic is an error");
    assert_eq!(error.kind(), ErrorKind::Internal, "{error}");
    assert_eq!(error.message(), format!("panicked: tripped in {place}"));
}

#[test]
fn values_cross_in_both_directions() {
    let host = Arc::<Host>::default();
    let loaded = load(&host, &[]).expect("it loads");
    let LoadedModel::Token(mut model) = loaded else { panic!("{loaded:?}") };
    assert_eq!(host.told(), ["Warn mine", "Gauge load_bytes 2.5", "models/ä b 1/1"]);
    let info = model.info();
    assert_eq!((info.vocab, info.max_positions, info.kv_capacity_tokens), (5, 9, 99));
    assert_eq!(model.n_sequences(), 42);
    let (result, logits, n_taken) = forward(&mut *model);
    result.expect("it runs");
    // Rows past those the batch wants are not the engine's to write.
    assert_eq!((n_taken, &logits[10..]), (2, &[0.0; 5][..]));
    let error = model.fork(SeqId(u64::MAX), SeqId(3), 7).expect_err("it refuses");
    assert_eq!(error, EngineError::bad_input(format!("{} 3 7", u64::MAX)));
    let error = model.truncate(SeqId(4), 8).expect_err("it refuses");
    assert_eq!(error, EngineError::new(ErrorKind::DeviceLost, "4 8"));
}

#[test]
fn a_plan_crosses_unchanged() {
    let host = Arc::<Host>::default();
    let found = plan(&host, &[("dtype", "fp32"), ("ü", "")]).expect("it plans");
    let part = |what: &str, bytes| PlannedPart { what: what.into(), bytes };
    let placed = |module: &str, device: &str| PlacedModule {
        module: module.into(),
        device: device.into(),
        bytes: 1,
    };
    let parts = vec![part("weights", u64::MAX), part("KV cache", 0)];
    let expect = LoadPlan {
        devices: vec![
            DevicePlan { name: "cpu".into(), limit_bytes: Some(0), parts },
            DevicePlan { name: "disk".into(), limit_bytes: None, parts: Vec::new() },
        ],
        placements: vec![placed("models/ä b", "cpu"), placed("mine", "disk")],
        kv_capacity_tokens: u64::MAX,
        cross_capacity_tokens: 7,
        max_batch_tokens: u32::MAX,
        max_sequences: 3,
        notes: vec!["dtype=fp32".into(), "ü=".into()],
    };
    assert_eq!(found, Some(expect));
    assert_eq!(host.told(), ["Info planning"]);
    assert_eq!(Arc::strong_count(&host), 1, "the services are given back");
}

#[test]
fn an_engine_without_a_plan_says_so() {
    assert_eq!(open("plain").plan(&request(&Arc::default(), &[])), Ok(None));
    let error = plan(&Arc::default(), &[("empty", "yes")]).expect_err("that is no plan");
    assert_eq!(error, EngineError::internal("the engine's plan names no device"));
}

#[test]
fn a_model_that_would_not_fit_has_no_plan() {
    let error = plan(&Arc::default(), &[("error", "yes")]).expect_err("it fails");
    assert_eq!((error.kind(), error.message()), (ErrorKind::OutOfMemory, "no room"));
    assert_eq!(error.causes(), ["cpu: 3 bytes of 2"]);
}

#[test]
fn an_error_crosses_with_its_kind_and_causes() {
    let error = load(&Arc::default(), &[("error", "yes")]).expect_err("it fails");
    assert_eq!((error.kind(), error.message()), (ErrorKind::OutOfMemory, "no room"));
    assert_eq!(error.causes(), ["layer 3", "disk is full"]);
    let source = error.source().and_then(Error::source).expect("a chain of two");
    assert_eq!(source.to_string(), "disk is full");
}

#[test]
fn rows_too_few_or_too_many_are_the_engines_fault() {
    let (result, ..) = forward(&mut *token_model("too few rows"));
    let error = result.expect_err("a row is missing");
    let expect = "the engine wrote 1 rows of logits and 0 of hidden states where the batch wants 2 \
                  and 0";
    assert_eq!((error.kind(), error.message()), (ErrorKind::Internal, expect));
    let (result, ..) = forward(&mut *token_model("too many rows"));
    let error = result.expect_err("a row too many");
    assert!(error.message().contains("3 rows of logits where the batch wants 2"), "{error}");
}

#[test]
fn a_panic_in_any_call_is_an_error() {
    panicked(load(&Arc::default(), &[("panic", "load")]), "load");
    panicked(plan(&Arc::default(), &[("panic", "plan")]), "plan");
    panicked(load(&Arc::default(), &[("panic", "info")]), "info");
    panicked(load(&Arc::default(), &[("panic", "info"), ("kind", "request")]), "info");
    panicked(forward(&mut *token_model("forward")).0, "forward");
    let batch = Batch::new(&[], &[], &[]).expect("an empty batch");
    let mut out = Outputs::new(&mut [], 5, &mut [], 2);
    panicked(token_model("encode").encode(&batch, &mut out), "encode");
    panicked(token_model("fork").fork(SeqId(1), SeqId(2), 0), "fork");
    panicked(token_model("truncate").truncate(SeqId(1), 0), "truncate");
    panicked(token_model("health").health(), "health");
    panicked(request_model(&Arc::default(), "health").health(), "health");
    let empty = Request { id: "1", properties: &[], content: &[] };
    let model = request_model(&Arc::default(), "call");
    panicked(model.call(&empty, &mut Recorder::default()), "call");
}

#[test]
fn a_panic_in_a_call_without_an_error_comes_with_the_next_one() {
    let mut model = token_model("release");
    model.release(SeqId(1));
    panicked(model.health(), "release");
    assert_eq!(model.health(), Ok(()), "it is told once");
    let mut model = token_model("n_sequences");
    assert_eq!(model.n_sequences(), 0);
    panicked(forward(&mut *model).0, "n_sequences");
}

#[test]
fn a_panic_in_drop_is_logged() {
    for kind in ["token", "request"] {
        let host = Arc::<Host>::default();
        drop(load(&host, &[("kind", kind), ("panic", "drop")]).expect("it loads"));
        let expect = "Error the model panicked while it was freed: tripped in drop";
        assert_eq!(host.told().last().map(String::as_str), Some(expect), "{kind}");
        assert_eq!(Arc::strong_count(&host), 1, "the services are given back");
    }
}

#[test]
fn a_panic_of_the_host_does_not_reach_the_engine() {
    let host = Arc::new(Host { panics: true, ..Host::default() });
    load(&host, &[]).expect("the engine does not notice");
}

/// A reply that writes down what it gets.
#[derive(Default)]
struct Recorder {
    got: Vec<String>,
    n_frames_wanted: Option<usize>,
    panics: bool,
}

impl Reply for Recorder {
    fn head(&mut self, status: u16, reason: &str, headers: &[(&str, &str)]) {
        self.got.push(format!("{status} {reason} {headers:?}"));
    }

    fn frame(&mut self, bytes: &[u8]) -> bool {
        assert!(!self.panics, "the reply is broken");
        self.got.push(String::from_utf8_lossy(bytes).into_owned());
        self.n_frames_wanted.is_none_or(|n| self.got.len() <= n)
    }
}

const REQUEST: Request<'_> = Request {
    id: "r1",
    properties: &[("Accept", "*/*"), ("X", "")],
    content: &[("data", b"abc"), ("more", b"")],
};

#[test]
fn a_reply_streams_through() {
    let model = request_model(&Arc::default(), "nowhere");
    assert_eq!(model.info().max_concurrency, 8);
    let mut reply = Recorder::default();
    model.call(&REQUEST, &mut reply).expect("it answers");
    let head = r#"207 r1 [("Accept", "*/*"), ("X", "")]"#;
    assert_eq!(reply.got, [head, "data", "abc", "more", ""]);
}

#[test]
fn a_reply_ends_when_nobody_waits() {
    let host = Arc::<Host>::default();
    let model = request_model(&host, "nowhere");
    let mut reply = Recorder { n_frames_wanted: Some(1), ..Recorder::default() };
    model.call(&REQUEST, &mut reply).expect("it stops");
    assert_eq!(reply.got.len(), 2);
    assert_eq!(host.told().last().map(String::as_str), Some("Info nobody waits"));
}

#[test]
fn an_error_before_the_first_frame_is_the_callers() {
    let model = request_model(&Arc::default(), "nowhere");
    let mut reply = Recorder::default();
    let error = model.call(&Request { content: &[], ..REQUEST }, &mut reply).expect_err("refused");
    assert_eq!(error, EngineError::bad_input("request r1: no content"));
    assert!(reply.got.is_empty());
}

#[test]
fn a_reply_that_panics_ends_the_call_with_an_error() {
    let model = request_model(&Arc::default(), "nowhere");
    let mut reply = Recorder { panics: true, ..Recorder::default() };
    let error = model.call(&REQUEST, &mut reply).expect_err("the reply is broken");
    assert!(error.message().ends_with("wrote to it: the reply is broken"), "{error}");
}

#[test]
fn a_batch_has_an_end_for_each_request() {
    let model = request_model(&Arc::default(), "nowhere");
    assert_eq!(model.info().max_batch, 4);
    let mut replies = [Recorder::default(), Recorder::default(), Recorder::default()];
    replies[2].panics = true;
    let requests = [REQUEST, Request { content: &[], ..REQUEST }, Request { id: "r3", ..REQUEST }];
    let mut calls: Vec<Call<'_>> = requests
        .into_iter()
        .zip(&mut replies)
        .map(|(request, reply)| Call { request, reply })
        .collect();
    let ends = model.call_batch(&mut calls);
    drop(calls);
    assert_eq!(ends[0], Ok(()));
    assert_eq!(ends[1], Err(EngineError::bad_input("request r1: no content")));
    assert!(ends[2].as_ref().is_err_and(|error| error.message().contains("the reply is broken")));
    assert_eq!(replies[0].got.len(), 5);
    assert!(replies[1].got.is_empty());
    let mut calls = [Call { request: REQUEST, reply: &mut replies[0] }];
    let gone = request_model(&Arc::default(), "call").call_batch(&mut calls);
    assert!(gone[0].as_ref().is_err_and(|error| error.message().starts_with("panicked")));
}

#[test]
fn calls_at_once_keep_apart() {
    let model = request_model(&Arc::default(), "nowhere");
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let model = &model;
            scope.spawn(move || {
                let body = format!("body {thread}");
                let content = [("data", body.as_bytes())];
                for _ in 0..100 {
                    let mut reply = Recorder::default();
                    let request = Request { content: &content, ..REQUEST };
                    model.call(&request, &mut reply).expect("it answers");
                    assert_eq!(reply.got.last(), Some(&body));
                }
            });
        }
    });
}

#[test]
fn a_thousand_models_come_and_go() {
    let host = Arc::<Host>::default();
    for _ in 0..1000 {
        drop(load(&host, &[]).expect("it loads"));
    }
    assert_eq!(Arc::strong_count(&host), 1, "every model gave its services back");
}
