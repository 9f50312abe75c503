//! The engines there are: found in plugin folders, chosen by name or by the host.

use std::collections::HashSet;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use drivetrain_config::EngineChoice;
use drivetrain_engine::{AbiVersion, Engine, EngineInfo, EngineLibrary, OpenEngineError};

use crate::HostError;

/// Engines by speed: which the host tries first when it may choose.
const PREFERENCE: [&str; 2] = ["fastertransformer", "accelerate"];

/// Where a container keeps its engines.
const SYSTEM_PLUGINS: &str = "/opt/drivetrain/plugins";

/// The folders that engines are looked for in, first one first: those of the command line (`flag`)
/// and of the environment (`from_env`), the executable's own (`exe_dir`), `../lib/drivetrain/plugins`
/// beside that, and `/opt/drivetrain/plugins`.
pub fn plugin_dirs(flag: &[PathBuf], from_env: &[PathBuf], exe_dir: Option<&Path>) -> Vec<PathBuf> {
    let beside =
        exe_dir.into_iter().flat_map(|dir| [dir.to_owned(), dir.join("../lib/drivetrain/plugins")]);
    let mut seen = HashSet::new();
    flag.iter()
        .chain(from_env)
        .cloned()
        .chain(beside)
        .chain([PathBuf::from(SYSTEM_PLUGINS)])
        .filter(|dir| seen.insert(dir.clone()))
        .collect()
}

/// An engine that can be chosen.
#[derive(Clone)]
pub struct FoundEngine {
    /// The engine.
    pub engine: Arc<dyn Engine>,
    /// What it says of itself.
    pub info: EngineInfo,
    /// The ABI its library speaks; `None` for an engine of this process.
    pub abi: Option<AbiVersion>,
    /// Its library; `None` for an engine of this process.
    pub path: Option<PathBuf>,
}

impl fmt::Debug for FoundEngine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FoundEngine")
            .field("info", &self.info)
            .field("abi", &self.abi)
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}

impl FoundEngine {
    fn of_process(engine: Arc<dyn Engine>) -> Self {
        Self { info: engine.info(), engine, abi: None, path: None }
    }

    fn answers_to(&self, name: &str) -> bool {
        self.info.name.eq_ignore_ascii_case(name)
            || self.info.aliases.iter().any(|alias| alias.eq_ignore_ascii_case(name))
    }

    /// Name and library, for messages.
    fn title(&self) -> String {
        match &self.path {
            Some(path) => format!("{} ({})", self.info.name, path.display()),
            None => self.info.name.clone(),
        }
    }
}

/// A trial of a library outside of this process; see [`EngineRegistry::discover_after`].
pub type Trial<'a> = dyn Fn(&Path) -> Result<(), OpenEngineError> + Sync + 'a;

/// All engines found, and the files that were none.
#[derive(Debug, Default)]
pub struct EngineRegistry {
    engines: Vec<FoundEngine>,
    rejected: Vec<(PathBuf, OpenEngineError)>,
    searched: Vec<PathBuf>,
}

impl EngineRegistry {
    /// Opens every `lib*.so` and `lib*.dylib` in `dirs`. A file that is no engine is logged, kept
    /// in [`Self::rejected`], and stops no other; of two engines of one name the one of the earlier
    /// folder counts. A folder that is not there is passed over.
    pub fn discover(dirs: &[PathBuf]) -> Self {
        Self::discover_after(dirs, &|_| Ok(()))
    }

    /// [`Self::discover`], with `trial` run on every file first, all at once. A file that fails it
    /// is refused unopened: a damaged library can end the process that opens it, so a server tries
    /// it in another.
    pub fn discover_after(dirs: &[PathBuf], trial: &Trial<'_>) -> Self {
        let mut registry = Self { searched: dirs.to_vec(), ..Self::default() };
        let mut seen = HashSet::new();
        let paths: Vec<PathBuf> = dirs
            .iter()
            .flat_map(|dir| libraries(dir))
            .filter(|path| seen.insert(path.canonicalize().unwrap_or_else(|_| path.clone())))
            .collect();
        let verdicts: Vec<Result<(), OpenEngineError>> = std::thread::scope(|scope| {
            let trials: Vec<_> =
                paths.iter().map(|path| scope.spawn(move || trial(path))).collect();
            trials.into_iter().map(|trial| trial.join().unwrap_or(Ok(()))).collect()
        });
        for (path, verdict) in paths.into_iter().zip(verdicts) {
            match verdict {
                Ok(()) => registry.open(path),
                Err(error) => registry.refuse(path, error),
            }
        }
        registry
    }

    /// A registry of one engine of this process.
    pub fn with(engine: Arc<dyn Engine>) -> Self {
        let mut registry = Self::default();
        registry.add(engine);
        registry
    }

    /// Adds an engine of this process; one that is there under its name stays.
    pub fn add(&mut self, engine: Arc<dyn Engine>) {
        self.keep(FoundEngine::of_process(engine));
    }

    /// The engines, in the order they were found.
    pub fn engines(&self) -> &[FoundEngine] {
        &self.engines
    }

    /// The files that look like libraries of engines and could not be opened as such.
    pub fn rejected(&self) -> &[(PathBuf, OpenEngineError)] {
        &self.rejected
    }

    /// The engine for `choice`: the one of that name, or the one the host prefers.
    ///
    /// # Errors
    /// `EngineNotFound`, which lists what was found and what was refused.
    pub fn select(&self, choice: &EngineChoice) -> Result<Arc<dyn Engine>, HostError> {
        let first = self.candidates(choice)?.into_iter().next();
        first.map(|found| Arc::clone(&found.engine)).ok_or_else(|| self.not_found(choice))
    }

    /// The engines to try for `choice`, best first; at least one.
    ///
    /// # Errors
    /// As [`Self::select`].
    pub fn candidates(&self, choice: &EngineChoice) -> Result<Vec<&FoundEngine>, HostError> {
        let mut found: Vec<&FoundEngine> = match choice {
            EngineChoice::Auto => self.engines.iter().collect(),
            EngineChoice::Named(name) => {
                self.engines.iter().filter(|found| found.answers_to(name)).take(1).collect()
            }
        };
        found.sort_by_key(|found| {
            PREFERENCE.iter().position(|name| found.answers_to(name)).unwrap_or(PREFERENCE.len())
        });
        if found.is_empty() { Err(self.not_found(choice)) } else { Ok(found) }
    }

    fn not_found(&self, choice: &EngineChoice) -> HostError {
        let list = |items: Vec<String>, none: &str| {
            if items.is_empty() { none.to_owned() } else { items.join(", ") }
        };
        let found = list(self.engines.iter().map(FoundEngine::title).collect(), "none");
        let searched = self.searched.iter().map(|dir| dir.display().to_string()).collect();
        let mut message = match choice.name() {
            Some(name) => format!("engine={name}: there is no engine of this name; found: {found}"),
            None => format!("there is no engine; looked in: {}", list(searched, "no folder")),
        };
        if !self.rejected.is_empty() {
            let refused = self.rejected.iter().map(|(_, error)| error.to_string()).collect();
            message.push_str(&format!("; refused: {}", list(refused, "")));
        }
        match choice.name() {
            Some(_) => message.push_str("; set option.engine to one of those found, or to auto"),
            None => message.push_str("; name the folder of the engines with --plugins"),
        }
        HostError::EngineNotFound { message }
    }

    fn open(&mut self, path: PathBuf) {
        match EngineLibrary::open(&path) {
            Ok(library) => {
                let (abi, info) = (Some(library.abi()), library.info());
                let engine: Arc<dyn Engine> = Arc::new(library);
                self.keep(FoundEngine { engine, info, abi, path: Some(path) });
            }
            Err(error) => self.refuse(path, error),
        }
    }

    fn refuse(&mut self, path: PathBuf, error: OpenEngineError) {
        let why = HostError::chain_of(&error);
        tracing::warn!(file = %path.display(), error = why, "a library is no engine");
        if let Some(details) = error.details() {
            tracing::debug!(file = %path.display(), details, "what differs");
        }
        self.rejected.push((path, error));
    }

    fn keep(&mut self, found: FoundEngine) {
        if let Some(first) = self.engines.iter().find(|old| old.answers_to(&found.info.name)) {
            tracing::warn!(
                engine = found.info.name,
                used = first.title(),
                unused = found.title(),
                "two engines have one name: the first one counts"
            );
            return;
        }
        tracing::info!(
            engine = found.info.name,
            version = found.info.version,
            file = found.title(),
            "found an engine"
        );
        self.engines.push(found);
    }
}

/// The libraries of a folder by name, so that every start finds them in the same order.
fn libraries(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(dir) else {
        tracing::debug!(dir = %dir.display(), "no plugin folder");
        return Vec::new();
    };
    let mut paths: Vec<PathBuf> = entries
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .filter(|path| {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            name.starts_with("lib") && (name.ends_with(".so") || name.ends_with(".dylib"))
        })
        .filter(|path| path.is_file())
        .collect();
    paths.sort();
    paths
}

#[cfg(test)]
mod tests;
