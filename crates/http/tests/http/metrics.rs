//! What `/metrics` says after a request.

use std::sync::Arc;

use axum::body::Body;
use axum::http::Request;
use serde_json::json;

use crate::support::Served;

#[tokio::test]
async fn a_generation_leaves_its_figures() {
    drivetrain_http::install_metrics();
    let served = Served::generating(&Arc::default(), "", &[]);
    let body = json!({"prompt": "serving", "max_tokens": 4, "temperature": 0}).to_string();
    let answer = served.post("/v1/completions", "application/json", body.as_bytes()).await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    served.post("/v1/completions", "application/json", b"{}").await;
    let text = served.ask(Request::get("/metrics").body(Body::empty()).unwrap()).await;
    assert_eq!(text.status, 200);
    assert!(text.headers["content-type"].to_str().unwrap().starts_with("text/plain"));
    for part in [
        "# TYPE RequestLatency histogram",
        "RequestLatency_count{Model=\"m\"}",
        "TokenLatency_bucket{Model=\"m\",le=\"",
        "OutputTokens_sum{Model=\"m\"}",
        "drivetrain_time_to_first_token_seconds_count{Model=\"m\"}",
        "drivetrain_generated_tokens_total{Model=\"m\"}",
        "drivetrain_prompt_tokens_total{Model=\"m\"}",
        "drivetrain_generations_total{Model=\"m\",finish=\"length\"}",
        "drivetrain_errors_total{kind=\"bad_request\"}",
        "Response_2XX ",
        "Response_4XX ",
    ] {
        assert!(text.body.contains(part), "{part} is not in\n{}", text.body);
    }
}
