//! A `drivetrain sagemaker-local` child process on a free port.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::server::{Exit, Reply, free_port, request};
use crate::{CREDENTIALS, S3, binary, plugins};

/// A running service. Killed when dropped; its containers end with it.
#[derive(Debug)]
pub struct LocalSagemaker {
    child: Child,
    port: u16,
    log: PathBuf,
    _folder: tempfile::TempDir,
}

impl LocalSagemaker {
    /// Starts the service over an S3 server, with these further arguments, and waits until it answers.
    ///
    /// # Errors
    /// If it ends or does not answer; the log is in the error.
    pub fn start(s3: &S3, args: &[&str]) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let log = folder.path().join("log");
        let out = std::fs::File::create(&log)?;
        let port = free_port()?;
        let child = Command::new(binary())
            .args(["sagemaker-local", "--port", &port.to_string()])
            .args(["--s3-endpoint", &format!("http://127.0.0.1:{}", s3.port())])
            .arg("--work-dir")
            .arg(folder.path().join("work"))
            .arg("--plugins")
            .arg(plugins())
            .args(args)
            .envs(CREDENTIALS)
            .stdin(Stdio::null())
            .stderr(out.try_clone()?)
            .stdout(out)
            .spawn()
            .context("starting drivetrain")?;
        let mut service = Self { child, port, log, _folder: folder };
        let deadline = Instant::now() + Duration::from_secs(60);
        while service.get("/ping").is_err() {
            if let Some(status) = service.child.try_wait()? {
                bail!("the service ended with {status}:\n{}", service.log());
            }
            ensure!(Instant::now() < deadline, "the service does not answer:\n{}", service.log());
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(service)
    }

    /// A `GET`.
    ///
    /// # Errors
    /// If no whole answer comes.
    pub fn get(&self, path: &str) -> Result<Reply> {
        request(self.port, "GET", path, &[], b"")
    }

    /// Its address.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// What it and its containers have written so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// The processes of its containers that still run.
    pub fn containers(&self) -> Vec<u32> {
        let log = self.log();
        let started = log.lines().filter(|line| line.contains("container starts"));
        let pids =
            started.filter_map(|line| line.split("pid=").nth(1)?.split(' ').next()?.parse().ok());
        pids.filter(|pid| is_running(*pid)).collect()
    }

    /// Sends a signal by its name, such as `TERM`.
    ///
    /// # Errors
    /// If `kill` can't be run.
    pub fn signal(&self, name: &str) -> Result<()> {
        let signal = format!("-{name}");
        let status = Command::new("kill").args([&signal, &self.child.id().to_string()]).status()?;
        ensure!(status.success(), "kill: {status}");
        Ok(())
    }

    /// Waits for the process to end.
    ///
    /// # Errors
    /// If it has not ended after `limit`.
    pub fn exit(&mut self, limit: Duration) -> Result<Exit> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(Exit { code: status.code(), log: self.log() });
            }
            ensure!(Instant::now() < deadline, "still running after {limit:?}:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for LocalSagemaker {
    fn drop(&mut self) {
        // An already ended process is no error here.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Whether a process runs; one that has ended and was not waited for does not.
fn is_running(pid: u32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"));
    status.is_ok_and(|status| !status.lines().any(|line| line.starts_with("State:\tZ")))
}
