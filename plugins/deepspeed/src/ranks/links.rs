//! The leader's connections to its ranks, each with a thread that reads it.
//!
//! Whichever rank goes first, by closing its connection or by silence, is the reason for which the model is
//! lost: all connections are closed then, so that no rank waits for another, and whoever waits for an
//! answer gets the reason.

use std::io::Write;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use drivetrain_engine::{EngineError, ErrorKind, LogLevel, Services};

use super::messages::{Hello, Loaded};
use super::process::Launcher;
use super::stream::{Stream, is_silence};
use super::wire::{self, Fields, Frame, Kind, WireError};

/// How often either side shows that it lives.
pub(crate) const BEAT: Duration = Duration::from_millis(400);
/// Longest silence of a rank on another machine. A rank on this one is known to be there as long as its
/// connection is.
const REMOTE_SILENCE: Duration = Duration::from_millis(1500);
const LOCAL_SILENCE: Duration = Duration::from_secs(30);
/// How long what is sent to a rank may stay unread.
const UNREAD: Duration = Duration::from_secs(10);

/// A rank as the leader sees it.
#[derive(Debug)]
struct Link {
    title: String,
    is_remote: bool,
    writer: Mutex<Stream>,
    /// The same connection, to close it while another thread writes.
    stream: Stream,
}

/// What the reading threads and the model share.
#[derive(Debug)]
struct Shared {
    links: Vec<Link>,
    state: Mutex<State>,
    changed: Condvar,
    launcher: Launcher,
    services: Services,
}

#[derive(Debug, Default)]
struct State {
    /// Why the ranks are of no use any more.
    end: Option<EngineError>,
    /// Whether they are let go, so that their end is none.
    is_closing: bool,
    ranks: Vec<RankState>,
}

/// What has come from a rank.
#[derive(Debug, Default)]
struct RankState {
    progress: (u64, u64),
    loaded: Option<Loaded>,
    /// The body of its last result, and whether nobody has taken it.
    result: Vec<u8>,
    has_result: bool,
}

/// All ranks of a model. They are let go when this is dropped.
#[derive(Debug)]
pub(crate) struct Links(Arc<Shared>);

impl Links {
    /// Listens to ranks that have greeted, in their order.
    pub(crate) fn new(
        ranks: Vec<(Hello, Stream)>,
        launcher: Launcher,
        services: Services,
    ) -> Result<Self, EngineError> {
        let no_link =
            |error: std::io::Error| EngineError::wrap(ErrorKind::Internal, "a connection", &error);
        let mut links = Vec::with_capacity(ranks.len());
        let mut readers = Vec::with_capacity(ranks.len());
        for (hello, stream) in ranks {
            let is_remote = stream.is_remote();
            let silence = if is_remote { REMOTE_SILENCE } else { LOCAL_SILENCE };
            stream.limit(silence, UNREAD).map_err(no_link)?;
            readers.push(stream.try_clone().map_err(no_link)?);
            let writer = Mutex::new(stream.try_clone().map_err(no_link)?);
            links.push(Link { title: hello.title(), is_remote, writer, stream });
        }
        let states = links.iter().map(|_| RankState::default()).collect();
        let state = Mutex::new(State { ranks: states, ..State::default() });
        let changed = Condvar::new();
        let shared = Arc::new(Shared { links, state, changed, launcher, services });
        let links = Self(Arc::clone(&shared));
        for (rank, stream) in readers.into_iter().enumerate() {
            let shared = Arc::clone(&shared);
            let work = move || shared.listen(rank, stream);
            thread::Builder::new().name(format!("rank-{rank}")).spawn(work).map_err(no_link)?;
        }
        let beats = move || shared.beat();
        thread::Builder::new().name("rank-beats".to_owned()).spawn(beats).map_err(no_link)?;
        Ok(links)
    }

    pub(crate) fn n_ranks(&self) -> usize {
        self.0.links.len()
    }

    /// The ranks in words.
    pub(crate) fn titles(&self) -> String {
        let titles: Vec<&str> = self.0.links.iter().map(|link| link.title.as_str()).collect();
        titles.join(", ")
    }

    /// Why the ranks are of no use any more, if so.
    pub(crate) fn health(&self) -> Result<(), EngineError> {
        self.0.lock().end.clone().map_or(Ok(()), Err)
    }

    /// Sends a frame to all ranks.
    pub(crate) fn send(&self, frame: &[u8]) -> Result<(), EngineError> {
        self.health()?;
        for (rank, link) in self.0.links.iter().enumerate() {
            self.0.write(rank, link, frame);
        }
        self.health()
    }

    /// Waits until all ranks are loaded, and returns what they have.
    pub(crate) fn loaded(&self) -> Result<Vec<Loaded>, EngineError> {
        let mut state = self.0.lock();
        loop {
            if let Some(error) = &state.end {
                return Err(error.clone());
            }
            let all: Option<Vec<Loaded>> = state.ranks.iter().map(|rank| rank.loaded).collect();
            if let Some(all) = all {
                return Ok(all);
            }
            let progress = state.ranks.iter().map(|rank| rank.progress);
            let done = progress.clone().map(|(done, _)| done).sum();
            let total = progress.map(|(_, total)| total).max().unwrap_or(0);
            if self.0.services.cancelled() {
                return Err(EngineError::new(ErrorKind::Cancelled, "loading was cancelled"));
            }
            self.0.services.progress("loading weights", total.min(done), total);
            state = self.0.wait(state, Duration::from_millis(50));
        }
    }

    /// Waits for a rank's result, and swaps its body for `body`.
    pub(crate) fn result(&self, rank: usize, body: &mut Vec<u8>) -> Result<(), EngineError> {
        let mut state = self.0.lock();
        loop {
            if let Some(rank) = state.ranks.get_mut(rank).filter(|rank| rank.has_result) {
                rank.has_result = false;
                std::mem::swap(&mut rank.result, body);
                return Ok(());
            }
            if let Some(error) = &state.end {
                return Err(error.clone());
            }
            state = self.0.wait(state, Duration::from_secs(1));
        }
    }

    /// A rank has sent what makes no sense.
    pub(crate) fn lose(&self, rank: usize, error: &WireError) -> EngineError {
        self.0.lose(rank, &format!("sent what makes no sense: {error}"));
        self.health().err().unwrap_or_else(|| EngineError::internal(error.to_string()))
    }
}

impl Drop for Links {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.is_closing = true;
        let was_well = state.end.is_none();
        drop(state);
        self.0.changed.notify_all();
        if was_well {
            let mut frame = Frame::default();
            let end = frame.begin(Kind::End).finished();
            for (rank, link) in self.0.links.iter().enumerate() {
                self.0.write(rank, link, end);
            }
            if self.0.launcher.wait(Duration::from_secs(3)) {
                return;
            }
        }
        self.0.links.iter().for_each(|link| link.stream.close());
        self.0.launcher.kill();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'s>(&self, state: MutexGuard<'s, State>, limit: Duration) -> MutexGuard<'s, State> {
        let waited = self.changed.wait_timeout(state, limit);
        waited.map_or_else(|error| error.into_inner().0, |(state, _)| state)
    }

    fn write(&self, rank: usize, link: &Link, frame: &[u8]) {
        let mut writer = link.writer.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = writer.write_all(frame) {
            drop(writer);
            // A rank that went says why by what it closed, which its reader sees.
            if is_silence(&error) {
                self.lose(rank, "leaves unread what is sent to it");
            }
        }
    }

    /// Gives the ranks up, unless they are already; the first reason stays.
    fn give_up(&self, error: EngineError) {
        let mut state = self.lock();
        let is_news = state.end.is_none() && !state.is_closing;
        if is_news {
            let is_loaded = state.ranks.iter().all(|rank| rank.loaded.is_some());
            let error = match is_loaded {
                // Sequences are lost, whatever it was.
                true => EngineError::with_causes(
                    ErrorKind::DeviceLost,
                    error.message(),
                    error.causes().to_vec(),
                ),
                false => error,
            };
            self.services.log(LogLevel::Error, error.message());
            state.end = Some(error);
        }
        drop(state);
        self.changed.notify_all();
        self.links.iter().for_each(|link| link.stream.close());
    }

    fn lose(&self, rank: usize, what: &str) {
        let title = self.links.get(rank).map_or("a rank", |link| link.title.as_str());
        self.give_up(EngineError::new(ErrorKind::DeviceLost, format!("{title} {what}")));
    }

    /// Shows the ranks that this process lives, until they are let go.
    fn beat(&self) {
        let mut frame = Frame::default();
        let beat = frame.begin(Kind::Beat).finished();
        loop {
            let state = self.wait(self.lock(), BEAT);
            if state.is_closing || state.end.is_some() {
                return;
            }
            drop(state);
            for (rank, link) in self.links.iter().enumerate() {
                self.write(rank, link, beat);
            }
        }
    }

    /// Takes what a rank sends until it goes.
    fn listen(&self, rank: usize, mut stream: Stream) {
        let mut body = Vec::new();
        loop {
            match wire::read_any(&mut stream, &mut body) {
                Ok(Some(kind)) => match self.take(rank, kind, &mut body) {
                    Ok(true) => {}
                    Ok(false) => return,
                    Err(error) => {
                        return self.lose(rank, &format!("sent what makes no sense: {error}"));
                    }
                },
                Ok(None) => return self.lose(rank, "has ended"),
                Err(WireError::Io(error)) if is_silence(&error) => {
                    let is_remote = self.links.get(rank).is_some_and(|link| link.is_remote);
                    let silence = if is_remote { REMOTE_SILENCE } else { LOCAL_SILENCE };
                    let seconds = silence.as_secs_f32();
                    return self.lose(rank, &format!("has given no sign of life for {seconds} s"));
                }
                Err(WireError::Io(error)) => {
                    return self.lose(rank, &format!("has ended: {error}"));
                }
                Err(error) => return self.lose(rank, &error.to_string()),
            }
        }
    }

    /// Takes a frame; false if it was the rank's last word.
    fn take(&self, rank: usize, kind: Kind, body: &mut Vec<u8>) -> Result<bool, WireError> {
        let mut fields = Fields(body);
        match kind {
            Kind::Beat => {}
            Kind::Log => {
                self.services.log(LogLevel::Error, &format!("rank {rank}: {}", fields.string()?));
            }
            Kind::Progress => {
                let progress = (fields.u64()?, fields.u64()?);
                self.of(rank, |state| state.progress = progress);
            }
            Kind::Ready => {
                let loaded = Loaded::read(body)?;
                self.of(rank, |state| state.loaded = Some(loaded));
            }
            Kind::Result => {
                // The buffers go round, so that none is made anew.
                self.of(rank, |state| {
                    std::mem::swap(&mut state.result, body);
                    state.has_result = true;
                });
            }
            Kind::Failed => {
                let error = fields.error()?;
                let title = self.links.get(rank).map_or("a rank", |link| link.title.as_str());
                let message = format!("{title}: {}", error.message());
                let causes = error.causes().to_vec();
                self.give_up(EngineError::with_causes(error.kind(), message, causes));
                return Ok(false);
            }
            _ => return Err(WireError::Garbage("it is not for the leader")),
        }
        Ok(true)
    }

    fn of(&self, rank: usize, change: impl FnOnce(&mut RankState)) {
        if let Some(state) = self.lock().ranks.get_mut(rank) {
            change(state);
        }
        self.changed.notify_all();
    }
}
