//! The table of a plan, whole and in its corners.

use super::*;

const MIB: u64 = 1 << 20;

fn part(what: &str, bytes: u64) -> PlannedPart {
    PlannedPart { what: what.into(), bytes }
}

fn placed(module: impl Into<String>, device: &str, bytes: u64) -> PlacedModule {
    PlacedModule { module: module.into(), device: device.into(), bytes }
}

fn plan() -> LoadPlan {
    let layer = |idx: usize| {
        let device = if idx < 12 { "cuda:0" } else { "cpu" };
        placed(format!("model.layers.{idx}"), device, 40 * MIB)
    };
    let mut placements = vec![placed("model.embed_tokens", "cuda:0", 100 * MIB + MIB / 2)];
    placements.extend((0..14).map(layer));
    placements.push(placed("lm_head", "disk", 1024));
    LoadPlan {
        devices: vec![
            DevicePlan {
                name: "cuda:0".into(),
                limit_bytes: Some(1024 * MIB),
                parts: vec![part("weights", 580 * MIB + MIB / 2), part("KV cache", 256 * MIB)],
            },
            DevicePlan {
                name: "cpu".into(),
                limit_bytes: None,
                parts: vec![part("weights", 80 * MIB), part("staging buffers", 40 * MIB)],
            },
            DevicePlan { name: "disk".into(), limit_bytes: Some(0), parts: vec![part("a", 1024)] },
        ],
        placements,
        kv_capacity_tokens: 4096,
        cross_capacity_tokens: 0,
        max_batch_tokens: 512,
        max_sequences: 64,
        notes: vec!["layers 12 and 13 are computed on the CPU".into(), "é".into()],
    }
}

#[test]
fn a_plan_is_a_table_that_people_read() {
    let expect = "\
cuda:0
  weights           580.5 MiB
  KV cache          256.0 MiB
  total             836.5 MiB
  limit            1024.0 MiB
  free              187.5 MiB

cpu
  weights            80.0 MiB
  staging buffers    40.0 MiB
  total             120.0 MiB
  limit                  none

disk
  a                   0.0 MiB
  total               0.0 MiB
  limit               0.0 MiB
  missing             0.0 MiB

placements
  model.embed_tokens   cuda:0  100.5 MiB
  model.layers.0..11   cuda:0  480.0 MiB
  model.layers.12..13  cpu      80.0 MiB
  lm_head              disk      0.0 MiB

capacities
  KV cache tokens               4096
  cross-attention cache tokens  none
  batch tokens                   512
  sequences                       64

notes
  layers 12 and 13 are computed on the CPU
  é";
    assert_eq!(plan().to_string(), expect);
}

/// Checks the rows of these placements, of 1 MiB each.
fn check(placements: &[(&str, &str)], expect: &[&str]) {
    let placements =
        placements.iter().map(|(module, device)| placed(*module, device, MIB)).collect();
    let plan = LoadPlan { placements, ..LoadPlan::default() };
    let rows: Vec<String> = plan.runs().iter().map(|run| run.row().join(" ")).collect();
    assert_eq!(rows, expect);
}

#[test]
fn only_consecutive_layers_of_one_device_are_joined() {
    let cpu = |module| (module, "cpu");
    check(&[cpu("h.0"), cpu("h.1"), cpu("h.2")], &["h.0..2 cpu 3.0 MiB"]);
    check(&[cpu("h.9"), cpu("h.10")], &["h.9..10 cpu 2.0 MiB"]);
    check(&[cpu("h.0"), cpu("h.2")], &["h.0 cpu 1.0 MiB", "h.2 cpu 1.0 MiB"]);
    check(&[cpu("h.1"), cpu("h.0")], &["h.1 cpu 1.0 MiB", "h.0 cpu 1.0 MiB"]);
    check(&[cpu("a.0"), cpu("b.1")], &["a.0 cpu 1.0 MiB", "b.1 cpu 1.0 MiB"]);
    check(&[cpu("h.0"), ("h.1", "disk")], &["h.0 cpu 1.0 MiB", "h.1 disk 1.0 MiB"]);
    check(
        &[cpu("h.0"), cpu("norm"), cpu("h.1")],
        &["h.0 cpu 1.0 MiB", "norm cpu 1.0 MiB", "h.1 cpu 1.0 MiB"],
    );
    check(&[cpu("ln_1"), cpu("ln_2")], &["ln_1 cpu 1.0 MiB", "ln_2 cpu 1.0 MiB"]);
    check(&[cpu("h.00"), cpu("h.1")], &["h.00 cpu 1.0 MiB", "h.1 cpu 1.0 MiB"]);
    check(&[cpu("")], &["(all) cpu 1.0 MiB"]);
    let most = format!("h.{}", u64::MAX);
    check(
        &[cpu(most.as_str()), cpu("h.0")],
        &[format!("{most} cpu 1.0 MiB").as_str(), "h.0 cpu 1.0 MiB"],
    );
}

#[test]
fn sums_end_at_the_largest_number() {
    let device =
        DevicePlan { parts: vec![part("a", u64::MAX), part("b", 1)], ..Default::default() };
    assert_eq!(device.total_bytes(), u64::MAX);
    let layer = |idx: u32| placed(format!("h.{idx}"), "cpu", u64::MAX);
    let plan = LoadPlan {
        devices: vec![device],
        placements: vec![layer(0), layer(1)],
        kv_capacity_tokens: u64::MAX,
        ..LoadPlan::default()
    };
    let text = plan.to_string();
    assert!(text.contains("  total  17592186044416.0 MiB\n"), "{text}");
    assert!(text.contains("  h.0..1  cpu  17592186044416.0 MiB\n"), "{text}");
    assert!(text.contains("  KV cache tokens               no limit\n"), "{text}");
}

#[test]
fn an_empty_plan_has_capacities_alone() {
    let text = LoadPlan::default().to_string();
    assert!(text.starts_with("capacities\n  KV cache tokens               none\n"), "{text}");
    assert!(!text.ends_with('\n'), "{text}");
}
