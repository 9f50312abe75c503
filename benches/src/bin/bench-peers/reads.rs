//! What reading the weights that are on the disk takes at least, for models of which a part stays there.

use std::fs::File;
use std::num::NonZeroUsize;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result};
use serde::Serialize;
use serde_json::{Map, Value};

/// Bytes of a read.
const PIECE: usize = 256 << 10;

/// Most bytes of a file's header.
const MAX_HEADER: u64 = 100 << 20;

/// The limit that reads set.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Reads {
    /// Bytes of the file that all threads together read in a second, without computing.
    pub(crate) bytes_per_second: f64,
    /// Bytes that are on the disk, each of which a pass reads.
    pub(crate) bytes_per_pass: u64,
}

impl Reads {
    /// Measures what `n_threads` threads read of the model in `dir`, whose layers but the first are on the
    /// disk.
    pub(crate) fn measure(dir: &Path, n_threads: NonZeroUsize) -> Result<Self> {
        let path = dir.join("model.safetensors");
        let file = File::open(&path).with_context(|| format!("opening {}", path.display()))?;
        let bytes_per_pass = on_disk(&file).with_context(|| format!("{}", path.display()))?;
        let size = file.metadata()?.len();
        // The first round may come from the disk itself, as the first pass of an engine does.
        let rates: Result<Vec<f64>> = (0..4).map(|_| rate(&file, size, n_threads)).collect();
        Ok(Self { bytes_per_second: rates?.into_iter().fold(0.0, f64::max), bytes_per_pass })
    }

    /// The share of the limit that `n_passes` in `seconds` reach.
    pub(crate) fn share(&self, n_passes: usize, seconds: f64) -> f64 {
        n_passes as f64 * self.bytes_per_pass as f64 / self.bytes_per_second / seconds
    }
}

/// Bytes a second.
fn rate(file: &File, size: u64, n_threads: NonZeroUsize) -> Result<f64> {
    let started = Instant::now();
    let share = size.div_ceil(n_threads.get() as u64);
    std::thread::scope(|scope| {
        let read = |number: u64| -> Result<()> {
            let mut piece = vec![0; PIECE];
            let (mut at, end) = (number * share, size.min((number + 1) * share));
            while at < end {
                let n = (end - at).min(PIECE as u64) as usize;
                file.read_exact_at(&mut piece[..n], at)?;
                at += n as u64;
            }
            Ok(())
        };
        let threads: Vec<_> =
            (0..n_threads.get() as u64).map(|number| scope.spawn(move || read(number))).collect();
        let mut ends = threads.into_iter().map(|thread| thread.join());
        ends.try_for_each(|end| end.unwrap_or_else(|_| anyhow::bail!("a reader panicked")))
    })?;
    Ok(size as f64 / started.elapsed().as_secs_f64())
}

/// Bytes of the layers but the first, as the file's header says.
fn on_disk(file: &File) -> Result<u64> {
    let mut length = [0; 8];
    file.read_exact_at(&mut length, 0)?;
    let length = u64::from_le_bytes(length);
    anyhow::ensure!(length <= MAX_HEADER, "a header of {length} bytes");
    let mut header = vec![0; length as usize];
    file.read_exact_at(&mut header, 8)?;
    let header: Map<String, Value> = serde_json::from_slice(&header)?;
    let is_on_disk =
        |name: &str| name.starts_with("model.layers.") && !name.starts_with("model.layers.0.");
    let tensors = header.iter().filter(|(name, _)| is_on_disk(name));
    let bytes = tensors.map(|(name, tensor)| {
        let offsets = (tensor["data_offsets"][0].as_u64(), tensor["data_offsets"][1].as_u64());
        let (Some(start), Some(end)) = offsets else { anyhow::bail!("{name} has no data_offsets") };
        end.checked_sub(start).with_context(|| format!("{name} ends before it begins"))
    });
    bytes.sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_but_the_first_are_read() {
        let header = r#"{"model.embed_tokens.weight":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},
            "model.layers.0.x":{"dtype":"F32","shape":[1],"data_offsets":[4,8]},
            "model.layers.1.x":{"dtype":"F32","shape":[2],"data_offsets":[8,16]},
            "model.layers.10.x":{"dtype":"F32","shape":[1],"data_offsets":[16,20]}}"#;
        let folder = tempfile::tempdir().unwrap();
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend_from_slice(header.as_bytes());
        bytes.extend([0; 20]);
        std::fs::write(folder.path().join("model.safetensors"), bytes).unwrap();
        let reads = Reads::measure(folder.path(), NonZeroUsize::new(2).unwrap()).unwrap();
        assert_eq!(reads.bytes_per_pass, 12);
        let limit = Reads { bytes_per_second: 10.0, bytes_per_pass: 20 };
        assert!((limit.share(3, 12.0) - 0.5).abs() < 1e-9);
    }
}
