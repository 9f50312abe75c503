//! How much memory a model may use.

use std::fs;

use drivetrain_engine::EngineError;

/// Bytes that this process may still take: what the machine has available, or what is left of its
/// control group's limit or of its own (`ulimit -d`, `ulimit -v`) if that is less. `None` where the
/// system says none of these.
pub fn available_bytes() -> Option<u64> {
    let machine = fs::read_to_string("/proc/meminfo").ok().and_then(|text| mem_available(&text));
    let group = group_left("memory.max", "memory.current", "memory.stat").or_else(|| {
        let file = |name: &str| format!("memory/memory.{name}");
        group_left(&file("limit_in_bytes"), &file("usage_in_bytes"), &file("stat"))
    });
    let own = fs::read_to_string("/proc/self/limits").ok().zip(own_status());
    let own = own.into_iter().flat_map(|(limits, status)| {
        let left = |limit: &str, used: &str| {
            Some(process_limit(&limits, limit)?.saturating_sub(kibibytes(&status, used)?))
        };
        [left("Max data size", "VmData:"), left("Max address space", "VmSize:")]
    });
    [machine, group].into_iter().chain(own).flatten().min()
}

/// Bytes of this process that are in memory now; 0 where the system does not say.
pub fn resident_bytes() -> u64 {
    own_status().and_then(|status| kibibytes(&status, "VmRSS:")).unwrap_or(0)
}

fn own_status() -> Option<String> {
    fs::read_to_string("/proc/self/status").ok()
}

/// A limit of the process in bytes; `None` if it is unlimited.
fn process_limit(limits: &str, name: &str) -> Option<u64> {
    let line = limits.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

/// Refuses weights that would not fit, before they are read; `held_as` says how they are held.
///
/// # Errors
/// `OutOfMemory` with the figures.
pub fn check_memory(model: &str, bytes: u64, held_as: &str) -> Result<(), EngineError> {
    match available_bytes() {
        Some(available) if bytes > available => Err(EngineError::out_of_memory(format!(
            "model {model} needs {} MiB for its weights in {held_as}, {} MiB are available",
            bytes >> 20,
            available >> 20
        ))),
        _ => Ok(()),
    }
}

fn mem_available(meminfo: &str) -> Option<u64> {
    kibibytes(meminfo, "MemAvailable:")
}

/// The value of a line `name value kB`, in bytes.
fn kibibytes(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// What is left of the control group's limit; `None` without one (`max`). Pages of files that the
/// kernel can drop, such as a mapped checkpoint's, count as free.
fn group_left(limit: &str, usage: &str, stat: &str) -> Option<u64> {
    let text = |file: &str| fs::read_to_string(format!("/sys/fs/cgroup/{file}")).ok();
    let number = |file: &str| text(file)?.trim().parse::<u64>().ok();
    let used = number(usage)?.saturating_sub(droppable(&text(stat).unwrap_or_default()));
    Some(number(limit)?.saturating_sub(used))
}

fn droppable(stat: &str) -> u64 {
    let line = stat.lines().find_map(|line| line.strip_prefix("inactive_file "));
    line.and_then(|bytes| bytes.trim().parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn meminfo_is_in_kibibytes() {
        let text = "MemTotal:       24000000 kB\nMemAvailable:   16000000 kB\n";
        assert_eq!(mem_available(text), Some(16_000_000 * 1024));
        assert_eq!(mem_available("MemTotal: 1 kB"), None);
    }

    #[test]
    fn limits_of_the_process_are_in_bytes() {
        let text = "Limit                     Soft Limit           Hard Limit           Units     \n\
                    Max data size             268435456            unlimited            bytes     \n\
                    Max address space         unlimited            unlimited            bytes     \n";
        assert_eq!(process_limit(text, "Max data size"), Some(256 << 20));
        assert_eq!(process_limit(text, "Max address space"), None);
        assert!(resident_bytes() > 1 << 20);
    }

    #[test]
    fn droppable_pages_are_found() {
        assert_eq!(droppable("anon 5\ninactive_file 4096\nactive_file 7\n"), 4096);
        assert_eq!(droppable(""), 0);
    }
}
