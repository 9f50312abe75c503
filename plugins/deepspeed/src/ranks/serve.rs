//! A rank's own side: it calls its leader, loads its part, and does what it is told until it is let go.

use std::ffi::OsStr;
use std::io::{self, Write};
use std::num::NonZeroUsize;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use drivetrain_engine::{
    AdapterId, Batch, EngineError, ErrorKind, HostServices, LoadRequest, LogLevel, MetricKind,
    Options, Outputs, Segment, SeqId, Services,
};
use drivetrain_fused::{Group, RankModel, load_rank};
use rustix::process::{Signal, getpid, kill_process};

use super::digest::digest;
use super::links::BEAT;
use super::messages::{Hello, LoadOrder, Loaded, Token, VERSION};
use super::proxy::wishes;
use super::stream::Stream;
use super::wire::{self, Fields, Frame, Kind, WireError};
use super::{LEADER_VARIABLE, TOKEN_VARIABLE};
use crate::engine::settings;

/// Longest silence of the leader.
const SILENCE: Duration = Duration::from_secs(10);
/// How long what is sent to the leader may stay unread.
const UNREAD: Duration = Duration::from_secs(10);
/// Calls that may wait: one with an answer, and some without.
const MAX_WAITING: usize = 64;

/// Where a rank stands among the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Its number.
    pub rank: u32,
}

/// Why a rank ends before it is let go.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RankError {
    /// It was not started by a server.
    #[error(
        "{name} is not set as a server sets it: this program is started by one, see option.mpi_mode"
    )]
    Environment {
        /// The variable.
        name: &'static str,
    },
    /// The leader can't be reached, or listens no more.
    #[error("the connection to the leader")]
    Connection(#[source] io::Error),
    /// The leader sent what makes no sense.
    #[error("what the leader sent makes no sense: {what}")]
    Garbage {
        /// What is wrong with it.
        what: String,
    },
    /// Its part of the model can't be loaded or computed; the leader has been told.
    #[error("its part of the model")]
    Failed(#[source] EngineError),
}

impl From<WireError> for RankError {
    fn from(error: WireError) -> Self {
        match error {
            WireError::Io(error) => Self::Connection(error),
            error @ WireError::Garbage(_) => Self::Garbage { what: error.to_string() },
        }
    }
}

/// Does a rank's work. `group` finds the others, once the leader knows that this rank is there.
///
/// # Errors
/// This program is not started by a server, the leader is gone, or the rank can't do its part.
pub fn serve<G: Group>(
    place: Place,
    group: impl FnOnce() -> Result<G, String>,
) -> Result<(), RankError> {
    let variable = |name| std::env::var(name).map_err(|_| RankError::Environment { name });
    let address = variable(LEADER_VARIABLE)?;
    let token = Token::parse(&variable(TOKEN_VARIABLE)?);
    let token = token.ok_or(RankError::Environment { name: TOKEN_VARIABLE })?;
    let mut stream = Stream::connect(&address).map_err(RankError::Connection)?;
    stream.limit(SILENCE, UNREAD).map_err(RankError::Connection)?;
    let hello = Hello {
        rank: place.rank,
        pid: std::process::id(),
        host: host(),
        version: VERSION.to_owned(),
    };
    let hello = hello.write(token, &mut Frame::default()).to_vec();
    stream.write_all(&hello).map_err(RankError::Connection)?;
    let (calls, spare) = listen(stream.try_clone().map_err(RankError::Connection)?)?;
    let leader = Arc::new(Leader { stream: Mutex::new(stream), rank: place.rank });
    leader.show_life()?;
    let failed = |error: EngineError| {
        let sent = leader.send(Frame::default().begin(Kind::Failed).error(&error).finished());
        sent.err().unwrap_or(RankError::Failed(error))
    };
    let mut group = group().map_err(|what| failed(EngineError::internal(what)))?;
    let order = match calls.recv() {
        Ok((Kind::Load, body)) => LoadOrder::read(&body)?,
        _ => return Err(RankError::Garbage { what: "no order to load".to_owned() }),
    };
    let model = load(&order, &mut group, &leader).map_err(&failed)?;
    let mut rank = Rank { model, leader: Arc::clone(&leader), buffers: Buffers::default() };
    loop {
        // The reading thread ends the process before it goes.
        let Ok((kind, body)) = calls.recv() else { return Ok(()) };
        if kind == Kind::End {
            return Ok(());
        }
        rank.take(kind, &body).map_err(|error| match error {
            CallError::Lost(error) => failed(error),
            CallError::Rank(error) => error,
        })?;
        // There is a place for each.
        let _ = spare.try_send(body);
    }
}

/// The name of this machine.
fn host() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    name.trim().chars().take(255).collect()
}

/// Where calls come from, and where their memory goes when they are done.
type Calls = (Receiver<(Kind, Vec<u8>)>, SyncSender<Vec<u8>>);

/// Reads what the leader sends, on a thread of its own. Without a leader there is nothing to do and nobody
/// to tell, whatever the other thread waits for: the process ends.
fn listen(mut stream: Stream) -> Result<Calls, RankError> {
    let (sender, calls) = sync_channel(MAX_WAITING);
    let (spare, spares) = sync_channel::<Vec<u8>>(MAX_WAITING);
    let work = move || {
        loop {
            let mut body = spares.try_recv().unwrap_or_default();
            match wire::read_any(&mut stream, &mut body) {
                Ok(Some(Kind::Beat)) => {}
                Ok(Some(kind)) => {
                    if sender.send((kind, body)).is_err() || kind == Kind::End {
                        return;
                    }
                }
                Ok(None) | Err(_) => {
                    // Its exit functions are MPI's, and would wait for others.
                    let _ = kill_process(getpid(), Signal::KILL);
                }
            }
        }
    };
    let thread = thread::Builder::new().name("leader".to_owned());
    thread.spawn(work).map_err(RankError::Connection)?;
    Ok((calls, spare))
}

/// The leader, as a rank speaks to it.
struct Leader {
    stream: Mutex<Stream>,
    rank: u32,
}

impl Leader {
    fn send(&self, frame: &[u8]) -> Result<(), RankError> {
        let mut stream = self.stream.lock().unwrap_or_else(PoisonError::into_inner);
        stream.write_all(frame).map_err(RankError::Connection)
    }

    /// Shows from now on that this process lives.
    fn show_life(self: &Arc<Self>) -> Result<(), RankError> {
        let leader = Arc::clone(self);
        let work = move || {
            let mut frame = Frame::default();
            let beat = frame.begin(Kind::Beat).finished();
            while leader.send(beat).is_ok() {
                thread::sleep(BEAT);
            }
        };
        let thread = thread::Builder::new().name("beats".to_owned());
        thread.spawn(work).map(drop).map_err(RankError::Connection)
    }
}

/// What a rank does for its part of a model. The leader says itself what is the same on all ranks.
impl HostServices for Leader {
    fn log(&self, level: LogLevel, message: &str) {
        if level < LogLevel::Error {
            return;
        }
        let mut frame = Frame::default();
        // A leader that is gone needs no log.
        let _ = self.send(frame.begin(Kind::Log).text(message.as_bytes()).finished());
    }

    fn metric(&self, _: MetricKind, _: &str, _: f64) {}

    fn progress(&self, _: &str, done: u64, total: u64) {
        let mut frame = Frame::default();
        let _ = self.send(frame.begin(Kind::Progress).u64(done).u64(total).finished());
    }

    fn cancelled(&self) -> bool {
        false
    }
}

/// Loads this rank's part of what the leader names, if this machine has the same files.
fn load(
    order: &LoadOrder,
    group: &mut dyn Group,
    leader: &Arc<Leader>,
) -> Result<RankModel, EngineError> {
    let path = |bytes: &[u8]| PathBuf::from(OsStr::from_bytes(bytes));
    let model_dir = path(&order.model_dir);
    let adapter_dir = Some(path(&order.adapter_dir)).filter(|dir| !dir.as_os_str().is_empty());
    let mut own = String::new();
    for dir in [Some(&model_dir), adapter_dir.as_ref()].into_iter().flatten() {
        own.push_str(&digest(dir).map_err(|error| {
            let message = format!("the model's files in {} can't be read", dir.display());
            EngineError::wrap(ErrorKind::BadInput, message, &error)
        })?);
    }
    if own != order.digest {
        return Err(EngineError::bad_input(format!(
            "the files in {} are others than the server's: their digest is {own}, the server's {}; bring \
             the same model to all hosts",
            model_dir.display(),
            order.digest
        )));
    }
    let pairs: Vec<(&str, &str)> = order
        .options
        .chunks_exact(2)
        .filter_map(|pair| Some((pair.first()?.as_str(), pair.get(1)?.as_str())))
        .collect();
    let threads = usize::try_from(order.n_threads).ok().and_then(NonZeroUsize::new);
    let request = LoadRequest {
        model_name: &order.model_name,
        model_dir: &model_dir,
        adapter_dir: adapter_dir.as_deref(),
        options: Options::new(&pairs),
        n_threads: threads.unwrap_or(NonZeroUsize::MIN),
        services: Services::new(Arc::clone(leader) as Arc<dyn HostServices>),
    };
    let degree = usize::try_from(order.degree).ok().and_then(NonZeroUsize::new);
    let settings = settings(&request, degree)?;
    let mut model = load_rank(&request, &settings, group)?;
    let info = model.model().info();
    let loaded = Loaded { info, own_bytes: model.n_bytes() };
    leader.send(loaded.write(&mut Frame::default())).map_err(|error| {
        EngineError::wrap(ErrorKind::Internal, "the leader does not listen", &error)
    })?;
    Ok(model)
}

/// What became of a call beside its result.
enum CallError {
    /// The rank can't go on.
    Lost(EngineError),
    Rank(RankError),
}

impl From<WireError> for CallError {
    fn from(error: WireError) -> Self {
        Self::Rank(error.into())
    }
}

/// Memory that calls use one after another.
#[derive(Default)]
struct Buffers {
    segments: Vec<Segment>,
    tokens: Vec<u32>,
    types: Vec<u32>,
    logits: Vec<f32>,
    hidden: Vec<f32>,
    frame: Frame,
}

/// A rank that is loaded.
struct Rank {
    model: RankModel,
    leader: Arc<Leader>,
    buffers: Buffers,
}

impl Rank {
    /// Does what a frame asks for.
    fn take(&mut self, kind: Kind, body: &[u8]) -> Result<(), CallError> {
        let mut fields = Fields(body);
        let f = &mut fields;
        match kind {
            Kind::Encode | Kind::Forward => self.pass(kind, fields),
            Kind::Fork => {
                let (from, to, len) = (SeqId(f.u64()?), SeqId(f.u64()?), f.u32()?);
                let end = self.model.model().fork(from, to, len);
                self.answer(end, |_, ()| ())
            }
            Kind::Truncate => {
                let end = self.model.model().truncate(SeqId(f.u64()?), f.u32()?);
                self.answer(end, |_, ()| ())
            }
            Kind::Release => {
                self.model.model().release(SeqId(f.u64()?));
                Ok(())
            }
            Kind::Count => {
                let n = self.model.model().n_sequences();
                self.answer(Ok(n), |frame, n| _ = frame.u64(n as u64))
            }
            Kind::LoadAdapter => {
                let (id, dir) = (AdapterId(f.u32()?), f.text()?);
                let end = self.model.load_adapter(id, Path::new(OsStr::from_bytes(dir)));
                self.answer_for_own(end, |frame, left| _ = frame.texts(&left))
            }
            Kind::UnloadAdapter => {
                self.model.model().unload_adapter(AdapterId(f.u32()?));
                Ok(())
            }
            _ => Err(WireError::Garbage("it is not for a rank").into()),
        }
    }

    /// A batch, on all ranks at once.
    fn pass(&mut self, kind: Kind, fields: Fields<'_>) -> Result<(), CallError> {
        let info = self.model.model().info();
        let Buffers { segments, tokens, types, logits, hidden, .. } = &mut self.buffers;
        read_batch(fields, segments, tokens, types)?;
        let is_first = self.leader.rank == 0;
        let mut run = || {
            let batch = Batch::new(segments, tokens, types)?;
            let rows = |n: usize, width: u32| match is_first && n <= info.max_batch_tokens as usize
            {
                true => n * width as usize,
                false => 0,
            };
            logits.resize(rows(batch.n_logits_rows(), info.n_logits), 0.0);
            hidden.resize(rows(batch.n_hidden_rows(), info.dim), 0.0);
            let (n_logits, dim) = (info.n_logits as usize, info.dim as usize);
            let mut out = Outputs::new(logits, n_logits, hidden, dim);
            match kind {
                Kind::Encode => self.model.model().encode(&batch, &mut out),
                _ => self.model.model().forward(&batch, &mut out),
            }
        };
        match run() {
            Err(error) if error.kind() == ErrorKind::DeviceLost => Err(CallError::Lost(error)),
            _ if !is_first => Ok(()),
            end => {
                let Self { leader, buffers, .. } = self;
                let Buffers { frame, logits, hidden, .. } = buffers;
                frame.begin(Kind::Result);
                match end {
                    Ok(()) => frame.u8(0).numbers(logits).numbers(hidden),
                    Err(error) => frame.u8(1).error(&error),
                };
                leader.send(frame.finished()).map_err(CallError::Rank)
            }
        }
    }

    /// Sends a result that is the same on all ranks, on the first of them.
    fn answer<T>(
        &mut self,
        end: Result<T, EngineError>,
        write: impl FnOnce(&mut Frame, T),
    ) -> Result<(), CallError> {
        if self.leader.rank == 0 { self.answer_for_own(end, write) } else { Ok(()) }
    }

    fn answer_for_own<T>(
        &mut self,
        end: Result<T, EngineError>,
        write: impl FnOnce(&mut Frame, T),
    ) -> Result<(), CallError> {
        let frame = self.buffers.frame.begin(Kind::Result);
        match end {
            Ok(value) => write(frame.u8(0), value),
            Err(error) => _ = frame.u8(1).error(&error),
        }
        self.leader.send(frame.finished()).map_err(CallError::Rank)
    }
}

/// The reverse of the leader's writing.
fn read_batch(
    mut fields: Fields<'_>,
    segments: &mut Vec<Segment>,
    tokens: &mut Vec<u32>,
    types: &mut Vec<u32>,
) -> Result<(), WireError> {
    let f = &mut fields;
    let [n_segments, n_tokens, n_types] = [f.u32()?, f.u32()?, f.u32()?].map(|n| n as usize);
    segments.clear();
    for _ in 0..n_segments {
        segments.push(Segment {
            sequence: SeqId(f.u64()?),
            first_token: f.u32()?,
            n_tokens: f.u32()?,
            position: f.u32()?,
            wanted: wishes::of(f.u32()?).ok_or(WireError::Garbage("an unknown wish"))?,
            adapter: AdapterId(f.u32()?),
        });
    }
    for (to, n) in [(tokens, n_tokens), (types, n_types)] {
        // What there is bounds what is taken.
        if f.0.len() / size_of::<u32>() < n {
            return Err(WireError::Garbage("it is too short"));
        }
        to.resize(n, 0);
        f.numbers(to)?;
    }
    fields.end()
}
