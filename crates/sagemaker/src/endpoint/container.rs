//! One container: a `drivetrain serve` of its own process.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hyper::Method;
use rustix::process::{Pid, Signal, kill_process};
use tokio::sync::watch;
use tokio::time::{Instant, timeout};

use super::DeployError;
use super::call::{Answer, Call, CallError};
use super::log::Log;
use crate::options::Limits;

/// How often it is looked whether the process still runs.
const TURN: Duration = Duration::from_millis(20);
/// How often a container that starts is asked for its health.
const STARTUP_TURN: Duration = Duration::from_millis(100);
/// The exit code that says that the port was taken meanwhile.
const CANNOT_BIND: i32 = 2;
/// How often another port is tried.
const MAX_PORTS: usize = 5;
/// Largest answer to `/ping`.
const PING_BYTES: usize = 1 << 20;

/// How a container is started.
#[derive(Clone, Debug)]
pub(super) struct Launch {
    pub(super) endpoint: String,
    pub(super) variant: String,
    pub(super) binary: PathBuf,
    pub(super) plugins: Vec<PathBuf>,
    /// What stands for `/opt/ml`.
    pub(super) ml: PathBuf,
    pub(super) variables: BTreeMap<String, String>,
    pub(super) limits: Limits,
    /// How long it may take to be healthy.
    pub(super) startup: Duration,
}

/// A running container. Killed when dropped; [`Container::stop`] is the other way.
#[derive(Debug)]
pub(crate) struct Container {
    child: Arc<Mutex<Child>>,
    port: u16,
    pid: u32,
    ended: watch::Receiver<Option<ExitStatus>>,
    log: Arc<Log>,
    limits: Limits,
}

impl Container {
    /// Starts a container and waits until it is healthy.
    pub(super) async fn start(launch: &Launch) -> Result<Self, DeployError> {
        let mut n_ports = 1;
        loop {
            let container = Self::spawn(launch)?;
            match container.healthy(launch.startup).await {
                Ok(()) => return Ok(container),
                Err(DeployError::Ended { status, .. })
                    if status.code() == Some(CANNOT_BIND) && n_ports < MAX_PORTS =>
                {
                    n_ports += 1;
                }
                Err(error) => {
                    container.stop().await;
                    return Err(error);
                }
            }
        }
    }

    fn spawn(launch: &Launch) -> Result<Self, DeployError> {
        let failed = |source| DeployError::Spawn { binary: launch.binary.clone(), source };
        let port = TcpListener::bind(("127.0.0.1", 0)).and_then(|free| free.local_addr());
        let port = port.map_err(failed)?.port();
        let mut command = Command::new(&launch.binary);
        command.args(["serve", "--host", "127.0.0.1", "--until-stdin-ends", "--ml-root"]);
        command.arg(&launch.ml);
        for dir in &launch.plugins {
            command.arg("--plugins").arg(dir);
        }
        let mut child = command
            .env_clear()
            .envs(&launch.variables)
            .env("SAGEMAKER_BIND_TO_PORT", port.to_string())
            .current_dir(&launch.ml)
            // It ends with this process, however that ends, since then nobody holds the other end.
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(failed)?;
        let log = Log::new(&launch.endpoint, &launch.variant);
        if let Some(output) = child.stdout.take() {
            log.follow(output);
        }
        if let Some(output) = child.stderr.take() {
            log.follow(output);
        }
        let pid = child.id();
        let (endpoint, variant) = (&launch.endpoint, &launch.variant);
        tracing::info!(endpoint, variant, pid, port, "container starts");
        let child = Arc::new(Mutex::new(child));
        let ended = watch_end(&child);
        Ok(Self { child, port, pid, ended, log, limits: launch.limits.clone() })
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    /// Waits for the end of the process.
    pub(super) async fn ended(&self) -> Option<ExitStatus> {
        let mut ended = self.ended.clone();
        let status = ended.wait_for(Option::is_some).await;
        status.ok().and_then(|status| *status)
    }

    /// Sends a request and reads an answer of up to `limit` bytes.
    pub(crate) async fn ask(&self, call: Call, limit: usize) -> Result<Answer, CallError> {
        call.ask(self.port, self.limits.connect, limit).await
    }

    /// Whether `/ping` answers with 200 in time; if not, what it did instead.
    pub(super) async fn ping(&self) -> Result<(), String> {
        let asked = self.ask(Call::bare(Method::GET, "/ping"), PING_BYTES);
        match timeout(self.limits.ping, asked).await {
            Ok(Ok(answer)) if answer.status == 200 => Ok(()),
            Ok(Ok(answer)) => Err(format!("/ping answered with {}", answer.status)),
            Ok(Err(error)) => Err(crate::fault::chain(&error)),
            Err(_) => Err(format!("/ping took longer than {} s", self.limits.ping.as_secs())),
        }
    }

    async fn healthy(&self, limit: Duration) -> Result<(), DeployError> {
        let deadline = Instant::now() + limit;
        loop {
            let last = tokio::select! {
                status = self.ended() => {
                    self.log.settle().await;
                    return Err(DeployError::Ended {
                        status: status.unwrap_or_default(),
                        reason: self.log.reason().unwrap_or_else(|| "it printed nothing".to_owned()),
                    });
                }
                health = self.ping() => match health {
                    Ok(()) => return Ok(()),
                    Err(last) => last,
                },
            };
            if Instant::now() >= deadline {
                let printed = self.log.reason().unwrap_or_else(|| "nothing".to_owned());
                return Err(DeployError::Late { limit, last, printed });
            }
            tokio::time::sleep(STARTUP_TURN).await;
        }
    }

    /// Tells it to end, and kills it when its time is over.
    pub(super) async fn stop(&self) {
        self.signal(Signal::TERM);
        if timeout(self.limits.stop, self.ended()).await.is_err() {
            let seconds = self.limits.stop.as_secs();
            tracing::warn!(
                pid = self.pid,
                seconds,
                "the container did not end in time: it is killed"
            );
            self.signal(Signal::KILL);
            let _ = timeout(self.limits.stop, self.ended()).await;
        }
    }

    /// Kills it at once.
    pub(super) fn kill(&self) {
        self.signal(Signal::KILL);
    }

    fn signal(&self, signal: Signal) {
        // As long as nobody has seen its end, the number is this process's.
        let mut child = lock(&self.child);
        if matches!(child.try_wait(), Ok(None))
            && let Some(pid) = i32::try_from(self.pid).ok().and_then(Pid::from_raw)
            && let Err(error) = kill_process(pid, signal)
        {
            tracing::warn!(pid = self.pid, %error, "the container can't be told to end");
        }
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        self.kill();
    }
}

fn lock(child: &Mutex<Child>) -> MutexGuard<'_, Child> {
    child.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Looks for the end of the process until it is there.
fn watch_end(child: &Arc<Mutex<Child>>) -> watch::Receiver<Option<ExitStatus>> {
    let (sender, receiver) = watch::channel(None);
    let child = Arc::clone(child);
    tokio::spawn(async move {
        loop {
            let status = match lock(&child).try_wait() {
                Ok(None) => None,
                Ok(Some(status)) => Some(status),
                // Nobody else waits for it, so this is no end that can be told from another.
                Err(_) => Some(ExitStatus::default()),
            };
            if status.is_some() {
                sender.send_replace(status);
                return;
            }
            tokio::time::sleep(TURN).await;
        }
    });
    receiver
}
