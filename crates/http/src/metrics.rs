//! Where metrics are kept and read: one recorder for the process, `GET /metrics`, and what the
//! front ends count of every reply.

use std::sync::OnceLock;
use std::time::Duration;

use axum::extract::State;
use axum::http::{HeaderValue, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use drivetrain_host::metrics as names;
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};

use crate::app::App;
use crate::call::parse_query;
use crate::documents::DjlError;
use crate::failure::{ApiError, Blame, FailureKind};

/// How often samples that nobody has fetched are put into their buckets.
const UPKEEP: Duration = Duration::from_secs(5);

static RECORDER: OnceLock<Option<PrometheusHandle>> = OnceLock::new();

/// Installs the recorder of metrics for the process, once. Whoever loads models calls it before:
/// a handle that was made without a recorder records nothing.
pub fn install_metrics() {
    RECORDER.get_or_init(|| {
        let mut builder = PrometheusBuilder::new();
        for (name, bounds) in names::HISTOGRAMS {
            match builder.set_buckets_for_metric(Matcher::Full(name.to_owned()), bounds) {
                Ok(with) => builder = with,
                Err(error) => {
                    tracing::error!("{name}: its buckets are refused: {error}");
                    return None;
                }
            }
        }
        match builder.install_recorder() {
            Ok(handle) => {
                names::describe();
                Some(handle)
            }
            Err(error) => {
                tracing::warn!("no metrics: {error}");
                None
            }
        }
    });
}

fn recorder() -> Option<&'static PrometheusHandle> {
    RECORDER.get()?.as_ref()
}

/// Keeps the samples from piling up while nobody fetches them; never ends.
pub(crate) async fn keep_up() {
    loop {
        tokio::time::sleep(UPKEEP).await;
        if let Some(handle) = recorder() {
            handle.run_upkeep();
        }
    }
}

/// `GET /metrics`: everything, in Prometheus' text format.
#[utoipa::path(
    get,
    path = "/metrics",
    tag = "operations",
    responses((status = 200, description = "All metrics, as Prometheus reads them",
        content_type = "text/plain", body = String))
)]
pub(crate) async fn metrics() -> Response {
    let text = recorder().map(PrometheusHandle::render).unwrap_or_default();
    page(text)
}

/// `GET /server/metrics`: DJL Serving's route for the same, which `prometheus` turns on; `name[]`
/// picks metrics.
///
/// # Errors
/// `BadRequest` unless it is turned on.
#[utoipa::path(
    get,
    path = "/server/metrics",
    tag = "operations",
    params(("name[]" = Option<Vec<String>>, Query, description = "The metrics wanted")),
    responses(
        (status = 200, description = "The metrics, as Prometheus reads them",
            content_type = "text/plain", body = String),
        (status = 400, description = "prometheus is not set", body = DjlError),
    )
)]
pub(crate) async fn server_metrics(State(app): State<App>, uri: Uri) -> Result<Response, ApiError> {
    if !app.host.server().prometheus.value {
        return Err(ApiError::bad_request("Prometheus is not enabled: set prometheus=true"));
    }
    let query = parse_query(uri.query().unwrap_or_default())?;
    let names: Vec<&str> =
        query.iter().filter(|(key, _)| key == "name[]").map(|(_, name)| name.as_str()).collect();
    let text = recorder().map(PrometheusHandle::render).unwrap_or_default();
    Ok(page(if names.is_empty() { text } else { picked(&text, &names) }))
}

/// The lines about the metrics of these names.
fn picked(text: &str, names: &[&str]) -> String {
    let is_wanted = |line: &&str| {
        let name = line
            .strip_prefix("# HELP ")
            .or_else(|| line.strip_prefix("# TYPE "))
            .unwrap_or(line)
            .split([' ', '{'])
            .next()
            .unwrap_or_default();
        let family = ["_bucket", "_sum", "_count"].iter().find_map(|s| name.strip_suffix(s));
        names.iter().any(|wanted| name == *wanted || family == Some(*wanted))
    };
    text.split_inclusive('\n').filter(is_wanted).collect()
}

fn page(text: String) -> Response {
    let mut response = text.into_response();
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; version=0.0.4"));
    response
}

/// Counts a reply by the first digit of its status.
pub(crate) fn count_reply(status: StatusCode) {
    match status.as_u16() {
        200..=299 => metrics::counter!(names::RESPONSE_2XX).increment(1),
        400..=499 => metrics::counter!(names::RESPONSE_4XX).increment(1),
        500..=599 => metrics::counter!(names::RESPONSE_5XX).increment(1),
        _ => {}
    }
}

/// Counts a failed request by what failed.
pub(crate) fn count_error(error: &ApiError) {
    metrics::counter!(names::ERRORS, names::KIND => error.kind.label()).increment(1);
    match error.kind.row().blame {
        Blame::Operator => metrics::counter!(names::WLM_ERROR).increment(1),
        Blame::Engine | Blame::Ourselves => metrics::counter!(names::SERVER_ERROR).increment(1),
        Blame::Request => {}
    }
    if error.kind == FailureKind::TimedOut {
        metrics::counter!(names::ROLLING_BATCH_TIMEOUT).increment(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_are_picked_by_name() {
        let text = "# HELP A a\n# TYPE A histogram\nA_bucket{le=\"1\"} 1\nA_count 1\n\n\
                    # TYPE B counter\nB{x=\"A\"} 2\n";
        let expect = "# HELP A a\n# TYPE A histogram\nA_bucket{le=\"1\"} 1\nA_count 1\n";
        assert_eq!(picked(text, &["A"]), expect);
        assert_eq!(picked(text, &["B", "C"]), "# TYPE B counter\nB{x=\"A\"} 2\n");
    }
}
