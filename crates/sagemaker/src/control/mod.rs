//! The control plane: calls named by `X-Amz-Target`, with JSON in and out.

mod configs;
mod endpoints;
mod listing;
mod models;

use std::sync::Arc;

use bytes::Bytes;
use serde_json::{Map, Value};

use crate::fault::{Fault, FaultKind};
use crate::reply::{self, Reply};
use crate::service::Service;

/// What every call's name begins with.
const PREFIX: &str = "SageMaker.";

/// Answers one call.
///
/// # Errors
/// The call is not known, or refused.
pub(crate) fn answer(service: &Arc<Service>, target: &str, body: &Bytes) -> Result<Reply, Fault> {
    let Some(operation) = target.strip_prefix(PREFIX) else {
        return Err(unknown(target));
    };
    let request: Map<String, Value> = match body.is_empty() {
        true => Map::new(),
        false => serde_json::from_slice(body).map_err(|error| {
            Fault::new(FaultKind::Serialization, format!("{operation}: no JSON object: {error}"))
        })?,
    };
    tracing::debug!(operation, "call");
    let answer = match operation {
        "CreateModel" => models::create(service, &request),
        "DescribeModel" => models::describe(service, &request),
        "ListModels" => models::list(service, &request),
        "DeleteModel" => models::delete(service, &request),
        "CreateEndpointConfig" => configs::create(service, &request),
        "DescribeEndpointConfig" => configs::describe(service, &request),
        "ListEndpointConfigs" => configs::list(service, &request),
        "DeleteEndpointConfig" => configs::delete(service, &request),
        "CreateEndpoint" => endpoints::create(service, &request),
        "UpdateEndpoint" => endpoints::update(service, &request),
        "UpdateEndpointWeightsAndCapacities" => endpoints::weigh(service, &request),
        "DescribeEndpoint" => endpoints::describe(service, &request),
        "ListEndpoints" => endpoints::list(service, &request),
        "DeleteEndpoint" => endpoints::delete(service, &request),
        _ => Err(unknown(target)),
    }?;
    Ok(match answer {
        Value::Null => reply::whole(200, Some("application/x-amz-json-1.1"), Bytes::new()),
        body => reply::of_json(crate::fault::Api::Control, 200, &body),
    })
}

fn unknown(target: &str) -> Fault {
    let shown: String = target.chars().filter(|c| !c.is_control()).take(120).collect();
    Fault::new(
        FaultKind::UnknownOperation,
        format!(
            "{shown:?} is no call that is answered here; known are Create, Describe, List and Delete \
             of Model, EndpointConfig and Endpoint, UpdateEndpoint and \
             UpdateEndpointWeightsAndCapacities"
        ),
    )
}

/// A text field that has to be there.
fn name<'a>(request: &'a Map<String, Value>, field: &str) -> Result<&'a str, Fault> {
    match request.get(field) {
        Some(Value::String(name)) => Ok(name),
        Some(other) => Err(Fault::validation(format!("{field}: {other}: expected a text"))),
        None => Err(Fault::validation(format!("{field} is missing"))),
    }
}
