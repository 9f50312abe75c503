//! `drivetrain plan`: what an engine would do with a model, asked before a byte of it is loaded.

use anyhow::{Context, Result};
use drivetrain_config::Environment;
use drivetrain_engine::{DevicePlan, LoadPlan};
use drivetrain_host::Planned;
use serde_json::{Value, json};

use crate::args::Plan;
use crate::generate::host_of;
use crate::inspect::printable;
use crate::progress::DownloadBar;
use crate::settings::settings;

/// Asks the engine that would load the model, and prints its plan. A model that would not load is an
/// error, and so is an engine that states no plan.
pub(crate) fn plan(args: &Plan) -> Result<()> {
    let env = Environment::from_process();
    crate::logging::start(&env, "warn");
    let settings = all_settings(args)?;
    let (host, spec) = host_of(&args.model, &args.plugins, env)?;
    let name = spec.name_or_default();
    let planned = host
        .plan(&spec, &settings, &DownloadBar::default())
        .with_context(|| format!("model {name}"))?;
    if args.json {
        println!("{:#}", to_json(&name, &planned));
    } else {
        print_text(&name, &planned);
    }
    Ok(())
}

/// The model's settings that the command line gives. The last one of a key counts, so that the flags
/// of their own go before `--option`.
fn all_settings(args: &Plan) -> Result<Vec<(String, String)>> {
    let mut all = settings(&args.options)?;
    let own = [("engine", &args.engine), ("max_memory", &args.max_memory)];
    all.extend(own.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value.clone()?))));
    Ok(all)
}

fn print_text(model: &str, planned: &Planned) {
    println!("{}", printable(&format!("model {model} on engine {}", planned.engine)));
    println!();
    for line in planned.plan.to_string().lines() {
        println!("{}", printable(line));
    }
}

/// The plan for programs: sizes in bytes, `null` where there is no limit.
fn to_json(model: &str, Planned { engine, plan }: &Planned) -> Value {
    let LoadPlan {
        devices,
        placements,
        kv_capacity_tokens,
        cross_capacity_tokens,
        max_batch_tokens,
        max_sequences,
        notes,
    } = plan;
    let placements: Vec<Value> = placements
        .iter()
        .map(|placed| {
            json!({"module": placed.module, "device": placed.device, "bytes": placed.bytes})
        })
        .collect();
    json!({
        "model": model,
        "engine": engine,
        "devices": devices.iter().map(device_json).collect::<Vec<_>>(),
        "placements": placements,
        "kv_capacity_tokens": limited(*kv_capacity_tokens),
        "cross_capacity_tokens": limited(*cross_capacity_tokens),
        "max_batch_tokens": max_batch_tokens,
        "max_sequences": max_sequences,
        "notes": notes,
    })
}

fn device_json(device: &DevicePlan) -> Value {
    let parts: Vec<Value> =
        device.parts.iter().map(|part| json!({"what": part.what, "bytes": part.bytes})).collect();
    json!({
        "name": device.name,
        "parts": parts,
        "total_bytes": device.total_bytes(),
        "limit_bytes": device.limit_bytes,
    })
}

/// `u64::MAX` stands for no limit.
fn limited(capacity: u64) -> Option<u64> {
    Some(capacity).filter(|capacity| *capacity != u64::MAX)
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use drivetrain_engine::{PlacedModule, PlannedPart};

    use super::*;
    use crate::args::{Args, Command};

    fn args(line: &str) -> Plan {
        let words = ["drivetrain", "plan"].into_iter().chain(line.split(' '));
        let Command::Plan(plan) = Args::parse_from(words).command else { panic!("{line}") };
        plan
    }

    #[test]
    fn flags_of_their_own_go_before_options() {
        let line = "m --max-memory cpu:1GiB --engine one --option option.max_memory=cpu:2GiB";
        let found = all_settings(&args(line)).unwrap();
        let found: Vec<(&str, &str)> =
            found.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
        let expect = [("max_memory", "cpu:2GiB"), ("engine", "one"), ("max_memory", "cpu:1GiB")];
        assert_eq!(found, expect);
        assert!(all_settings(&args("m")).unwrap().is_empty());
        assert!(all_settings(&args("m --option dtype")).is_err());
    }

    #[test]
    fn json_has_every_figure() {
        let part = PlannedPart { what: "weights".into(), bytes: 3 };
        let cpu = DevicePlan {
            name: "cpu".into(),
            limit_bytes: Some(8),
            parts: vec![part.clone(), part],
        };
        let disk = DevicePlan { name: "disk".into(), ..DevicePlan::default() };
        let placed = PlacedModule { module: "h.0".into(), device: "cpu".into(), bytes: 6 };
        let plan = LoadPlan {
            devices: vec![cpu, disk],
            placements: vec![placed],
            kv_capacity_tokens: u64::MAX,
            cross_capacity_tokens: 5,
            max_batch_tokens: 4,
            max_sequences: 2,
            notes: vec!["a note".into()],
        };
        let weights = json!({"what": "weights", "bytes": 3});
        let expect = json!({
            "model": "mine",
            "engine": "one",
            "devices": [
                {
                    "name": "cpu", "parts": [weights, weights], "total_bytes": 6,
                    "limit_bytes": 8,
                },
                {"name": "disk", "parts": [], "total_bytes": 0, "limit_bytes": null},
            ],
            "placements": [{"module": "h.0", "device": "cpu", "bytes": 6}],
            "kv_capacity_tokens": null,
            "cross_capacity_tokens": 5,
            "max_batch_tokens": 4,
            "max_sequences": 2,
            "notes": ["a note"],
        });
        assert_eq!(to_json("mine", &Planned { engine: "one".into(), plan }), expect);
    }
}
