//! Which part of a model is where: its description as a tree of modules, a device map over it, and what
//! the map says of layers, token tables and the head.
//!
//! Modules have the names that they have in the checkpoint, since those are the ones that a user's map
//! names; those of a GGUF file, which nobody knows, are the description's. A layer stays whole. What is
//! neither a layer nor a token table nor the head's last matrix is small and stays on the main device:
//! the first accelerator that the map names, else the CPU. Where that is an accelerator, layers on the CPU
//! are computed there, too: what a layer's weights take on their way is less than what the CPU is slower.

use std::collections::{BTreeMap, BTreeSet};

use drivetrain_device_map::{
    Device, DeviceMap, DeviceMapSetting, Limits, Model, Module, Placement, Sizes, Sizing, Tensor,
    Warning,
};
use drivetrain_engine::{EngineError, ErrorKind};
use drivetrain_transformer::{Architecture, CanonicalTensor, CanonicalWeights, Stack};

use crate::forms::Forms;

/// The class of modules that stay whole.
const LAYER: &str = "Layer";

/// Where a part of the model is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Home {
    /// In the memory of the executor of this number.
    On(usize),
    /// In the CPU's memory, while the main executor, an accelerator, computes with it: it is lent to it
    /// ahead of its turn.
    Lent,
    /// In its file, where it is multiplied with.
    File,
    /// In its file, from which it is read ahead of its turn: it does not lie there as it is needed.
    Disk,
}

impl Home {
    /// The executor that holds it.
    pub(crate) fn executor(self) -> Option<usize> {
        match self {
            Self::On(number) => Some(number),
            Self::Lent | Self::File | Self::Disk => None,
        }
    }
}

/// Where the parts of a stack are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct StackHomes {
    pub(crate) tokens: Home,
    pub(crate) layers: Vec<Home>,
}

/// Where the parts of a model are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Homes {
    /// The executor of all that has no home of its own, and of what is read from the disk or lent.
    pub(crate) main: usize,
    pub(crate) encoder: Option<StackHomes>,
    pub(crate) decoder: Option<StackHomes>,
    /// Of the head's last matrix.
    pub(crate) head: Home,
}

impl Homes {
    /// Whether anything but token tables has this home.
    pub(crate) fn multiplies(&self, home: Home) -> bool {
        let mut layers = self.encoder.iter().chain(&self.decoder).flat_map(|stack| &stack.layers);
        self.head == home || layers.any(|own| *own == home)
    }

    /// Whether anything has this home.
    pub(crate) fn has(&self, home: Home) -> bool {
        let mut stacks = self.encoder.iter().chain(&self.decoder);
        self.multiplies(home) || stacks.any(|stack| stack.tokens == home)
    }
}

/// A model as device maps see it.
pub(crate) struct Parts<'w, 'a> {
    architecture: &'w Architecture,
    weights: &'w CanonicalWeights<'a>,
    forms: Forms<'w, 'a>,
    model: Model,
    /// Whether modules have the names of the description.
    by_description: bool,
}

/// A map, and what it says.
#[derive(Debug)]
pub(crate) struct Placed {
    pub(crate) homes: Homes,
    pub(crate) map: DeviceMap,
    pub(crate) warnings: Vec<Warning>,
}

impl<'w, 'a> Parts<'w, 'a> {
    /// The parts of a model, by the names that `setting`, if it is a map, has for them.
    pub(crate) fn of(
        architecture: &'w Architecture,
        forms: Forms<'w, 'a>,
        setting: &DeviceMapSetting,
    ) -> Result<Self, EngineError> {
        let weights = forms.weights;
        let is_gguf = weights.iter().any(|tensor| {
            tensor.source().file().extension().is_some_and(|extension| extension == "gguf")
        });
        let model = |by_description| {
            let root = tree(architecture, forms, by_description);
            Model::new(root, Vec::new()).map_err(|error| {
                EngineError::wrap(ErrorKind::BadInput, "the model's modules make no tree", &error)
            })
        };
        let mut by_description = is_gguf;
        let mut found = model(by_description)?;
        if let (DeviceMapSetting::Map(map), false) = (setting, is_gguf) {
            let n_known = |model: &Model| map.iter().filter(|(key, _)| model.contains(key)).count();
            let other = model(true)?;
            if n_known(&other) > n_known(&found) {
                (by_description, found) = (true, other);
            }
        }
        Ok(Self { architecture, weights, forms, model: found, by_description })
    }

    /// Sizes once loaded.
    pub(crate) fn sizes(&self) -> Sizes<'_> {
        Sizes::new(&self.model, Sizing::default())
    }

    /// Places the parts under `limits`.
    ///
    /// # Errors
    /// The map is not one of this model, or of these `devices`.
    pub(crate) fn place(
        &self,
        setting: &DeviceMapSetting,
        limits: &Limits,
        devices: &[Device],
    ) -> Result<Placed, EngineError> {
        let placement = Placement {
            no_split_classes: vec![LAYER.to_owned()],
            fallback_allocation: true,
            offload_buffers: true,
        };
        let plan = setting.plan(&self.sizes(), limits, &placement).map_err(bad_map)?;
        let is_unknown = |warning: &&Warning| match warning {
            Warning::UnknownKey { key } => !self.is_alias(key),
            _ => false,
        };
        if let Some(warning) = plan.warnings.iter().find(is_unknown) {
            let some: Vec<&str> = self.model.tensors().take(3).collect();
            return Err(EngineError::bad_input(format!(
                "option.{warning}; its tensors are {}, ...",
                some.join(", ")
            )));
        }
        for (key, device) in plan.map.iter() {
            check_device(&format!("device_map: {key:?}"), device, devices)?;
        }
        let homes = self.homes(&plan.map, devices)?;
        let warnings = plan.warnings.into_iter().filter(|warning| match warning {
            Warning::UnknownKey { .. } => false,
            Warning::InsufficientMemory { device, .. } => {
                limits.get(*device).is_some_and(|l| l > 0)
            }
            _ => true,
        });
        Ok(Placed { homes, warnings: warnings.collect(), map: plan.map })
    }

    /// Whether `key` is a name of a table or head that the files have under another name.
    fn is_alias(&self, key: &str) -> bool {
        let own = ["head", "encoder.embedding.tokens", "decoder.embedding.tokens"];
        let mut aliases = self.weights.aliases().iter();
        own.contains(&key)
            || aliases.any(|name| name == key || name.strip_suffix(".weight") == Some(key))
    }

    fn homes(&self, map: &DeviceMap, devices: &[Device]) -> Result<Homes, EngineError> {
        let number = |device: Device| devices.iter().position(|known| *known == device);
        let accelerators = map.iter().map(|(_, device)| device).filter(|d| d.is_accelerator());
        let main = accelerators.min().and_then(number).unwrap_or(0);
        let has_accelerator = devices.get(main).is_some_and(|device| device.is_accelerator());
        let home = |tensor: &CanonicalTensor<'_>| match self.device_of(map, tensor) {
            Some(Device::Disk) => Home::Disk,
            Some(device) => Home::On(number(device).unwrap_or(main)),
            None => Home::On(main),
        };
        // What is changed on loading, or lies in columns, can't be read row by row.
        let table = |name: &str| {
            let Some(table) = self.weights.get(name) else { return Home::On(main) };
            let in_file = match is_tokens(name) {
                true => table.row_bytes().is_some(),
                false => self.forms.multiplies_in_file(table),
            };
            match home(table) {
                Home::On(number) if !is_tokens(name) || !self.forms.reads_rows(table) => {
                    Home::On(number)
                }
                _ if !table.lies_in_rows() || self.weights.is_changed(name) => Home::On(main),
                _ if in_file => Home::File,
                _ => Home::Disk,
            }
        };
        let stack = |stack: &Stack| -> Result<StackHomes, EngineError> {
            let tokens = table(&format!("{}.embedding.tokens.weight", stack.name));
            let layers = (0..stack.layers.len()).map(|idx| {
                let prefix = format!("{}.layers.{idx}.", stack.name);
                let in_file = || {
                    let mut own = self.weights.iter();
                    stack.relative_table.is_none()
                        && own.all(|tensor| {
                            !tensor.spec().module.starts_with(&prefix)
                                || self.forms.multiplies_in_file(tensor)
                        })
                };
                let own = tensors_of(self.weights, &prefix);
                let places: BTreeMap<Option<Device>, String> =
                    own.map(|t| (self.device_of(map, t), self.name_of(t))).collect();
                match places.len() {
                    0 => Ok(Home::On(main)),
                    1 => Ok(match places.keys().next().copied().flatten() {
                        Some(Device::Disk) if in_file() => Home::File,
                        Some(Device::Disk) => Home::Disk,
                        Some(Device::Cpu) if has_accelerator => Home::Lent,
                        Some(device) => Home::On(number(device).unwrap_or(main)),
                        None => Home::On(main),
                    }),
                    _ => Err(split_layer(&places)),
                }
            });
            Ok(StackHomes { tokens, layers: layers.collect::<Result<_, _>>()? })
        };
        Ok(Homes {
            main,
            encoder: self.architecture.encoder.as_ref().map(stack).transpose()?,
            decoder: self.architecture.decoder.as_ref().map(stack).transpose()?,
            head: table("head.weight"),
        })
    }

    fn device_of(&self, map: &DeviceMap, tensor: &CanonicalTensor<'_>) -> Option<Device> {
        map.device_of(&self.name_of(tensor))
    }

    fn name_of(&self, tensor: &CanonicalTensor<'_>) -> String {
        name_of(self.weights, tensor, self.by_description)
    }
}

/// Whether this is the name of a table of tokens.
fn is_tokens(name: &str) -> bool {
    name.ends_with(".embedding.tokens.weight")
}

/// The tensors of the layer whose canonical names begin like this, without those that it shares with an
/// earlier one, such as T5's biases.
fn tensors_of<'t, 'a: 't>(
    weights: &'t CanonicalWeights<'a>,
    prefix: &str,
) -> impl Iterator<Item = &'t CanonicalTensor<'a>> {
    let own = weights.distinct().filter(|tensor| tensor.spec().module.starts_with(prefix));
    own.collect::<Vec<_>>().into_iter()
}

/// A name of a tensor: the checkpoint's, or that of the description that it was first read under.
fn name_of(
    weights: &CanonicalWeights<'_>,
    tensor: &CanonicalTensor<'_>,
    by_description: bool,
) -> String {
    match by_description {
        true => weights.first_name(&tensor.name()).unwrap_or_else(|| tensor.name()),
        false => tensor.source().name().to_owned(),
    }
}

/// Refuses a device that is not among `devices`.
pub(crate) fn check_device(
    what: &str,
    device: Device,
    devices: &[Device],
) -> Result<(), EngineError> {
    if device == Device::Disk || devices.contains(&device) {
        return Ok(());
    }
    let names: Vec<String> = devices.iter().map(Device::to_string).collect();
    Err(EngineError::unsupported(format!(
        "option.{what}: there is no device {device} here; there are {} and disk",
        names.join(", ")
    )))
}

/// An error of a map or of limits as the engine's, with the option's name in front.
pub(crate) fn bad_map(error: drivetrain_device_map::DeviceMapError) -> EngineError {
    let causes = std::iter::successors(std::error::Error::source(&error), |e| e.source());
    let causes = causes.map(ToString::to_string).collect();
    EngineError::with_causes(ErrorKind::BadInput, format!("option.{error}"), causes)
}

fn split_layer(places: &BTreeMap<Option<Device>, String>) -> EngineError {
    let places: Vec<String> = places
        .iter()
        .map(|(device, name)| {
            let device = device.map_or_else(|| "no device".to_owned(), |d| d.to_string());
            format!("{name} on {device}")
        })
        .collect();
    EngineError::bad_input(format!(
        "option.device_map: a layer stays on one device: {}; map the whole layer",
        places.join(", ")
    ))
}

/// The modules of a model with the tensors of its files, each once.
fn tree(architecture: &Architecture, forms: Forms<'_, '_>, by_description: bool) -> Module {
    let weights = forms.weights;
    let mut root = Module::new("", "Model");
    let mut seen = BTreeSet::new();
    for tensor in weights.iter() {
        let name = name_of(weights, tensor, by_description);
        if !seen.insert(name.clone()) {
            continue;
        }
        let n = match by_description {
            true => tensor.n_elements(),
            false => tensor.source().n_elements(),
        };
        let (path, own) = name.rsplit_once('.').unwrap_or(("", &name));
        let module = descend(&mut root, path);
        // A matrix of the checkpoint may hold several of the description, all of one form.
        let bytes = forms.bytes(tensor, false) as f64 / tensor.n_elements().max(1) as f64;
        module.parameters.push(Tensor::packed(own, n as u64, (n as f64 * bytes) as u64));
    }
    for stack in architecture.stacks() {
        for idx in 0..stack.layers.len() {
            let prefix = format!("{}.layers.{idx}.", stack.name);
            let own = tensors_of(weights, &prefix);
            let names: Vec<String> = own.map(|t| name_of(weights, t, by_description)).collect();
            if let Some(path) = common_module(&names) {
                descend(&mut root, path).class = LAYER.to_owned();
            }
        }
    }
    root
}

/// The module at `path`, made if it is not there.
fn descend<'m>(root: &'m mut Module, path: &str) -> &'m mut Module {
    let mut at = root;
    for part in path.split('.').filter(|part| !part.is_empty()) {
        let known = at.children.iter().position(|child| child.name == part);
        let idx = known.unwrap_or_else(|| {
            at.children.push(Module::new(part, "Module"));
            at.children.len() - 1
        });
        at = &mut at.children[idx];
    }
    at
}

/// The innermost module that all these tensors are in, unless it is the whole model.
fn common_module(names: &[String]) -> Option<&str> {
    let first = names.first()?;
    let mut path = first.rsplit_once('.')?.0;
    while !names
        .iter()
        .all(|name| name.strip_prefix(path).is_some_and(|rest| rest.starts_with('.')))
    {
        path = path.rsplit_once('.')?.0;
    }
    Some(path)
}
