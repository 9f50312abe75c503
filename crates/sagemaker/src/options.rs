//! What the service is told at its start.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use drivetrain_config::Environment;

/// Keys that requests have to be signed with.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// The access key id.
    pub access_key_id: String,
    /// The secret access key; never printed.
    pub secret_access_key: String,
    /// The session token of temporary keys.
    pub session_token: Option<String>,
}

impl Credentials {
    /// Those of `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY` and `AWS_SESSION_TOKEN`, where both keys
    /// are set.
    pub fn of(env: &Environment) -> Option<Self> {
        Some(Self {
            access_key_id: env.get("AWS_ACCESS_KEY_ID")?.to_owned(),
            secret_access_key: env.get("AWS_SECRET_ACCESS_KEY")?.to_owned(),
            session_token: env.get("AWS_SESSION_TOKEN").map(str::to_owned),
        })
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials")
            .field("access_key_id", &self.access_key_id)
            .finish_non_exhaustive()
    }
}

/// Bounds on what containers and clients may take. The defaults are SageMaker's.
#[derive(Clone, Debug)]
pub struct Limits {
    /// How long a connection to a container may take to be made.
    pub connect: Duration,
    /// How long `/ping` may take.
    pub ping: Duration,
    /// How often a container in service is asked for its health.
    pub ping_interval: Duration,
    /// How long a container may take to be healthy, unless its configuration says otherwise.
    pub startup: Duration,
    /// How long a model's data may take to be brought here, unless its configuration says otherwise.
    pub download: Duration,
    /// How long an invocation may take.
    pub invocation: Duration,
    /// How long a streamed reply may go on.
    pub stream: Duration,
    /// How long an asynchronous invocation may take, unless it says otherwise.
    pub asynchronous: Duration,
    /// How long a model of a multi-model endpoint is loaded for while callers are told to come back.
    pub model_load: Duration,
    /// How long after SIGTERM a container is killed.
    pub stop: Duration,
    /// Largest body of an invocation, and of its reply, in bytes.
    pub payload_bytes: usize,
}

impl Default for Limits {
    /// 250 ms, 2 s every 5 s, 4 minutes, an hour, 60 s, 8 minutes, 15 minutes, 6 minutes, 30 s,
    /// 6 MiB.
    fn default() -> Self {
        Self {
            connect: Duration::from_millis(250),
            ping: Duration::from_secs(2),
            ping_interval: Duration::from_secs(5),
            startup: Duration::from_secs(240),
            download: Duration::from_secs(3600),
            invocation: Duration::from_secs(60),
            stream: Duration::from_secs(480),
            asynchronous: Duration::from_secs(900),
            model_load: Duration::from_secs(360),
            stop: Duration::from_secs(30),
            payload_bytes: 6 << 20,
        }
    }
}

/// What the service is told at its start.
#[derive(Clone, Debug)]
pub struct Options {
    /// The address to listen on.
    pub host: String,
    /// The port to listen on; 0 lets the system choose.
    pub port: u16,
    /// The region in ARNs, in signatures and in the containers' environment.
    pub region: String,
    /// The directory for downloads, unpacked archives and the containers' files.
    pub work_dir: PathBuf,
    /// Where S3 is, in place of what `AWS_ENDPOINT_URL_S3` and `AWS_ENDPOINT_URL` say.
    pub s3_endpoint: Option<String>,
    /// What requests have to be signed with; unsigned ones are taken where there is nothing.
    pub credentials: Option<Credentials>,
    /// The `drivetrain` binary that containers run.
    pub binary: PathBuf,
    /// Directories of engine libraries, given to the containers.
    pub plugins: Vec<PathBuf>,
    /// The environment that containers are given a part of.
    pub env: Environment,
    /// Bounds.
    pub limits: Limits,
}
