//! The elements of blocks, one by one.

use half::f16;

use drivetrain_kernels::BlockFormat;

/// Element `idx` of a block.
pub(super) fn element(format: BlockFormat, block: &[u8], idx: usize) -> f64 {
    let nibble = |byte: u8, high: bool| f64::from(if high { byte >> 4 } else { byte & 0xf });
    let d = |at: usize| f16::from_le_bytes([block[at], block[at + 1]]).to_f64();
    match format {
        BlockFormat::Q8Zero => d(0) * f64::from(block[2 + idx].cast_signed()),
        BlockFormat::Q4Zero => d(0) * (nibble(block[2 + idx % 16], idx >= 16) - 8.0),
        BlockFormat::Group4 => {
            d(0) * (nibble(block[3 + idx % 16], idx >= 16) - f64::from(block[2]))
        }
        BlockFormat::Group8 => d(0) * (f64::from(block[3 + idx]) - f64::from(block[2])),
        BlockFormat::Q4One => d(0) * nibble(block[4 + idx % 16], idx >= 16) + d(2),
        BlockFormat::Q5Zero | BlockFormat::Q5One => {
            let start = if format == BlockFormat::Q5Zero { 2 } else { 4 };
            let fifth = f64::from(block[start + idx / 8] >> (idx % 8) & 1);
            let q = nibble(block[start + 4 + idx % 16], idx >= 16) + 16.0 * fifth;
            match format {
                BlockFormat::Q5Zero => d(0) * (q - 16.0),
                _ => d(0) * q + d(2),
            }
        }
        BlockFormat::Q4K | BlockFormat::Q5K => {
            let group = idx / 32;
            let packed = &block[4..16];
            let (scale, least) = match group {
                0..4 => (packed[group] & 63, packed[group + 4] & 63),
                _ => (
                    packed[group + 4] & 15 | packed[group - 4] >> 6 << 4,
                    packed[group + 4] >> 4 | packed[group] >> 6 << 4,
                ),
            };
            let (start, fifth) = match format {
                BlockFormat::Q4K => (16, 0),
                _ => (48, block[16 + idx % 32] >> group & 1),
            };
            let q = nibble(block[start + idx / 64 * 32 + idx % 32], idx % 64 >= 32);
            let q = q + 16.0 * f64::from(fifth);
            d(0) * f64::from(scale) * q - d(2) * f64::from(least)
        }
        BlockFormat::Q6K => {
            let low = nibble(block[idx / 128 * 64 + idx % 64], idx % 128 >= 64);
            let high = block[128 + idx / 128 * 32 + idx % 32] >> (idx % 128 / 32 * 2) & 3;
            let scale = f64::from(block[192 + idx / 16].cast_signed());
            d(208) * scale * (low + 16.0 * f64::from(high) - 32.0)
        }
        other => panic!("{other:?} has no reference"),
    }
}
