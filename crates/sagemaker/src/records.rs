//! What clients create: models and endpoint configurations, as they were asked for and as they are read.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::fault::Fault;
use crate::names;

/// The fields of a request that are not told back.
const NOT_SHOWN: [&str; 1] = ["Tags"];

/// A model.
#[derive(Debug)]
pub(crate) struct Model {
    pub(crate) name: String,
    pub(crate) created: SystemTime,
    pub(crate) container: ContainerDefinition,
    /// Whether its container may use no network.
    pub(crate) is_isolated: bool,
    /// The request, as it is told back.
    pub(crate) request: Map<String, Value>,
}

/// How one container is made.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct ContainerDefinition {
    pub(crate) image: Option<String>,
    pub(crate) model_data_url: Option<String>,
    pub(crate) model_data_source: Option<ModelDataSource>,
    pub(crate) environment: Option<BTreeMap<String, String>>,
    #[serde(default)]
    pub(crate) mode: Mode,
    pub(crate) multi_model_config: Option<MultiModelConfig>,
    pub(crate) model_package_name: Option<String>,
}

/// Whether a container serves one model, or those that requests name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub(crate) enum Mode {
    #[default]
    SingleModel,
    MultiModel,
}

/// Whether models of a multi-model endpoint stay loaded.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct MultiModelConfig {
    pub(crate) model_cache_setting: Option<CacheSetting>,
}

/// The values of `ModelCacheSetting`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub(crate) enum CacheSetting {
    Enabled,
    Disabled,
}

/// The longer form of `ModelDataUrl`.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct ModelDataSource {
    pub(crate) s3_data_source: S3DataSource,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct S3DataSource {
    pub(crate) s3_uri: String,
    pub(crate) compression_type: Compression,
}

/// Whether a model is one archive, or the objects under a prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub(crate) enum Compression {
    None,
    Gzip,
}

/// Where a model's data is, and in which form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ModelData {
    pub(crate) url: String,
    pub(crate) compression: Compression,
}

impl ContainerDefinition {
    /// The model's data; none where the image brings its own.
    pub(crate) fn data(&self) -> Option<ModelData> {
        match (&self.model_data_url, &self.model_data_source) {
            (Some(url), _) => Some(ModelData { url: url.clone(), compression: Compression::Gzip }),
            (None, Some(ModelDataSource { s3_data_source: source })) => {
                Some(ModelData { url: source.s3_uri.clone(), compression: source.compression_type })
            }
            (None, None) => None,
        }
    }

    /// Whether a model of a multi-model endpoint is unloaded as soon as it has answered.
    pub(crate) fn keeps_nothing(&self) -> bool {
        let setting = self.multi_model_config.and_then(|config| config.model_cache_setting);
        setting == Some(CacheSetting::Disabled)
    }

    fn check(&self) -> Result<(), Fault> {
        if self.model_package_name.is_some() {
            return Err(Fault::validation(
                "ModelPackageName: there is no registry of packages here: give Image and \
                 ModelDataUrl",
            ));
        }
        if self.model_data_url.is_some() && self.model_data_source.is_some() {
            return Err(Fault::validation(
                "give one of ModelDataUrl and ModelDataSource, not both",
            ));
        }
        if let Some(data) = self.data()
            && !data.url.starts_with("s3://")
            && !data.url.starts_with("file://")
        {
            return Err(Fault::validation(format!(
                "ModelDataUrl {}: expected s3://bucket/key or file:///path",
                data.url
            )));
        }
        if self.mode == Mode::MultiModel && self.data().is_none() {
            return Err(Fault::validation(
                "Mode MultiModel needs a ModelDataUrl: the prefix that TargetModel is looked for under",
            ));
        }
        for (name, value) in self.environment.iter().flatten() {
            let is_name = !name.is_empty()
                && name.len() <= 1024
                && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
                && !name.starts_with(|first: char| first.is_ascii_digit());
            if !is_name || value.contains('\0') {
                return Err(Fault::validation(format!(
                    "Environment: {name:?}: expected a name of letters, digits and _ that does not \
                     begin with a digit, and a value without zero bytes"
                )));
            }
        }
        Ok(())
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct CreateModel {
    model_name: String,
    primary_container: Option<ContainerDefinition>,
    containers: Option<Vec<ContainerDefinition>>,
    #[serde(default)]
    enable_network_isolation: bool,
}

impl Model {
    /// Reads a `CreateModel` request.
    ///
    /// # Errors
    /// A field is missing or wrong, or asks for several containers.
    pub(crate) fn read(request: &Map<String, Value>) -> Result<Self, Fault> {
        let CreateModel { model_name, primary_container, containers, enable_network_isolation } =
            read("CreateModel", request)?;
        names::check("modelName", &model_name)?;
        let mut containers = containers.unwrap_or_default();
        let container = match (primary_container, containers.len()) {
            (Some(container), 0) => container,
            (None, 1) => containers.remove(0),
            (Some(_), _) => {
                return Err(Fault::validation(
                    "give one of PrimaryContainer and Containers, not both",
                ));
            }
            (None, 0) => {
                return Err(Fault::validation("CreateModel: PrimaryContainer is missing"));
            }
            (None, n) => {
                return Err(Fault::validation(format!(
                    "Containers: {n} are given; here an endpoint has one container a variant, so \
                     make a model of each"
                )));
            }
        };
        container.check()?;
        Ok(Self {
            name: model_name,
            created: SystemTime::now(),
            container,
            is_isolated: enable_network_isolation,
            request: shown(request),
        })
    }
}

/// An endpoint configuration.
#[derive(Debug)]
pub(crate) struct EndpointConfig {
    pub(crate) name: String,
    pub(crate) created: SystemTime,
    pub(crate) variants: Vec<ProductionVariant>,
    pub(crate) asynchronous: Option<AsyncConfig>,
    /// The request, as it is told back.
    pub(crate) request: Map<String, Value>,
}

/// One of the models that an endpoint serves.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct ProductionVariant {
    pub(crate) variant_name: String,
    pub(crate) model_name: String,
    pub(crate) initial_instance_count: Option<u32>,
    pub(crate) initial_variant_weight: Option<f64>,
    model_data_download_timeout_in_seconds: Option<u64>,
    container_startup_health_check_timeout_in_seconds: Option<u64>,
}

impl ProductionVariant {
    /// How long the model's data may take, where the configuration says it.
    pub(crate) fn download_limit(&self) -> Option<Duration> {
        self.model_data_download_timeout_in_seconds.map(Duration::from_secs)
    }

    /// How long the container may take to be healthy, where the configuration says it.
    pub(crate) fn startup_limit(&self) -> Option<Duration> {
        self.container_startup_health_check_timeout_in_seconds.map(Duration::from_secs)
    }

    pub(crate) fn weight(&self) -> f64 {
        self.initial_variant_weight.unwrap_or(1.0)
    }

    fn check(&self) -> Result<(), Fault> {
        names::check("variantName", &self.variant_name)?;
        names::check("modelName", &self.model_name)?;
        let limits = [
            ("modelDataDownloadTimeoutInSeconds", self.model_data_download_timeout_in_seconds),
            (
                "containerStartupHealthCheckTimeoutInSeconds",
                self.container_startup_health_check_timeout_in_seconds,
            ),
        ];
        for (field, seconds) in limits {
            if let Some(seconds) = seconds.filter(|seconds| !(60..=3600).contains(seconds)) {
                return Err(Fault::validation(format!(
                    "Value '{seconds}' at '{field}' failed to satisfy constraint: 60 to 3600"
                )));
            }
        }
        if !self.weight().is_finite() || self.weight() < 0.0 {
            return Err(Fault::validation("InitialVariantWeight: expected 0 or more"));
        }
        Ok(())
    }
}

/// How an endpoint answers later.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct AsyncConfig {
    client_config: Option<AsyncClient>,
    output_config: AsyncOutput,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct AsyncClient {
    max_concurrent_invocations_per_instance: Option<usize>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct AsyncOutput {
    s3_output_path: Option<String>,
    s3_failure_path: Option<String>,
}

impl AsyncConfig {
    /// Invocations at once where the configuration does not say.
    const CONCURRENCY: usize = 4;
    const MOST: usize = 1000;

    pub(crate) fn concurrency(&self) -> usize {
        let set =
            self.client_config.and_then(|config| config.max_concurrent_invocations_per_instance);
        set.unwrap_or(Self::CONCURRENCY)
    }

    /// The prefix of answers.
    pub(crate) fn output(&self) -> &str {
        self.output_config.s3_output_path.as_deref().unwrap_or_default()
    }

    /// The prefix of failures, where they are written.
    pub(crate) fn failure(&self) -> Option<&str> {
        self.output_config.s3_failure_path.as_deref()
    }

    fn check(&self) -> Result<(), Fault> {
        if !(1..=Self::MOST).contains(&self.concurrency()) {
            return Err(Fault::validation(
                "MaxConcurrentInvocationsPerInstance: expected 1 to 1000",
            ));
        }
        let paths = [Some(self.output()), self.failure()];
        for path in paths.into_iter().flatten() {
            if !path.starts_with("s3://") && !path.starts_with("file://") {
                return Err(Fault::validation(format!(
                    "AsyncInferenceConfig.OutputConfig: {path:?}: expected s3://bucket/prefix or \
                     file:///directory"
                )));
            }
        }
        Ok(())
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct CreateEndpointConfig {
    endpoint_config_name: String,
    production_variants: Vec<ProductionVariant>,
    async_inference_config: Option<AsyncConfig>,
}

impl EndpointConfig {
    /// Most variants of one configuration.
    const MAX_VARIANTS: usize = 10;

    /// Reads a `CreateEndpointConfig` request.
    ///
    /// # Errors
    /// A field is missing or wrong.
    pub(crate) fn read(request: &Map<String, Value>) -> Result<Self, Fault> {
        let CreateEndpointConfig {
            endpoint_config_name,
            production_variants,
            async_inference_config,
        } = read("CreateEndpointConfig", request)?;
        names::check("endpointConfigName", &endpoint_config_name)?;
        if !(1..=Self::MAX_VARIANTS).contains(&production_variants.len()) {
            return Err(Fault::validation("ProductionVariants: expected 1 to 10 of them"));
        }
        for (idx, variant) in production_variants.iter().enumerate() {
            variant.check()?;
            let earlier = production_variants.iter().take(idx);
            if earlier.into_iter().any(|other| other.variant_name == variant.variant_name) {
                return Err(Fault::validation(format!(
                    "ProductionVariants: {} is given twice",
                    variant.variant_name
                )));
            }
        }
        async_inference_config.iter().try_for_each(AsyncConfig::check)?;
        Ok(Self {
            name: endpoint_config_name,
            created: SystemTime::now(),
            variants: production_variants,
            asynchronous: async_inference_config,
            request: shown(request),
        })
    }
}

/// A request's fields as a type.
///
/// # Errors
/// A field is missing, or not of its type.
pub(crate) fn read<T: serde::de::DeserializeOwned>(
    operation: &str,
    request: &Map<String, Value>,
) -> Result<T, Fault> {
    T::deserialize(Value::Object(request.clone()))
        .map_err(|error| Fault::validation(format!("{operation}: {error}")))
}

/// A time as the protocol has it: seconds since 1970, with milliseconds.
pub(crate) fn timestamp(time: SystemTime) -> Value {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    json!((since.as_secs_f64() * 1000.0).round() / 1000.0)
}

fn shown(request: &Map<String, Value>) -> Map<String, Value> {
    let mut request = request.clone();
    request.retain(|field, _| !NOT_SHOWN.contains(&field.as_str()));
    request
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(result: Result<impl Sized, Fault>) -> String {
        match result {
            Ok(_) => panic!("accepted"),
            Err(fault) => fault.message,
        }
    }

    fn fields(value: Value) -> Map<String, Value> {
        value.as_object().unwrap().clone()
    }

    #[test]
    fn a_model_is_read_and_told_back() {
        let request = fields(json!({
            "ModelName": "m", "ExecutionRoleArn": "arn:role", "Tags": [],
            "PrimaryContainer": { "Image": "i", "ModelDataUrl": "s3://b/m.tar.gz",
                "Environment": { "A": "1" } },
        }));
        let model = Model::read(&request).unwrap();
        let data = model.container.data().unwrap();
        assert_eq!((data.url.as_str(), data.compression), ("s3://b/m.tar.gz", Compression::Gzip));
        assert_eq!(model.request["ExecutionRoleArn"], "arn:role");
        assert!(!model.request.contains_key("Tags"));
    }

    #[test]
    fn models_that_cannot_be_are_refused_by_field() {
        let read = |container: Value| {
            refused(Model::read(&fields(
                json!({ "ModelName": "m", "PrimaryContainer": container }),
            )))
        };
        assert!(read(json!({ "ModelDataUrl": "/m" })).contains("expected s3://"));
        assert!(read(json!({ "ModelPackageName": "p" })).contains("ModelPackageName"));
        assert!(read(json!({ "Mode": "MultiModel" })).contains("needs a ModelDataUrl"));
        assert!(read(json!({ "Environment": { "A=B": "" } })).contains("Environment"));
        assert!(read(json!({ "Mode": "Both" })).contains("unknown variant"));
        let none = refused(Model::read(&fields(json!({ "ModelName": "m" }))));
        assert!(none.contains("PrimaryContainer is missing"), "{none}");
        let two = fields(json!({ "ModelName": "m", "Containers": [{}, {}] }));
        assert!(refused(Model::read(&two)).contains("2 are given"));
        let unnamed = fields(json!({ "PrimaryContainer": {} }));
        assert!(refused(Model::read(&unnamed)).contains("`ModelName`"));
    }

    #[test]
    fn configurations_that_cannot_be_are_refused_by_field() {
        let read = |variants: Value, asynchronous: Value| {
            refused(EndpointConfig::read(&fields(json!({
                "EndpointConfigName": "c", "ProductionVariants": variants,
                "AsyncInferenceConfig": asynchronous,
            }))))
        };
        let good = json!({ "VariantName": "v", "ModelName": "m" });
        assert!(read(json!([]), Value::Null).contains("1 to 10"));
        assert!(read(json!([good, good]), Value::Null).contains("given twice"));
        let late = json!({ "VariantName": "v", "ModelName": "m",
            "ContainerStartupHealthCheckTimeoutInSeconds": 59 });
        assert!(read(json!([late]), Value::Null).contains("60 to 3600"));
        let output = json!({ "OutputConfig": { "S3OutputPath": "/tmp" } });
        assert!(read(json!([good]), output).contains("expected s3://"));
    }
}
