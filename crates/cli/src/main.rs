//! The `drivetrain` binary: serving, and what is done with models and engines on a terminal.
#![forbid(unsafe_code)]

mod args;
mod default_model;
mod engines;
mod exit;
mod generate;
mod inspect;
mod logging;
mod plan;
mod plugin;
mod progress;
mod sagemaker_local;
mod serve;
mod settings;
mod trial;

use std::process::ExitCode;

use clap::Parser;

use args::{Args, Command, PluginCommand};

fn main() -> ExitCode {
    let args = Args::parse();
    let result = match args.command {
        Command::Serve(serve) => serve::serve(&serve),
        Command::Engines(plugins) => engines::engines(&plugins),
        Command::Inspect(inspect) => inspect::inspect(&inspect),
        Command::Plan(plan) => plan::plan(&plan),
        Command::Generate(generate) => generate::generate(&generate),
        Command::SagemakerLocal(local) => sagemaker_local::sagemaker_local(&local),
        Command::Plugin(PluginCommand::Check(check)) => plugin::check(&check),
        Command::Plugin(PluginCommand::Try { library }) => return trial::open(&library),
    };
    exit::code(result)
}
