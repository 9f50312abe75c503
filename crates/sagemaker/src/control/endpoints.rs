//! Endpoints.

use std::sync::Arc;

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::listing::{Item, Listing};
use super::{configs, models, name};
use crate::endpoint::{Endpoint, Life};
use crate::fault::Fault;
use crate::names::{self, Kind};
use crate::records::{EndpointConfig, Model, read, timestamp};
use crate::service::Service;

pub(super) fn create(service: &Arc<Service>, request: &Map<String, Value>) -> Result<Value, Fault> {
    let name = name(request, "EndpointName")?;
    names::check("endpointName", name)?;
    let (config, models) = wanted(service, request)?;
    let mut state = service.state();
    if state.endpoints.contains_key(name) {
        return Err(names::exists(service.region(), Kind::Endpoint, name));
    }
    let endpoint = Endpoint::create(service, name, config, models);
    state.endpoints.insert(name.to_owned(), endpoint);
    Ok(json!({ "EndpointArn": names::arn(service.region(), Kind::Endpoint, name) }))
}

pub(super) fn update(service: &Arc<Service>, request: &Map<String, Value>) -> Result<Value, Fault> {
    let name = name(request, "EndpointName")?;
    let endpoint = find(service, name)?;
    let (config, models) = wanted(service, request)?;
    endpoint.update(service, config, models)?;
    Ok(json!({ "EndpointArn": names::arn(service.region(), Kind::Endpoint, name) }))
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Weigh {
    desired_weights_and_capacities: Vec<Weight>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Weight {
    variant_name: String,
    desired_weight: Option<f64>,
}

/// Weights count from the next invocation on; there is one container whatever the capacity.
pub(super) fn weigh(service: &Arc<Service>, request: &Map<String, Value>) -> Result<Value, Fault> {
    let name = name(request, "EndpointName")?;
    let deployment = find(service, name)?.deployment()?;
    let Weigh { desired_weights_and_capacities: wanted } =
        read("UpdateEndpointWeightsAndCapacities", request)?;
    let mut found = Vec::with_capacity(wanted.len());
    for Weight { variant_name, desired_weight } in &wanted {
        if desired_weight.is_some_and(|weight| !weight.is_finite() || weight < 0.0) {
            return Err(Fault::validation("DesiredWeight: expected 0 or more"));
        }
        found.push((deployment.choose(Some(variant_name))?, desired_weight));
    }
    for (variant, weight) in found {
        if let Some(weight) = weight {
            variant.set_weight(*weight);
        }
    }
    Ok(json!({ "EndpointArn": names::arn(service.region(), Kind::Endpoint, name) }))
}

pub(super) fn describe(
    service: &Arc<Service>,
    request: &Map<String, Value>,
) -> Result<Value, Fault> {
    let name = name(request, "EndpointName")?;
    let endpoint = find(service, name)?;
    let life = endpoint.now();
    let mut answer = json!({
        "EndpointName": endpoint.name,
        "EndpointArn": names::arn(service.region(), Kind::Endpoint, name),
        "EndpointConfigName": life.config.name,
        "EndpointStatus": life.status.word(),
        "CreationTime": timestamp(endpoint.created),
        "LastModifiedTime": timestamp(life.modified),
    });
    if let Some(failure) = &life.failure {
        answer["FailureReason"] = failure.as_str().into();
    }
    if let Some(asynchronous) = life.config.request.get("AsyncInferenceConfig") {
        answer["AsyncInferenceConfig"] = asynchronous.clone();
    }
    if let Some(variants) = variants(&life) {
        answer["ProductionVariants"] = variants;
    }
    Ok(answer)
}

pub(super) fn list(service: &Arc<Service>, request: &Map<String, Value>) -> Result<Value, Fault> {
    let listing = Listing::read("ListEndpoints", request)?;
    let state = service.state();
    let items = state.endpoints.values().map(|endpoint| {
        let life = endpoint.now();
        Item {
            name: endpoint.name.clone(),
            created: endpoint.created,
            modified: life.modified,
            status: Some(life.status.word()),
            summary: json!({
                "EndpointName": endpoint.name,
                "EndpointArn": names::arn(service.region(), Kind::Endpoint, &endpoint.name),
                "EndpointStatus": life.status.word(),
                "CreationTime": timestamp(endpoint.created),
                "LastModifiedTime": timestamp(life.modified),
            }),
        }
    });
    let items = items.collect();
    listing.page("Endpoints", items)
}

pub(super) fn delete(service: &Arc<Service>, request: &Map<String, Value>) -> Result<Value, Fault> {
    find(service, name(request, "EndpointName")?)?.delete(service)?;
    Ok(Value::Null)
}

fn find(service: &Service, name: &str) -> Result<Arc<Endpoint>, Fault> {
    let found = service.state().endpoints.get(name).cloned();
    found.ok_or_else(|| names::missing(service.region(), Kind::Endpoint, name))
}

/// The configuration that a request names, and the models of its variants, as they are now.
fn wanted(
    service: &Service,
    request: &Map<String, Value>,
) -> Result<(Arc<EndpointConfig>, Vec<Arc<Model>>), Fault> {
    let config = configs::find(service, name(request, "EndpointConfigName")?)?;
    let models: Result<Vec<Arc<Model>>, Fault> =
        config.variants.iter().map(|variant| models::find(service, &variant.model_name)).collect();
    Ok((config, models?))
}

/// What is in service; nothing before the first is.
fn variants(life: &Life) -> Option<Value> {
    let deployment = life.deployment.as_ref()?;
    let variants = deployment.variants().iter().map(|variant| {
        let mut told = json!({
            "VariantName": variant.name,
            "CurrentWeight": variant.weight(),
            "DesiredWeight": variant.weight(),
            "CurrentInstanceCount": 1,
            "DesiredInstanceCount": 1,
        });
        if let Some(image) = &variant.model.container.image {
            told["DeployedImages"] = json!([{ "SpecifiedImage": image }]);
        }
        told
    });
    Some(variants.collect())
}
