//! Runs the cases: loads the model, gives it to each case in turn, and keeps a panic or a leak of
//! one case from spoiling the next.

use std::any::Any;
use std::num::NonZeroUsize;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use drivetrain_engine::{
    Engine, EngineError, LoadRequest, LoadedModel, Options, RequestModel, Services,
};

use crate::cases;
use crate::driver::Driver;
use crate::random::Random;
use crate::report::{Case, Outcome, Report};

/// What to check an engine with.
#[derive(Clone, Debug)]
pub struct CheckOptions {
    /// A model the engine can load. Without one only the cases that need no model run.
    pub model_dir: Option<PathBuf>,
    /// Options to load the model with, keys without their `option.` prefix.
    pub options: Vec<(String, String)>,
    /// How many times sequences are made and released, and models loaded and dropped, in search of
    /// leaks.
    pub cycles: u32,
    /// How long the search for leaks may go on loading models; a slow model gets fewer cycles, and
    /// the report says how many.
    pub load_budget: Duration,
    /// Threads a model may compute on.
    pub n_threads: NonZeroUsize,
    /// Repeats everything random.
    pub seed: u64,
}

impl Default for CheckOptions {
    fn default() -> Self {
        Self {
            model_dir: None,
            options: Vec::new(),
            cycles: 1000,
            load_budget: Duration::from_secs(60),
            n_threads: std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN),
            seed: 1,
        }
    }
}

/// The model directory shipped with a library, if there is one: `model` or the library's name with
/// the ending `.model`, in the library's folder.
pub fn model_beside(library: &Path) -> Option<PathBuf> {
    let folder = library.parent()?;
    [library.with_extension("model"), folder.join("model")].into_iter().find(|dir| dir.is_dir())
}

/// Checks `engine`. Takes seconds with a small model; never panics with the engine.
pub fn check(engine: &dyn Engine, options: &CheckOptions) -> Report {
    let loader = Loader { engine, options };
    let mut cases: Vec<Case> =
        cases::ENGINE.iter().map(|(name, run)| case(name, || run(&loader))).collect();
    if options.model_dir.is_none() {
        let reason = "no model directory was given, and none lies beside the library";
        let outcome = Outcome::Skipped(reason.to_owned());
        cases.push(Case { name: cases::MODEL_LOADS, outcome, took: Duration::ZERO });
    } else {
        let mut loaded = None;
        cases.push(case(cases::MODEL_LOADS, || {
            loaded = Some(loader.load()?);
            Ok(None)
        }));
        match loaded {
            Some(LoadedModel::Token(model)) => token_cases(&loader, Driver::new(model), &mut cases),
            Some(LoadedModel::Request(model)) => request_cases(&loader, &*model, &mut cases),
            None => {}
        }
    }
    let info = catch(|| engine.info()).unwrap_or_default();
    Report {
        engine: format!("{} {}", info.name, info.version),
        model_dir: options.model_dir.clone(),
        seed: options.seed,
        cases,
    }
}

fn token_cases(loader: &Loader<'_>, driver: Driver, cases: &mut Vec<Case>) {
    let mut driver = Some(driver);
    for (idx, (name, run)) in cases::TOKEN.iter().enumerate() {
        cases.push(case(name, || {
            let mut current = match driver.take() {
                Some(driver) => driver,
                None => loader.driver()?,
            };
            let mut random = Random::new(loader.options.seed.wrapping_add(idx as u64));
            let result = run(&mut Context { loader, driver: &mut current, random: &mut random });
            // A model that keeps sequences, or broke, is replaced, so that its fault is told once.
            if current.release_all() == 0 && current.model().health().is_ok() {
                driver = Some(current);
            }
            result
        }));
    }
}

fn request_cases(loader: &Loader<'_>, model: &dyn RequestModel, cases: &mut Vec<Case>) {
    for (name, run) in cases::REQUEST {
        cases.push(case(name, || run(loader, model)));
    }
}

/// Loads the model under test.
pub(crate) struct Loader<'a> {
    pub(crate) engine: &'a dyn Engine,
    pub(crate) options: &'a CheckOptions,
}

impl Loader<'_> {
    /// Loads the model of the options.
    pub(crate) fn load(&self) -> Result<LoadedModel, EngineError> {
        self.with(&[], |request| self.engine.load(request))
    }

    /// Calls `ask` with the request for the model of the options, and `more` of them.
    pub(crate) fn with<T>(
        &self,
        more: &[(&str, &str)],
        ask: impl FnOnce(&LoadRequest<'_>) -> T,
    ) -> T {
        let dir = self.options.model_dir.as_deref().unwrap_or(Path::new(""));
        let pairs = self.options.options.iter().map(|(key, value)| (key.as_str(), value.as_str()));
        let pairs: Vec<(&str, &str)> = pairs.chain(more.iter().copied()).collect();
        ask(&LoadRequest {
            model_name: "check",
            model_dir: dir,
            adapter_dir: None,
            options: Options::new(&pairs),
            n_threads: self.options.n_threads,
            services: Services::silent(),
        })
    }

    /// Loads whatever is at `dir`.
    pub(crate) fn load_from(
        &self,
        dir: &Path,
        services: Services,
    ) -> Result<LoadedModel, EngineError> {
        self.with(&[], |request| {
            self.engine.load(&LoadRequest { model_dir: dir, services, ..request.clone() })
        })
    }

    /// Loads the token model of the options.
    pub(crate) fn driver(&self) -> Result<Driver, Stop> {
        match self.load()? {
            LoadedModel::Token(model) => Ok(Driver::new(model)),
            LoadedModel::Request(_) => Err(Stop::Fail(
                "loaded a request model where it loaded a token model before".into(),
            )),
        }
    }
}

/// What a case of a token model works with.
pub(crate) struct Context<'a> {
    pub(crate) loader: &'a Loader<'a>,
    pub(crate) driver: &'a mut Driver,
    pub(crate) random: &'a mut Random,
}

/// Why a case ended early.
pub(crate) enum Stop {
    Fail(String),
    Skip(String),
}

/// A case's end; a remark if it passed.
pub(crate) type Verdict = Result<Option<String>, Stop>;

impl From<EngineError> for Stop {
    fn from(error: EngineError) -> Self {
        Self::Fail(describe(&error))
    }
}

/// An error with its kind and causes.
pub(crate) fn describe(error: &EngineError) -> String {
    let mut text = format!("{}: {}", error.kind(), error.message());
    for cause in error.causes() {
        text.push_str(": ");
        text.push_str(cause);
    }
    text
}

/// Ends a case that found `problem`, saying `what` was compared.
pub(crate) fn unless(problem: Option<String>, what: impl Into<String>) -> Result<(), Stop> {
    problem.map_or(Ok(()), |problem| Err(Stop::Fail(format!("{}: {problem}", what.into()))))
}

/// Ends a case unless `holds`.
pub(crate) fn ensure(holds: bool, reason: impl FnOnce() -> String) -> Result<(), Stop> {
    if holds { Ok(()) } else { Err(Stop::Fail(reason())) }
}

fn case(name: &'static str, run: impl FnOnce() -> Verdict) -> Case {
    let start = Instant::now();
    let outcome = match catch(run) {
        Ok(Ok(remark)) => Outcome::Passed(remark),
        Ok(Err(Stop::Fail(reason))) => Outcome::Failed(reason),
        Ok(Err(Stop::Skip(reason))) => Outcome::Skipped(reason),
        Err(message) => Outcome::Failed(format!("panicked: {message}")),
    };
    Case { name, outcome, took: start.elapsed() }
}

/// Runs `work`; the message of its panic if it does. An engine in a library turns panics into
/// errors, one in this process does not.
fn catch<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|payload: Box<dyn Any + Send>| {
        let text = payload.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| payload.downcast_ref::<&str>().copied());
        text.unwrap_or("a value that is no text").to_owned()
    })
}
