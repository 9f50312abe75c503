//! `drivetrain sagemaker-local`: SageMaker's API on this machine, over containers of this binary.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use drivetrain_config::Environment;
use drivetrain_sagemaker::{Credentials, Limits, Options};
use tracing::{error, info, warn};

use crate::args::SagemakerLocal;
use crate::serve::{Stdin, told_to_stop};

/// How long work that is cut off may hold up the exit.
const GRACE: Duration = Duration::from_millis(100);
/// The region where nobody names one.
const DEFAULT_REGION: &str = "us-east-1";

/// Serves until SIGTERM or SIGINT; then every endpoint drains and ends.
pub(crate) fn sagemaker_local(args: &SagemakerLocal) -> Result<()> {
    let env = Environment::from_process();
    crate::logging::start(&env, "info");
    if let Some(dir) = args.plugins.plugins.iter().find(|dir| !dir.is_dir()) {
        bail!("--plugins {}: there is no such directory", dir.display());
    }
    let region = args
        .region
        .as_deref()
        .or_else(|| env.get("AWS_REGION"))
        .or_else(|| env.get("AWS_DEFAULT_REGION"))
        .unwrap_or(DEFAULT_REGION);
    let credentials = Credentials::of(&env).filter(|_| !args.unsigned);
    if credentials.is_none() {
        info!("requests are taken whatever they are signed with");
    }
    if !is_of_this_machine(&args.host) && credentials.is_none() {
        warn!(
            host = args.host,
            "whoever reaches this address can run models here: set AWS_ACCESS_KEY_ID and \
             AWS_SECRET_ACCESS_KEY, or listen on 127.0.0.1"
        );
    }
    let mut plugins = Vec::with_capacity(args.plugins.plugins.len());
    for dir in &args.plugins.plugins {
        plugins.push(std::path::absolute(dir)?);
    }
    let options = Options {
        host: args.host.clone(),
        port: args.port,
        region: region.to_owned(),
        work_dir: args
            .work_dir
            .clone()
            .unwrap_or_else(|| std::env::temp_dir().join("drivetrain-sagemaker-local")),
        s3_endpoint: args.s3_endpoint.clone(),
        credentials,
        binary: std::env::current_exe().context("the binary's own path is not known")?,
        plugins,
        limits: Limits {
            invocation: Duration::from_secs(args.invocation_timeout),
            payload_bytes: usize::try_from(args.max_payload << 20)?,
            ..Limits::default()
        },
        env,
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let result = runtime.block_on(drivetrain_sagemaker::serve(options, async {
        if let Err(error) = told_to_stop(Stdin::Ignored).await {
            error!(%error, "signals can't be waited for");
        }
    }));
    runtime.shutdown_timeout(GRACE);
    Ok(result?)
}

fn is_of_this_machine(host: &str) -> bool {
    matches!(host, "localhost" | "127.0.0.1" | "::1" | "[::1]")
}
