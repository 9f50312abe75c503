//! Which devices a model's workers run on: one group of workers for each device, or for each set of
//! devices that a model is split over.

use std::fs;
use std::path::Path;

use crate::error::PythonError;

/// GPUs that one worker sees; none for a worker on the CPU.
pub(crate) type Group = Vec<u32>;

/// The groups that `option.load_on_devices` asks for on a machine with `n_gpus` GPUs, where each
/// worker takes `degree` of them.
pub(crate) fn groups(
    wanted: Option<&str>,
    n_gpus: u32,
    degree: u32,
) -> Result<Vec<Group>, PythonError> {
    let wanted = wanted.unwrap_or("*").trim();
    if wanted.is_empty() || wanted == "*" {
        if n_gpus == 0 {
            return Ok(vec![Group::new()]);
        }
        if degree > n_gpus {
            return Err(PythonError::Option {
                key: "tensor_parallel_degree",
                value: degree.to_string(),
                expected: "at most as many as this machine has GPUs",
            });
        }
        let all: Vec<u32> = (0..n_gpus).collect();
        return Ok(all.chunks_exact(degree.max(1) as usize).map(<[u32]>::to_vec).collect());
    }
    let pieces = wanted.split([';', ',']).map(str::trim).filter(|piece| !piece.is_empty());
    pieces.map(|piece| group(piece, degree)).collect()
}

fn group(text: &str, degree: u32) -> Result<Group, PythonError> {
    let lower = text.to_ascii_lowercase();
    if lower == "-1" || lower == "cpu" {
        return Ok(Group::new());
    }
    let number = ["gpu", "cuda:", "cuda"].iter().find_map(|name| lower.strip_prefix(name));
    let first: u32 = number.unwrap_or(&lower).parse().map_err(|_| PythonError::Option {
        key: "load_on_devices",
        value: text.to_owned(),
        expected: "*, cpu, or GPUs as in 0;1",
    })?;
    Ok((first..first.saturating_add(degree.max(1))).collect())
}

/// How many GPUs the machine has, by their device files.
pub(crate) fn n_gpus(devices: &Path) -> u32 {
    let is_gpu = |name: &str| {
        let number = name.strip_prefix("nvidia");
        number.is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
    };
    let entries = fs::read_dir(devices).into_iter().flatten().flatten();
    let n = entries.filter(|entry| entry.file_name().to_str().is_some_and(is_gpu)).count();
    u32::try_from(n).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(wanted: Option<&str>, n_gpus: u32, degree: u32, expect: &[&[u32]]) {
        assert_eq!(groups(wanted, n_gpus, degree).unwrap(), expect, "{wanted:?} {n_gpus} {degree}");
    }

    #[test]
    fn each_group_has_its_own_devices() {
        check(None, 0, 1, &[&[]]);
        check(None, 0, 4, &[&[]]);
        check(Some("*"), 2, 1, &[&[0], &[1]]);
        check(None, 5, 2, &[&[0, 1], &[2, 3]]);
        check(Some("-1"), 4, 1, &[&[]]);
        check(Some("0;gpu2; cuda:3"), 4, 1, &[&[0], &[2], &[3]]);
        check(Some("2"), 4, 2, &[&[2, 3]]);
        assert!(groups(None, 2, 4).is_err());
        assert!(groups(Some("moon"), 2, 1).is_err());
    }

    #[test]
    fn gpus_are_counted_by_their_files() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["nvidia0", "nvidia12", "nvidiactl", "nvidia-uvm", "null"] {
            fs::write(folder.path().join(name), "").unwrap();
        }
        assert_eq!(n_gpus(folder.path()), 2);
        assert_eq!(n_gpus(&folder.path().join("nonesuch")), 0);
    }
}
