//! A map made short: where everything under a prefix has one device, the prefix alone remains.

use crate::device::Device;

/// An entry on its way through [`collapse`].
struct Entry<'a> {
    path: Vec<&'a str>,
    device: Device,
    /// Where it was in the map.
    place: usize,
}

/// The map in which a prefix stands for everything under it that has one device. The order stays; a
/// prefix of a single entry takes nothing in.
pub(crate) fn collapse(entries: &[(String, Device)]) -> Vec<(String, Device)> {
    let mut sorted: Vec<Entry<'_>> = Vec::with_capacity(entries.len());
    for (place, (name, device)) in entries.iter().enumerate() {
        let path = if name.is_empty() { Vec::new() } else { name.split('.').collect() };
        sorted.push(Entry { path, device: *device, place });
    }
    // What is under a prefix is one run now, after the prefix itself.
    sorted.sort_by(|a, b| a.path.cmp(&b.path));
    let mut short = Vec::new();
    collapse_run(&sorted, 0, &mut short);
    short.sort_unstable_by_key(|(place, ..)| *place);
    short.into_iter().map(|(_, name, device)| (name, device)).collect()
}

/// Collapses entries that have their first `depth` names in common.
fn collapse_run(run: &[Entry<'_>], depth: usize, short: &mut Vec<(usize, String, Device)>) {
    let n_same = run.iter().take_while(|entry| entry.path.len() == depth).count();
    let (same, under) = run.split_at(n_same);
    // The whole model is under itself.
    let all = if depth == 0 { run } else { under };
    if let [first, _, ..] = all
        && all.iter().all(|entry| entry.device == first.device)
    {
        let place = run.iter().map(|entry| entry.place).min().unwrap_or(first.place);
        short.push((place, first.path.get(..depth).unwrap_or(&[]).join("."), first.device));
        return;
    }
    for entry in same {
        short.push((entry.place, entry.path.join("."), entry.device));
    }
    for run in under.chunk_by(|a, b| a.path.get(depth) == b.path.get(depth)) {
        collapse_run(run, depth + 1, short);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(entries: &[(&str, u32)], expect: &[(&str, u32)]) {
        let map = |entries: &[(&str, u32)]| {
            let entry =
                |(name, index): &(&str, u32)| ((*name).to_owned(), Device::Accelerator(*index));
            entries.iter().map(entry).collect::<Vec<_>>()
        };
        assert_eq!(collapse(&map(entries)), map(expect), "{entries:?}");
    }

    #[test]
    fn a_prefix_takes_in_what_is_under_it() {
        check(&[("a.x", 0), ("a.y", 0), ("b", 0)], &[("", 0)]);
        check(&[("a.x", 0), ("a.y", 0), ("b", 1)], &[("a", 0), ("b", 1)]);
        check(&[("a.x", 0), ("a.y.p", 1), ("a.y.q", 1)], &[("a.x", 0), ("a.y", 1)]);
        // Also what is far apart.
        check(&[("a.x", 0), ("b.x", 1), ("a.y", 0)], &[("a", 0), ("b.x", 1)]);
    }

    #[test]
    fn names_end_at_dots() {
        check(
            &[("a", 0), ("ab.x", 1), ("ab.y", 1), ("a.b", 0)],
            &[("a", 0), ("ab", 1), ("a.b", 0)],
        );
        check(&[("1", 0), ("10.x", 1), ("10.y", 1)], &[("1", 0), ("10", 1)]);
    }

    #[test]
    fn one_entry_is_short_enough() {
        check(&[("a.x", 0)], &[("a.x", 0)]);
        check(&[("a.x", 0), ("b.x.y", 1)], &[("a.x", 0), ("b.x.y", 1)]);
        check(&[("", 0)], &[("", 0)]);
        check(&[], &[]);
    }
}
