//! What the matrices of a model take on each rank, from names and sizes alone.

use drivetrain_transformer::CanonicalWeights;

use crate::load::form_bytes;
use crate::options::WeightForm;
use crate::share::ModelShare;

/// Bytes of matrices, by rank.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Footprint {
    /// Of a model that is not shared.
    pub(crate) whole: u64,
    /// Of each rank.
    pub(crate) ranks: Vec<u64>,
    /// Of what ranks have beside the first that has it, by what it is.
    pub(crate) replicated: Vec<(&'static str, u64)>,
}

impl Footprint {
    pub(crate) fn of(
        weights: &CanonicalWeights<'_>,
        form: WeightForm,
        shares: &[ModelShare],
    ) -> Self {
        let mut footprint = Self { ranks: vec![0; shares.len()], ..Self::default() };
        for tensor in weights.iter().filter(|tensor| tensor.shape().len() == 2) {
            let (module, bytes) = (tensor.spec().module.as_str(), form_bytes(tensor, form));
            let mut together = 0;
            for (share, rank) in shares.iter().zip(&mut footprint.ranks) {
                let (n, of) = share.held(module);
                let own = bytes * n as u64 / (of as u64).max(1);
                *rank += own;
                together += own;
            }
            if together > 0 {
                footprint.whole += bytes;
            }
            // Parts are rounded down.
            let beyond = together.saturating_sub(bytes);
            if beyond > 0 {
                footprint.add(what_is(module), beyond);
            }
        }
        footprint
    }

    /// Bytes of what several ranks have, beside the first of them.
    pub(crate) fn replicated_bytes(&self) -> u64 {
        self.replicated.iter().map(|(_, bytes)| bytes).sum()
    }

    /// The same in words, with what it is.
    pub(crate) fn replicated_parts(&self) -> String {
        let parts = self.replicated.iter().map(|(what, bytes)| format!("{what} {bytes}"));
        parts.collect::<Vec<_>>().join(", ")
    }

    fn add(&mut self, what: &'static str, bytes: u64) {
        match self.replicated.iter_mut().find(|(known, _)| *known == what) {
            Some((_, sum)) => *sum += bytes,
            None => self.replicated.push((what, bytes)),
        }
    }
}

/// What a module is that several ranks have.
fn what_is(module: &str) -> &'static str {
    match module.rsplit('.').next().unwrap_or(module) {
        "k" | "v" => "heads of keys and values that several ranks read",
        "router" => "routers",
        "projection" | "output_projection" => "projections between sizes",
        "dense" => "the head's inner matrix",
        _ => "other matrices",
    }
}
