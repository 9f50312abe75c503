//! Models.

use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::listing::{Item, Listing};
use super::name;
use crate::fault::Fault;
use crate::names::{self, Kind};
use crate::records::{Model, timestamp};
use crate::service::Service;

pub(super) fn create(service: &Service, request: &Map<String, Value>) -> Result<Value, Fault> {
    let model = Model::read(request)?;
    let mut state = service.state();
    if state.models.contains_key(&model.name) {
        return Err(names::exists(service.region(), Kind::Model, &model.name));
    }
    if let Some(image) = &model.container.image {
        tracing::info!(
            model = model.name,
            image,
            "no image is pulled: this drivetrain runs instead"
        );
    }
    let arn = names::arn(service.region(), Kind::Model, &model.name);
    state.models.insert(model.name.clone(), Arc::new(model));
    Ok(json!({ "ModelArn": arn }))
}

pub(super) fn describe(service: &Service, request: &Map<String, Value>) -> Result<Value, Fault> {
    let name = name(request, "ModelName")?;
    let model = find(service, name)?;
    let mut answer = model.request.clone();
    answer.insert("ModelArn".to_owned(), names::arn(service.region(), Kind::Model, name).into());
    answer.insert("CreationTime".to_owned(), timestamp(model.created));
    answer.entry("EnableNetworkIsolation").or_insert(Value::Bool(false));
    Ok(Value::Object(answer))
}

pub(super) fn list(service: &Service, request: &Map<String, Value>) -> Result<Value, Fault> {
    let listing = Listing::read("ListModels", request)?;
    let state = service.state();
    let items = state.models.values().map(|model| Item {
        name: model.name.clone(),
        created: model.created,
        modified: model.created,
        status: None,
        summary: json!({
            "ModelName": model.name,
            "ModelArn": names::arn(service.region(), Kind::Model, &model.name),
            "CreationTime": timestamp(model.created),
        }),
    });
    let items = items.collect();
    listing.page("Models", items)
}

/// An endpoint that was made of the model keeps what it has.
pub(super) fn delete(service: &Service, request: &Map<String, Value>) -> Result<Value, Fault> {
    let name = name(request, "ModelName")?;
    match service.state().models.remove(name) {
        Some(_) => Ok(Value::Null),
        None => Err(names::missing(service.region(), Kind::Model, name)),
    }
}

/// The model of this name.
pub(super) fn find(service: &Service, name: &str) -> Result<Arc<Model>, Fault> {
    let found = service.state().models.get(name).cloned();
    found.ok_or_else(|| names::missing(service.region(), Kind::Model, name))
}
