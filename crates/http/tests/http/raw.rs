//! Engines that answer whole requests: what they see, and what becomes of their answers.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::body::Body;
use axum::http::Request;
use http_body_util::BodyExt;
use hyper::ext::ReasonPhrase;
use tower::ServiceExt;

use crate::engines::{Controls, Obedient};
use crate::support::{Served, post};

fn served() -> Served {
    Served::new(Obedient::default(), "text-generation", &[])
}

#[tokio::test]
async fn the_engine_sees_properties_and_content() {
    let mut request = post("/invocations?a=1&a=x%20y", "text/plain", b"echo me");
    let headers = request.headers_mut();
    headers.insert("x-amzn-sagemaker-custom-attributes", "k = v=w;dropped;j=1".parse().unwrap());
    headers.insert("x-request-id", "id-1".parse().unwrap());
    let answer = served().ask(request).await;
    assert_eq!(
        answer.body,
        "content-type=text/plain\nk=v=w\nj=1\nx-request-id=id-1\nrequestId=id-1\n\
         [a] 1\n[a] x y\n[data] echo me\n"
    );
    assert_eq!(answer.headers["content-type"], "text/plain");

    let form = "application/x-www-form-urlencoded";
    let answer = served().post("/predictions/m", form, b"one=1&two=%C3%A9").await;
    assert!(answer.body.ends_with("[one] 1\n[two] é\n"), "{}", answer.body);
    let empty = Request::get("/predictions/m").body(Body::empty()).unwrap();
    assert!(served().ask(empty).await.body.ends_with("[data] \n"));
    let bytes = served().post("/predictions/m", "application/octet-stream", b"\x00\x01").await;
    assert!(bytes.body.ends_with("[data] \u{0}\u{1}\n"), "{}", bytes.body);
    for odd in ["rubbish", "text/plain; charset=klingon", "application/x-www-form-urlencoded; =x"] {
        let answer = served().post("/invocations", odd, b"a=1").await;
        assert!(answer.body.ends_with("[data] a=1\n"), "{odd}: {}", answer.body);
    }
}

#[tokio::test]
async fn large_forms_are_taken_apart_as_small_ones_are() {
    for n_bytes in [10, 1 << 20] {
        let text = "x".repeat(n_bytes);
        let wanted = format!("[one] {text}\n[two] 2\n");
        let form = "application/x-www-form-urlencoded";
        let answer =
            served().post("/invocations", form, format!("one={text}&two=2").as_bytes()).await;
        assert!(answer.body.ends_with(&wanted), "{n_bytes} bytes");
        let part = |name, value| {
            format!("--B\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n{value}\r\n")
        };
        let parts = format!("{}{}--B--\r\n", part("one", text.as_str()), part("two", "2"));
        let multipart = "multipart/form-data; boundary=B";
        let answer = served().post("/invocations", multipart, parts.as_bytes()).await;
        assert!(answer.body.ends_with(&wanted), "{n_bytes} bytes");
    }
}

#[tokio::test]
async fn status_reason_and_headers_are_the_engines() {
    let request = post("/invocations", "text/plain", b"status 424");
    let response = served().router().oneshot(request).await.unwrap();
    assert_eq!(response.status(), 424);
    let reason = response.extensions().get::<ReasonPhrase>().unwrap().as_bytes().to_vec();
    assert_eq!(String::from_utf8(reason).unwrap(), "As I Like  It");
    assert_eq!(response.headers()["content-type"], "text/x-mine");
    assert_eq!(response.headers()["x-mine"], "1");
    assert_eq!(response.headers()["connection"], "close");
    let answer = crate::support::read(response).await;
    assert_eq!(answer.body, "mine");
    assert!(!answer.headers.contains_key("bad header"));
    assert_ne!(answer.headers.get("content-length").map(|v| v.as_bytes()), Some(&b"999"[..]));

    let answer = served().post("/invocations", "text/plain", b"nothing").await;
    assert_eq!((answer.status.as_u16(), answer.body.as_str()), (204, ""));
    assert!(!answer.headers.contains_key("content-type"));
}

#[tokio::test]
async fn several_frames_are_streamed_one_is_sent_whole() {
    let response =
        served().router().oneshot(post("/invocations", "text/plain", b"stream 3")).await.unwrap();
    assert_eq!(hyper::body::Body::size_hint(response.body()).exact(), None);
    let body = response.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(body, "0;1;2;");
    let response =
        served().router().oneshot(post("/invocations", "text/plain", b"sleep 1")).await.unwrap();
    assert_eq!(hyper::body::Body::size_hint(response.body()).exact(), Some(5));
}

#[tokio::test]
async fn an_error_before_the_first_frame_is_told_and_one_after_it_breaks_the_body() {
    let answer = served().post("/invocations", "text/plain", b"fail").await;
    assert_eq!(answer.status, 400);
    assert!(answer.body.contains("refused before the first frame"), "{}", answer.body);
    let response =
        served().router().oneshot(post("/invocations", "text/plain", b"break")).await.unwrap();
    assert_eq!(response.status(), 200);
    assert!(response.into_body().collect().await.is_err());
}

#[tokio::test]
async fn an_engine_waits_for_a_client_that_does_not_read() {
    let controls = Arc::new(Controls::default());
    let served = Served::new(Obedient(Arc::clone(&controls)), "text-generation", &[]);
    let response =
        served.router().oneshot(post("/invocations", "text/plain", b"flood")).await.unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    let n_before = controls.n_frames.load(Ordering::SeqCst);
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(controls.n_frames.load(Ordering::SeqCst), n_before, "frames pile up unread");
    drop(response);
    for _ in 0..4 {
        assert_eq!(served.post("/invocations", "text/plain", b"sleep 0").await.body, "slept");
    }
}
