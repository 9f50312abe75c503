//! Device maps of whatever model is in a directory.

use std::path::Path;

use drivetrain_artifacts::{ModelConfig, ModelDir, UnpackOptions};
use drivetrain_transformer::Architecture;
use serde_json::{Map, Value, json};

/// A map of the description's names: `rest` for all, and `device` for each layer that it gives one, by
/// the layer's number among all.
pub(crate) fn map_of(
    dir: &Path,
    rest: &Value,
    more: &[(&str, Value)],
    device: impl Fn(usize) -> Option<Value>,
) -> String {
    let dir = ModelDir::open(dir, &UnpackOptions::default()).unwrap();
    let config = ModelConfig::read(&dir).unwrap();
    let architecture = Architecture::from_config(&config).unwrap();
    let layers = architecture.stacks().flat_map(|stack| {
        (0..stack.layers.len()).map(|idx| format!("{}.layers.{idx}", stack.name))
    });
    let mut map = Map::new();
    map.insert(String::new(), rest.clone());
    for (number, name) in layers.enumerate() {
        map.extend(device(number).map(|device| (name, device)));
    }
    map.extend(more.iter().map(|(name, device)| ((*name).to_owned(), device.clone())));
    json!(map).to_string()
}
