//! A worker: its process, its socket, and the requests that it has.

use std::collections::HashMap;
use std::io::{self, BufReader, Read};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::AtomicU64;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use drivetrain_engine::{LogLevel, Request, Services};

use crate::entry::Entry;
use crate::error::PythonError;
use crate::output;
use crate::piece::Piece;
use crate::process::{self, Process};
use crate::settings::Settings;
use crate::wire::{self, Failure, Frame, WireError};

/// Pieces of a reply that a worker sends before it asks; `worker.py` has the same number.
pub(crate) const CREDIT: u32 = 16;

/// Events of a request that may wait: its pieces, its head and end, and a last word after a cancel.
const MAX_EVENTS: usize = CREDIT as usize + 8;

/// Most bytes of pieces that may wait for those who asked for them, of all of a worker's requests. A single
/// piece has the limit of a frame.
const MAX_WAITING_BYTES: u64 = 1 << 30;

/// How long a process whose socket has closed is given to end by itself.
const ENDING: Duration = Duration::from_millis(500);

/// How long what a worker printed before it was ended may take to be in the log: a process of its own that
/// it left behind may hold the pipe open.
const PRINTING: Duration = Duration::from_secs(1);

/// How long a worker may leave what is sent to it unread.
const UNREAD_LIMIT: Duration = Duration::from_secs(60);

/// How often one who waits looks around.
const TURN: Duration = Duration::from_millis(20);

/// The id under which a worker says how loading went.
const LOADING: u64 = 0;

/// What every worker of a model is started with.
#[derive(Debug)]
pub(crate) struct Launch {
    pub(crate) python: PathBuf,
    pub(crate) script: PathBuf,
    pub(crate) entry: Entry,
    pub(crate) model_dir: PathBuf,
    pub(crate) settings: Settings,
    pub(crate) services: Services,
}

/// What became of a request, step by step.
#[derive(Debug)]
pub(crate) enum Event {
    Ready { max_in_flight: u32 },
    Reply { status: u16, reason: String, headers: Vec<(String, String)> },
    Piece(Piece),
    End,
    Failed(Failure, String),
}

/// A worker.
#[derive(Debug)]
pub(crate) struct Worker {
    number: u32,
    process: Mutex<Process>,
    socket: UnixStream,
    /// Held by who writes a frame, and by nobody who hangs up.
    writing: Mutex<()>,
    table: Mutex<Table>,
    max_in_flight: OnceLock<u32>,
    /// Bytes of pieces that wait.
    waiting: Arc<AtomicU64>,
}

#[derive(Debug, Default)]
struct Table {
    calls: HashMap<u64, SyncSender<Event>>,
    next_id: u64,
    /// Why the worker was ended, by whoever ended it.
    reason: Option<Arc<str>>,
    /// Whether nothing more is sent to it.
    is_hung_up: bool,
    /// How it has ended.
    end: Option<Arc<str>>,
    /// Whether it was let go, so that its end is no failure.
    is_retired: bool,
}

/// Requests that a worker has, in the order they were given.
pub(crate) struct Given {
    pub(crate) calls: Vec<(u64, Receiver<Event>)>,
}

impl Worker {
    /// Starts a worker and waits until the handler is loaded. `on_end` is called when it has ended,
    /// whenever that is.
    pub(crate) fn start(
        launch: &Launch,
        number: u32,
        group: &[u32],
        is_unwanted: &dyn Fn() -> bool,
        on_end: Box<dyn FnOnce() + Send>,
    ) -> Result<Arc<Self>, PythonError> {
        let failed = |what| move |source| PythonError::System { worker: number, what, source };
        let (ours, theirs) = UnixStream::pair().map_err(failed("no socket could be made"))?;
        ours.set_write_timeout(Some(UNREAD_LIMIT)).map_err(failed("its socket has no limit"))?;
        let reader = ours.try_clone().map_err(failed("its socket can't be shared"))?;
        let mut process =
            spawn(launch, group, theirs).map_err(failed("its process can't be started"))?;
        let title = format!("worker {number}");
        launch.services.log(LogLevel::Info, &format!("{title} starts as process {}", process.id()));
        let (out, err) = (process.take_stdout(), process.take_stderr());
        let (sender, loading) = sync_channel(MAX_EVENTS);
        let table = Table {
            calls: HashMap::from([(LOADING, sender)]),
            next_id: LOADING + 1,
            ..Table::default()
        };
        let worker = Arc::new(Self {
            number,
            process: Mutex::new(process),
            socket: ours,
            writing: Mutex::new(()),
            table: Mutex::new(table),
            max_in_flight: OnceLock::new(),
            waiting: Arc::default(),
        });
        let no_thread = failed("it could not be given a thread");
        let (printing, printed) = sync_channel(0);
        let started = print(out, (&title, LogLevel::Info), &launch.services, printing.clone())
            .and_then(|()| print(err, (&title, LogLevel::Warn), &launch.services, printing))
            .and_then(|()| {
                let worker = Arc::clone(&worker);
                let thread = thread::Builder::new().name(format!("{title} reads"));
                thread.spawn(move || worker.receive(reader, on_end)).map(drop)
            });
        started.inspect_err(|_| worker.kill("could not be given a thread")).map_err(no_thread)?;
        let loaded = worker.load(launch, &loading, is_unwanted);
        // Why it failed is in what it printed, and the server may end for it.
        if loaded.is_err() {
            let _ = printed.recv_timeout(PRINTING);
        }
        loaded?;
        Ok(worker)
    }

    fn load(
        &self,
        launch: &Launch,
        loading: &Receiver<Event>,
        is_unwanted: &dyn Fn() -> bool,
    ) -> Result<(), PythonError> {
        let limit = launch.settings.load_timeout;
        let deadline = Instant::now() + limit;
        // If it can't be sent, its end says why.
        self.send(|to| wire::write_init(to, &launch.settings.properties));
        loop {
            let event = match loading.recv_timeout(TURN) {
                Ok(event) => event,
                Err(RecvTimeoutError::Disconnected) => {
                    let how = self.end().unwrap_or_else(|| "ended".into());
                    let reason = format!("worker {} {how}", self.number);
                    return Err(PythonError::Load { reason });
                }
                Err(RecvTimeoutError::Timeout) => {
                    self.look();
                    if is_unwanted() {
                        self.kill("was no longer wanted");
                        return Err(PythonError::Cancelled);
                    }
                    if Instant::now() >= deadline {
                        self.kill("took too long to load");
                        return Err(PythonError::LoadTimeout { limit });
                    }
                    continue;
                }
            };
            match event {
                Event::Ready { max_in_flight } => {
                    let _ = self.max_in_flight.set(max_in_flight.clamp(1, 256));
                    lock(&self.table).calls.remove(&LOADING);
                    return Ok(());
                }
                Event::Failed(Failure::OutOfMemory, reason) => {
                    self.kill("could not load the handler");
                    return Err(PythonError::LoadOutOfMemory { reason });
                }
                Event::Failed(_, reason) => {
                    self.kill("could not load the handler");
                    return Err(PythonError::Load { reason });
                }
                Event::Reply { .. } | Event::Piece(_) | Event::End => {
                    self.kill("answered before it was asked");
                }
            }
        }
    }

    /// Its number, which no other worker of the model has or had.
    pub(crate) fn number(&self) -> u32 {
        self.number
    }

    /// Requests that it takes at a time.
    pub(crate) fn max_in_flight(&self) -> u32 {
        self.max_in_flight.get().copied().unwrap_or(1)
    }

    /// How it has ended; `None` while it lives.
    pub(crate) fn end(&self) -> Option<Arc<str>> {
        lock(&self.table).end.clone()
    }

    /// Whether it may be given requests: it lives, and nobody has ended it.
    pub(crate) fn is_usable(&self) -> bool {
        let table = lock(&self.table);
        table.end.is_none() && !table.is_hung_up
    }

    /// Looks whether the process has ended though its socket is still open, which is so where it left
    /// processes of its own behind. Those of its group are ended; others keep nobody waiting.
    pub(crate) fn look(&self) {
        if self.end().is_none() && lock(&self.process).has_ended() {
            lock(&self.process).kill();
            self.hang_up();
        }
    }

    /// Bytes of memory that it and its processes have for themselves.
    pub(crate) fn own_bytes(&self) -> u64 {
        lock(&self.process).own_bytes()
    }

    /// Whether it ended because it was let go.
    pub(crate) fn is_retired(&self) -> bool {
        lock(&self.table).is_retired
    }

    /// Gives it requests, which one call of `function` is to answer. `None` if they can't have reached
    /// the handler, so that another worker may have them.
    pub(crate) fn give(&self, function: &str, requests: &[Request<'_>]) -> Option<Given> {
        let mut calls = Vec::with_capacity(requests.len());
        {
            if !self.is_usable() {
                return None;
            }
            let mut table = lock(&self.table);
            for _ in requests {
                let (sender, receiver) = sync_channel(MAX_EVENTS);
                let id = table.next_id;
                table.next_id += 1;
                table.calls.insert(id, sender);
                calls.push((id, receiver));
            }
        }
        let first_id = calls.first().map_or(LOADING, |(id, _)| *id);
        if !self.send(|to| wire::write_call(to, first_id, function, requests)) {
            self.forget(calls.iter().map(|(id, _)| *id));
            return None;
        }
        Some(Given { calls })
    }

    /// Says that nobody waits for the answer any more.
    pub(crate) fn cancel(&self, id: u64) {
        self.send(|to| wire::write_cancel(to, id));
    }

    /// Allows `n` more pieces.
    pub(crate) fn give_credit(&self, id: u64, n: u32) {
        self.send(|to| wire::write_credit(to, id, n));
    }

    /// Writes a frame; whether all of it went out. A worker that has a part of one can be sent no other.
    fn send(&self, write: impl FnOnce(&mut &UnixStream) -> io::Result<()>) -> bool {
        let turn = lock(&self.writing);
        let sent = write(&mut &self.socket);
        drop(turn);
        match sent.map_err(|error| error.kind()) {
            Ok(()) => return true,
            Err(io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                self.kill("did not read what was sent to it");
            }
            // It has gone, and its end says how.
            Err(_) => self.hang_up(),
        }
        false
    }

    /// Drops what may still come for these requests.
    pub(crate) fn forget(&self, ids: impl Iterator<Item = u64>) {
        let mut table = lock(&self.table);
        for id in ids {
            table.calls.remove(&id);
        }
    }

    /// Ends the process; `why` follows its name in messages.
    pub(crate) fn kill(&self, why: &str) {
        if self.end().is_none() {
            lock(&self.table).reason.get_or_insert_with(|| why.into());
            lock(&self.process).kill();
            self.hang_up();
        }
    }

    /// Lets it go: it ends by itself, and its end is no failure.
    pub(crate) fn retire(&self) {
        lock(&self.table).is_retired = true;
        self.hang_up();
    }

    /// Sends nothing more. Whoever waits in a write to it is let go; what it has sent is still read.
    fn hang_up(&self) {
        lock(&self.table).is_hung_up = true;
        // It may be closed already.
        let _ = self.socket.shutdown(Shutdown::Both);
    }

    /// Hands on what the worker sends, until it ends or sends what it should not.
    fn receive(&self, stream: UnixStream, on_end: Box<dyn FnOnce() + Send>) {
        let mut stream = BufReader::with_capacity(1 << 16, stream);
        let fault = loop {
            match wire::read(&mut stream) {
                Ok(Some(frame)) => {
                    if let Err(fault) = self.hand_on(frame) {
                        break Some(fault);
                    }
                }
                Ok(None) | Err(WireError::Io(_)) => break None,
                Err(WireError::Garbage(what)) => {
                    break Some(format!("wrote what is no frame ({what}) and was replaced"));
                }
            }
        };
        if let Some(fault) = &fault {
            self.kill(fault);
        }
        self.hang_up();
        self.wait_for_end();
        lock(&self.process).kill();
        // What waits for a device can't be killed: nobody waits for it but this thread.
        self.wait_for_end();
        let status = {
            let mut process = lock(&self.process);
            if process.has_ended() { process.reap() } else { None }
        };
        {
            let mut table = lock(&self.table);
            let how = table.reason.clone().unwrap_or_else(|| process::ending(status).into());
            table.end = Some(how);
            table.calls.clear();
        }
        on_end();
        lock(&self.process).reap();
    }

    /// Gives the process a moment to end.
    fn wait_for_end(&self) {
        let deadline = Instant::now() + ENDING;
        while !lock(&self.process).has_ended() && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(1));
        }
    }

    fn hand_on(&self, frame: Frame) -> Result<(), String> {
        let (id, event) = match frame {
            Frame::Ready { max_in_flight } => (LOADING, Event::Ready { max_in_flight }),
            Frame::Reply { id, status, reason, headers } => {
                (id, Event::Reply { status, reason, headers })
            }
            Frame::Piece { id, bytes } => {
                let piece = Piece::new(bytes, &self.waiting, MAX_WAITING_BYTES);
                (id, Event::Piece(piece.ok_or("sent more than can wait and was replaced")?))
            }
            Frame::End { id } => (id, Event::End),
            Frame::Failed { id, kind, message } => (id, Event::Failed(kind, message)),
        };
        let mut table = lock(&self.table);
        let is_last = matches!(event, Event::End | Event::Failed(..));
        let sender = if is_last { table.calls.remove(&id) } else { table.calls.get(&id).cloned() };
        drop(table);
        // An answer to a request that was given up is dropped.
        match sender.map(|sender| sender.try_send(event)) {
            Some(Err(TrySendError::Full(_))) => {
                Err("sent more than it was asked for and was replaced".to_owned())
            }
            _ => Ok(()),
        }
    }
}

fn spawn(launch: &Launch, group: &[u32], socket: UnixStream) -> io::Result<Process> {
    let settings = &launch.settings;
    let mut command = Command::new(&launch.python);
    command.arg("-u").arg(&launch.script).arg("worker");
    command.arg("--model-dir").arg(&launch.model_dir);
    match &launch.entry {
        Entry::File(path) => command.arg("--entry-point").arg(path),
        Entry::Module(name) | Entry::Url(name) => command.arg("--entry-point").arg(name),
        Entry::Archive => &mut command,
    };
    command.args(["--handler", &settings.handler]);
    if let Some(n) = settings.max_in_flight {
        command.args(["--max-in-flight", &n.to_string()]);
    }
    if settings.is_async {
        command.arg("--async-mode");
    }
    if !group.is_empty() {
        let list: Vec<String> = group.iter().map(u32::to_string).collect();
        command.args(["--devices", &list.join(",")]);
    }
    command
        .current_dir(&launch.model_dir)
        .envs(settings.env.iter().map(|(key, value)| (key, value)))
        .stdin(OwnedFd::from(socket))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    // The command holds the worker's end of the socket, which has to close with the worker.
    process::spawn(&mut command)
}

/// Puts what comes from a pipe into the log, on a thread that drops `printing` at its end.
fn print(
    from: Option<impl Read + Send + 'static>,
    (title, level): (&str, LogLevel),
    services: &Services,
    printing: SyncSender<()>,
) -> io::Result<()> {
    let Some(from) = from else { return Ok(()) };
    let (owned, services) = (title.to_owned(), services.clone());
    let thread = thread::Builder::new().name(format!("{title} prints"));
    let run = move || {
        output::pump(from, &owned, level, &services);
        drop(printing);
    };
    thread.spawn(run).map(drop)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
