//! What serves an endpoint: the variants of one configuration.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::DeployError;
use super::variant::Variant;
use crate::fault::Fault;
use crate::records::{AsyncConfig, EndpointConfig, Model};
use crate::service::Service;

/// The variants of one configuration, in service.
#[derive(Debug)]
pub(crate) struct Deployment {
    pub(crate) config: Arc<EndpointConfig>,
    variants: Vec<Arc<Variant>>,
    /// Places for asynchronous invocations.
    places: Option<Arc<Semaphore>>,
    n_chosen: AtomicU32,
}

impl Deployment {
    /// Starts every variant; where one can't be, none stays.
    pub(super) async fn start(
        service: &Arc<Service>,
        endpoint: &str,
        config: &Arc<EndpointConfig>,
        models: &[Arc<Model>],
    ) -> Result<Self, DeployError> {
        let mut starting = JoinSet::new();
        for (idx, (variant, model)) in config.variants.iter().zip(models).enumerate() {
            let (service, endpoint) = (Arc::clone(service), endpoint.to_owned());
            let (variant, model) = (variant.clone(), Arc::clone(model));
            starting.spawn(async move {
                (idx, Variant::start(&service, &endpoint, &variant, &model).await)
            });
        }
        let mut variants = Vec::with_capacity(models.len());
        let mut failure = None;
        while let Some(started) = starting.join_next().await {
            match started {
                Ok((idx, Ok(variant))) => variants.push((idx, variant)),
                Ok((idx, Err(error))) => {
                    let name = config.variants.get(idx).map_or("", |v| v.variant_name.as_str());
                    failure.get_or_insert(DeployError::Variant {
                        variant: name.to_owned(),
                        source: Box::new(error),
                    });
                }
                Err(_) => {
                    failure.get_or_insert(DeployError::Stopped);
                }
            }
        }
        variants.sort_by_key(|(idx, _)| *idx);
        let deployment = Self {
            config: Arc::clone(config),
            variants: variants.into_iter().map(|(_, variant)| variant).collect(),
            places: config.asynchronous.as_ref().map(|c| Arc::new(Semaphore::new(c.concurrency()))),
            n_chosen: AtomicU32::new(0),
        };
        match failure {
            None => Ok(deployment),
            Some(error) => {
                deployment.stop().await;
                Err(error)
            }
        }
    }

    pub(crate) fn variants(&self) -> &[Arc<Variant>] {
        &self.variants
    }

    /// The variant of this name; without one, variants are taken as often as their weights say.
    ///
    /// # Errors
    /// There is none of this name, or none with a weight.
    pub(crate) fn choose(&self, name: Option<&str>) -> Result<&Arc<Variant>, Fault> {
        if let Some(name) = name {
            let found = self.variants.iter().find(|variant| variant.name == name);
            return found.ok_or_else(|| {
                Fault::validation(format!("TargetVariant {name}: there is no such variant"))
            });
        }
        let weights: Vec<f64> = self.variants.iter().map(|variant| variant.weight()).collect();
        let turn = self.n_chosen.fetch_add(1, Ordering::Relaxed);
        let chosen = pick(&weights, turn).and_then(|idx| self.variants.get(idx));
        chosen.ok_or_else(|| {
            Fault::validation("every variant has the weight 0: name one with TargetVariant")
        })
    }

    /// How asynchronous invocations are answered, and places for them.
    ///
    /// # Errors
    /// The configuration has no `AsyncInferenceConfig`.
    pub(crate) fn asynchronous(&self) -> Result<(&AsyncConfig, &Arc<Semaphore>), Fault> {
        let config = self.config.asynchronous.as_ref().zip(self.places.as_ref());
        config.ok_or_else(|| {
            Fault::validation("the endpoint's configuration has no AsyncInferenceConfig")
        })
    }

    /// Ends every container, after it has answered what it was asked.
    pub(super) async fn stop(&self) {
        let mut stopping = JoinSet::new();
        for variant in &self.variants {
            let variant = Arc::clone(variant);
            stopping.spawn(async move { variant.stop().await });
        }
        while stopping.join_next().await.is_some() {}
    }
}

/// The index that turn number `turn` falls on: multiples of the golden ratio spread evenly over the
/// weights, however many turns there have been.
fn pick(weights: &[f64], turn: u32) -> Option<usize> {
    const GOLDEN: f64 = 0.618_033_988_749_894_9;
    let total: f64 = weights.iter().sum();
    let mut at = (f64::from(turn) * GOLDEN).fract() * total;
    let mut last = None;
    for (idx, weight) in weights.iter().enumerate().filter(|(_, weight)| **weight > 0.0) {
        if at < *weight {
            return Some(idx);
        }
        at -= weight;
        last = Some(idx);
    }
    last
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variants_are_taken_as_their_weights_say() {
        let count = |weights: &[f64]| {
            let mut counts = vec![0; weights.len()];
            for turn in 0..1000 {
                counts[pick(weights, turn).unwrap()] += 1;
            }
            counts
        };
        assert_eq!(count(&[1.0]), [1000]);
        let counts = count(&[9.0, 0.0, 1.0]);
        assert_eq!(counts[1], 0);
        assert!((895..=905).contains(&counts[0]), "{counts:?}");
        assert_eq!(pick(&[0.0, 0.0], 0), None);
        assert_eq!(pick(&[], 0), None);
    }
}
