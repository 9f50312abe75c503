//! `/ping`: whether the models can answer, by their engines' own heartbeats.

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use drivetrain_host::ModelStatus;
use serde::Serialize;
use serde::ser::{SerializeMap, Serializer};

use crate::app::App;
use crate::wire::json_response;

/// The words of the contract for a model's state.
pub(crate) fn status_word(status: &ModelStatus) -> &'static str {
    match status {
        ModelStatus::Ready => "Healthy",
        ModelStatus::Loading { .. } => "PENDING",
        ModelStatus::Failed { .. } => "FAILED",
        _ => "Unhealthy",
    }
}

/// The status of `/ping` while a model loads and none has failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WhileLoading {
    /// 200.
    Ok,
    /// 207, which `allow_multi_status` asks for.
    MultiStatus,
}

/// Any verb on `/ping`. Reads what the models last said; waits for none of them.
///
/// 500 when a model has failed, and also when one has no heartbeat: the contract's 200 for
/// `Unhealthy` means too few workers, ours means an engine that no longer answers.
#[utoipa::path(
    get,
    path = "/ping",
    tag = "operations",
    responses(
        (status = 200, description = "Each model's state", body = Object),
        (status = 207, description = "A model still loads", body = Object),
        (status = 500, description = "A model has failed", body = Object),
    )
)]
pub(crate) async fn ping(State(app): State<App>) -> Response {
    let states: Vec<(String, ModelStatus)> = app
        .host
        .models()
        .iter()
        .map(|model| (model.name().to_owned(), model.status()))
        .filter(|(_, status)| !matches!(status, ModelStatus::Unloading))
        .collect();
    json_response(ping_status(&states, app.ping_while_loading), &PingBody(&states))
}

fn ping_status(states: &[(String, ModelStatus)], while_loading: WhileLoading) -> StatusCode {
    let any = |wanted: fn(&ModelStatus) -> bool| states.iter().any(|(_, status)| wanted(status));
    if any(|s| matches!(s, ModelStatus::Failed { .. } | ModelStatus::Unhealthy { .. })) {
        return StatusCode::INTERNAL_SERVER_ERROR;
    }
    match while_loading {
        WhileLoading::MultiStatus if any(|s| matches!(s, ModelStatus::Loading { .. })) => {
            StatusCode::MULTI_STATUS
        }
        WhileLoading::MultiStatus | WhileLoading::Ok => StatusCode::OK,
    }
}

/// Model name to status; of several versions of a model the worst.
struct PingBody<'a>(&'a [(String, ModelStatus)]);

#[derive(Serialize)]
struct PingEntry {
    status: &'static str,
}

impl Serialize for PingBody<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        for (idx, (name, status)) in self.0.iter().enumerate() {
            let seen = self.0.iter().take(idx).any(|(other, _)| other == name);
            if seen {
                continue;
            }
            let worst = self
                .0
                .iter()
                .filter(|(other, _)| other == name)
                .map(|(_, status)| status)
                .max_by_key(|status| badness(status))
                .unwrap_or(status);
            map.serialize_entry(name, &PingEntry { status: status_word(worst) })?;
        }
        map.end()
    }
}

fn badness(status: &ModelStatus) -> u8 {
    match status {
        ModelStatus::Ready => 0,
        ModelStatus::Loading { .. } => 1,
        ModelStatus::Failed { .. } => 3,
        _ => 2,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::json::server_json;

    fn check(states: &[(&str, ModelStatus)], status: u16, multi_status: u16, body: &str) {
        let states: Vec<_> =
            states.iter().map(|(name, status)| ((*name).to_owned(), status.clone())).collect();
        assert_eq!(ping_status(&states, WhileLoading::Ok), status, "{states:?}");
        assert_eq!(ping_status(&states, WhileLoading::MultiStatus), multi_status, "{states:?}");
        let json: serde_json::Value =
            serde_json::from_slice(&server_json(&PingBody(&states))).unwrap();
        assert_eq!(json.to_string(), body);
    }

    #[test]
    fn the_worst_model_decides() {
        let ready = ModelStatus::Ready;
        let loading = || ModelStatus::Loading { stage: "weights".to_owned(), done: 1, total: 2 };
        let unhealthy = || ModelStatus::Unhealthy { reason: "no heartbeat".to_owned() };
        let failed = || ModelStatus::Failed { reason: "no such file".to_owned() };
        check(&[], 200, 200, "{}");
        check(&[("a", ready.clone())], 200, 200, r#"{"a":{"status":"Healthy"}}"#);
        check(
            &[("a", ready.clone()), ("b", loading())],
            200,
            207,
            r#"{"a":{"status":"Healthy"},"b":{"status":"PENDING"}}"#,
        );
        check(&[("a", unhealthy())], 500, 500, r#"{"a":{"status":"Unhealthy"}}"#);
        check(
            &[("a", loading()), ("b", failed())],
            500,
            500,
            r#"{"a":{"status":"PENDING"},"b":{"status":"FAILED"}}"#,
        );
        check(
            &[("a", ready), ("a", failed()), ("a", loading())],
            500,
            500,
            r#"{"a":{"status":"FAILED"}}"#,
        );
    }
}
