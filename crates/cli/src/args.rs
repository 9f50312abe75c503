//! The command line.

use std::path::PathBuf;

use clap::{Args as ClapArgs, Parser, Subcommand};

/// Serves transformer models behind SageMaker's contract, with engines loaded at run time.
#[derive(Debug, Parser)]
#[command(version, propagate_version = true)]
pub(crate) struct Args {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Serve models
    Serve(Serve),
    /// List the engines found
    Engines(Plugins),
    /// Show what a model's files say
    Inspect(Inspect),
    /// Show what an engine would do with a model, without loading it
    Plan(Plan),
    /// Answer one text on the terminal, without a server
    Generate(Generate),
    /// Serve SageMaker's own API on this machine: models, endpoints and their invocations
    SagemakerLocal(SagemakerLocal),
    /// Work with engine libraries
    #[command(subcommand)]
    Plugin(PluginCommand),
}

#[derive(Debug, Subcommand)]
pub(crate) enum PluginCommand {
    /// Run the conformance suite against a built engine
    Check(Check),
    /// Open a library and say by the exit code whether this process survives it
    #[command(hide = true)]
    Try {
        /// The library
        library: PathBuf,
    },
}

/// Where engines are looked for.
#[derive(Debug, Clone, Default, ClapArgs)]
pub(crate) struct Plugins {
    /// A folder with engine libraries, searched before the others; repeatable
    #[arg(long = "plugins", value_name = "DIR")]
    pub(crate) plugins: Vec<PathBuf>,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Serve {
    /// Models to load, as `place` or `name=place`: a path, `org/name` or `hf://name` of the Hugging
    /// Face hub, s3://bucket/prefix, s3://bucket/model.tar.gz. With none: those of the model store,
    /// /opt/ml/model where it exists, else the model that ships with Drivetrain
    #[arg(value_name = "MODEL")]
    pub(crate) models: Vec<String>,
    /// More models, as the reference server spells it; repeatable
    #[arg(short = 'm', long = "models", value_name = "MODEL")]
    pub(crate) more_models: Vec<String>,
    /// The address to listen on
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) host: Option<String>,
    /// The port to listen on
    #[arg(long, value_name = "PORT")]
    pub(crate) port: Option<u16>,
    #[command(flatten)]
    pub(crate) plugins: Plugins,
    /// A folder of models
    #[arg(short = 's', long, value_name = "DIR")]
    pub(crate) model_store: Option<PathBuf>,
    /// The server's configuration, a config.properties
    #[arg(short = 'f', long, value_name = "FILE")]
    pub(crate) config_file: Option<PathBuf>,
    /// SageMaker's directory, in place of /opt/ml
    #[arg(long, value_name = "DIR", hide = true)]
    pub(crate) ml_root: Option<PathBuf>,
    /// Drain as for SIGTERM when standard input ends: whoever started this process is gone
    #[arg(long, hide = true)]
    pub(crate) until_stdin_ends: bool,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct SagemakerLocal {
    /// The address to listen on
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1")]
    pub(crate) host: String,
    /// The port to listen on; 0 lets the system choose
    #[arg(long, value_name = "PORT", default_value_t = 8090)]
    pub(crate) port: u16,
    /// The region of ARNs and signatures [default: AWS_REGION, AWS_DEFAULT_REGION or us-east-1]
    #[arg(long, value_name = "REGION")]
    pub(crate) region: Option<String>,
    /// Where downloads, unpacked models and the containers' files go [default: a directory of the
    /// system's for temporary files]
    #[arg(long, value_name = "DIR")]
    pub(crate) work_dir: Option<PathBuf>,
    /// Where S3 is, as in http://127.0.0.1:5000 [default: AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL or
    /// AWS's own]
    #[arg(long, value_name = "URL")]
    pub(crate) s3_endpoint: Option<String>,
    /// Take requests whatever they are signed with. Otherwise they have to be signed with
    /// AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, where both are set
    #[arg(long)]
    pub(crate) unsigned: bool,
    /// Longest that an invocation may take, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub(crate) invocation_timeout: u64,
    /// Largest body of an invocation, and of its answer, in MiB
    #[arg(long, value_name = "MIB", default_value_t = 6, value_parser = clap::value_parser!(u64).range(1..=1024))]
    pub(crate) max_payload: u64,
    #[command(flatten)]
    pub(crate) plugins: Plugins,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Inspect {
    /// A model's directory or archive, or where else it is: `org/name`, s3://bucket/prefix
    #[arg(value_name = "MODEL")]
    pub(crate) model: String,
    /// Print the same facts as one JSON object
    #[arg(long)]
    pub(crate) json: bool,
    /// Load the model twice, in f32 and with its settings, and say how far apart their answers are
    #[arg(long)]
    pub(crate) accuracy: bool,
    /// A setting of the model for `--accuracy`, as in `--option quantize=int8`; repeatable
    #[arg(long = "option", value_name = "KEY=VALUE", requires = "accuracy")]
    pub(crate) options: Vec<String>,
    #[command(flatten)]
    pub(crate) plugins: Plugins,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Plan {
    /// A model, as `place` or `name=place`; see `serve`
    #[arg(value_name = "MODEL")]
    pub(crate) model: String,
    /// The engine to ask, whatever the model's settings say
    #[arg(long, value_name = "NAME")]
    pub(crate) engine: Option<String>,
    /// What each device may hold, as in `--max-memory 0:10GiB,cpu:30GiB`: sets option.max_memory
    #[arg(long, value_name = "TEXT")]
    pub(crate) max_memory: Option<String>,
    /// Another setting of the model, as in `--option dtype=bf16`; repeatable
    #[arg(long = "option", value_name = "KEY=VALUE")]
    pub(crate) options: Vec<String>,
    /// Print the plan as one JSON object
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) plugins: Plugins,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Generate {
    /// A model, as `place` or `name=place`; see `serve`
    #[arg(value_name = "MODEL")]
    pub(crate) model: String,
    /// The input text
    #[arg(value_name = "TEXT")]
    pub(crate) text: String,
    /// A generation parameter, as in `-P max_new_tokens=40`; repeatable
    #[arg(short = 'P', long = "parameter", value_name = "KEY=VALUE")]
    pub(crate) parameters: Vec<String>,
    #[command(flatten)]
    pub(crate) plugins: Plugins,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Check {
    /// The engine's library
    #[arg(value_name = "LIB")]
    pub(crate) library: PathBuf,
    /// A model directory for the engine to load
    #[arg(long, value_name = "DIR")]
    pub(crate) model: Option<PathBuf>,
    /// An option for the engine, as in `--option dtype=fp32`; repeatable
    #[arg(long = "option", value_name = "KEY=VALUE")]
    pub(crate) options: Vec<String>,
    /// Load and release cycles
    #[arg(long, default_value_t = 1000)]
    pub(crate) cycles: u32,
    /// The seed of every random choice
    #[arg(long, default_value_t = 0)]
    pub(crate) seed: u64,
}
