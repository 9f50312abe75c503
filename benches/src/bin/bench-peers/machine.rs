//! What the machine is and can do, and when that was.

use std::fs;
use std::num::NonZeroUsize;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::Result;
use drivetrain_kernels::{FORCE_VARIABLE, Isa, Pool, peak};
use serde::Serialize;

/// Memory that no cache holds: 512 MiB.
const BEYOND: usize = 128 << 20;

/// The machine, its figures measured.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Machine {
    /// Its processor's name.
    pub(crate) cpu: String,
    /// Cores that this process may use.
    pub(crate) n_cores: usize,
    /// Threads of each entrant.
    pub(crate) n_threads: usize,
    /// The instruction set that Drivetrain's kernels choose.
    pub(crate) isa: String,
    /// What the processor says that it has of what matters.
    pub(crate) flags: Vec<String>,
    /// Memory in bytes.
    pub(crate) memory_bytes: u64,
    /// Bytes that all threads read from memory in a second.
    pub(crate) read_bytes_per_second: f64,
    /// Floating-point operations of all threads in a second.
    pub(crate) f32_per_second: f64,
}

impl Machine {
    /// Looks and measures.
    pub(crate) fn measure(n_threads: NonZeroUsize) -> Result<Self> {
        let isa = Isa::choose(std::env::var(FORCE_VARIABLE).ok().as_deref())?;
        let pool = Pool::new(n_threads)?;
        let memory = vec![1.0_f32; BEYOND];
        let best = |work: &dyn Fn() -> f64| {
            let rate = |_| {
                let started = Instant::now();
                work() / started.elapsed().as_secs_f64()
            };
            (0..8).map(rate).fold(0.0, f64::max)
        };
        Ok(Self {
            cpu: cpu(),
            n_cores: std::thread::available_parallelism().map_or(1, NonZeroUsize::get),
            n_threads: n_threads.get(),
            isa: isa.to_string(),
            flags: flags(),
            memory_bytes: memory_field("MemTotal:").unwrap_or(0),
            read_bytes_per_second: best(&|| peak::read(isa, &pool, &memory)),
            f32_per_second: best(&|| peak::float_operations(isa, &pool)),
        })
    }

    /// The processor as a part of a file's name.
    pub(crate) fn slug(&self) -> String {
        let lower = self.cpu.to_ascii_lowercase();
        let words = lower.split(|c: char| !c.is_ascii_alphanumeric()).filter(|w| !w.is_empty());
        words.take(6).collect::<Vec<_>>().join("-")
    }
}

/// Memory that can be taken now.
pub(crate) fn available_bytes() -> Option<u64> {
    memory_field("MemAvailable:")
}

/// How many cores are busy now, with whatever: looks for a second.
pub(crate) fn busy_cores() -> Option<f64> {
    let before = processor_time()?;
    std::thread::sleep(Duration::from_secs(1));
    let after = processor_time()?;
    let (idle, all) = (after.0 - before.0, after.1 - before.1);
    let n_cores = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
    (all > 0.0).then(|| (1.0 - idle / all) * n_cores as f64)
}

/// Time that all cores together were idle, and all of it.
fn processor_time() -> Option<(f64, f64)> {
    let text = fs::read_to_string("/proc/stat").ok()?;
    let line = text.lines().next()?.strip_prefix("cpu ")?;
    let times: Vec<f64> = line.split_whitespace().filter_map(|time| time.parse().ok()).collect();
    // user nice system idle iowait irq softirq steal, and guests, who are in user already.
    let all = times.iter().take(8).sum();
    Some((times.get(3)? + times.get(4)?, all))
}

fn memory_field(name: &str) -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    Some(line.split_whitespace().next()?.parse::<u64>().ok()? << 10)
}

fn cpu_field(name: &str) -> Option<String> {
    let text = fs::read_to_string("/proc/cpuinfo").ok()?;
    let line =
        text.lines().find(|line| line.split(':').next().is_some_and(|n| n.trim() == name))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

fn cpu() -> String {
    cpu_field("model name").unwrap_or_else(|| std::env::consts::ARCH.to_owned())
}

fn flags() -> Vec<String> {
    let told = ["avx2", "fma", "f16c", "avx_vnni", "avx512", "amx", "asimd", "sve", "bf16", "i8mm"];
    let all = cpu_field("flags").or_else(|| cpu_field("Features")).unwrap_or_default();
    let matters = |flag: &&str| told.iter().any(|told| flag.starts_with(told));
    all.split_whitespace().filter(matters).map(str::to_owned).collect()
}

/// The commit, with a mark if files differ from it.
pub(crate) fn commit(root: &Path) -> String {
    let git = |args: &[&str]| {
        let out = Command::new("git").arg("-C").arg(root).args(args).output().ok()?;
        out.status.success().then(|| String::from_utf8_lossy(&out.stdout).trim().to_owned())
    };
    let Some(commit) = git(&["rev-parse", "--short=12", "HEAD"]) else {
        return "unknown".to_owned();
    };
    match git(&["status", "--porcelain", "--untracked-files=no"]) {
        Some(changed) if changed.is_empty() => commit,
        _ => format!("{commit}, with changes"),
    }
}

/// Today in UTC as `2026-01-31`.
pub(crate) fn today() -> String {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    date_of((since.as_secs() / 86_400) as i64)
}

/// The date of a day since 1970: Howard Hinnant's `civil_from_days`.
fn date_of(day: i64) -> String {
    let shifted = day + 719_468;
    let era = shifted.div_euclid(146_097);
    let of_era = shifted.rem_euclid(146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_idx = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month_idx + 2) / 5 + 1;
    let month = if month_idx < 10 { month_idx + 3 } else { month_idx - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_are_dates() {
        let cases = [(0, "1970-01-01"), (11_016, "2000-02-29"), (20_819, "2027-01-01")];
        for (day, expect) in cases {
            assert_eq!(date_of(day), expect);
        }
    }
}
