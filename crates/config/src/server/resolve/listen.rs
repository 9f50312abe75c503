//! Where the server listens.

use std::ops::RangeInclusive;

use super::Machine;
use crate::address::Address;
use crate::environment::Environment;
use crate::error::ConfigError;
use crate::layers::Layers;
use crate::server::ServerOverrides;
use crate::source::{Source, Sourced};

const BIND_TO_PORT: &str = "SAGEMAKER_BIND_TO_PORT";
const SAFE_PORT_RANGE: &str = "SAGEMAKER_SAFE_PORT_RANGE";

/// The inference and the management address.
///
/// Two addresses that are equal, or would take the same port, are one listener, and stay one
/// whatever then moves the port.
pub(super) fn addresses(
    l: &mut Layers,
    cli: &ServerOverrides,
    env: &Environment,
    machine: &Machine,
) -> Result<(Sourced<Address>, Sourced<Address>), ConfigError> {
    let mut inference: Sourced<Address> = l.get("inference_address")?;
    let mut management: Sourced<Address> = l.get("management_address")?;
    for address in [&mut inference, &mut management] {
        if let (true, Some(source)) = (address.source.is_default(), &machine.container) {
            address.value = every_interface(8080);
            address.source = source.clone();
        }
    }
    let mut shared = inference.value == management.value;
    if !shared && inference.value.port().is_some_and(|p| management.value.port() == Some(p)) {
        l.warn(
            management.source.clone(),
            format!(
                "management_address={} has the port of inference_address={}: management is served \
                 there",
                management.value, inference.value
            ),
        );
        shared = true;
    }
    if let Some(port) = env.get(BIND_TO_PORT) {
        let port = variable_port(BIND_TO_PORT, port)?;
        inference.value = inference.value.with_port(port);
        inference.source = Source::Env { variable: BIND_TO_PORT.to_owned() };
    }
    if let Some(port) = cli.port {
        inference.value = inference.value.with_port(port);
        inference.source = Source::CommandLine { flag: "--port" };
    }
    if let Some(host) = &cli.host {
        inference.value = inference.value.with_host(host).ok_or_else(|| ConfigError::Value {
            at: Source::CommandLine { flag: "--host" },
            key: "host".to_owned(),
            value: host.clone(),
            wanted: "a host name or an IP address".to_owned(),
        })?;
        inference.source = Source::CommandLine { flag: "--host" };
    }
    if let (false, Some(range)) = (shared, safe_range(env)?) {
        let port = management.value.port();
        if port.is_some_and(|port| !range.contains(&port)) {
            l.warn(
                management.source.clone(),
                format!(
                    "management_address={} is outside {SAFE_PORT_RANGE} {}-{}: management is \
                     served at {}",
                    management.value,
                    range.start(),
                    range.end(),
                    inference.value
                ),
            );
            shared = true;
        }
    }
    if shared {
        management = inference.clone();
    }
    Ok((inference, management))
}

fn every_interface(port: u16) -> Address {
    Address::Tcp { scheme: crate::address::Scheme::Http, host: "0.0.0.0".to_owned(), port }
}

fn variable_port(variable: &str, text: &str) -> Result<u16, ConfigError> {
    let port = text.trim().parse().ok().filter(|port| (1..u16::MAX).contains(port));
    port.ok_or_else(|| refuse(variable, text, "a port from 1 to 65534"))
}

fn safe_range(env: &Environment) -> Result<Option<RangeInclusive<u16>>, ConfigError> {
    let Some(text) = env.get(SAFE_PORT_RANGE) else { return Ok(None) };
    let range = text.split_once('-').and_then(|(low, high)| {
        let (low, high) = (low.trim().parse().ok()?, high.trim().parse().ok()?);
        (low <= high).then_some(low..=high)
    });
    let wanted = "two ports such as 8000-8999, the lower one first";
    range.map(Some).ok_or_else(|| refuse(SAFE_PORT_RANGE, text, wanted))
}

fn refuse(variable: &str, value: &str, wanted: &str) -> ConfigError {
    ConfigError::Value {
        at: Source::Env { variable: variable.to_owned() },
        key: variable.to_owned(),
        value: value.to_owned(),
        wanted: wanted.to_owned(),
    }
}
