//! Failures of the engine and of the host, as clients see them.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::http::Request;

use crate::engines::{BAD_INPUT, Controls, Counting, DEVICE_LOST, INTERNAL, NAN, OUT_OF_MEMORY};
use crate::support::{Answer, Log, Served};

async fn with_mode(mode: u8, settings: &[(&str, &str)]) -> (Answer, Served) {
    let controls = Arc::new(Controls::default());
    let served = Served::new(Counting(Arc::clone(&controls)), "feature-extraction", settings);
    controls.mode.store(mode, Ordering::SeqCst);
    (served.post("/invocations", "text/plain", b"serving").await, served)
}

#[tokio::test]
async fn the_engines_errors_have_the_status_of_their_kind() {
    for (mode, status, type_name, message) in [
        (NAN, 500, "TranslateException", "are not finite: NaN at input 0, token 0, column 0"),
        (BAD_INPUT, 400, "TranslateException", "token 7 is not welcome"),
        (OUT_OF_MEMORY, 507, "WlmOutOfMemoryException", "needs 2 GiB of 1 GiB"),
        (INTERNAL, 500, "EngineException", "a bug in the engine"),
    ] {
        let (answer, _) = with_mode(mode, &[]).await;
        assert_eq!(answer.status.as_u16(), status, "{}", answer.body);
        assert!(answer.body.contains(type_name), "{}", answer.body);
        assert!(answer.body.contains(message), "{}", answer.body);
    }
}

#[tokio::test]
async fn what_the_host_has_logged_is_not_logged_again() {
    let (log, _guard) = Log::of_this_thread();
    with_mode(INTERNAL, &[]).await;
    with_mode(OUT_OF_MEMORY, &[]).await;
    let n_failures = || log.text().matches(" drivetrain_http::failure: ").count();
    assert_eq!(n_failures(), 0, "{}", log.text());
    with_mode(NAN, &[]).await;
    assert_eq!(n_failures(), 1, "{}", log.text());
}

#[tokio::test]
async fn the_operator_can_set_the_codes() {
    let settings = [
        ("SERVING_BAD_REQUEST_HTTP_CODE", "422"),
        ("SERVING_SERVER_ERROR_HTTP_CODE", "599"),
        ("SERVING_WLM_ERROR_HTTP_CODE", "502"),
    ];
    assert_eq!(with_mode(BAD_INPUT, &settings).await.0.status, 422);
    let (answer, _) = with_mode(INTERNAL, &settings).await;
    assert_eq!(answer.status, 599);
    assert!(answer.body.contains("\"code\": 599"), "{}", answer.body);
}

#[tokio::test]
async fn a_model_without_a_device_turns_ping_to_500() {
    let (answer, served) = with_mode(DEVICE_LOST, &[]).await;
    assert_eq!(answer.status, 503, "{}", answer.body);
    assert_eq!(answer.body.matches("fell off the bus").count(), 1, "{}", answer.body);
    // The request is answered before the model's thread has ended, which is what turns the state.
    let ping = async || served.ask(Request::get("/ping").body(Body::empty()).unwrap()).await;
    let given_up = Instant::now() + Duration::from_secs(10);
    let mut answer = ping().await;
    while answer.status == 200 && Instant::now() < given_up {
        tokio::time::sleep(Duration::from_millis(5)).await;
        answer = ping().await;
    }
    assert_eq!(answer.status, 500, "{}", answer.body);
    assert!(answer.body.contains("\"FAILED\""), "{}", answer.body);
    let again = served.post("/invocations", "text/plain", b"serving").await;
    assert!(again.status.is_server_error(), "{}", again.body);
}
