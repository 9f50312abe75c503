//! Starting the ranks: a place where they can call, `mpirun`, and the order to load.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::{IpAddr, TcpListener, ToSocketAddrs, UdpSocket};
use std::num::NonZeroUsize;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use drivetrain_engine::{EngineError, ErrorKind, LoadRequest, LoadedModel, LogLevel};

use super::digest::digest;
use super::links::Links;
use super::messages::{Hello, LoadOrder, Loaded, Token, VERSION};
use super::process::Launcher;
use super::proxy::RemoteModel;
use super::stream::Stream;
use super::wire::{self, Frame, Kind, MAX_GREETING_BYTES, WireError};
use super::{LEADER_VARIABLE, TOKEN_VARIABLE};
use crate::options::MpiOptions;

/// The program that every rank is.
const PROGRAM: &str = "drivetrain-rank";
/// Most ranks of a model.
const MOST_RANKS: u32 = 1024;
/// How long a peer may take to greet.
const GREETING: Duration = Duration::from_secs(5);
/// How long `mpirun` may take to start all ranks.
const STARTING: Duration = Duration::from_secs(30);
/// Peers that may be about to greet.
const MAX_PEERS: usize = 256;
/// How often the one who waits for ranks looks around.
const TURN: Duration = Duration::from_millis(10);
/// Largest host file.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// Loads what `request` names on ranks that `mpirun` starts.
///
/// # Errors
/// There is no `mpirun`, the ranks do not come, or one of them can't load its part.
pub(crate) fn load(
    request: &LoadRequest<'_>,
    degree: NonZeroUsize,
    mpi: &MpiOptions,
) -> Result<LoadedModel, EngineError> {
    let degree = u32::try_from(degree.get()).ok().filter(|degree| *degree <= MOST_RANKS);
    let degree = degree.ok_or_else(|| {
        let message =
            format!("option.tensor_parallel_degree: at most {MOST_RANKS} ranks are started");
        EngineError::bad_input(message)
    })?;
    let program = program()?;
    let hosts = mpi.hostfile.as_deref().map(Hosts::read).transpose()?;
    let order = order(request, degree)?;
    let token = Token::random().map_err(|error| failed("no random numbers", &error))?;
    // Nobody else can look into it.
    let dir = tempfile::Builder::new().prefix("drivetrain-ranks-").tempdir();
    let dir = dir.map_err(|error| failed("no directory for their socket", &error))?;
    let listener = Listener::new(dir.path(), hosts.as_ref(), mpi.leader_address.as_deref())
        .map_err(|error| failed("no socket for the ranks to call", &error))?;
    let mut command = command(&program, degree, dir.path(), hosts.as_ref());
    command.env(LEADER_VARIABLE, &listener.address).env(TOKEN_VARIABLE, token.to_text());
    let launcher = Launcher::start(&mut command, dir, &request.services).map_err(|error| {
        let message = match error.kind() {
            io::ErrorKind::NotFound => {
                "option.mpi_mode=true: there is no mpirun on the PATH; install Open MPI (Debian's \
                 package openmpi-bin), or leave the option out for ranks that are threads"
            }
            _ => "option.mpi_mode=true: mpirun can't be started",
        };
        EngineError::wrap(ErrorKind::Unsupported, message, &error)
    })?;
    let ranks = Arrivals { request, listener, token, degree }.wait(&launcher)?;
    let links = Links::new(ranks, launcher, request.services.clone())?;
    links.send(order.write(&mut Frame::default()))?;
    let loaded = links.loaded()?;
    let info = agreed(&loaded)?;
    let bytes: Vec<String> = loaded.iter().map(|rank| rank.own_bytes.to_string()).collect();
    let message = format!(
        "model {}: {degree} ranks under MPI with {} bytes of weights: {}",
        request.model_name,
        bytes.join(", "),
        links.titles()
    );
    request.services.log(LogLevel::Info, &message);
    Ok(LoadedModel::Token(Box::new(RemoteModel::new(links, info))))
}

fn failed(what: &str, error: &io::Error) -> EngineError {
    EngineError::wrap(ErrorKind::Internal, format!("starting the ranks: {what}"), error)
}

/// What all ranks say that the model is.
fn agreed(loaded: &[Loaded]) -> Result<drivetrain_engine::TokenModelInfo, EngineError> {
    let mut infos = loaded.iter().map(|rank| rank.info);
    let first = infos.next().ok_or_else(|| EngineError::internal("a model without ranks"))?;
    match infos.find(|info| *info != first) {
        Some(other) => Err(EngineError::internal(format!(
            "the ranks loaded different models: {first:?} and {other:?}"
        ))),
        None => Ok(first),
    }
}

/// Where the program lies: beside this one, or where a distribution has it.
fn program() -> Result<PathBuf, EngineError> {
    let own = std::env::current_exe().unwrap_or_default();
    let folders = own.ancestors().skip(1).take(2);
    let found = folders.map(|folder| folder.join(PROGRAM)).find(|path| path.is_file());
    found.ok_or_else(|| {
        EngineError::unsupported(format!(
            "option.mpi_mode=true: the program {PROGRAM} is not beside {}: this build has no MPI; \
             install Open MPI's headers and libclang (Debian: libopenmpi-dev, libclang-dev) and build \
             with --features drivetrain-deepspeed/mpi, or leave the option out for ranks that are \
             threads",
            own.display()
        ))
    })
}

/// The order to the ranks.
fn order(request: &LoadRequest<'_>, degree: u32) -> Result<LoadOrder, EngineError> {
    let absolute = |path: &Path| std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let model_dir = absolute(request.model_dir);
    let adapter_dir = request.adapter_dir.map(absolute);
    let sum = |path: &Path| {
        digest(path).map_err(|error| {
            let message = format!("the files in {} can't be read", path.display());
            EngineError::wrap(ErrorKind::BadInput, message, &error)
        })
    };
    let mut sums = sum(&model_dir)?;
    if let Some(dir) = &adapter_dir {
        sums.push_str(&sum(dir)?);
    }
    let options = request.options.iter().flat_map(|(k, v)| [k.to_owned(), v.to_owned()]);
    Ok(LoadOrder {
        degree,
        n_threads: u32::try_from(request.n_threads.get()).unwrap_or(u32::MAX),
        model_name: request.model_name.to_owned(),
        model_dir: model_dir.as_os_str().as_bytes().to_vec(),
        adapter_dir: adapter_dir
            .map(|dir| dir.into_os_string().into_encoded_bytes())
            .unwrap_or_default(),
        options: options.collect(),
        digest: sums,
    })
}

fn command(program: &Path, degree: u32, dir: &Path, hosts: Option<&Hosts>) -> Command {
    let mut command = Command::new("mpirun");
    // Containers run as root, which mpirun refuses otherwise.
    command.env("OMPI_ALLOW_RUN_AS_ROOT", "1").env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1");
    command.args(["-n", &degree.to_string(), "--oversubscribe", "--bind-to", "none"]);
    // A rank that waits for another lets it have the core, if there are fewer of them than ranks.
    command.args(["--mca", "mpi_yield_when_idle", "1"]);
    // Copying from another process's memory is forbidden in most containers, and fails halfway there.
    command.args(["--mca", "btl_vader_single_copy_mechanism", "none"]);
    // What it writes while it runs goes with the model.
    command.env("TMPDIR", dir);
    if let Some(hosts) = hosts {
        command.arg("--hostfile").arg(&hosts.path);
        command.args(["-x", LEADER_VARIABLE, "-x", TOKEN_VARIABLE]);
    }
    command.arg(program);
    command
}

/// The machines that ranks are on.
struct Hosts {
    path: PathBuf,
    names: Vec<String>,
}

impl Hosts {
    /// Reads a host file of Open MPI's: a name a line, with what else is said of it behind.
    fn read(path: &Path) -> Result<Self, EngineError> {
        let wrong = |what: String| {
            EngineError::bad_input(format!("option.mpi_hostfile={}: {what}", path.display()))
        };
        let n_bytes = fs::metadata(path).map_err(|error| wrong(error.to_string()))?.len();
        if n_bytes > MAX_FILE_BYTES {
            return Err(wrong(format!("expected at most {MAX_FILE_BYTES} bytes")));
        }
        let text = fs::read_to_string(path).map_err(|error| wrong(error.to_string()))?;
        let lines = text.lines().map(|line| line.split('#').next().unwrap_or_default());
        let names = lines.filter_map(|line| line.split_whitespace().next());
        let names: Vec<String> = names.map(str::to_owned).collect();
        if names.is_empty() {
            return Err(wrong("it names no host".to_owned()));
        }
        let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        Ok(Self { path, names })
    }

    /// The address of this machine that the others reach it by.
    fn own_address(&self) -> io::Result<IpAddr> {
        let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
        let mut found = None;
        for name in &self.names {
            match route_to(name) {
                // What this machine reaches itself by may be of no use to others.
                Ok((own, host)) if own == host => _ = found.get_or_insert(own),
                Ok((own, _)) => return Ok(own),
                Err(error) => last = error,
            }
        }
        found.ok_or(last)
    }
}

/// The address by which this machine would send to `host`, and the host's. Nothing is sent.
fn route_to(host: &str) -> io::Result<(IpAddr, IpAddr)> {
    let address = (host, 9).to_socket_addrs()?.next();
    let address = address.ok_or(io::ErrorKind::AddrNotAvailable)?;
    let any: IpAddr = if address.is_ipv4() { [0; 4].into() } else { [0_u8; 16].into() };
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect(address)?;
    Ok((socket.local_addr()?.ip(), address.ip()))
}

/// Where ranks call.
#[derive(Debug)]
pub(crate) struct Listener {
    /// As [`Stream::connect`] takes it.
    address: String,
    socket: Socket,
}

#[derive(Debug)]
enum Socket {
    Unix(UnixListener),
    Tcp(TcpListener),
}

impl Listener {
    /// In `dir`, where all ranks are on this machine; else at the address that the others reach it by.
    fn new(dir: &Path, hosts: Option<&Hosts>, address: Option<&str>) -> io::Result<Self> {
        let Some(hosts) = hosts else {
            let path = dir.join("socket");
            let socket = UnixListener::bind(&path)?;
            socket.set_nonblocking(true)?;
            let address = format!("unix:{}", path.display());
            return Ok(Self { address, socket: Socket::Unix(socket) });
        };
        let own = match address {
            Some(address) => {
                let mut found = (address, 0).to_socket_addrs()?;
                found.next().ok_or(io::ErrorKind::AddrNotAvailable)?.ip()
            }
            None => hosts.own_address()?,
        };
        let socket = TcpListener::bind((own, 0))?;
        socket.set_nonblocking(true)?;
        let address = format!("tcp:{}", socket.local_addr()?);
        Ok(Self { address, socket: Socket::Tcp(socket) })
    }

    /// Who calls, if somebody does.
    fn accept(&self) -> io::Result<Option<Stream>> {
        let accepted = match &self.socket {
            Socket::Unix(socket) => socket
                .accept()
                .map(|(stream, _)| stream.set_nonblocking(false).map(|()| Stream::Unix(stream))),
            Socket::Tcp(socket) => socket.accept().map(|(stream, _)| {
                stream.set_nodelay(true)?;
                stream.set_nonblocking(false).map(|()| Stream::Tcp(stream))
            }),
        };
        match accepted {
            Ok(stream) => stream.map(Some),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// Waiting for the ranks.
struct Arrivals<'r> {
    request: &'r LoadRequest<'r>,
    listener: Listener,
    token: Token,
    degree: u32,
}

/// A peer that has greeted, or what is wrong with it.
type Greeted = Result<(Hello, Stream), WireError>;

impl Arrivals<'_> {
    /// All ranks, in their order.
    fn wait(self, launcher: &Launcher) -> Result<Vec<(Hello, Stream)>, EngineError> {
        let services = &self.request.services;
        let (sender, greeted): (Sender<Greeted>, Receiver<Greeted>) = channel();
        let mut ranks = BTreeMap::new();
        let mut n_peers = 0;
        let began = Instant::now();
        while ranks.len() < self.degree as usize {
            let call = self.listener.accept();
            let call = call.map_err(|error| failed("nobody can call", &error))?;
            if let Some(stream) = call.filter(|_| n_peers < MAX_PEERS) {
                n_peers += 1;
                let (sender, token) = (sender.clone(), self.token);
                let work = move || {
                    // Nobody waits any more where it can't be given.
                    let _ = sender.send(greet(stream, token));
                };
                let thread = thread::Builder::new().name("rank-greeting".to_owned());
                thread.spawn(work).map_err(|error| failed("no thread", &error))?;
            }
            match greeted.recv_timeout(TURN) {
                Ok(Ok((hello, stream))) => {
                    n_peers = n_peers.saturating_sub(1);
                    self.check(&hello)?;
                    ranks.insert(hello.rank, (hello, stream));
                }
                Ok(Err(error)) => {
                    n_peers = n_peers.saturating_sub(1);
                    services.log(LogLevel::Warn, &format!("a peer that is no rank: {error}"));
                }
                Err(_) => {}
            }
            if services.cancelled() {
                return Err(EngineError::new(ErrorKind::Cancelled, "loading was cancelled"));
            }
            if began.elapsed() > STARTING {
                return Err(EngineError::new(
                    ErrorKind::Internal,
                    format!(
                        "{} of {} ranks were there after {} s: {}",
                        ranks.len(),
                        self.degree,
                        STARTING.as_secs(),
                        launcher.printed()
                    ),
                ));
            }
            if let Some(status) = launcher.end() {
                return Err(self.ended(launcher, status, ranks.len()));
            }
            services.progress("starting the ranks", ranks.len() as u64, self.degree.into());
        }
        Ok(ranks.into_values().collect())
    }

    fn check(&self, hello: &Hello) -> Result<(), EngineError> {
        if hello.rank >= self.degree {
            return Err(EngineError::internal(format!("there is no {}", hello.title())));
        }
        if hello.version == VERSION {
            return Ok(());
        }
        Err(EngineError::bad_input(format!(
            "{} is of version {}, this server of {VERSION}: install the same on all hosts",
            hello.title(),
            hello.version
        )))
    }

    fn ended(
        &self,
        launcher: &Launcher,
        status: std::process::ExitStatus,
        n_there: usize,
    ) -> EngineError {
        // What it printed last may still be on its way.
        thread::sleep(Duration::from_millis(50));
        EngineError::new(
            ErrorKind::Unsupported,
            format!(
                "mpirun ended ({status}) before all ranks were there ({n_there} of {}): {}",
                self.degree,
                launcher.printed()
            ),
        )
    }
}

/// Reads the greeting of whoever called.
fn greet(mut stream: Stream, token: Token) -> Greeted {
    stream.limit(GREETING, GREETING)?;
    let mut body = Vec::new();
    match wire::read(&mut stream, &mut body, MAX_GREETING_BYTES)? {
        Some(Kind::Hello) => Ok((Hello::read(&body, token)?, stream)),
        _ => Err(WireError::Garbage("it does not greet")),
    }
}
