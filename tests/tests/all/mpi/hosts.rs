//! Two hosts: network namespaces with addresses of their own and a link between them, which is cut.
//!
//! Making them needs root, `ip` and `unshare`. `mpirun` reaches the other one through a script in place of ssh.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use drivetrain_tests::{Server, ServerOptions};
use tempfile::TempDir;

use super::{PROMPT, can_run, model, options};

/// How soon whoever waits has to know of a cut.
const SOON: Duration = Duration::from_secs(2);
/// How long the model may take to come back.
const BACK: Duration = Duration::from_secs(60);

/// The hosts; they go when this is dropped.
struct Hosts {
    names: [String; 2],
    dir: TempDir,
}

fn ip(args: &str) -> Result<(), String> {
    let done = Command::new("ip").args(args.split(' ')).output().map_err(|e| e.to_string())?;
    let text = String::from_utf8_lossy(&done.stderr);
    if done.status.success() { Ok(()) } else { Err(format!("ip {args}: {text}")) }
}

impl Hosts {
    /// New ones; `tag` tells those of one test from another's.
    fn new(tag: &str) -> Result<Self, String> {
        let own = std::process::id();
        let names = [format!("dt{own}{tag}a"), format!("dt{own}{tag}b")];
        let dir = tempfile::tempdir().map_err(|error| error.to_string())?;
        let hosts = Self { names, dir };
        let [a, b] = &hosts.names;
        ip(&format!("netns add {a}"))?;
        ip(&format!("netns add {b}"))?;
        ip(&format!("link add {a} netns {a} type veth peer name {b} netns {b}"))?;
        for (name, address) in [(a, "10.213.7.1/24"), (b, "10.213.7.2/24")] {
            ip(&format!("-n {name} link set lo up"))?;
            ip(&format!("-n {name} addr add {address} dev {name}"))?;
            ip(&format!("-n {name} link set {name} up"))?;
        }
        let agent = format!(
            "#!/bin/sh\ncase $1 in *.1) ns={a} name=host-a;; *) ns={b} name=host-b;; esac\nshift\n\
             exec ip netns exec $ns unshare --uts --mount sh -c \
             \"echo $name > /proc/sys/kernel/hostname; \
             [ ! -e {dir}/place ] || mount --bind {dir}/other \\$(cat {dir}/place); $*\"\n",
            dir = hosts.dir.path().display()
        );
        let write = || -> std::io::Result<()> {
            fs::write(hosts.dir.path().join("agent"), agent)?;
            let executable = fs::Permissions::from_mode(0o755);
            fs::set_permissions(hosts.dir.path().join("agent"), executable)?;
            fs::write(hosts.file(), "10.213.7.1 slots=1\n10.213.7.2 slots=1\n")
        };
        write().map_err(|error| error.to_string())?;
        let named = hosts.on_first(&["sh", "-c", "echo host-a > /proc/sys/kernel/hostname"]);
        if named.status.success() {
            return Ok(hosts);
        }
        Err(String::from_utf8_lossy(&named.stderr).into_owned())
    }

    fn file(&self) -> std::path::PathBuf {
        self.dir.path().join("hosts")
    }

    /// A command on the first host.
    fn prefix(&self) -> Vec<String> {
        let words = ["ip", "netns", "exec", &self.names[0], "unshare", "--uts"];
        words.map(str::to_owned).to_vec()
    }

    fn on_first(&self, command: &[&str]) -> Output {
        let prefix = self.prefix();
        Command::new(&prefix[0]).args(&prefix[1..]).args(command).output().unwrap()
    }

    /// Lets the second host have another model than the first at this place.
    fn twist(&self, place: &Path, name: &str) {
        let other = model(name, "");
        fs::rename(other.path(), self.dir.path().join("other")).unwrap();
        fs::write(self.dir.path().join("place"), place.display().to_string()).unwrap();
    }

    /// How a model is served on both.
    fn options(&self, properties: &str) -> (TempDir, ServerOptions) {
        let file = self.file();
        let properties = format!(
            "engine=MPI\noption.tensor_parallel_degree=2\noption.mpi_hostfile={}\n{properties}",
            file.display()
        );
        let dir = model("llama_gqa", &properties);
        let agent = self.dir.path().join("agent").display().to_string();
        let env = vec![("OMPI_MCA_plm_rsh_agent".to_owned(), agent)];
        let options = ServerOptions { env, prefix: self.prefix(), ..options(dir.path()) };
        (dir, options)
    }

    fn cut(&self, is_cut: bool) {
        let [a, _] = &self.names;
        let state = if is_cut { "down" } else { "up" };
        ip(&format!("-n {a} link set {a} {state}")).unwrap();
    }

    /// The status and the body of a request from the first host.
    fn ask(&self, server: &Server, path: &str, body: Option<&str>) -> (u16, String) {
        let url = format!("http://127.0.0.1:{}{path}", server.port());
        let mut command = vec!["curl", "-s", "-m", "30", "-w", "\n%{http_code}"];
        if let Some(body) = body {
            command.extend(["-H", "Content-Type: application/json", "-d", body]);
        }
        command.push(&url);
        let text = String::from_utf8(self.on_first(&command).stdout).unwrap();
        let (body, status) = text.rsplit_once('\n').unwrap();
        (status.parse().unwrap(), body.to_owned())
    }

    fn until(&self, server: &Server, what: &str, limit: Duration, mut is_so: impl FnMut() -> bool) {
        let deadline = Instant::now() + limit;
        while !is_so() {
            assert!(Instant::now() < deadline, "{what}: not within {limit:?}:\n{}", server.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        for name in &self.names {
            // What was not made is no error.
            let _ = ip(&format!("netns del {name}"));
        }
    }
}

/// Two hosts, where they can be had.
fn hosts(test: &str, tag: &str) -> Option<Hosts> {
    // A container without the right to make them is no worse a place for all other tests.
    let said = |error: &String| eprintln!("skipped: {test}: no network namespaces: {error}");
    Hosts::new(tag).inspect_err(said).ok()
}

#[test]
fn hosts_with_other_files_are_refused() {
    let test = "hosts_with_other_files_are_refused";
    if !can_run(test) {
        return;
    }
    let Some(hosts) = hosts(test, "d") else { return };
    let (dir, options) = hosts.options("");
    hosts.twist(dir.path(), "llama_mha");
    let exit = Server::spawn(&options).unwrap().exit(BACK).unwrap();
    assert_eq!(exit.code, Some(1), "{}", exit.log);
    let expect = "are others than the server's: their digest is ";
    let line = exit.log.lines().find(|line| line.contains(expect)).unwrap_or_default();
    assert!(line.contains("rank 1 ") && line.contains("on host host-b"), "{}", exit.log);
}

#[test]
fn a_cut_link_is_told_and_the_model_comes_back() {
    let test = "a_cut_link_is_told_and_the_model_comes_back";
    if !can_run(test) {
        return;
    }
    let Some(hosts) = hosts(test, "c") else { return };
    let (_dir, options) = hosts.options("retry_threshold=9\n");
    let server = Server::spawn(&options).unwrap();
    let ping = || hosts.ask(&server, "/ping", None).0;
    let answer = || hosts.ask(&server, "/invocations", Some(PROMPT));
    hosts.until(&server, "the model is ready", BACK, || answer().0 == 200);
    let text = answer().1;
    let log = server.log();
    let line = log.lines().find(|line| line.contains(" ranks under MPI ")).unwrap_or_default();
    assert!(line.contains("on host host-b)"), "{log}");

    hosts.cut(true);
    let cut = Instant::now();
    // It has to reach the other host, and can't.
    let (status, error) = answer();
    assert!(cut.elapsed() < SOON, "{:?}: {error}", cut.elapsed());
    assert_eq!(status, 503, "{error}");
    assert!(error.contains("rank 1 ") && error.contains("on host host-b"), "{error}");
    hosts.until(&server, "/ping tells", SOON.saturating_sub(cut.elapsed()), || ping() == 500);
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(ping(), 500, "{}", server.log());

    hosts.cut(false);
    hosts.until(&server, "the model is back", BACK, || answer() == (200, text.clone()));
    assert_eq!(ping(), 200);
}
