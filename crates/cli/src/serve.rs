//! `drivetrain serve`: what SageMaker runs.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use drivetrain_config::{Environment, ServerConfig, ServerOverrides};
use drivetrain_host::{Host, ModelHandle};
use tokio::signal::unix::{SignalKind, signal};
use tracing::{error, info, warn};

use crate::args::Serve;

/// How long work that is cut off may hold up the exit.
const GRACE: Duration = Duration::from_millis(100);

/// Serves until SIGTERM or SIGINT.
pub(crate) fn serve(args: &Serve) -> Result<()> {
    let env = Environment::from_process();
    crate::logging::start(&env, "info");
    refuse_nothing(args)?;
    let executable = std::env::current_exe().context("the binary's own path is not known")?;
    let mut overrides = ServerOverrides {
        config_file: args.config_file.clone(),
        models: args.models.iter().chain(&args.more_models).cloned().collect(),
        model_store: args.model_store.clone(),
        host: args.host.clone(),
        port: args.port,
        plugins: args.plugins.plugins.clone(),
        default_model: crate::default_model::shipped(&executable),
        ..ServerOverrides::default()
    };
    if let Some(root) = &args.ml_root {
        overrides.sagemaker_root.clone_from(root);
    }
    let (config, warnings) = ServerConfig::resolve(&overrides, &env)?;
    for warning in &warnings {
        warn!("{warning}");
    }
    let config = Arc::new(config);
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    if config.io_threads.value > 0 {
        runtime.worker_threads(config.io_threads.value as usize);
    }
    let runtime = runtime.enable_all().build()?;
    let result = runtime.block_on(run(config, env, args));
    // What still runs belongs to requests whose time is over; waiting for it could outlast the time
    // that a container has to stop.
    runtime.shutdown_timeout(GRACE);
    result
}

/// An argument that names nothing, as an unset variable leaves behind, must not become a server
/// that is healthy and serves nothing.
fn refuse_nothing(args: &Serve) -> Result<()> {
    if args.models.iter().chain(&args.more_models).any(|model| model.trim().is_empty()) {
        bail!("MODEL is empty: name a model as `path` or `name=path`, or leave the argument out");
    }
    if let Some(store) = args.model_store.as_deref().filter(|store| !store.is_dir()) {
        bail!("--model-store {}: there is no such directory", store.display());
    }
    if let Some(dir) = args.plugins.plugins.iter().find(|dir| !dir.is_dir()) {
        bail!("--plugins {}: there is no such directory", dir.display());
    }
    Ok(())
}

/// Ends with the first order to stop.
pub(crate) async fn told_to_stop(stdin: Stdin) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = terminate.recv() => info!("SIGTERM: draining"),
        _ = interrupt.recv() => info!("SIGINT: draining"),
        () = ended(stdin) => info!("standard input has ended: draining"),
    }
    Ok(())
}

/// Whether the end of standard input is an order to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stdin {
    Heeded,
    Ignored,
}

/// Ends with standard input, where that is heeded.
async fn ended(stdin: Stdin) {
    if stdin == Stdin::Ignored {
        return std::future::pending().await;
    }
    let (sender, receiver) = tokio::sync::oneshot::channel();
    let reader = std::thread::Builder::new().name("stdin".to_owned()).spawn(move || {
        // What comes is of no meaning, and an error is an end, too.
        let _ = std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
        let _ = sender.send(());
    });
    if let Err(error) = reader {
        warn!(%error, "the end of standard input can't be waited for");
        return std::future::pending().await;
    }
    // The thread sends, or is gone.
    let _ = receiver.await;
}

async fn run(config: Arc<ServerConfig>, env: Environment, args: &Serve) -> Result<()> {
    let stdin = if args.until_stdin_ends { Stdin::Heeded } else { Stdin::Ignored };
    let shutdown = async move {
        if let Err(error) = told_to_stop(stdin).await {
            error!(%error, "signals can't be waited for");
        }
    };
    tokio::pin!(shutdown);

    // Before anything that records: a handle made without a recorder records nothing.
    drivetrain_http::install_metrics();
    let engines = crate::engines::discover(&args.plugins, &env);
    info!(
        version = env!("CARGO_PKG_VERSION"),
        cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
        engines = engines.engines().len(),
        "starting"
    );
    let host = Host::new(Arc::clone(&config), env, engines);
    let mut models = Vec::with_capacity(config.models.len());
    for spec in &config.models {
        models.push(host.load(spec).with_context(|| format!("model {spec}"))?);
    }
    if models.is_empty() {
        warn!("no model is loaded: name one, or register it later");
    }
    if config.wait_model_loading.value {
        tokio::select! {
            loaded = wait(&models) => loaded?,
            () = &mut shutdown => return Ok(()),
        }
    } else {
        tokio::spawn(report_failures(models));
    }
    drivetrain_http::serve(host, config, shutdown).await?;
    Ok(())
}

/// Waits until every model is ready, and fails if one can't be.
async fn wait(models: &[ModelHandle]) -> Result<()> {
    crate::progress::show(models).await;
    let mut n_failed = 0;
    for model in models {
        if let Err(failure) = model.wait_ready().await {
            n_failed += 1;
            eprintln!("drivetrain: model {} failed to load: {}", model.name(), failure.chain());
        }
    }
    if n_failed > 0 {
        bail!("{n_failed} of {} models failed to load; nothing is served", models.len());
    }
    Ok(())
}

async fn report_failures(models: Vec<ModelHandle>) {
    for model in models {
        if let Err(failure) = model.wait_ready().await {
            error!(model = model.name(), reason = failure.chain(), "model failed to load");
        }
    }
}
