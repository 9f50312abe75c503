//! Endpoint configurations.

use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::listing::{Item, Listing};
use super::{models, name};
use crate::fault::Fault;
use crate::names::{self, Kind};
use crate::records::{EndpointConfig, timestamp};
use crate::service::Service;

/// Fields that ask for what there is none of here.
const IGNORED: [&str; 3] = ["DataCaptureConfig", "ExplainerConfig", "ShadowProductionVariants"];

pub(super) fn create(service: &Service, request: &Map<String, Value>) -> Result<Value, Fault> {
    let config = EndpointConfig::read(request)?;
    for variant in &config.variants {
        models::find(service, &variant.model_name)?;
        if variant.initial_instance_count.is_some_and(|n| n > 1) {
            tracing::info!(
                config = config.name,
                variant = variant.variant_name,
                "InitialInstanceCount: one container is started, whatever it says"
            );
        }
    }
    for field in IGNORED.iter().filter(|field| request.contains_key(**field)) {
        tracing::warn!(config = config.name, field, "is kept and has no effect here");
    }
    let mut state = service.state();
    if state.configs.contains_key(&config.name) {
        return Err(names::exists(service.region(), Kind::EndpointConfig, &config.name));
    }
    let arn = names::arn(service.region(), Kind::EndpointConfig, &config.name);
    state.configs.insert(config.name.clone(), Arc::new(config));
    Ok(json!({ "EndpointConfigArn": arn }))
}

pub(super) fn describe(service: &Service, request: &Map<String, Value>) -> Result<Value, Fault> {
    let name = name(request, "EndpointConfigName")?;
    let config = find(service, name)?;
    let arn = names::arn(service.region(), Kind::EndpointConfig, name);
    let mut answer = config.request.clone();
    answer.insert("EndpointConfigArn".to_owned(), arn.into());
    answer.insert("CreationTime".to_owned(), timestamp(config.created));
    Ok(Value::Object(answer))
}

pub(super) fn list(service: &Service, request: &Map<String, Value>) -> Result<Value, Fault> {
    let listing = Listing::read("ListEndpointConfigs", request)?;
    let state = service.state();
    let items = state.configs.values().map(|config| Item {
        name: config.name.clone(),
        created: config.created,
        modified: config.created,
        status: None,
        summary: json!({
            "EndpointConfigName": config.name,
            "EndpointConfigArn": names::arn(service.region(), Kind::EndpointConfig, &config.name),
            "CreationTime": timestamp(config.created),
        }),
    });
    let items = items.collect();
    listing.page("EndpointConfigs", items)
}

/// An endpoint that was made of the configuration keeps what it has.
pub(super) fn delete(service: &Service, request: &Map<String, Value>) -> Result<Value, Fault> {
    let name = name(request, "EndpointConfigName")?;
    match service.state().configs.remove(name) {
        Some(_) => Ok(Value::Null),
        None => Err(names::missing(service.region(), Kind::EndpointConfig, name)),
    }
}

/// The configuration of this name.
pub(super) fn find(service: &Service, name: &str) -> Result<Arc<EndpointConfig>, Fault> {
    let found = service.state().configs.get(name).cloned();
    found.ok_or_else(|| names::missing(service.region(), Kind::EndpointConfig, name))
}
