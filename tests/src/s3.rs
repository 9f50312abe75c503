//! A real S3 server: moto's, in a process of its own.

use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::python::{python, scripts};
use crate::server::free_port;

/// Credentials that the server takes; it takes any.
pub const CREDENTIALS: [(&str, &str); 3] = [
    ("AWS_ACCESS_KEY_ID", "AKIATESTKEY"),
    ("AWS_SECRET_ACCESS_KEY", "verysecret"),
    ("AWS_REGION", "eu-central-1"),
];

/// A running server. Killed when dropped.
#[derive(Debug)]
pub struct S3 {
    child: Child,
    port: u16,
    python: PathBuf,
}

impl S3 {
    /// Starts the server; none where Python or its packages can't be had, with the reason.
    ///
    /// # Errors
    /// If it does not answer.
    pub fn start() -> Result<Result<Self, String>> {
        let python = match python() {
            Ok(python) => python,
            Err(why) => return Ok(Err(why)),
        };
        let port = free_port()?;
        let child = Command::new(&python)
            .args(["-m", "moto.server", "-H", "127.0.0.1", "-p", &port.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        let mut server = Self { child, port, python };
        let deadline = Instant::now() + Duration::from_secs(60);
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            if let Some(status) = server.child.try_wait()? {
                bail!("moto's server ended with {status}");
            }
            ensure!(Instant::now() < deadline, "moto's server does not answer");
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(Ok(server))
    }

    /// The port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Runs `tests/python/s3.py` with these arguments, which uses boto3.
    ///
    /// # Errors
    /// If it fails.
    pub fn boto3(&self, args: &[&str]) -> Result<()> {
        let output = Command::new(&self.python)
            .arg(scripts().join("s3.py"))
            .arg(format!("http://127.0.0.1:{}", self.port))
            .args(args)
            .envs(CREDENTIALS)
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .stdin(Stdio::null())
            .output()
            .context("python")?;
        ensure!(output.status.success(), "s3.py: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }

    /// Uploads a directory under a prefix, or a file under a key.
    ///
    /// # Errors
    /// If that fails.
    pub fn put(&self, what: &Path, bucket: &str, key: &str) -> Result<()> {
        self.boto3(&["put", bucket, key, &what.display().to_string()])
    }
}

impl Drop for S3 {
    fn drop(&mut self) {
        // An already ended process is no error here.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
