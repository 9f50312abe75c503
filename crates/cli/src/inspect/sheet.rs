//! The facts that `inspect` shows: names and values, as text or as JSON.

use std::fmt::Display;

use serde_json::{Map, Value};

/// Columns of a line before it is wrapped, and of the names.
const WIDTH: usize = 100;
const NAME_WIDTH: usize = 14;
/// Most items of a list that are shown as text.
const MOST_ITEMS: usize = 400;

/// Facts in the order they are shown.
#[derive(Debug, Default)]
pub(super) struct Sheet {
    facts: Vec<Fact>,
}

#[derive(Debug)]
struct Fact {
    name: &'static str,
    lines: Vec<String>,
    json: Value,
}

impl Sheet {
    /// A fact of one line, a text in JSON too.
    pub(super) fn text(&mut self, name: &'static str, value: impl Display) {
        let text = value.to_string();
        self.lines(name, vec![text.clone()], text.into());
    }

    /// A fact of one line that is another thing in JSON.
    pub(super) fn fact(&mut self, name: &'static str, text: impl Into<String>, json: Value) {
        self.lines(name, vec![text.into()], json);
    }

    /// A fact of several lines.
    pub(super) fn lines(&mut self, name: &'static str, lines: Vec<String>, json: Value) {
        self.facts.push(Fact { name, lines, json });
    }

    /// A list, separated by commas and wrapped; `none` if it is empty.
    pub(super) fn list(&mut self, name: &'static str, items: Vec<String>) {
        let lines = if items.is_empty() { vec!["none".to_owned()] } else { wrapped(&items) };
        self.lines(name, lines, items.into());
    }

    /// Prints all facts.
    pub(super) fn print(&self, is_json: bool) {
        if is_json {
            let facts =
                self.facts.iter().map(|f| (f.name.replace([' ', '-'], "_"), f.json.clone()));
            println!("{:#}", Value::Object(facts.collect::<Map<_, _>>()));
            return;
        }
        for fact in &self.facts {
            let mut name = fact.name;
            for line in &fact.lines {
                println!("{name:<NAME_WIDTH$}{}", printable(line));
                name = "";
            }
        }
    }
}

/// Control characters, which names in files may hold, would act on the terminal.
pub(crate) fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

fn wrapped(items: &[String]) -> Vec<String> {
    let mut lines = vec![String::new()];
    let n_more = items.len().saturating_sub(MOST_ITEMS);
    let more = (n_more > 0).then(|| format!("and {n_more} more"));
    let shown = items.iter().take(MOST_ITEMS).cloned().chain(more);
    let n_shown = items.len().min(MOST_ITEMS) + usize::from(n_more > 0);
    for (idx, item) in shown.enumerate() {
        let comma = if idx + 1 < n_shown { "," } else { "" };
        let width = item.chars().count() + comma.len() + 1;
        match lines.last_mut() {
            Some(line) if line.is_empty() => line.push_str(&format!("{item}{comma}")),
            Some(line) if NAME_WIDTH + line.chars().count() + width <= WIDTH => {
                line.push_str(&format!(" {item}{comma}"));
            }
            _ => lines.push(format!("{item}{comma}")),
        }
    }
    lines
}

/// 1234567 as `1,234,567`.
pub(super) fn group(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (idx, digit) in digits.chars().enumerate() {
        if idx > 0 && (digits.len() - idx).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A size in the largest binary unit that leaves at least 1.
pub(super) fn bytes_text(bytes: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes as f64;
    let mut unit_idx = 0;
    while value >= 1024.0 && unit_idx + 1 < units.len() {
        value /= 1024.0;
        unit_idx += 1;
    }
    if unit_idx == 0 { format!("{bytes} B") } else { format!("{value:.1} {}", units[unit_idx]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_read_well() {
        assert_eq!(group(0), "0");
        assert_eq!(group(999), "999");
        assert_eq!(group(1_433_184), "1,433,184");
        assert_eq!(bytes_text(512), "512 B");
        assert_eq!(bytes_text(3 << 30), "3.0 GiB");
    }

    #[test]
    fn lists_are_wrapped() {
        let items: Vec<String> = (0..500).map(|idx| format!("key_{idx}")).collect();
        let lines = wrapped(&items);
        assert!(lines.iter().all(|line| line.len() + NAME_WIDTH <= WIDTH), "{lines:?}");
        assert!(lines[0].starts_with("key_0, key_1, "));
        assert!(lines.last().unwrap().ends_with(" and 100 more"));
        assert_eq!(wrapped(&items[..1]), ["key_0"]);
        assert_eq!(printable("a\u{1b}[31m"), "a\u{fffd}[31m");
    }
}
