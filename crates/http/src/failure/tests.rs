//! Every row of the table of failures.

use std::time::Duration;

use drivetrain_host::EngineError;
use drivetrain_host::HostError;

use super::*;

/// Statuses that no row has by itself, so that a configured one shows.
const CODES: Codes = Codes {
    bad_request: StatusCode::IM_A_TEAPOT,
    worker: StatusCode::BAD_GATEWAY,
    throttle: StatusCode::TOO_MANY_REQUESTS,
    server: StatusCode::NOT_IMPLEMENTED,
};

#[test]
fn every_row_of_the_table() {
    let rows: Vec<String> = FailureKind::ALL
        .iter()
        .map(|kind| {
            let row = kind.row();
            let status = row.status.status(&CODES).as_u16();
            format!("{kind:?}: {status} {} {:?}", row.type_name, row.blame)
        })
        .collect();
    assert_eq!(
        rows,
        [
            "RouteNotFound: 404 ResourceNotFoundException Request",
            "MethodNotAllowed: 405 MethodNotAllowedException Request",
            "InvalidMessage: 400 BadRequestException Request",
            "BodyTooLarge: 413 BadRequestException Request",
            "BodyTimeout: 418 BadRequestException Request",
            "BadRequest: 418 BadRequestException Request",
            "Untranslatable: 418 TranslateException Request",
            "Unparsed: 424 TranslateException Request",
            "ModelNotFound: 404 ModelNotFoundException Request",
            "IllegalArgument: 409 IllegalArgumentException Request",
            "QueueFull: 429 WlmCapacityException Operator",
            "NotReady: 502 WlmException Operator",
            "ShuttingDown: 503 ServiceUnavailableException Operator",
            "TimedOut: 418 TranslateException Operator",
            "OutOfMemory: 507 WlmOutOfMemoryException Operator",
            "ModelUnusable: 502 WlmException Operator",
            "EngineFailed: 501 EngineException Engine",
            "Cancelled: 502 WlmException Operator",
            "Unserialisable: 501 TranslateException Engine",
            "Internal: 501 InternalServerException Ourselves",
        ]
    );
}

fn check(error: HostError, kind: FailureKind, message: &str) {
    let failure = ApiError::from(error);
    assert_eq!(failure.kind, kind);
    assert_eq!(failure.message, message);
}

#[test]
fn every_error_of_the_host_has_its_kind_and_the_contracts_words() {
    let model = || "m".to_owned();
    let not_found = |version: Option<&str>| HostError::ModelNotFound {
        name: model(),
        version: version.map(str::to_owned),
    };
    check(HostError::bad_request("no"), FailureKind::Untranslatable, "no");
    check(not_found(None), FailureKind::ModelNotFound, "Model or workflow not found: m");
    check(not_found(Some("v1")), FailureKind::ModelNotFound, "Model or workflow not found: m:v1");
    check(
        HostError::NoDefaultModel { n_models: 2 },
        FailureKind::BadRequest,
        "Parameter model_name is required.",
    );
    check(HostError::NotReady { model: model() }, FailureKind::NotReady, "Model is not ready: m");
    check(
        HostError::QueueFull { model: model(), capacity: 3 },
        FailureKind::QueueFull,
        "Worker queue capacity exceeded for model: m (3 requests wait: try again later, or raise \
         job_queue_size)",
    );
    check(HostError::ShuttingDown, FailureKind::ShuttingDown, "the server is shutting down");
    check(
        HostError::Timeout { model: model(), waited: Duration::from_secs(2) },
        FailureKind::TimedOut,
        "no answer from model m within 2000 ms",
    );
    check(
        HostError::OutOfMemory { message: "8 of 4".to_owned(), source: None },
        FailureKind::OutOfMemory,
        "out of memory: 8 of 4",
    );
    check(
        HostError::Failed { model: model(), reason: "r".to_owned(), source: None },
        FailureKind::ModelUnusable,
        "model m has failed: r",
    );
}

#[test]
fn an_engines_error_is_told_with_its_causes_under_the_status_of_its_kind() {
    use drivetrain_host::ErrorKind;
    for (kind, expect) in [
        (ErrorKind::BadInput, FailureKind::Untranslatable),
        (ErrorKind::OutOfMemory, FailureKind::OutOfMemory),
        (ErrorKind::DeviceLost, FailureKind::EngineFailed),
        (ErrorKind::Unsupported, FailureKind::EngineFailed),
        (ErrorKind::Cancelled, FailureKind::Cancelled),
        (ErrorKind::Internal, FailureKind::EngineFailed),
    ] {
        let error = EngineError::with_causes(kind, "top", vec!["root".to_owned()]);
        let failure = ApiError::from(HostError::Engine(error));
        assert_eq!(failure.kind, expect, "{kind:?}");
        assert!(failure.message.ends_with("top: root"), "{}", failure.message);
    }
}

#[test]
fn the_body_is_the_contracts() {
    let response = ApiError::route_not_found().render(&CODES);
    assert_eq!(response.status(), StatusCode::NOT_FOUND);
    assert_eq!(response.headers()[header::CONTENT_TYPE], "application/json");
    let reply = String::from_utf8(own_refusal_reply(431)).unwrap();
    assert_eq!(reply.matches("x-request-id: ").count(), 1);
    let reply: String = reply
        .split_inclusive("\r\n")
        .filter(|line| !line.starts_with("x-request-id: "))
        .collect::<String>()
        .replace('\r', "");
    insta::assert_snapshot!(reply, @r#"
    HTTP/1.1 431 Request Header Fields Too Large
    content-type: application/json
    content-length: 89
    connection: close
    pragma: no-cache
    cache-control: no-cache; no-store, must-revalidate, private
    expires: Thu, 01 Jan 1970 00:00:00 GMT

    {
      "code": 431,
      "type": "BadRequestException",
      "message": "Invalid HTTP message."
    }
    "#);
}

#[test]
fn what_passes_says_when_to_come_back() {
    let error = ApiError::new(FailureKind::QueueFull, "full");
    for form in [ErrorForm::Djl, ErrorForm::Lmi, ErrorForm::OpenAi] {
        let response = error.clone().written_as(form).render(&CODES);
        assert_eq!(response.headers()["retry-after"], "1");
        assert_eq!(response.status(), StatusCode::TOO_MANY_REQUESTS);
    }
    let response = ApiError::bad_request("no").render(&CODES);
    assert!(!response.headers().contains_key("retry-after"));
}

#[test]
fn openais_statuses_are_its_own() {
    for kind in FailureKind::ALL {
        let status = openai::status(kind).as_u16();
        assert!([400, 404, 405, 413, 429, 500, 503].contains(&status), "{kind:?}: {status}");
        let body = openai::object(&ApiError::new(kind, "m"));
        let keys: Vec<&String> = body.as_object().unwrap().keys().collect();
        assert_eq!(keys, ["message", "type", "param", "code"]);
    }
    let labels: std::collections::HashSet<&str> =
        FailureKind::ALL.into_iter().map(FailureKind::label).collect();
    assert_eq!(labels.len(), FailureKind::ALL.len());
}
