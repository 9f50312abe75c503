//! `drivetrain engines`: the engines found, and the files that are none.

use std::error::Error;

use anyhow::Result;
use drivetrain_config::Environment;
use drivetrain_host::{EngineRegistry, plugin_dirs};

use crate::args::Plugins;

/// Finds the engines as a server would.
pub(crate) fn discover(plugins: &Plugins, env: &Environment) -> EngineRegistry {
    let executable = std::env::current_exe().ok();
    let beside = executable.as_deref().and_then(|path| path.parent());
    let from_env: Vec<_> = env
        .get("DRIVETRAIN_PLUGINS")
        .map(|dirs| std::env::split_paths(dirs).collect())
        .unwrap_or_default();
    let dirs = plugin_dirs(&plugins.plugins, &from_env, beside);
    match &executable {
        Some(executable) => {
            EngineRegistry::discover_after(&dirs, &|path| crate::trial::run(executable, path))
        }
        None => EngineRegistry::discover(&dirs),
    }
}

/// Prints a table of them.
pub(crate) fn engines(plugins: &Plugins) -> Result<()> {
    let env = Environment::from_process();
    crate::logging::start(&env, "error");
    let registry = discover(plugins, &env);
    let mut rows = vec![["name", "aliases", "version", "abi", "devices", "file"].map(String::from)];
    for found in registry.engines() {
        rows.push([
            found.info.name.clone(),
            found.info.aliases.join(","),
            found.info.version.clone(),
            found.abi.map(|abi| abi.to_string()).unwrap_or_default(),
            found.info.devices.join(","),
            found.path.as_deref().map(|path| path.display().to_string()).unwrap_or_default(),
        ]);
    }
    if rows.len() == 1 {
        println!("no engine found: build one, or name its folder with --plugins");
    } else {
        print_table(&rows);
    }
    for (path, error) in registry.rejected() {
        let mut text = error.to_string();
        let mut next = error.source();
        while let Some(cause) = next {
            text.push_str(&format!(": {cause}"));
            next = cause.source();
        }
        // The message names the file unless an outer library made it.
        if text.contains(&path.display().to_string()) {
            println!("refused: {text}");
        } else {
            println!("refused: {}: {text}", path.display());
        }
    }
    Ok(())
}

/// Prints rows with their columns aligned; the last one is as long as it is.
fn print_table<const N: usize>(rows: &[[String; N]]) {
    let mut widths = [0; N];
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    for row in rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(widths) {
            line.push_str(&format!("{cell:width$}  "));
        }
        println!("{}", line.trim_end());
    }
}
