//! A `drivetrain serve` child process on a free port.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::workspace;

/// How a server is started.
#[derive(Clone, Debug, Default)]
pub struct ServerOptions {
    /// `MODEL` arguments.
    pub models: Vec<String>,
    /// Further arguments.
    pub args: Vec<String>,
    /// Environment variables.
    pub env: Vec<(String, String)>,
    /// The engines' folder; this build's when unset.
    pub plugins: Option<PathBuf>,
    /// Words in front of the command, as in `ip netns exec NAME`.
    pub prefix: Vec<String>,
    /// Most KiB of memory of its own that the process may have (`ulimit -d`).
    pub data_limit_kib: Option<u64>,
}

/// A running server. Killed when dropped.
#[derive(Debug)]
pub struct Server {
    child: Child,
    port: u16,
    log: PathBuf,
    _folder: tempfile::TempDir,
}

/// How a server ended.
#[derive(Debug)]
pub struct Exit {
    /// Its exit code; none when a signal ended it.
    pub code: Option<i32>,
    /// What it had written to standard output and error.
    pub log: String,
}

/// An HTTP answer.
#[derive(Debug)]
pub struct Reply {
    /// The status code.
    pub status: u16,
    /// Header names in lower case, and values.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: Vec<u8>,
}

impl Reply {
    /// The body as JSON.
    ///
    /// # Errors
    /// If it is not JSON.
    pub fn json(&self) -> Result<serde_json::Value> {
        serde_json::from_slice(&self.body)
            .with_context(|| format!("not JSON: {}", String::from_utf8_lossy(&self.body)))
    }

    /// The first header of that name, in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }
}

impl Server {
    /// Serves `model` and waits until it is ready.
    ///
    /// # Errors
    /// If the server ends or is not ready in time; the log is in the error.
    pub fn start(model: &Path) -> Result<Self> {
        let models = vec![model.display().to_string()];
        Self::with(&ServerOptions { models, ..ServerOptions::default() })
    }

    /// Starts a server as `options` say and waits until `/ping` answers.
    ///
    /// # Errors
    /// If the server ends or does not answer in time; the log is in the error.
    pub fn with(options: &ServerOptions) -> Result<Self> {
        let mut server = Self::spawn(options)?;
        server.wait()?;
        Ok(server)
    }

    /// Starts a server and does not wait.
    ///
    /// # Errors
    /// If the process can't be started.
    pub fn spawn(options: &ServerOptions) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let log = folder.path().join("log");
        let out = std::fs::File::create(&log)?;
        let port = free_port()?;
        let plugins = options.plugins.clone().unwrap_or_else(workspace::plugins);
        let mut command = match options.data_limit_kib {
            None if !options.prefix.is_empty() => {
                let mut words = options.prefix.iter();
                let mut command = Command::new(words.next().map_or("", String::as_str));
                command.args(words).arg(workspace::binary());
                command
            }
            Some(limit) => {
                let mut shell = Command::new("sh");
                let script = format!("ulimit -d {limit} && exec \"$0\" \"$@\"");
                shell.args(["-c", &script]).arg(workspace::binary());
                shell
            }
            None => Command::new(workspace::binary()),
        };
        command
            .arg("serve")
            .args(&options.models)
            .args(["--host", "127.0.0.1", "--port", &port.to_string()])
            .arg("--plugins")
            .arg(plugins)
            .args(&options.args)
            .env("DRIVETRAIN_CACHE_DIR", folder.path().join("cache"))
            .envs(options.env.iter().map(|(k, v)| (k, v)))
            .stdin(Stdio::null())
            .stderr(out.try_clone()?)
            .stdout(out);
        let child = command.spawn().context("starting drivetrain")?;
        Ok(Self { child, port, log, _folder: folder })
    }

    /// Waits until the port answers.
    ///
    /// # Errors
    /// As [`Self::with`].
    pub fn wait(&mut self) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(60);
        while Instant::now() < deadline {
            if let Some(status) = self.child.try_wait()? {
                bail!("the server ended with {status}:\n{}", self.log());
            }
            if TcpStream::connect(("127.0.0.1", self.port)).is_ok() {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        bail!("the server did not answer in time:\n{}", self.log())
    }

    /// What the server has written so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// The port it listens on.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The process's number.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// A `GET`.
    ///
    /// # Errors
    /// If no whole answer comes.
    pub fn get(&self, path: &str) -> Result<Reply> {
        self.request("GET", path, &[], b"")
    }

    /// A `POST` of `body` with a content type.
    ///
    /// # Errors
    /// If no whole answer comes.
    pub fn post(&self, path: &str, content_type: &str, body: impl AsRef<[u8]>) -> Result<Reply> {
        self.request("POST", path, &[("Content-Type", content_type)], body.as_ref())
    }

    /// Any request, through an ordinary HTTP client.
    ///
    /// # Errors
    /// If no whole answer comes.
    pub fn request(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Result<Reply> {
        request(self.port, method, path, headers, body)
    }

    /// The sum of a metric over its labels, as `/metrics` has it; none if it is not there.
    ///
    /// # Errors
    /// If the page can't be had.
    pub fn metric(&self, name: &str) -> Result<Option<f64>> {
        let page = self.get("/metrics")?;
        let text = String::from_utf8(page.body)?;
        let of_line = |line: &str| {
            let rest = line.strip_prefix(name)?;
            let is_name = rest.starts_with(['{', ' ']);
            is_name.then(|| rest.rsplit(' ').next()?.parse::<f64>().ok())?
        };
        Ok(text.lines().filter_map(of_line).fold(None, |sum, n| Some(sum.unwrap_or(0.0) + n)))
    }

    /// Waits until `is_so`, looking again and again.
    ///
    /// # Errors
    /// If it is not within a minute; the log is in the error.
    pub fn until(&self, what: &str, mut is_so: impl FnMut(&Self) -> bool) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(60);
        while !is_so(self) {
            if Instant::now() >= deadline {
                bail!("{what}: not within a minute:\n{}", self.log());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    /// Open sockets of the process.
    ///
    /// # Errors
    /// If the system does not say.
    pub fn n_sockets(&self) -> Result<usize> {
        let files = std::fs::read_dir(format!("/proc/{}/fd", self.pid()))?;
        let links = files.flatten().filter_map(|file| std::fs::read_link(file.path()).ok());
        Ok(links.filter(|link| link.to_string_lossy().starts_with("socket:")).count())
    }

    /// Sends raw bytes and returns what comes back until the server closes or 5 s pass.
    ///
    /// # Errors
    /// If the connection can't be made.
    pub fn raw(&self, bytes: &[u8]) -> Result<Vec<u8>> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port))?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        stream.write_all(bytes)?;
        let mut answer = Vec::new();
        let mut chunk = [0; 4096];
        while let Ok(n) = stream.read(&mut chunk) {
            if n == 0 {
                break;
            }
            answer.extend_from_slice(chunk.get(..n).unwrap_or_default());
        }
        Ok(answer)
    }

    /// Sends SIGTERM.
    ///
    /// # Errors
    /// If `kill` can't be run.
    pub fn terminate(&self) -> Result<()> {
        let status = Command::new("kill").args(["-TERM", &self.pid().to_string()]).status()?;
        ensure!(status.success(), "kill: {status}");
        Ok(())
    }

    /// Waits for the process to end.
    ///
    /// # Errors
    /// If it has not ended after `limit`.
    pub fn exit(mut self, limit: Duration) -> Result<Exit> {
        let deadline = Instant::now() + limit;
        while Instant::now() < deadline {
            if let Some(status) = self.child.try_wait()? {
                return Ok(Exit { code: status.code(), log: self.log() });
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        bail!("still running after {limit:?}:\n{}", self.log())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // An already ended process is no error here, and there is nobody to tell of another.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A request to a port of this machine, through an ordinary HTTP client.
///
/// # Errors
/// If no whole answer comes.
pub fn request(
    port: u16,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> Result<Reply> {
    let mut request =
        ureq::http::Request::builder().method(method).uri(format!("http://127.0.0.1:{port}{path}"));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let agent: ureq::Agent = ureq::Agent::config_builder()
        .http_status_as_error(false)
        .allow_non_standard_methods(true)
        .timeout_global(Some(Duration::from_secs(120)))
        .build()
        .into();
    let mut answer = agent.run(request.body(body)?)?;
    let headers = answer.headers().iter().map(|(name, value)| {
        (name.as_str().to_owned(), String::from_utf8_lossy(value.as_bytes()).into_owned())
    });
    let headers = headers.collect();
    let status = answer.status().as_u16();
    let body = answer.body_mut().with_config().limit(1 << 30).read_to_vec()?;
    Ok(Reply { status, headers, body })
}

pub(crate) fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}
