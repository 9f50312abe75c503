//! Where metrics are kept and read: one recorder for the process, `GET /metrics`, and what the
//! front ends count of every reply.

use std::sync::OnceLock;
use std::time::Duration;

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use drivetrain_host::metrics as names;
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};

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
