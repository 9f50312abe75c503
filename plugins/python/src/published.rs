//! Metrics that a worker prints: `[METRICS]Name.Unit:value|#Dim:val,..|timestamp|type`.

use drivetrain_engine::MetricKind;

/// What such a line begins with.
const MARK: &str = "[METRICS]";

/// Longest name of a metric.
const MAX_NAME_BYTES: usize = 100;

/// A metric's value.
#[derive(Debug, PartialEq)]
pub(crate) struct Published {
    pub(crate) kind: MetricKind,
    pub(crate) name: String,
    pub(crate) value: f64,
}

/// The metric that a line has; `None` for a line that is none.
pub(crate) fn parse(line: &str) -> Option<Published> {
    let mut parts = line.trim().strip_prefix(MARK)?.trim().split('|');
    let (title, value) = parts.next()?.rsplit_once(':')?;
    let value = value.trim().parse::<f64>().ok().filter(|value| value.is_finite())?;
    let (name, unit) = title.trim().split_once('.').unwrap_or((title.trim(), ""));
    let mut name: String = name.to_owned();
    if !unit.is_empty() && !unit.eq_ignore_ascii_case("count") {
        name.push('_');
        name.push_str(&unit.to_ascii_lowercase());
    }
    let is_name = !name.starts_with(|c: char| c.is_ascii_digit())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
    if name.is_empty() || name.len() > MAX_NAME_BYTES || !is_name {
        return None;
    }
    let kind = match parts.next_back().map(str::trim) {
        Some("c") => MetricKind::Counter,
        Some("h") => MetricKind::Histogram,
        _ => MetricKind::Gauge,
    };
    Some(Published { kind, name, value })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_metrics_or_nothing() {
        let check = |line: &str, expect: Option<(MetricKind, &str, f64)>| {
            let expect =
                expect.map(|(kind, name, value)| Published { kind, name: name.to_owned(), value });
            assert_eq!(parse(line), expect, "{line}");
        };
        use MetricKind::{Counter, Gauge, Histogram};
        let line = "[METRICS]Latency.Milliseconds:12.5|#Model:m,Host:h|1700000000|h";
        check(line, Some((Histogram, "Latency_milliseconds", 12.5)));
        check("[METRICS] Seen.Count:3|#Model:m|1700000000|c", Some((Counter, "Seen", 3.0)));
        check("[METRICS]Load:1", Some((Gauge, "Load", 1.0)));
        for none in [
            "Load:1",
            "[METRICS]",
            "[METRICS]Load",
            "[METRICS]Load:x",
            "[METRICS]Load:inf",
            "[METRICS]a b:1",
            "[METRICS]9a:1",
        ] {
            check(none, None);
        }
    }
}
