//! Full queues, slow and dead engines, clients that go away, and the end of the server.

use drivetrain_engine::RELOADS_LOST_MODELS;

use super::*;
use crate::fake::Failure;

fn fail(served: &Served, from: usize, how: Failure) {
    served.engine.book.lock().unwrap().fails_at = Some((from, how));
}

/// A request that runs until something ends it: the fake says no end token after these.
fn long() -> TaskRequest {
    request(&["t9 t9"], json!({"max_new_tokens": 62, "suppress_tokens": [0]}))
}

fn one_at_a_time() -> TokenModelInfo {
    TokenModelInfo { max_sequences: 1, ..info(ModelKind::Decoder) }
}

fn sins(served: &Served) -> Vec<String> {
    served.engine.book.lock().unwrap().sins.clone()
}

fn n_forwards(served: &Served) -> usize {
    served.engine.book.lock().unwrap().n_forwards
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_queue_refuses() {
    let served = serve_with(one_at_a_time(), "job_queue_size=1\n");
    fail(&served, 0, Failure::Sleeps(20));
    let running = tokio::spawn({
        let model = served.model.clone();
        async move { model.submit(long()).await }
    });
    wait_until(|| n_forwards(&served) > 0);
    let waiting = tokio::spawn({
        let model = served.model.clone();
        async move { model.submit(long()).await }
    });
    wait_until(|| served.host.n_requests() == 2);
    tokio::time::sleep(Duration::from_millis(30)).await;
    let error = served.model.submit(long()).await.unwrap_err();
    assert!(matches!(error, HostError::QueueFull { capacity: 1, .. }), "{error:?}");
    running.abort();
    waiting.abort();
    wait_until(|| served.host.n_requests() == 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_future_stops_the_work() {
    let served = serve(ModelKind::Decoder, "");
    fail(&served, 0, Failure::Sleeps(10));
    let task = tokio::spawn({
        let model = served.model.clone();
        async move { model.submit(long()).await }
    });
    wait_until(|| n_forwards(&served) > 1);
    task.abort();
    wait_until(|| served.engine.book.lock().unwrap().n_released == 1);
    assert!(n_forwards(&served) < 20 && sins(&served).is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_late_answer_is_a_timeout() {
    let served = serve(ModelKind::Decoder, "");
    fail(&served, 0, Failure::Sleeps(10));
    let deadline = Some(Instant::now() + Duration::from_millis(60));
    let error = served.model.submit(TaskRequest { deadline, ..long() }).await.unwrap_err();
    assert!(matches!(error, HostError::Timeout { .. }), "{error:?}");
    wait_until(|| served.engine.book.lock().unwrap().n_released == 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_ends_all_by_its_deadline() {
    let served = serve_with(one_at_a_time(), "");
    fail(&served, 0, Failure::Sleeps(10));
    let submit = |request: TaskRequest| {
        let model = served.model.clone();
        tokio::spawn(async move { model.submit(request).await })
    };
    let running = submit(long());
    wait_until(|| n_forwards(&served) > 1);
    let queued = submit(long());
    wait_until(|| served.host.n_requests() == 2);
    served.host.begin_drain(Instant::now() + Duration::from_millis(100));
    let error = served.model.submit(long()).await.unwrap_err();
    assert!(matches!(error, HostError::ShuttingDown), "{error:?}");
    tokio::time::timeout(Duration::from_secs(10), served.host.drained()).await.unwrap();
    let one = &generated(running.await.unwrap().unwrap())[0];
    assert_eq!(one.finish, FinishReason::Shutdown);
    assert!(one.n_tokens > 0 && one.n_tokens < 62);
    assert!(matches!(queued.await.unwrap(), Err(HostError::ShuttingDown)));
    assert!(matches!(served.host.load(&ModelSpec::at("/nowhere")), Err(HostError::ShuttingDown)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_device_or_a_panic_fails_the_model() {
    for how in [Failure::DeviceLost, Failure::Panic] {
        let served = serve(ModelKind::Decoder, "");
        fail(&served, 3, how);
        let error = served.model.submit(long()).await.unwrap_err();
        assert!(matches!(error, HostError::Failed { .. }), "{error:?}");
        wait_until(|| matches!(served.model.status(), ModelStatus::Failed { .. }));
        let error = served.model.submit(long()).await.unwrap_err();
        assert!(matches!(error, HostError::Failed { .. }), "{error:?}");
        wait_until(|| served.engine.n_alive.load(Ordering::SeqCst) == 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_that_may_be_loaded_again_comes_back() {
    let mut engine = FakeEngine::new("fake", info(ModelKind::Decoder));
    engine.capabilities = vec![RELOADS_LOST_MODELS.to_owned()];
    let served = serve_on(engine, "retry_threshold=2\n");
    for n_lost in 1..=2 {
        fail(&served, n_forwards(&served) + 3, Failure::DeviceLost);
        let error = served.model.submit(long()).await.unwrap_err();
        assert!(error.chain().contains("the device is gone"), "{error:?}");
        served.engine.book.lock().unwrap().fails_at = None;
        served.model.wait_ready().await.unwrap();
        assert_eq!(served.model.status(), ModelStatus::Ready);
        assert_eq!(served.engine.n_alive.load(Ordering::SeqCst), 1, "{n_lost}");
        assert!(served.model.submit(long()).await.is_ok());
    }
    // Once more is too often.
    fail(&served, 0, Failure::DeviceLost);
    let _ = served.model.submit(long()).await.unwrap_err();
    wait_until(|| matches!(served.model.status(), ModelStatus::Failed { .. }));
    wait_until(|| served.engine.n_alive.load(Ordering::SeqCst) == 0);
    assert!(sins(&served).is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn too_many_faults_in_a_row_fail_the_model() {
    let served = serve(ModelKind::Decoder, "retry_threshold=2\n");
    fail(&served, 0, Failure::Internal);
    for _ in 0..2 {
        let error = served.model.submit(long()).await.unwrap_err();
        assert!(matches!(error, HostError::Engine(_)), "{error:?}");
        assert_eq!(served.model.status(), ModelStatus::Ready);
    }
    let _ = served.model.submit(long()).await.unwrap_err();
    wait_until(|| matches!(served.model.status(), ModelStatus::Failed { .. }));
}

#[tokio::test(flavor = "multi_thread")]
async fn one_request_alone_does_not_fail_the_model() {
    let served = serve(ModelKind::Decoder, "");
    fail(&served, 0, Failure::Internal);
    let error = served.model.submit(long()).await.unwrap_err();
    assert!(matches!(error, HostError::Engine(_)), "{error:?}");
    served.engine.book.lock().unwrap().fails_at = None;
    assert!(served.model.submit(long()).await.is_ok());
    // Unless the engine says itself that something is wrong, or another one fails as well.
    let sick = serve(ModelKind::Decoder, "");
    sick.engine.book.lock().unwrap().illness = Some(EngineError::internal("too hot"));
    for served in [&served, &sick] {
        fail(served, 0, Failure::Internal);
        let _ = served.model.submit(long()).await.unwrap_err();
        let _ = served.model.submit(long()).await.unwrap_err();
        wait_until(|| matches!(served.model.status(), ModelStatus::Failed { .. }));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_engine_is_unhealthy_until_it_speaks() {
    let served = serve(ModelKind::Decoder, "option.predict_timeout=1\n");
    // Shorter than 5 s is no silence, whatever predict_timeout says.
    fail(&served, 0, Failure::Sleeps(6500));
    let error = served.model.submit(long()).await.unwrap_err();
    assert!(matches!(error, HostError::Timeout { .. }), "{error:?}");
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(served.model.status(), ModelStatus::Ready);
    wait_until(|| matches!(served.model.status(), ModelStatus::Unhealthy { .. }));
    served.engine.book.lock().unwrap().fails_at = None;
    wait_until(|| served.model.status() == ModelStatus::Ready);
}

#[test]
fn an_ill_engine_is_unhealthy_and_a_stuck_load_ends() {
    let served = serve(ModelKind::Decoder, "");
    served.engine.book.lock().unwrap().illness = Some(EngineError::internal("too hot"));
    let is_ill =
        |status| matches!(status, ModelStatus::Unhealthy { reason } if reason == "too hot");
    wait_until(|| is_ill(served.model.status()));
    let dir = dir_of(ModelKind::Decoder, "option.stuck=true\nmodel_loading_timeout=1\n");
    let reason = load_failure(FakeEngine::new("fake", info(ModelKind::Decoder)), &dir);
    assert!(reason.contains("model_loading_timeout=1 s"), "{reason}");
}
