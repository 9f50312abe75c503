//! Which route answers what, and the headers of every reply.

use axum::body::Body;
use axum::http::Request;

use crate::engines::{Counting, Obedient};
use crate::support::{Answer, Served, post};

const TEXT: &str = "text/plain";

fn with_method(method: &str, path: &str) -> Request<Body> {
    Request::builder().method(method).uri(path).body(Body::empty()).unwrap()
}

/// Status, headers in order and body, for a snapshot.
fn show(answer: &Answer) -> String {
    let mut text = format!("{}\n", answer.status);
    for (name, value) in &answer.headers {
        text.push_str(&format!("{name}: {}\n", value.to_str().unwrap()));
    }
    text.push('\n');
    text.push_str(&answer.body);
    text
}

#[tokio::test]
async fn the_whole_reply_of_an_invocation() {
    let served = Served::new(Counting::default(), "feature-extraction", &[]);
    let mut request = post("/invocations", TEXT, b"serving");
    request.headers_mut().insert("x-request-id", "mine".parse().unwrap());
    let answer = served.ask(request).await;
    assert_eq!(answer.headers["x-request-id"], "mine");
    insta::assert_snapshot!(show(&answer));
}

#[tokio::test]
async fn the_whole_reply_of_a_refusal() {
    let settings = [
        ("SERVING_CORS_ALLOWED_ORIGIN", "*"),
        ("SERVING_CORS_ALLOWED_METHODS", "GET, POST"),
        ("SERVING_CORS_ALLOWED_HEADERS", "x-mine"),
    ];
    let served = Served::new(Counting::default(), "feature-extraction", &settings);
    let mut request = post("/predictions/no%3Csuch%3E", TEXT, b"serving");
    request.headers_mut().insert("x-request-id", "mine".parse().unwrap());
    insta::assert_snapshot!(show(&served.ask(request).await));
}

#[tokio::test]
async fn an_id_is_made_up_where_the_client_gives_none() {
    let served = Served::new(Counting::default(), "feature-extraction", &[]);
    let first = served.ask(with_method("GET", "/ping")).await;
    let second = served.ask(with_method("GET", "/nowhere")).await;
    for answer in [&first, &second] {
        assert_eq!(answer.headers["x-request-id"].len(), 36);
    }
    assert_ne!(first.headers["x-request-id"], second.headers["x-request-id"]);
}

#[tokio::test]
async fn verbs_and_paths() {
    let served = Served::new(Counting::default(), "feature-extraction", &[]);
    for (method, path, status, body) in [
        ("OPTIONS", "/", 200, "{}\n"),
        ("OPTIONS", "/invocations", 200, "{}\n"),
        ("OPTIONS", "/v1/chat/completions", 200, "{}\n"),
        ("OPTIONS", "/predictions/m", 200, "{}\n"),
        ("OPTIONS", "/predictions/m/v1", 200, "{}\n"),
        ("OPTIONS", "/models/m/invoke", 200, "{}\n"),
        ("GET", "/ping", 200, "{\n  \"m\": {\n    \"status\": \"Healthy\"\n  }\n}\n"),
        ("POST", "/ping", 200, "Healthy"),
        ("PUT", "/ping", 200, "Healthy"),
        ("GET", "/nowhere", 404, "ResourceNotFoundException"),
        ("GET", "/invocations/m", 404, "Requested resource is not found, please refer"),
        ("GET", "/v1/models", 200, "\"id\":\"m\""),
        ("GET", "/v1/nowhere", 404, "unknown_url"),
        ("GET", "/v1/chat/completions", 405, "method_not_allowed"),
        ("OPTIONS", "/v1/completions", 200, "{}\n"),
        ("GET", "/invocations", 405, "MethodNotAllowedException"),
        ("DELETE", "/invocations", 405, "Requested method is not allowed, please refer"),
        ("GET", "/models/m/invoke", 405, "MethodNotAllowedException"),
        ("PUT", "/models", 405, "MethodNotAllowedException"),
        ("PATCH", "/models/m", 405, "MethodNotAllowedException"),
        ("POST", "/models", 400, "Parameter url is required."),
        ("POST", "/models?url=/nowhere/m", 404, "ModelNotFoundException"),
        ("DELETE", "/models/nobody", 404, "ModelNotFoundException"),
        ("GET", "/predictions/m?inputs=serving", 200, "[[[["),
        ("GET", "/predictions/m", 400, "the request body is empty"),
        ("GET", "/predictions/m?data=%ff", 400, "Invalid HTTP message."),
        ("GET", "/predictions/%ff", 400, "Invalid HTTP message."),
        ("GET", "/predictions/other", 404, "Model or workflow not found: other"),
        ("GET", "/predictions/m/v9", 404, "Model or workflow not found: m:v9"),
    ] {
        let answer = served.ask(with_method(method, path)).await;
        assert_eq!(answer.status.as_u16(), status, "{method} {path}: {}", answer.body);
        assert!(answer.body.contains(body), "{method} {path}: {}", answer.body);
        let closes = answer.headers.get("connection").is_some_and(|v| v == "close");
        assert_eq!(closes, status >= 400, "{method} {path}");
    }
}

#[tokio::test]
async fn the_model_is_chosen_by_query_header_entry_or_for_lack_of_another() {
    let served = Served::new(Counting::default(), "feature-extraction", &[]);
    let chosen = |mut request: Request<Body>, header: Option<&'static str>| {
        if let Some(name) = header {
            request.headers_mut().insert("model_name", name.parse().unwrap());
        }
        served.ask(request)
    };
    let form = "application/x-www-form-urlencoded";
    for (request, header, status) in [
        (post("/invocations", TEXT, b"a"), None, 200),
        (post("/invocations?model_name=m", TEXT, b"a"), Some("other"), 200),
        (post("/invocations?model_name=other", TEXT, b"a"), Some("m"), 404),
        (post("/invocations", TEXT, b"a"), Some("other"), 404),
        (post("/invocations", form, b"inputs=a&model_name=m"), None, 200),
        (post("/invocations", form, b"inputs=a&model_name=other"), None, 404),
        (post("/invocations?model_version=9&model_name=m", TEXT, b"a"), None, 404),
        (post("/v1/chat/completions", TEXT, b"a"), None, 200),
        (post("/v1/chat/completions?model_name=other", TEXT, b"a"), None, 404),
        (post("/models/m/invoke", TEXT, b"a"), None, 200),
        (post("/models/other/invoke", TEXT, b"a"), None, 404),
    ] {
        let path = request.uri().clone();
        let answer = chosen(request, header).await;
        assert_eq!(answer.status.as_u16(), status, "{path} {header:?}: {}", answer.body);
    }
}

#[tokio::test]
async fn a_request_may_not_choose_its_handler() {
    let ask = async |settings: &[(&str, &str)], header: &'static str, value: &'static str| {
        let served = Served::new(Obedient::default(), "text-generation", settings);
        let mut request = post("/invocations", TEXT, b"echo");
        request.headers_mut().insert(header, value.parse().unwrap());
        served.ask(request).await
    };
    let attributes = "x-amzn-sagemaker-custom-attributes";
    assert_eq!(ask(&[], "handler", "x").await.status, 400);
    assert_eq!(ask(&[], attributes, "a=1;handler=x").await.status, 400);
    let allowed = [("ALLOW_REQUEST_HANDLER_OVERRIDE", "true")];
    assert_eq!(ask(&allowed, attributes, "a=1;handler=x").await.status, 200);
}

#[tokio::test]
async fn models_are_listed_page_by_page() {
    let served = Served::new(Counting::default(), "feature-extraction", &[]);
    let get = async |path: &str| served.ask(with_method("GET", path)).await;
    let list = get("/models").await;
    assert_eq!(list.status, 200);
    let list: serde_json::Value = serde_json::from_str(&list.body).unwrap();
    assert_eq!(list["models"][0]["modelName"], "m");
    assert_eq!(list["models"][0]["status"], "Healthy");
    assert!(list.get("nextPageToken").is_none());
    let page = get("/models?limit=0").await;
    assert!(page.body.contains("\"nextPageToken\": \"0\""), "{}", page.body);
    assert!(get("/models?next_page_token=5").await.body.contains("\"models\": []"));
    assert!(
        get("/models?limit=500&next_page_token=-1").await.body.contains("\"modelName\": \"m\"")
    );
    assert_eq!(get("/models?limit=x").await.status, 409);

    let detail = get("/models/m").await;
    let detail: serde_json::Value = serde_json::from_str(&detail.body).unwrap();
    let model = &detail[0]["models"][0];
    assert_eq!(detail[0]["workflowName"], "m");
    assert_eq!(model["status"], "Healthy");
    assert_eq!(model["engine"], "counting");
    assert_eq!(model["workerGroups"][0]["workers"][0]["status"], "READY");
    assert_eq!(get("/models/other").await.status, 404);
    assert!(get("/models/other").await.body.contains("Workflow not found: other"));
}

#[tokio::test]
async fn a_multi_model_endpoint_gets_sagemakers_object() {
    let settings = [("SAGEMAKER_MULTI_MODEL", "true")];
    let served = Served::new(Counting::default(), "feature-extraction", &settings);
    let answer = served.ask(with_method("GET", "/models/m")).await;
    let object: serde_json::Value = serde_json::from_str(&answer.body).unwrap();
    let keys: Vec<&String> = object.as_object().unwrap().keys().collect();
    assert_eq!(keys, ["modelName", "modelUrl"]);
}
