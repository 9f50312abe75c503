//! SageMaker's API on this machine, asked by boto3: `tests/python/sagemaker_local`.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use drivetrain_tests::{
    CREDENTIALS, LocalSagemaker, S3, binary, fixture, python, root, scripts, skip,
};

/// Seconds that an invocation may take in these tests.
const INVOCATION: &str = "8";

/// The service over an S3 server, and a Python with boto3.
struct Case {
    python: PathBuf,
    s3: S3,
    local: LocalSagemaker,
}

impl Case {
    fn new(test: &str) -> Option<Self> {
        let found = python().map(|python| (python, S3::start().unwrap()));
        match found {
            Ok((python, Ok(s3))) => {
                let local =
                    LocalSagemaker::start(&s3, &["--invocation-timeout", INVOCATION]).unwrap();
                Some(Self { python, s3, local })
            }
            Ok((_, Err(why))) | Err(why) => {
                skip(test, &why);
                None
            }
        }
    }

    fn run(&self, what: &[&str]) {
        let output = Command::new(&self.python)
            .args(what)
            .current_dir(scripts().join("sagemaker_local"))
            .envs(CREDENTIALS)
            .env("SAGEMAKER_URL", self.local.url())
            .env("S3_URL", format!("http://127.0.0.1:{}", self.s3.port()))
            .env("FIXTURES", fixture("bart").parent().unwrap())
            .env("HANDLER_PYTHON", &self.python)
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let report = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{report}\n{}", self.local.log());
    }
}

fn check(test: &str, file: &str) {
    let Some(case) = Case::new(test) else { return };
    case.run(&["-m", "unittest", file]);
}

#[test]
fn the_articles_walk() {
    check("the_articles_walk", "test_article");
}

#[test]
fn the_control_plane() {
    check("the_control_plane", "test_control");
}

#[test]
fn the_runtime() {
    check("the_runtime", "test_runtime");
}

/// An endpoint, made by boto3.
const MAKE: &str = "import local, test_control\n\
    local.Endpoint(local.upload('echo/one/model.tar.gz', test_control.ECHO))\n";

fn wait_until(what: &str, is_so: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(40);
    while !is_so() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn containers_end_with_the_service() {
    let Some(mut case) = Case::new("containers_end_with_the_service") else { return };
    case.run(&["-c", MAKE]);
    assert_eq!(case.local.containers().len(), 1, "{}", case.local.log());
    // What a container prints is told with its endpoint's name.
    let log = case.local.log();
    let told = log.lines().find(|line| line.contains("BOTH API bind to")).unwrap_or_default();
    assert!(told.contains("endpoint=\"e-") || told.contains("endpoint=e-"), "{log}");
    case.local.signal("TERM").unwrap();
    let exit = case.local.exit(Duration::from_secs(40)).unwrap();
    assert_eq!(exit.code, Some(0), "{}", exit.log);
    assert_eq!(case.local.containers(), Vec::<u32>::new());
    assert!(exit.log.contains("shut down after"), "the container drained: {}", exit.log);

    // Nobody tells the containers of a service that is killed, and they end all the same.
    case.local = LocalSagemaker::start(&case.s3, &[]).unwrap();
    case.run(&["-c", MAKE]);
    assert_eq!(case.local.containers().len(), 1, "{}", case.local.log());
    case.local.signal("KILL").unwrap();
    wait_until("a container outlives its service", || case.local.containers().is_empty());
}

#[test]
fn a_start_that_cannot_be_says_why() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let folder = tempfile::tempdir().unwrap();
    let start = |args: &[&str], work: &Path| {
        let output = Command::new(binary())
            .arg("sagemaker-local")
            .args(args)
            .arg("--work-dir")
            .arg(work)
            .stdin(Stdio::null())
            .output()
            .unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (code, log) = start(&["--port", &port], folder.path());
    assert_eq!(code, Some(2), "{log}");
    assert!(log.contains(&format!("can't bind 127.0.0.1:{port}")), "{log}");
    let (code, log) = start(&["--port", "0"], &root().join("Cargo.toml/work"));
    assert_eq!(code, Some(1), "{log}");
    assert!(log.contains("give another --work-dir"), "{log}");
    let (code, log) = start(&["--port", "0", "--invocation-timeout", "0"], folder.path());
    assert_eq!(code, Some(2), "{log}");
}
