//! The adapters of a model: which there are, which are loaded, and who uses them.
//!
//! An adapter is registered under a name, with a directory on this machine. It is loaded when it is
//! registered or first asked for, as long as there is a slot; where there is none, the least recently
//! used one that nobody uses and that is not pinned makes room, and else a request waits. Each
//! loading has an id of its own, so that nothing computed with an earlier one is taken for it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use drivetrain_engine::{AdapterId, EngineError};
use tokio::sync::{Notify, oneshot};

use crate::HostError;
use crate::model::Inbox;
use crate::scheduler::Job;

/// Which adapters the inputs of a request go through.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum AdapterChoice {
    /// None: the model as it is.
    #[default]
    None,
    /// All inputs go through this one.
    One(String),
    /// Each input goes through its own; an empty name stands for none.
    Each(Vec<String>),
}

/// An adapter, as it was registered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdapterInfo {
    /// Its name in requests.
    pub name: String,
    /// A further name for it, where it was given one.
    pub alias: Option<String>,
    /// Its directory, as it was given.
    pub src: String,
    /// Whether it was loaded when it was registered.
    pub preload: bool,
    /// Whether it stays loaded.
    pub pin: bool,
}

/// What is to be changed of an adapter; what is absent stays.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AdapterChange {
    /// Another directory.
    pub src: Option<String>,
    /// See [`AdapterInfo::preload`].
    pub preload: Option<bool>,
    /// See [`AdapterInfo::pin`].
    pub pin: Option<bool>,
}

/// What reaches a model's thread.
pub(crate) enum Mail {
    /// Work.
    Job(Job),
    /// An adapter to be loaded.
    Load {
        /// Its id.
        id: AdapterId,
        /// Its files.
        dir: PathBuf,
        /// Where the end is told.
        answer: oneshot::Sender<Result<(), EngineError>>,
    },
    /// An adapter that nobody uses any more.
    Unload(AdapterId),
}

/// The adapters of one model.
pub(crate) struct Adapters {
    inbox: Arc<Inbox<Mail>>,
    /// Where relative directories start.
    root: PathBuf,
    /// Adapters that may be loaded at once.
    n_slots: usize,
    state: Mutex<BTreeMap<String, Entry>>,
    /// Held while one is loaded, so that nothing is loaded twice.
    loading: tokio::sync::Mutex<()>,
    next_id: AtomicU32,
    clock: AtomicUsize,
    shared: Arc<Counts>,
}

/// What outlives the adapters themselves.
#[derive(Debug, Default)]
struct Counts {
    /// Adapters that the engine holds.
    n_loaded: AtomicUsize,
    /// Told whenever one may have become free.
    freed: Notify,
}

struct Entry {
    info: AdapterInfo,
    dir: PathBuf,
    /// Which registration this is: an answer to an earlier one is of no use.
    generation: usize,
    last_used: usize,
    loaded: Option<Arc<Loaded>>,
}

/// An adapter that the engine holds. It goes when nobody has it any more.
pub(crate) struct Loaded {
    id: AdapterId,
    inbox: Arc<Inbox<Mail>>,
    counts: Arc<Counts>,
}

impl Drop for Loaded {
    fn drop(&mut self) {
        self.counts.n_loaded.fetch_sub(1, Ordering::Relaxed);
        // A model that takes no more has let go of its adapters, too.
        let _ = self.inbox.push(Mail::Unload(self.id));
        self.counts.freed.notify_waiters();
    }
}

/// Keeps an adapter loaded.
#[derive(Clone)]
pub(crate) struct Lease(Option<Arc<Loaded>>);

impl Lease {
    /// The adapter's id.
    pub(crate) fn id(&self) -> AdapterId {
        self.0.as_ref().map_or(AdapterId::NONE, |loaded| loaded.id)
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let Some(loaded) = self.0.take() else { return };
        let counts = Arc::clone(&loaded.counts);
        drop(loaded);
        counts.freed.notify_waiters();
    }
}

impl std::fmt::Debug for Lease {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Lease({})", self.id().0)
    }
}

impl Adapters {
    /// None yet.
    pub(crate) fn new(inbox: Arc<Inbox<Mail>>, root: PathBuf, n_slots: usize) -> Self {
        Self {
            inbox,
            root,
            n_slots,
            state: Mutex::default(),
            loading: tokio::sync::Mutex::default(),
            next_id: AtomicU32::new(1),
            clock: AtomicUsize::new(1),
            shared: Arc::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Entry>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tick(&self) -> usize {
        self.clock.fetch_add(1, Ordering::Relaxed)
    }

    /// All of them, by name.
    pub(crate) fn list(&self) -> Vec<AdapterInfo> {
        self.lock().values().map(|entry| entry.info.clone()).collect()
    }

    /// The one with this name or alias.
    pub(crate) fn get(&self, name: &str) -> Result<AdapterInfo, HostError> {
        find(&self.lock(), name).map(|entry| entry.info.clone())
    }

    /// The names of those that are found at the start, each in a directory of its own: registered,
    /// and loaded by `load` as far as there are slots.
    pub(crate) fn register_found(
        &self,
        found: Vec<(String, PathBuf)>,
        mut load: impl FnMut(AdapterId, &std::path::Path) -> Result<(), EngineError>,
    ) -> Result<(), HostError> {
        for (name, dir) in found {
            let fits = self.shared.n_loaded.load(Ordering::Relaxed) < self.n_slots;
            let loaded = fits.then(|| self.next_loaded());
            if let Some(loaded) = &loaded {
                load(loaded.id, &dir).map_err(|error| {
                    let message = format!("adapters/{name}: {}", error.message());
                    EngineError::with_causes(error.kind(), message, error.causes().to_vec())
                })?;
            }
            let info = AdapterInfo {
                src: dir.display().to_string(),
                alias: None,
                preload: loaded.is_some(),
                pin: false,
                name: name.clone(),
            };
            let (generation, last_used) = (self.tick(), self.tick());
            self.lock().insert(name, Entry { info, dir, generation, last_used, loaded });
        }
        Ok(())
    }

    /// Registers an adapter, and loads it if it is to be.
    pub(crate) async fn register(&self, info: AdapterInfo) -> Result<(), HostError> {
        if info.name.is_empty() {
            return Err(HostError::bad_request("the adapter's name is empty"));
        }
        let dir = self.dir(&info.src)?;
        let (name, preload) = (info.name.clone(), info.preload);
        let generation = self.tick();
        {
            let mut state = self.lock();
            for name in std::iter::once(&info.name).chain(&info.alias) {
                if find(&state, name).is_ok() {
                    return Err(HostError::AdapterExists { name: name.clone() });
                }
            }
            let entry = Entry { info, dir, generation, last_used: self.tick(), loaded: None };
            state.insert(name.clone(), entry);
        }
        if !preload {
            return Ok(());
        }
        let end = self.load(&name, Patience::None).await;
        if end.is_err() {
            let mut state = self.lock();
            if state.get(&name).is_some_and(|entry| entry.generation == generation) {
                state.remove(&name);
            }
        }
        end.map(drop)
    }

    /// Changes an adapter. Its files are read again; what runs goes on with what it has.
    pub(crate) async fn update(&self, name: &str, change: AdapterChange) -> Result<(), HostError> {
        let dir = change.src.as_deref().map(|src| self.dir(src)).transpose()?;
        let (name, was_loaded) = {
            let mut state = self.lock();
            let entry = find_mut(&mut state, name)?;
            entry.generation = self.tick();
            if let (Some(src), Some(dir)) = (change.src, dir) {
                (entry.info.src, entry.dir) = (src, dir);
            }
            entry.info.preload = change.preload.unwrap_or(entry.info.preload);
            entry.info.pin = change.pin.unwrap_or(entry.info.pin);
            let was_loaded = entry.loaded.take();
            (entry.info.name.clone(), was_loaded)
        };
        if was_loaded.is_some() || change.preload == Some(true) {
            drop(was_loaded);
            self.load(&name, Patience::None).await?;
        }
        Ok(())
    }

    /// The model is loaded anew, without adapters: each is loaded again when it is next asked for.
    pub(crate) fn lose(&self) {
        let lost: Vec<_> =
            self.lock().values_mut().filter_map(|entry| entry.loaded.take()).collect();
        drop(lost);
    }

    /// Forgets an adapter. What runs goes on with it.
    pub(crate) fn unregister(&self, name: &str) -> Result<(), HostError> {
        let mut state = self.lock();
        let name = find(&state, name)?.info.name.clone();
        let entry = state.remove(&name);
        drop(state);
        drop(entry);
        Ok(())
    }

    /// The adapters that `choice` names for `n_inputs` inputs, one for each, loaded.
    pub(crate) async fn lease(
        &self,
        choice: &AdapterChoice,
        n_inputs: usize,
    ) -> Result<Vec<Lease>, HostError> {
        match choice {
            AdapterChoice::None => Ok(vec![Lease(None); n_inputs]),
            AdapterChoice::One(name) if name.is_empty() => Ok(vec![Lease(None); n_inputs]),
            AdapterChoice::One(name) => Ok(vec![self.load(name, Patience::Waits).await?; n_inputs]),
            AdapterChoice::Each(names) => {
                // More of them at once than there are slots would wait for each other for ever.
                let mut distinct: Vec<&String> = names.iter().filter(|n| !n.is_empty()).collect();
                distinct.sort();
                distinct.dedup();
                if distinct.len() > self.n_slots {
                    return Err(HostError::bad_request(format!(
                        "adapters names {} different ones; at most {} are loaded at once \
                         (option.max_loras, option.max_cpu_loras)",
                        distinct.len(),
                        self.n_slots
                    )));
                }
                let mut leases = BTreeMap::new();
                for name in distinct {
                    leases.insert(name, self.load(name, Patience::Waits).await?);
                }
                let of = |name: &String| leases.get(name).cloned().unwrap_or(Lease(None));
                Ok(names.iter().map(of).collect())
            }
        }
    }

    /// The adapter `name`, loaded.
    async fn load(&self, name: &str, patience: Patience) -> Result<Lease, HostError> {
        loop {
            let freed = self.shared.freed.notified();
            tokio::pin!(freed);
            freed.as_mut().enable();
            if let Some(lease) = self.loaded(name)? {
                return Ok(lease);
            }
            let turn = self.loading.lock().await;
            if let Some(lease) = self.loaded(name)? {
                return Ok(lease);
            }
            if self.make_room() {
                return self.load_now(name).await;
            }
            drop(turn);
            if patience == Patience::None {
                return Err(HostError::OutOfMemory {
                    message: format!(
                        "No free lora slots: all {} are in use or pinned; raise option.max_loras or \
                         option.max_cpu_loras",
                        self.n_slots
                    ),
                    source: None,
                });
            }
            freed.await;
        }
    }

    /// The adapter `name` if it is loaded.
    fn loaded(&self, name: &str) -> Result<Option<Lease>, HostError> {
        let mut state = self.lock();
        let entry = find_mut(&mut state, name)?;
        entry.last_used = self.tick();
        Ok(entry.loaded.clone().map(|loaded| Lease(Some(loaded))))
    }

    /// Whether there is a slot; the least recently used adapter goes for it.
    fn make_room(&self) -> bool {
        if self.shared.n_loaded.load(Ordering::Relaxed) < self.n_slots {
            return true;
        }
        let mut state = self.lock();
        let idle = state.values_mut().filter(|entry| {
            !entry.info.pin
                && entry.loaded.as_ref().is_some_and(|loaded| Arc::strong_count(loaded) == 1)
        });
        let oldest = idle.min_by_key(|entry| entry.last_used);
        let evicted = oldest.and_then(|entry| entry.loaded.take());
        drop(state);
        evicted.is_some()
    }

    fn next_loaded(&self) -> Arc<Loaded> {
        self.shared.n_loaded.fetch_add(1, Ordering::Relaxed);
        Arc::new(Loaded {
            id: AdapterId(self.next_id.fetch_add(1, Ordering::Relaxed)),
            inbox: Arc::clone(&self.inbox),
            counts: Arc::clone(&self.shared),
        })
    }

    async fn load_now(&self, name: &str) -> Result<Lease, HostError> {
        let (name, dir, generation) = {
            let state = self.lock();
            let entry = find(&state, name)?;
            (entry.info.name.clone(), entry.dir.clone(), entry.generation)
        };
        let loaded = self.next_loaded();
        let (answer, end) = oneshot::channel();
        let gone = || HostError::Engine(EngineError::internal("the model takes no more adapters"));
        self.inbox.push(Mail::Load { id: loaded.id, dir, answer }).map_err(|_| gone())?;
        end.await.map_err(|_| gone())?.map_err(|error| match HostError::from(error) {
            HostError::Engine(error) => HostError::AdapterFailed { name: name.clone(), error },
            other => other,
        })?;
        tracing::info!(adapter = name, id = loaded.id.0, "an adapter is loaded");
        let mut state = self.lock();
        if let Some(entry) = state.get_mut(&name)
            && entry.generation == generation
        {
            entry.loaded = Some(Arc::clone(&loaded));
        }
        Ok(Lease(Some(loaded)))
    }

    /// The directory that `src` names.
    fn dir(&self, src: &str) -> Result<PathBuf, HostError> {
        let path = src.strip_prefix("file://").unwrap_or(src);
        let dir = self.root.join(path);
        if path.is_empty() || path.contains("://") || !dir.is_dir() {
            return Err(HostError::AdapterSource { src: src.to_owned() });
        }
        Ok(dir)
    }
}

/// Whether a load waits for a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Patience {
    None,
    Waits,
}

fn is_called(entry: &Entry, name: &str) -> bool {
    entry.info.name == name || entry.info.alias.as_deref() == Some(name)
}

fn not_found(name: &str) -> HostError {
    HostError::AdapterNotFound { name: name.chars().take(200).collect() }
}

fn find<'a>(state: &'a BTreeMap<String, Entry>, name: &str) -> Result<&'a Entry, HostError> {
    let found = state.get(name).or_else(|| state.values().find(|entry| is_called(entry, name)));
    found.ok_or_else(|| not_found(name))
}

fn find_mut<'a>(
    state: &'a mut BTreeMap<String, Entry>,
    name: &str,
) -> Result<&'a mut Entry, HostError> {
    let key = find(state, name)?.info.name.clone();
    state.get_mut(&key).ok_or_else(|| not_found(name))
}

/// The adapters in `dir`, a model's `adapters/`: each visible directory in it.
///
/// # Errors
/// The directory can't be read.
pub(crate) fn found_in(dir: &std::path::Path) -> Result<Vec<(String, PathBuf)>, HostError> {
    let mut found = Vec::new();
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(found),
        Err(error) => {
            let what = format!("listing {}", dir.display());
            return Err(HostError::Io { what, source: Arc::new(error) });
        }
    };
    for path in entries.filter_map(|entry| Some(entry.ok()?.path())).filter(|path| path.is_dir()) {
        if let Some(name) =
            path.file_name().and_then(|n| n.to_str()).filter(|n| !n.starts_with('.'))
        {
            found.push((name.to_owned(), path));
        }
    }
    found.sort();
    Ok(found)
}
