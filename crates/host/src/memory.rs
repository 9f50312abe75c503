//! How much memory there is, in words and against what a model asks for.

use std::fmt;

use drivetrain_config::MemoryNeeds;

use crate::HostError;

/// A number of bytes, printed with a binary unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Bytes(pub(crate) u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [&str; 5] = ["bytes", "KiB", "MiB", "GiB", "TiB"];
        let mut value = self.0 as f64;
        let mut unit = 0;
        while value >= 1024.0 && unit + 1 < UNITS.len() {
            value /= 1024.0;
            unit += 1;
        }
        let digits = if unit == 0 { 0 } else { 1 };
        write!(f, "{value:.digits$} {}", UNITS.get(unit).copied().unwrap_or_default())
    }
}

/// Memory that the system can give, where it says so (`/proc/meminfo`).
pub(crate) fn available() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find(|line| line.starts_with("MemAvailable:"))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    kib.checked_mul(1024)
}

/// Whether a model that says how much memory it needs may be loaded.
///
/// # Errors
/// `OutOfMemory` with the figures.
pub(crate) fn check(model: &str, needs: &MemoryNeeds) -> Result<(), HostError> {
    let (Some(required), Some(available)) = (&needs.required_bytes, available()) else {
        return Ok(());
    };
    let reserved = needs.reserved_bytes.value;
    if required.value.saturating_add(reserved) <= available {
        return Ok(());
    }
    Err(HostError::OutOfMemory {
        message: format!(
            "model {model} needs {} ({}) and leaves {} to others, and {} are available: free some, \
             or lower required_memory_mb or reserved_memory_mb",
            Bytes(required.value),
            required.source,
            Bytes(reserved),
            Bytes(available)
        ),
        source: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_printed_with_a_unit() {
        for (bytes, text) in
            [(0, "0 bytes"), (1023, "1023 bytes"), (1536, "1.5 KiB"), (3 << 30, "3.0 GiB")]
        {
            assert_eq!(Bytes(bytes).to_string(), text);
        }
        assert_eq!(Bytes(u64::MAX).to_string(), "16777216.0 TiB");
    }
}
