//! Opens a library and finds the engine in it.

mod elf;
mod error;

use std::fmt;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use abi_stable::library::{
    AbiHeader, AbiHeaderRef, LibHeader, LibraryError, ROOT_MODULE_LOADER_NAME,
    ROOT_MODULE_LOADER_NAME_WITH_NUL, RootModuleError,
};
use libloading::Library;

pub use error::OpenEngineError;

use crate::boundary::host::ForeignEngine;
use crate::boundary::objects::EngineModuleRef;
use crate::boundary::plugin::engine_object;
use crate::version::{ABI_VERSION, AbiVersion};
use crate::{Engine, EngineError, EngineInfo, LoadPlan, LoadRequest, LoadedModel};
use elf::Misfit;

/// An engine in an opened library: an [`Engine`] like any other. Cheap to clone.
///
/// The library stays loaded until the process ends, whatever is dropped. Opening a file twice gives
/// the same engine twice.
#[derive(Clone)]
pub struct EngineLibrary(Arc<Inner>);

struct Inner {
    path: PathBuf,
    abi: AbiVersion,
    engine: ForeignEngine,
}

impl EngineLibrary {
    /// Opens the library at `path`, checks that this host and it agree on every type that crosses,
    /// and makes its engine.
    ///
    /// What the file says of itself is looked at before the system loads it, so a file that is no
    /// library, or one without an engine, runs none of its code.
    ///
    /// # Errors
    /// [`OpenEngineError`], whose variants tell apart what an operator has to do.
    pub fn open(path: &Path) -> Result<Self, OpenEngineError> {
        inspect(path)?;
        let (module, abi) = root_module(path, load(path)?)?;
        let panicked = |error: EngineError| {
            let message = error.message();
            let message = message.strip_prefix("panicked: ").unwrap_or(message).to_owned();
            OpenEngineError::Panicked { path: path.to_owned(), message }
        };
        let engine = module.engine()().into_result().map_err(|error| panicked(error.into()))?;
        let engine = ForeignEngine::new(engine).map_err(panicked)?;
        Ok(Self(Arc::new(Inner { path: path.to_owned(), abi, engine })))
    }

    /// The ABI version that the library was built with.
    pub fn abi(&self) -> AbiVersion {
        self.0.abi
    }

    /// The file, as it was given to [`Self::open`].
    pub fn path(&self) -> &Path {
        &self.0.path
    }
}

impl fmt::Debug for EngineLibrary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EngineLibrary")
            .field("path", &self.0.path)
            .field("abi", &self.0.abi)
            .finish_non_exhaustive()
    }
}

impl Engine for EngineLibrary {
    fn info(&self) -> EngineInfo {
        self.0.engine.info()
    }

    fn load(&self, request: &LoadRequest<'_>) -> Result<LoadedModel, EngineError> {
        self.0.engine.load(request)
    }

    fn plan(&self, request: &LoadRequest<'_>) -> Result<Option<LoadPlan>, EngineError> {
        self.0.engine.plan(request)
    }
}

/// `engine`, which is in this process, with every call going through the ABI as though it came
/// from a library: what the boundary costs can be measured, and an engine debugged, without one.
///
/// # Errors
/// `Internal` if `info` panics.
pub fn through_abi(engine: Arc<dyn Engine>) -> Result<Arc<dyn Engine>, EngineError> {
    Ok(Arc::new(ForeignEngine::new(engine_object(engine))?))
}

fn inspect(path: &Path) -> Result<(), OpenEngineError> {
    let read = |source| OpenEngineError::Read { path: path.to_owned(), source };
    // Asked before it is opened: opening a pipe waits for somebody to write to it.
    let metadata = std::fs::metadata(path).map_err(read)?;
    if !metadata.is_file() {
        let found = if metadata.is_dir() { "a directory" } else { "no regular file" }.to_owned();
        return Err(OpenEngineError::NotALibrary { path: path.to_owned(), found });
    }
    let mut file = File::open(path).map_err(read)?;
    match elf::inspect(&mut file, metadata.len(), ROOT_MODULE_LOADER_NAME).map_err(read)? {
        Ok(()) => Ok(()),
        Err(Misfit::NotALibrary(found)) => {
            Err(OpenEngineError::NotALibrary { path: path.to_owned(), found })
        }
        Err(Misfit::Architecture(found)) => {
            Err(OpenEngineError::Architecture { path: path.to_owned(), found })
        }
        Err(Misfit::NoSymbol) => Err(OpenEngineError::MissingSymbol { path: path.to_owned() }),
    }
}

fn load(path: &Path) -> Result<AbiHeaderRef, OpenEngineError> {
    // A bare file name would be looked up in the system's library path instead.
    let full = path
        .canonicalize()
        .map_err(|source| OpenEngineError::Read { path: path.to_owned(), source })?;
    let library = open_now(&full)
        .map_err(|source| OpenEngineError::Open { path: path.to_owned(), source })?;
    // SAFETY: the symbol has abi_stable's mangled name for its header, whose beginning has been
    // the same type in every version; `AbiHeaderRef` is a transparent pointer to it, and the
    // library that it points into is forgotten below, never unloaded.
    let header = unsafe {
        library
            .get::<AbiHeaderRef>(ROOT_MODULE_LOADER_NAME_WITH_NUL.as_bytes())
            .map(|symbol| *symbol)
    };
    // Destructors and threads of a library outlive any handle to it, so nothing is ever unloaded.
    std::mem::forget(library);
    header.map_err(|_| OpenEngineError::MissingSymbol { path: path.to_owned() })
}

/// Loads with every symbol bound at once: one that is missing is an error here, not the end of
/// the process at its first use.
#[cfg(unix)]
fn open_now(path: &Path) -> Result<Library, libloading::Error> {
    use libloading::os::unix::{Library as UnixLibrary, RTLD_LOCAL, RTLD_NOW};
    // SAFETY: the initialisers of the library run, which is what an operator who puts it into the
    // plugin folder asks for; it was inspected to be an engine.
    unsafe { UnixLibrary::open(Some(path), RTLD_NOW | RTLD_LOCAL) }.map(Library::from)
}

#[cfg(not(unix))]
fn open_now(path: &Path) -> Result<Library, libloading::Error> {
    // SAFETY: the initialisers of the library run, which is what an operator who puts it into the
    // plugin folder asks for.
    unsafe { Library::new(path) }
}

fn root_module(
    path: &Path,
    header: AbiHeaderRef,
) -> Result<(EngineModuleRef, AbiVersion), OpenEngineError> {
    if header.magic_string != AbiHeader::VALUE.magic_string || !header.is_valid() {
        return Err(OpenEngineError::AbiStable {
            path: path.to_owned(),
            found: format!("{}.{}", header.abi_major, header.abi_minor),
            host: format!("{}.{}", AbiHeader::VALUE.abi_major, AbiHeader::VALUE.abi_minor),
        });
    }
    let layout = |error: LibraryError| layout_error(path, &error);
    let header = header.upgrade().map_err(layout)?;
    let version = |found| OpenEngineError::Abi { path: path.to_owned(), found, host: ABI_VERSION };
    // The version is checked before the layout: of the two reasons it is the one to act on.
    if let Some(found) = stated_version(header)
        && !ABI_VERSION.takes(found)
    {
        return Err(version(found));
    }
    let module = header.init_root_module::<EngineModuleRef>().map_err(|error| match error {
        LibraryError::RootModule { err: RootModuleError::Returned(text), .. } => {
            OpenEngineError::Panicked { path: path.to_owned(), message: text.to_string() }
        }
        LibraryError::RootModule { .. } => OpenEngineError::Panicked {
            path: path.to_owned(),
            message: "its root function, which should only list the entry points".to_owned(),
        },
        error => layout(error),
    })?;
    let abi = module.abi();
    if ABI_VERSION.takes(abi) { Ok((module, abi)) } else { Err(version(abi)) }
}

/// The version of `drivetrain-engine` in the library's header.
fn stated_version(header: &LibHeader) -> Option<AbiVersion> {
    let mut parts = header.version_strings().version.as_str().split('.').map(str::parse);
    Some(AbiVersion { major: parts.next()?.ok()?, minor: parts.next()?.ok()? })
}

fn layout_error(path: &Path, error: &LibraryError) -> OpenEngineError {
    let details = error.to_string();
    OpenEngineError::Layout { path: path.to_owned(), tail: error::tail(&details), details }
}
