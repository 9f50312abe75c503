//! Which of the model's matrices an adapter's tensors are for.

use std::collections::HashMap;

use crate::families::Form;
use crate::spec::Parameter;
use crate::tensor::Rows;
use crate::weights::Described;

/// What PEFT's names begin with.
const PREFIX: &str = "base_model.model.";

/// What a tensor is to its module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// `lora_A`.
    Down,
    /// `lora_B`.
    Up,
    /// `lora_embedding_A`.
    TableUp,
    /// `lora_embedding_B`.
    TableDown,
    /// `lora_magnitude_vector`.
    Magnitude,
}

/// What the model calls a tensor that the adapter has under `name` in place of the model's own: PEFT
/// wraps the modules that it changes and those that it saves whole.
pub(super) fn own_name(name: &str) -> String {
    let parts = name.split('.');
    parts
        .filter(|part| !["base_layer", "modules_to_save"].contains(part))
        .collect::<Vec<_>>()
        .join(".")
}

/// The module that a tensor of this name belongs to, and what it is to it; the tensor's own name in
/// the model where it is one of the model's.
pub(super) fn part(name: &str) -> (&str, Option<Part>) {
    const PARTS: [(&str, Part); 5] = [
        (".lora_A", Part::Down),
        (".lora_B", Part::Up),
        (".lora_embedding_A", Part::TableUp),
        (".lora_embedding_B", Part::TableDown),
        (".lora_magnitude_vector", Part::Magnitude),
    ];
    let name = name.strip_prefix(PREFIX).unwrap_or(name);
    // The adapter's own name may follow, and the parameter's.
    for end in ["", ".weight", ".default", ".default.weight"] {
        let Some(stem) = name.strip_suffix(end) else { continue };
        for (mark, part) in PARTS {
            if let Some(module) = stem.strip_suffix(mark) {
                return (module, Some(part));
            }
        }
    }
    (name, None)
}

/// A canonical matrix or table that a module of the model's is, or is a part of.
#[derive(Clone, Debug)]
pub(super) struct Target {
    pub(super) module: String,
    /// Which rows of the whole are its own.
    pub(super) rows: Rows,
    /// `[n_out, n_in]`, or `[rows, dim]`.
    pub(super) shape: [usize; 2],
}

/// The model's matrices and tables by the names that transformers has for their modules.
pub(super) struct Targets(HashMap<String, Vec<Target>>);

impl Targets {
    pub(super) fn of(model: Described<'_>) -> Self {
        let mut targets: HashMap<String, Vec<Target>> = HashMap::new();
        for spec in model.architecture.tensors() {
            let (Parameter::Weight, [n_out, n_in]) = (spec.parameter, &*spec.shape) else {
                continue;
            };
            let shape = [*n_out, *n_in];
            let places = model.family.places(model.architecture, &spec.module, "weight");
            let modules = places.iter().filter(|place| {
                !place.tied && !matches!(place.form, Form::Tensor | Form::Experts { .. })
            });
            for place in modules {
                let (rows, _) = model.rows(&spec, place.form);
                for prefix in model.prefixes() {
                    let name = place.tensor_name(prefix, &spec.module, "weight");
                    let Some(name) = name.strip_suffix(".weight") else { continue };
                    let all = targets.entry(name.to_owned()).or_default();
                    if all.iter().all(|known| known.module != spec.module) {
                        all.push(Target { module: spec.module.clone(), rows, shape });
                    }
                }
            }
        }
        Self(targets)
    }

    /// The targets that the module of this name is; none if the model has no such module.
    pub(super) fn get(&self, module: &str) -> &[Target] {
        self.0.get(module).map_or(&[], Vec::as_slice)
    }
}

/// Names for a message.
pub(super) fn list(names: &[String]) -> String {
    const LISTED: usize = 4;
    let mut text = names[..names.len().min(LISTED)].join(", ");
    if names.len() > LISTED {
        text.push_str(&format!(" and {} more", names.len() - LISTED));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_say_what_a_tensor_is() {
        let q = "model.layers.0.self_attn.q_proj";
        for (name, expect) in [
            (format!("base_model.model.{q}.lora_A.weight"), (q, Some(Part::Down))),
            (format!("base_model.model.{q}.lora_B.default.weight"), (q, Some(Part::Up))),
            (format!("base_model.model.{q}.lora_magnitude_vector"), (q, Some(Part::Magnitude))),
            (format!("{q}.lora_magnitude_vector.weight"), (q, Some(Part::Magnitude))),
            ("base_model.model.wte.lora_embedding_A".to_owned(), ("wte", Some(Part::TableUp))),
            ("base_model.model.score.weight".to_owned(), ("score.weight", None)),
        ] {
            assert_eq!(part(&name), expect);
        }
        assert_eq!(own_name("model.q_proj.base_layer.bias"), "model.q_proj.bias");
        assert_eq!(own_name("modules_to_save.score.weight"), "score.weight");
    }
}
