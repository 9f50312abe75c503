//! What a model takes of each device, before a byte of it is taken: weights, the staging buffers of what
//! is read from the disk, activations, caches.
//!
//! A limit that was given holds for all of this, and on the CPU for the process with all that it had
//! before, too. Of memory that was measured, half of what is left over stays free for others.

use std::collections::{HashMap, HashSet};
use std::num::NonZeroUsize;

use drivetrain_device_map::{Device, Limits};
use drivetrain_engine::{
    DevicePlan, EngineError, LoadPlan, ModelKind, PlacedModule, PlannedPart, TokenModelInfo,
};
use drivetrain_execution::{CacheRoom, Capacity, KvForm, available_bytes, resident_bytes};
use drivetrain_transformer::{Architecture, FeedForwardForm, Layer, Stack};

use crate::attention::SCORES_TILE;
use crate::file_rows::tile_bytes;
use crate::forms::{Forms, is_matrix};
use crate::matrix::product_bytes;
use crate::options::LoadOptions;
use crate::placing::{Home, Homes, Parts, Placed, StackHomes, check_device};
use crate::streaming::{SLOTS, Unit};

/// Bytes of an f32.
pub(crate) const F32: u64 = 4;
/// Tokens of a batch are not made fewer than this for want of memory.
const FEWEST_BATCH_TOKENS: u32 = 64;
/// Bytes for what is read from files and has to be converted.
const SCRATCH: u64 = 1 << 20;
/// Most bytes of the head's matrix that are read at once: its buffer is kept beside those of layers.
pub(crate) const HEAD_PIECE: u64 = 4 << 20;
/// Bytes that the process takes while it works, beside what is counted: code that is run for the first
/// time, stacks of threads, the allocator's own.
const SLACK: u64 = 6 << 20;

/// What is kept for a process that took less so far: a plan is made in another one than the model is loaded
/// in, and where a limit lies between two layers both have to decide alike.
const PROCESS: u64 = 48 << 20;

/// Where everything is, and what it takes.
#[derive(Debug)]
pub(crate) struct Arrangement {
    pub(crate) placed: Placed,
    /// One for each executor.
    pub(crate) devices: Vec<DevicePlan>,
    pub(crate) capacity: Capacity,
    /// What the head's last matrix is read in, if it stays in its file.
    pub(crate) head_pieces: Vec<Unit>,
    pub(crate) notes: Vec<String>,
    /// Bytes of each entry of the map, in its order.
    entry_bytes: Vec<u64>,
}

impl Arrangement {
    /// Whether anything stays in its file.
    pub(crate) fn uses_disk(&self) -> bool {
        self.placed.homes.has(Home::File) || self.placed.homes.has(Home::Disk)
    }

    /// The same as what an engine states of a model.
    pub(crate) fn into_plan(self, info: &TokenModelInfo) -> LoadPlan {
        let placements =
            self.placed.map.iter().zip(self.entry_bytes).map(|((name, device), bytes)| {
                let module = if name.is_empty() { "the whole model" } else { name };
                PlacedModule { module: module.to_owned(), device: device.to_string(), bytes }
            });
        LoadPlan {
            placements: placements.collect(),
            devices: self.devices.into_iter().filter(|d| d.total_bytes() > 0).collect(),
            kv_capacity_tokens: info.kv_capacity_tokens,
            cross_capacity_tokens: info.cross_capacity_tokens,
            max_batch_tokens: info.max_batch_tokens,
            max_sequences: info.max_sequences,
            notes: self.notes,
        }
    }
}

/// What is arranged.
pub(crate) struct Arranger<'r, 'w, 'a> {
    pub(crate) architecture: &'w Architecture,
    pub(crate) forms: Forms<'w, 'a>,
    pub(crate) options: &'r LoadOptions,
    pub(crate) kv: KvForm,
    /// The devices of the executors, the CPU first.
    pub(crate) devices: &'r [Device],
    /// Of the CPU.
    pub(crate) n_threads: NonZeroUsize,
}

/// What a device may hold.
#[derive(Clone, Copy, Debug)]
struct Budget {
    limit: Option<u64>,
    is_given: bool,
    /// Whether weights may be placed there at all.
    holds: bool,
}

/// Bytes that a device needs whatever is placed on it.
#[derive(Clone, Copy, Debug, Default)]
struct Needs {
    process: u64,
    /// Kept for the process beside what it took so far.
    kept: u64,
    slack: u64,
    activations: u64,
    /// For caches, at first.
    caches: u64,
}

impl Arranger<'_, '_, '_> {
    /// Decides where everything is, and enters batch, sequences and capacities in `info`.
    ///
    /// # Errors
    /// `BadInput` for a map or limits that can't be; `OutOfMemory` with the figures, and with what would
    /// have to change, if it does not fit.
    pub(crate) fn arrange(&self, info: &mut TokenModelInfo) -> Result<Arrangement, EngineError> {
        let parts = Parts::of(self.architecture, self.forms, &self.options.device_map)?;
        let budgets = self.budgets()?;
        let mut notes = Vec::new();
        let smallest = budgets.iter().filter_map(|b| b.limit).filter(|l| *l > 0).min();
        let activations = self.fit_batch(info, smallest, &mut notes);
        let sequences = self.fit_sequences(info, smallest, &mut notes);
        let process = resident_bytes();
        let of_cpu = Needs {
            process,
            kept: PROCESS.saturating_sub(process),
            slack: SLACK,
            ..Needs::default()
        };
        let needs: Vec<Needs> = (0..self.devices.len())
            .map(|idx| Needs {
                activations,
                caches: self.wished_caches(info, sequences, budgets.get(idx)),
                ..if idx == 0 { of_cpu } else { Needs::default() }
            })
            .collect();
        let mut placed = self.place(&parts, &budgets, &needs, 0)?;
        let n_rows = self.most_rows(info) as usize;
        let mut staging = self.staging(&placed.homes, n_rows);
        // The inference keeps room for one layer itself.
        let beyond = staging.saturating_sub(self.largest_layer());
        if beyond > 0 {
            placed = self.place(&parts, &budgets, &needs, beyond)?;
            staging = self.staging(&placed.homes, n_rows);
        }
        let mut devices = self.devices_of(&placed, &budgets, &needs, staging);
        let rooms = self.rooms(&placed, info, &budgets, &devices);
        let capacity = Capacity::within(info, sequences, &rooms)
            .map_err(|error| self.refusal(&devices, &rooms, error))?;
        for (device, room) in devices.iter_mut().zip(&rooms) {
            device.parts.push(part("caches", capacity.bytes_in(info, room)));
        }
        if let Some(error) = overfull(&devices, self.options.max_memory.is_some()) {
            return Err(error);
        }
        let head_pieces = match placed.homes.head {
            Home::Disk => self.head_pieces(),
            Home::On(_) | Home::Lent | Home::File => Vec::new(),
        };
        notes.extend(placed.warnings.iter().map(ToString::to_string));
        match self.forms.n_undivided() {
            0 => {}
            n => notes.push(format!(
                "option.quantize: {n} matrices stay as they are: blocks don't divide their columns"
            )),
        }
        let sizes = parts.sizes();
        let bytes = placed.map.iter().map(|(name, _)| sizes.bytes_of(name).unwrap_or(0));
        let entry_bytes = bytes.collect();
        Ok(Arrangement { placed, devices, capacity, head_pieces, notes, entry_bytes })
    }

    /// Bytes of what is read into while others are multiplied with.
    fn staging(&self, homes: &Homes, n_rows: usize) -> u64 {
        let mut bytes = 0;
        // Devices that are made of the CPU's memory need no copy of what it lends.
        let is_copied = !self.forms.on_cpu && homes.multiplies(Home::Lent);
        if is_copied || homes.multiplies(Home::Disk) {
            bytes += SLOTS as u64 * self.largest_layer();
        }
        if homes.multiplies(Home::Disk) {
            let head = if homes.head == Home::Disk { HEAD_PIECE } else { 0 };
            bytes += SCRATCH.max(self.largest_turned()) + head;
        }
        if homes.multiplies(Home::File) {
            bytes += tile_bytes(self.n_threads.get());
            // Where no matrix in memory is multiplied with in tiles.
            if self.forms.widest().is_none() {
                bytes += product_bytes(self.forms.widest_of_all(), n_rows);
            }
        }
        bytes
    }

    /// What each device may hold.
    fn budgets(&self) -> Result<Vec<Budget>, EngineError> {
        if let Some(limits) = &self.options.max_memory {
            for (device, _) in limits.iter() {
                check_device(&format!("max_memory: {device}"), device, self.devices)?;
            }
            let of = |device: &Device| {
                let limit = limits.get(*device);
                Budget { limit, is_given: true, holds: limit.is_some() }
            };
            return Ok(self.devices.iter().map(of).collect());
        }
        // Virtual devices share the machine's memory.
        let share = available_bytes().map(|bytes| bytes / self.devices.len() as u64);
        let of = |(idx, _): (usize, &Device)| Budget {
            limit: share.map(|share| share + if idx == 0 { resident_bytes() } else { 0 }),
            is_given: false,
            holds: true,
        };
        Ok(self.devices.iter().enumerate().map(of).collect())
    }

    /// Bytes of activations; a batch has fewer tokens where they would take more than an eighth.
    fn fit_batch(
        &self,
        info: &mut TokenModelInfo,
        limit: Option<u64>,
        notes: &mut Vec<String>,
    ) -> u64 {
        let whole_input = match info.kind {
            ModelKind::Encoder => info.max_positions,
            _ => info.max_encoder_positions,
        };
        let fewest = whole_input.max(FEWEST_BATCH_TOKENS).min(info.max_batch_tokens);
        let asked = info.max_batch_tokens;
        while let Some(limit) = limit
            && info.max_batch_tokens > fewest
            && self.activations(info) > limit / 8
        {
            info.max_batch_tokens = (info.max_batch_tokens / 2).max(fewest);
        }
        if info.max_batch_tokens < asked {
            notes.push(format!(
                "a batch has at most {} tokens instead of {asked}: activations may take an eighth of \
                 the memory",
                info.max_batch_tokens
            ));
        }
        self.activations(info)
    }

    /// Sequences at once: fewer where their blocks that are not full would take an eighth.
    fn fit_sequences(
        &self,
        info: &TokenModelInfo,
        limit: Option<u64>,
        notes: &mut Vec<String>,
    ) -> u32 {
        let asked = self.options.max_sequences;
        let block = u64::from(info.kv_block_tokens) * info.kv_bytes_per_token;
        let most = limit.map_or(u64::MAX, |limit| limit / 8).checked_div(block).unwrap_or(u64::MAX);
        let sequences = u32::try_from(most).unwrap_or(u32::MAX).clamp(1, asked);
        if sequences < asked {
            notes.push(format!(
                "at most {sequences} sequences at once instead of {asked}: a block of the KV cache for \
                 each may take an eighth of the memory"
            ));
        }
        sequences
    }

    /// Bytes for caches that are kept free of weights at first: what they could use, but no more than a
    /// quarter.
    fn wished_caches(&self, info: &TokenModelInfo, sequences: u32, budget: Option<&Budget>) -> u64 {
        if info.kind == ModelKind::Encoder {
            return 0;
        }
        // A block of each sequence may be all but empty.
        let tokens = u64::from(info.max_positions) + u64::from(info.kv_block_tokens);
        let all = u64::from(sequences)
            .saturating_mul(tokens)
            .saturating_mul(info.kv_bytes_per_token)
            .saturating_add(
                u64::from(sequences)
                    .saturating_mul(u64::from(info.max_encoder_positions))
                    .saturating_mul(info.cross_bytes_per_token),
            );
        let quarter = budget.and_then(|budget| budget.limit).map_or(u64::MAX, |limit| limit / 4);
        all.min(quarter)
    }

    /// Places the parts in what the needs leave, and `staging` less on each device that may be the main
    /// one.
    fn place(
        &self,
        parts: &Parts<'_, '_>,
        budgets: &[Budget],
        needs: &[Needs],
        staging: u64,
    ) -> Result<Placed, EngineError> {
        let first_accelerator = usize::from(self.devices.len() > 1);
        let room = |(idx, device): (usize, &Device)| {
            let (budget, needs) = (budgets.get(idx)?, needs.get(idx)?);
            let staging = if idx == first_accelerator { staging } else { 0 };
            let budget = Some(budget).filter(|budget| budget.holds)?;
            let of_process = needs.process + needs.kept + needs.slack;
            let taken = of_process + needs.activations + needs.caches + staging;
            Some((*device, budget.limit.unwrap_or(u64::MAX >> 4).saturating_sub(taken)))
        };
        let rooms = self.devices.iter().enumerate().filter_map(room);
        let limits = Limits::given(rooms);
        parts.place(&self.options.device_map, &limits, self.devices)
    }

    /// What each device holds, without caches.
    fn devices_of(
        &self,
        placed: &Placed,
        budgets: &[Budget],
        needs: &[Needs],
        staging: u64,
    ) -> Vec<DevicePlan> {
        let homes = &placed.homes;
        let weights = self.weight_bytes(placed);
        let runs = |idx: usize| {
            let stacks = homes.encoder.iter().chain(&homes.decoder);
            idx == homes.main
                || homes.head == Home::On(idx)
                || stacks.flat_map(|s| &s.layers).any(|home| *home == Home::On(idx))
        };
        let device = |(idx, device): (usize, &Device)| {
            let needs = needs.get(idx).copied().unwrap_or_default();
            let mut parts = Vec::new();
            if idx == 0 {
                parts.push(part("process", needs.process));
                parts.push(part("kept for it", needs.kept));
                parts.push(part("slack", needs.slack));
            }
            parts.push(part("weights", weights.get(idx).copied().unwrap_or(0)));
            if runs(idx) {
                parts.push(part("activations", needs.activations));
            }
            if idx == homes.main && staging > 0 {
                parts.push(part("staging buffers", staging));
            }
            let limit_bytes = budgets.get(idx).and_then(|budget| budget.limit);
            DevicePlan { name: device.to_string(), limit_bytes, parts }
        };
        self.devices.iter().enumerate().map(device).collect()
    }

    /// Bytes of the weights in the memory of each executor.
    fn weight_bytes(&self, placed: &Placed) -> Vec<u64> {
        let homes = &placed.homes;
        let mut bytes = vec![0; self.devices.len()];
        let mut seen = HashSet::new();
        for tensor in self.forms.weights.iter() {
            let name = tensor.name();
            let home = match self.part_of(&name) {
                Part::Layer { of_decoder, idx } => {
                    let stack = if of_decoder { &homes.decoder } else { &homes.encoder };
                    stack.as_ref().and_then(|s: &StackHomes| s.layers.get(idx).copied())
                }
                Part::Tokens { of_decoder } => {
                    let stack = if of_decoder { &homes.decoder } else { &homes.encoder };
                    stack.as_ref().map(|s| s.tokens)
                }
                Part::Head => Some(homes.head),
                Part::Small => None,
            };
            let idx = match home {
                Some(Home::On(idx)) => idx,
                Some(Home::Lent) => 0,
                // Norms and biases of what stays in its file are in memory.
                Some(Home::File | Home::Disk) if is_matrix(tensor) => continue,
                _ => homes.main,
            };
            let first = self.forms.weights.first_name(&name).unwrap_or(name);
            if let Some(bytes) = bytes.get_mut(idx)
                && seen.insert((idx, first))
            {
                *bytes += self.forms.bytes(tensor, false);
            }
        }
        bytes
    }

    fn part_of(&self, name: &str) -> Part {
        let mut path = name.split('.');
        let stack = path.next().unwrap_or_default();
        let of_decoder = stack == "decoder";
        match (stack, path.next(), path.next()) {
            ("encoder" | "decoder", Some("layers"), Some(idx)) => {
                idx.parse().map_or(Part::Small, |idx| Part::Layer { of_decoder, idx })
            }
            ("encoder" | "decoder", Some("embedding"), Some("tokens")) => {
                Part::Tokens { of_decoder }
            }
            ("head", Some("weight"), None) => Part::Head,
            _ => Part::Small,
        }
    }

    /// Bytes of the largest layer once loaded.
    fn largest_layer(&self) -> u64 {
        let mut layers: HashMap<(bool, usize), u64> = HashMap::new();
        for tensor in self.forms.weights.iter() {
            if let Part::Layer { of_decoder, idx } = self.part_of(&tensor.name()) {
                *layers.entry((of_decoder, idx)).or_default() += self.forms.bytes(tensor, true);
            }
        }
        layers.into_values().max().unwrap_or(SCRATCH)
    }

    /// Bytes of the largest tensor that is read as a whole to be turned round.
    fn largest_turned(&self) -> u64 {
        let turned = self.forms.weights.iter().filter(|tensor| !tensor.lies_in_rows());
        turned.map(|tensor| tensor.source().bytes().len() as u64).max().unwrap_or(0)
    }

    /// Rows of the head's matrix, in pieces of at most [`HEAD_PIECE`].
    fn head_pieces(&self) -> Vec<Unit> {
        let Some(head) = self.forms.weights.get("head.weight") else { return Vec::new() };
        let n_rows = head.shape().first().copied().unwrap_or(0);
        let row_bytes = self.forms.bytes(head, true) / n_rows.max(1) as u64;
        let fits = usize::try_from(HEAD_PIECE / row_bytes.max(1)).unwrap_or(usize::MAX);
        let n_pieces = n_rows.div_ceil(fits.max(1));
        // Even pieces, so that each fits into the memory of the one before.
        let each = n_rows.div_ceil(n_pieces.max(1)).max(1);
        (0..n_rows)
            .step_by(each)
            .map(|first| Unit::HeadRows { first, n: each.min(n_rows - first) })
            .collect()
    }

    /// What is left for the caches of each executor's layers.
    fn rooms(
        &self,
        placed: &Placed,
        info: &TokenModelInfo,
        budgets: &[Budget],
        devices: &[DevicePlan],
    ) -> Vec<CacheRoom> {
        let mut rooms = vec![CacheRoom::default(); devices.len()];
        for ((room, device), budget) in rooms.iter_mut().zip(devices).zip(budgets) {
            let left = device.limit_bytes.map(|limit| limit.saturating_sub(device.total_bytes()));
            let left = left.unwrap_or(u64::MAX);
            room.bytes = if budget.is_given { left } else { left / 2 };
        }
        if info.kind == ModelKind::Encoder {
            return rooms;
        }
        let layers = self.architecture.decoder.iter().flat_map(|stack| &stack.layers);
        let homes = placed.homes.decoder.iter().flat_map(|stack| &stack.layers);
        for (layer, home) in layers.zip(homes) {
            let number = home.executor().unwrap_or(placed.homes.main);
            if let Some(room) = rooms.get_mut(number) {
                room.kv_bytes_per_token += self.kv.bytes_per_token(&layer.self_attention);
                let cross = layer.cross_attention.as_ref();
                room.cross_bytes_per_token += cross.map_or(0, |c| self.kv.bytes_per_token(c));
            }
        }
        rooms
    }

    /// Why the caches don't fit, with the figures of the device that is too small.
    fn refusal(
        &self,
        devices: &[DevicePlan],
        rooms: &[CacheRoom],
        error: EngineError,
    ) -> EngineError {
        let least = |room: &CacheRoom| {
            let block = u64::from(self.kv.block_tokens);
            2 * block * (room.kv_bytes_per_token + room.cross_bytes_per_token)
        };
        let mut devices = devices.to_vec();
        for (device, room) in devices.iter_mut().zip(rooms) {
            device.parts.push(part("the smallest caches", least(room)));
        }
        overfull(&devices, self.options.max_memory.is_some()).unwrap_or(error)
    }

    /// Rows of the largest batch.
    fn most_rows(&self, info: &TokenModelInfo) -> u64 {
        let keys = u64::from(info.max_positions.max(info.max_encoder_positions));
        let most = u64::from(self.options.max_sequences).saturating_mul(keys);
        u64::from(info.max_batch_tokens).min(most)
    }

    /// Bytes of the largest batch's activations.
    fn activations(&self, info: &TokenModelInfo) -> u64 {
        let layers = self.architecture.stacks().flat_map(|s| s.layers.iter().map(move |l| (s, l)));
        let widest = layers.map(|(stack, layer)| row_width(stack, layer)).max().unwrap_or(0);
        let keys = u64::from(info.max_positions.max(info.max_encoder_positions));
        let n = self.most_rows(info);
        let heads = self.architecture.stacks().flat_map(|s| &s.layers);
        let heads = heads.map(|l| u64::from(l.self_attention.n_heads)).max().unwrap_or(0);
        // A tile of scores, and the same joined from blocks.
        let scores = 2 * (n.min(keys) * keys * heads).min(SCORES_TILE as u64);
        // The engine's logits of the sequences that run, and the host's copy.
        let rows = u64::from(self.options.max_sequences.min(info.max_batch_tokens));
        let logits = 2 * rows * u64::from(info.n_logits);
        let products = self.forms.widest().map_or(0, |n_in| product_bytes(n_in, n as usize));
        F32 * (n * widest + scores + logits) + products
    }
}

fn part(what: &str, bytes: u64) -> PlannedPart {
    PlannedPart { what: what.to_owned(), bytes }
}

/// What a canonical tensor is a part of.
enum Part {
    Layer { of_decoder: bool, idx: usize },
    Tokens { of_decoder: bool },
    Head,
    Small,
}

/// Values that a row has at once on its way through a layer.
fn row_width(stack: &Stack, layer: &Layer) -> u64 {
    let dim = layer.self_attention.q_width().max(stack.embedding.width as usize) as u64;
    let attention = &layer.self_attention;
    let qkv = (attention.q_width() + 2 * attention.kv_width()) as u64;
    let inner = u64::from(layer.feed_forward.width);
    let inner = match layer.feed_forward.form {
        FeedForwardForm::Plain => inner,
        FeedForwardForm::Gated | FeedForwardForm::Experts { .. } => 3 * inner,
    };
    3 * dim + (2 * qkv).max(inner + dim)
}

/// The error for the first device that holds more than it may, with its figures.
fn overfull(devices: &[DevicePlan], is_given: bool) -> Option<EngineError> {
    const MIB: f64 = 1_048_576.0;
    let device = devices.iter().find(|device| {
        device.limit_bytes.is_some_and(|limit| device.total_bytes() > limit)
            && device.total_bytes() > 0
    })?;
    let limit = device.limit_bytes.unwrap_or(u64::MAX);
    let mib = |bytes: u64| bytes as f64 / MIB;
    let parts: Vec<String> = device
        .parts
        .iter()
        .filter(|part| part.bytes > 0)
        .map(|part| format!("{} {:.1} MiB", part.what, mib(part.bytes)))
        .collect();
    let name = &device.name;
    let needed = device.total_bytes().div_ceil(1 << 20);
    let way_out = match is_given {
        true => format!("set option.max_memory of {name} to {needed}MiB or more"),
        false => format!("{:.1} MiB more have to be free", mib(device.total_bytes() - limit)),
    };
    Some(EngineError::out_of_memory(format!(
        "device {name} would hold {:.1} MiB of at most {:.1} MiB ({}): {way_out}, lower \
         option.max_rolling_batch_size, or leave more of the model on the disk with option.device_map",
        mib(device.total_bytes()),
        mib(limit),
        parts.join(", ")
    )))
}
