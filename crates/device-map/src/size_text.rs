//! Sizes as people write them: `10GiB`, `1.5GB`, `80Gb`.

/// The units, how many bytes each has, and whether a lower-case `b` makes bits of it.
const UNITS: &[(&str, f64, LowerCaseB)] = &[
    ("GIB", (1_u64 << 30) as f64, LowerCaseB::SameAsB),
    ("MIB", (1_u64 << 20) as f64, LowerCaseB::SameAsB),
    ("KIB", (1_u64 << 10) as f64, LowerCaseB::SameAsB),
    ("GB", 1e9, LowerCaseB::Bits),
    ("MB", 1e6, LowerCaseB::Bits),
    ("KB", 1e3, LowerCaseB::Bits),
];

/// What `b` instead of `B` means.
#[derive(Clone, Copy, PartialEq, Eq)]
enum LowerCaseB {
    SameAsB,
    Bits,
}

/// The bytes that `text` says, a number and a unit; whole bytes, rounded down. A number alone is none.
pub(crate) fn parse_size(text: &str) -> Option<u64> {
    let text = text.trim();
    let upper = text.to_ascii_uppercase();
    let (unit, bytes, lower_case_b) = UNITS.iter().find(|(unit, ..)| upper.ends_with(unit))?;
    let number: f64 = text.get(..text.len() - unit.len())?.trim().parse().ok()?;
    let size = (number * bytes).trunc();
    // Also refuses what is no number, and infinity.
    let is_size = (0.0..u64::MAX as f64).contains(&size);
    let size = if is_size { size as u64 } else { return None };
    let is_bits = *lower_case_b == LowerCaseB::Bits && text.ends_with('b');
    Some(if is_bits { size / 8 } else { size })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read() {
        for (text, bytes) in [
            ("10GiB", 10 << 30),
            ("1MiB", 1 << 20),
            ("3KiB", 3 << 10),
            ("2GB", 2_000_000_000),
            ("2MB", 2_000_000),
            ("2KB", 2_000),
            ("1.5GB", 1_500_000_000),
            ("0.5KiB", 512),
            (".5KB", 500),
            ("1e3MB", 1_000_000_000),
            ("0GiB", 0),
            ("-0.0GB", 0),
            (" 7 GiB ", 7 << 30),
            // Bits.
            ("16Gb", 2_000_000_000),
            ("16Mb", 2_000_000),
            ("17Kb", 2_125),
            ("0.001Kb", 0),
            // Case is free otherwise.
            ("10gib", 10 << 30),
            ("10Gib", 10 << 30),
            ("10gB", 10_000_000_000),
            ("16gb", 2_000_000_000),
            // Rounded down, after it was multiplied.
            ("1.2345KB", 1_234),
            ("0.1GiB", 107_374_182),
        ] {
            assert_eq!(parse_size(text), Some(bytes), "{text:?}");
        }
    }

    #[test]
    fn what_is_no_size_is_refused() {
        for text in [
            "",
            "10",
            "4000000",
            "GiB",
            "tenGiB",
            "10TiB",
            "10TB",
            "10G",
            "10B",
            "10 b",
            "-1GiB",
            "-5KB",
            "infGB",
            "nanGB",
            "1e300GiB",
            "20000000000GiB",
            "1_0GB",
            "10GiBs",
            "1,5GB",
            "0x10GB",
            "€GB",
        ] {
            assert_eq!(parse_size(text), None, "{text:?}");
        }
    }
}
