//! What an engine says beforehand that loading would do. One that states no plan is not asked further.

use drivetrain_engine::{ErrorKind, LoadPlan, LoadRequest};

use crate::suite::{Context, Loader, Stop, Verdict, describe, ensure};

/// A limit of the CPU's memory that no model keeps to, as `option.max_memory` has it.
const TOO_SMALL: &str = "cpu:1KiB";
const TOO_SMALL_BYTES: u64 = 1 << 10;

pub(super) fn figures(context: &mut Context<'_>) -> Verdict {
    let plan = stated(context.loader)?;
    let info = context.driver.info;
    ensure(!plan.devices.is_empty(), || "the plan names no device".to_owned())?;
    for device in &plan.devices {
        let name = &device.name;
        ensure(!name.is_empty(), || "a device has no name".to_owned())?;
        let n = plan.devices.iter().filter(|other| other.name == *name).count();
        ensure(n == 1, || format!("{n} devices are called {name:?}"))?;
        let is_named = device.parts.iter().all(|part| !part.what.is_empty());
        ensure(is_named, || format!("{name}: a part does not say what it is for"))?;
    }
    for placed in &plan.placements {
        let is_device = placed.device == "disk"
            || plan.devices.iter().any(|device| device.name == placed.device);
        ensure(is_device, || {
            format!("{:?} is placed on {:?}, which is no device", placed.module, placed.device)
        })?;
    }
    let total = plan.devices.iter().fold(0_u64, |sum, one| sum.saturating_add(one.total_bytes()));
    ensure(total > 0, || "the model takes no memory on any device".to_owned())?;
    for (what, planned, loaded) in [
        ("max_sequences", plan.max_sequences, info.max_sequences),
        ("max_batch_tokens", plan.max_batch_tokens, info.max_batch_tokens),
    ] {
        ensure(planned > 0, || format!("{what} is 0: expected 1 or more"))?;
        ensure(planned == loaded, || {
            format!("{what} is {planned}, and {loaded} of the model that was loaded")
        })?;
    }
    let has_cache = info.kv_capacity_tokens > 0;
    ensure((plan.kv_capacity_tokens > 0) == has_cache, || {
        let (planned, loaded) = (plan.kv_capacity_tokens, info.kv_capacity_tokens);
        format!("kv_capacity_tokens is {planned}, and {loaded} of the model that was loaded")
    })?;
    Ok(None)
}

pub(super) fn limits(context: &mut Context<'_>) -> Verdict {
    let loader = context.loader;
    let plan = stated(loader)?;
    keeps_to(&plan)?;
    if !plan.devices.iter().any(|device| device.name == "cpu" && device.limit_bytes.is_some()) {
        return Ok(Some("no limit of the CPU's memory is stated".to_owned()));
    }
    let with_limit = |ask: &dyn Fn(&LoadRequest<'_>) -> Result<(), Stop>| {
        loader.with(&[("max_memory", TOO_SMALL)], ask)
    };
    with_limit(&|request| match loader.engine.plan(request) {
        Ok(Some(plan)) => {
            let cpu = plan.devices.iter().find(|device| device.name == "cpu");
            ensure(cpu.is_none_or(|cpu| cpu.total_bytes() <= TOO_SMALL_BYTES), || {
                format!("option.max_memory={TOO_SMALL}: the plan has more on the CPU")
            })?;
            keeps_to(&plan)
        }
        Ok(None) => {
            Err(Stop::Fail("a plan was stated without a limit, and none with one".to_owned()))
        }
        Err(error) if error.kind() != ErrorKind::OutOfMemory => {
            Err(Stop::Fail(format!("expected out of memory, got {}", describe(&error))))
        }
        Err(_) => match loader.engine.load(request) {
            Ok(_) => Err(Stop::Fail(format!(
                "option.max_memory={TOO_SMALL}: the plan was refused and the model loaded"
            ))),
            Err(error) if error.kind() == ErrorKind::OutOfMemory => Ok(()),
            Err(error) => Err(Stop::Fail(format!(
                "the plan was out of memory, and the load {}",
                describe(&error)
            ))),
        },
    })?;
    Ok(None)
}

/// The plan of the model, which has been loaded with the same options.
fn stated(loader: &Loader<'_>) -> Result<LoadPlan, Stop> {
    match loader.with(&[], |request| loader.engine.plan(request)) {
        Ok(Some(plan)) => Ok(plan),
        Ok(None) => Err(Stop::Skip("the engine states no plan".to_owned())),
        Err(error) => {
            let error = describe(&error);
            Err(Stop::Fail(format!("the model was loaded, and its plan refused: {error}")))
        }
    }
}

/// Whether a plan has no more on any device than may be used of it.
fn keeps_to(plan: &LoadPlan) -> Result<(), Stop> {
    for device in &plan.devices {
        let (name, total) = (&device.name, device.total_bytes());
        ensure(device.limit_bytes.is_none_or(|limit| total <= limit), || {
            format!("{name}: {total} bytes are planned, more than its own limit")
        })?;
    }
    Ok(())
}
