//! What loading a model would do: devices, bytes, capacities, as an engine states them before it
//! takes any memory for weights, and the table of them that people read.

use std::fmt;

/// What an engine would do with a model: the answer of [`Engine::plan`](crate::Engine::plan).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LoadPlan {
    /// The devices that would be used, in the engine's order.
    pub devices: Vec<DevicePlan>,
    /// Which module goes to which device, in the order that the model computes them.
    pub placements: Vec<PlacedModule>,
    /// Tokens the KV cache would hold; `u64::MAX` means without limit, as in
    /// [`TokenModelInfo`](crate::TokenModelInfo).
    pub kv_capacity_tokens: u64,
    /// Encoder tokens the cross-attention cache would hold; `u64::MAX` means without limit.
    pub cross_capacity_tokens: u64,
    /// Most tokens in one batch.
    pub max_batch_tokens: u32,
    /// Most sequences alive at once.
    pub max_sequences: u32,
    /// What else an operator has to know, a sentence each.
    pub notes: Vec<String>,
}

/// What a device would hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DevicePlan {
    /// Its name: `cpu`, `cuda:0`, `disk`.
    pub name: String,
    /// Bytes that may be used of it; `None` where nothing limits them.
    pub limit_bytes: Option<u64>,
    /// What would lie on it.
    pub parts: Vec<PlannedPart>,
}

impl DevicePlan {
    /// Bytes of all parts; `u64::MAX` where the sum is above that.
    pub fn total_bytes(&self) -> u64 {
        self.parts.iter().fold(0, |total, part| total.saturating_add(part.bytes))
    }
}

/// One use of a device's memory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PlannedPart {
    /// What it is for: `weights`, `KV cache`, `staging buffers`, `activations`, `process`.
    pub what: String,
    /// Its size.
    pub bytes: u64,
}

/// A module of the model and where it would lie.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PlacedModule {
    /// Its name in the checkpoint: `model.layers.3`.
    pub module: String,
    /// The device's name, as in [`DevicePlan::name`].
    pub device: String,
    /// Bytes of its weights.
    pub bytes: u64,
}

/// The table that people read: each device with its parts, total, limit and what is free; where the
/// modules go, consecutive layers of one device as one row; capacities; notes. No newline at the end.
///
/// Sizes are in MiB. Of a run of layers the first and the last are named: `model.layers.0..11` is
/// twelve of them.
impl fmt::Display for LoadPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut blocks: Vec<String> = Vec::new();
        let device_rows: Vec<Vec<[String; 2]>> = self.devices.iter().map(device_rows).collect();
        let device_widths = widths(device_rows.iter().flatten());
        for (device, rows) in self.devices.iter().zip(&device_rows) {
            blocks.push(format!("{}\n{}", device.name, table(rows, device_widths)));
        }
        let runs = self.runs();
        if !runs.is_empty() {
            let rows: Vec<[String; 3]> = runs.iter().map(Run::row).collect();
            blocks.push(format!("placements\n{}", table(&rows, widths(&rows))));
        }
        let rows = self.capacity_rows();
        blocks.push(format!("capacities\n{}", table(&rows, widths(&rows))));
        if !self.notes.is_empty() {
            let lines: Vec<String> = self.notes.iter().map(|note| format!("  {note}")).collect();
            blocks.push(format!("notes\n{}", lines.join("\n")));
        }
        f.write_str(&blocks.join("\n\n"))
    }
}

impl LoadPlan {
    fn capacity_rows(&self) -> [[String; 2]; 4] {
        let row = |what: &str, capacity: u64| {
            let text = match capacity {
                0 => "none".to_owned(),
                u64::MAX => "no limit".to_owned(),
                capacity => capacity.to_string(),
            };
            [what.to_owned(), text]
        };
        [
            row("KV cache tokens", self.kv_capacity_tokens),
            row("cross-attention cache tokens", self.cross_capacity_tokens),
            row("batch tokens", self.max_batch_tokens.into()),
            row("sequences", self.max_sequences.into()),
        ]
    }

    /// The placements with runs of consecutive layers joined.
    fn runs(&self) -> Vec<Run<'_>> {
        let mut runs: Vec<Run<'_>> = Vec::new();
        for placed in &self.placements {
            if runs.last_mut().is_none_or(|run| !run.takes(placed)) {
                runs.push(Run::of(placed));
            }
        }
        runs
    }
}

/// Modules of one device in a row of the table: a single one, or layers with consecutive numbers.
struct Run<'a> {
    first: &'a PlacedModule,
    /// `model.layers.` and the number of the last layer; `None` for a module without a number.
    layers: Option<(&'a str, u64)>,
    bytes: u64,
}

impl<'a> Run<'a> {
    fn of(first: &'a PlacedModule) -> Self {
        Self { first, layers: numbered(&first.module), bytes: first.bytes }
    }

    /// Whether `next` goes on with this run, which then has it.
    fn takes(&mut self, next: &PlacedModule) -> bool {
        let (Some((prefix, last)), Some((next_prefix, number))) =
            (self.layers, numbered(&next.module))
        else {
            return false;
        };
        let is_next = prefix == next_prefix
            && last.checked_add(1) == Some(number)
            && self.first.device == next.device;
        if is_next {
            self.layers = Some((prefix, number));
            self.bytes = self.bytes.saturating_add(next.bytes);
        }
        is_next
    }

    fn row(&self) -> [String; 3] {
        let first = self.first;
        let module = match (self.layers, numbered(&first.module)) {
            (Some((_, last)), Some((_, number))) if last > number => {
                format!("{}..{last}", first.module)
            }
            // A model that is placed as a whole is its root, which has no name.
            _ if first.module.is_empty() => "(all)".to_owned(),
            _ => first.module.clone(),
        };
        [module, first.device.clone(), mib(self.bytes)]
    }
}

/// `model.layers.3` as `model.layers.` and 3.
fn numbered(module: &str) -> Option<(&str, u64)> {
    let digits = module.len() - module.trim_end_matches(|c: char| c.is_ascii_digit()).len();
    let (prefix, number) = module.split_at(module.len() - digits);
    let is_layer = prefix.is_empty() || prefix.ends_with('.');
    // `layers.01` would not come back from its number.
    let is_plain = number == "0" || !number.starts_with('0');
    number.parse().ok().filter(|_| is_layer && is_plain).map(|number| (prefix, number))
}

fn device_rows(device: &DevicePlan) -> Vec<[String; 2]> {
    let total = device.total_bytes();
    let row = |what: &str, size: String| [what.to_owned(), size];
    let mut rows: Vec<[String; 2]> =
        device.parts.iter().map(|part| row(&part.what, mib(part.bytes))).collect();
    rows.push(row("total", mib(total)));
    match device.limit_bytes {
        None => rows.push(row("limit", "none".to_owned())),
        Some(limit) => {
            rows.push(row("limit", mib(limit)));
            rows.push(match limit.checked_sub(total) {
                Some(free) => row("free", mib(free)),
                None => row("missing", mib(total - limit)),
            });
        }
    }
    rows
}

fn mib(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}

/// The widest cell of each column.
fn widths<'a, const N: usize>(rows: impl IntoIterator<Item = &'a [String; N]>) -> [usize; N] {
    rows.into_iter().fold([0; N], |mut widths, row| {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
        widths
    })
}

/// Indented lines with columns of these widths, the last one flush right.
fn table<const N: usize>(rows: &[[String; N]], widths: [usize; N]) -> String {
    let line = |row: &[String; N]| {
        let mut line = String::new();
        for (column, (cell, width)) in row.iter().zip(widths).enumerate() {
            let cell = match column + 1 == N {
                true => format!("  {cell:>width$}"),
                false => format!("  {cell:<width$}"),
            };
            line.push_str(&cell);
        }
        line
    };
    rows.iter().map(line).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests;
