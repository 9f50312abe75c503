//! Multi-model endpoints: which models the container holds, and how others take their place.
//!
//! A model is named by the hash of its `TargetModel`. The first request for it brings its archive,
//! asks the container to load it (`POST /models`) and waits up to an invocation's time; later ones wait
//! with it. While the container says that it has no memory (507), the model that was asked for
//! longest ago is unloaded (`DELETE /models/{name}`), and it is asked again:
//!
//! ```text
//! load:   bring; loop { POST /models: 200, 409 -> loaded; 507 -> unload the oldest, or fail }
//! invoke: loop { load; POST /models/{name}/invoke: 404 -> forget, again; 507 -> unload, again }
//! ```

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use hyper::Method;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use serde_json::json;
use sha2::{Digest, Sha256};
use tokio::sync::watch;
use tokio::time::{Instant, timeout, timeout_at};

use super::call::{Answer, Call, CallError};
use super::container::Container;
use super::data::Bringer;
use crate::fault::{Fault, FaultKind, Original, chain, shorten};
use crate::options::Limits;
use crate::records::{Compression, ModelData};

/// What a container answers when memory is used up.
pub(crate) const NO_MEMORY: u16 = 507;
const CONFLICT: u16 = 409;
const NOT_FOUND: u16 = 404;
/// Largest answer to a request about models.
const ANSWER_BYTES: usize = 1 << 20;
const MAX_TARGET_BYTES: usize = 1024;

/// The models of one container.
#[derive(Debug)]
pub(crate) struct Many(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// The address that targets are below; ends with a slash.
    prefix: String,
    /// Where models are put, each in a directory of its name.
    dir: PathBuf,
    bringer: Bringer,
    keeps_nothing: bool,
    models: Mutex<Models>,
}

#[derive(Debug, Default)]
struct Models {
    by_name: HashMap<String, Slot>,
    /// Counts requests: the time of the last use.
    clock: u64,
}

type Loaded = Result<(), Fault>;

#[derive(Debug)]
struct Slot {
    loaded: watch::Receiver<Option<Loaded>>,
    used: u64,
}

impl Slot {
    fn is_loaded(&self) -> bool {
        matches!(*self.loaded.borrow(), Some(Ok(())))
    }
}

impl Many {
    pub(super) fn new(url: &str, dir: PathBuf, bringer: Bringer, keeps_nothing: bool) -> Self {
        let prefix = format!("{}/", url.trim_end_matches('/'));
        let models = Mutex::default();
        Self(Arc::new(Inner { prefix, dir, bringer, keeps_nothing, models }))
    }

    /// The container is another, which holds nothing yet.
    pub(super) fn forget_all(&self) {
        self.0.models().by_name.clear();
    }

    /// Loads the target where it is not, waiting until `deadline`.
    ///
    /// # Errors
    /// There is no such target, it can't be loaded, or not in time.
    pub(crate) async fn load(
        &self,
        container: &Arc<Container>,
        target: &str,
        limits: &Limits,
        deadline: Instant,
    ) -> Result<String, Fault> {
        check_target(target)?;
        let name = name_of(target);
        let mut loaded = self.begin(container, target, &name, limits);
        let waited = timeout_at(deadline, loaded.wait_for(Option::is_some)).await;
        let state = match waited {
            Ok(Ok(state)) => state.clone(),
            // The task that loads it is gone: the container has ended.
            Ok(Err(_)) => None,
            Err(_) => {
                return Err(Fault::new(
                    FaultKind::ModelNotReady,
                    format!("TargetModel {target} is still loading: ask again later"),
                ));
            }
        };
        match state {
            Some(Ok(())) => Ok(name),
            Some(Err(fault)) => Err(fault),
            None => Err(Fault::new(
                FaultKind::Unavailable,
                format!("TargetModel {target}: the container ended while it was loading"),
            )),
        }
    }

    /// The state of loading `target`, which begins now unless it has before.
    fn begin(
        &self,
        container: &Arc<Container>,
        target: &str,
        name: &str,
        limits: &Limits,
    ) -> watch::Receiver<Option<Loaded>> {
        let mut models = self.0.models();
        models.clock += 1;
        let used = models.clock;
        if let Some(slot) = models.by_name.get_mut(name) {
            slot.used = used;
            return slot.loaded.clone();
        }
        let (sender, loaded) = watch::channel(None);
        models.by_name.insert(name.to_owned(), Slot { loaded: loaded.clone(), used });
        let (inner, container) = (Arc::clone(&self.0), Arc::clone(container));
        let (target, name, limit) = (target.to_owned(), name.to_owned(), limits.model_load);
        tokio::spawn(async move {
            let result = match timeout(limit, load(&inner, &container, &target, &name)).await {
                Ok(result) => result,
                Err(_) => Err(Fault::new(
                    FaultKind::ModelNotReady,
                    format!("TargetModel {target} was not loaded within {} s", limit.as_secs()),
                )),
            };
            if let Err(fault) = &result {
                tracing::warn!(target_model = target, reason = fault.message, "not loaded");
                inner.models().by_name.remove(&name);
            }
            sender.send_replace(Some(result));
        });
        loaded
    }

    /// The container says that it has no model of this name.
    pub(crate) fn forget(&self, name: &str) {
        self.0.models().by_name.remove(name);
    }

    /// Unloads the model that was asked for longest ago, `name` excepted; false if there is no other.
    pub(crate) async fn make_room(&self, container: &Container, name: &str) -> Result<bool, Fault> {
        make_room(&self.0, container, name).await
    }

    /// A request has been answered; without a cache its model goes.
    pub(crate) async fn answered(&self, container: &Container, name: &str) {
        if self.0.keeps_nothing
            && self.0.models().by_name.remove(name).is_some()
            && let Err(fault) = unload(&self.0, container, name).await
        {
            tracing::warn!(model = name, reason = fault.message, "not unloaded");
        }
    }

    /// Whether an answer says that the container does not have the model it was asked for.
    pub(crate) fn is_missing(answer: &Answer) -> bool {
        answer.status == NOT_FOUND
    }
}

impl Inner {
    fn models(&self) -> MutexGuard<'_, Models> {
        self.models.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The path that a target's requests go to.
pub(crate) fn invoke_path(name: &str) -> String {
    format!("/models/{name}/invoke")
}

async fn load(
    inner: &Arc<Inner>,
    container: &Container,
    target: &str,
    name: &str,
) -> Result<(), Fault> {
    let place = inner.dir.join(name).join("model");
    bring(inner, target, &place).await?;
    let body = json!({ "model_name": name, "url": place }).to_string();
    loop {
        let mut call = Call::bare(Method::POST, "/models");
        call.headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        call.body = Bytes::from(body.clone());
        let answer = container.ask(call, ANSWER_BYTES).await.map_err(|error| no_answer(&error))?;
        match answer.status {
            200..=299 | CONFLICT => {
                tracing::info!(target_model = target, model = name, "loaded");
                return Ok(());
            }
            NO_MEMORY if make_room(inner, container, name).await? => {}
            _ => return Err(original(&answer)),
        }
    }
}

async fn bring(inner: &Arc<Inner>, target: &str, place: &Path) -> Result<(), Fault> {
    let data =
        ModelData { url: format!("{}{target}", inner.prefix), compression: Compression::Gzip };
    let (inner, place) = (Arc::clone(inner), place.to_owned());
    let brought = tokio::task::spawn_blocking(move || inner.bringer.bring(&data, &place)).await;
    match brought {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => {
            Err(Fault::validation(format!("TargetModel {target}: {}", chain(&error))))
        }
        Err(_) => Err(Fault::new(FaultKind::Internal, format!("TargetModel {target}: given up"))),
    }
}

async fn make_room(inner: &Inner, container: &Container, keep: &str) -> Result<bool, Fault> {
    let oldest = {
        let mut models = inner.models();
        let others = models.by_name.iter().filter(|(name, slot)| *name != keep && slot.is_loaded());
        let oldest = others.min_by_key(|(_, slot)| slot.used).map(|(name, _)| name.clone());
        if let Some(name) = &oldest {
            models.by_name.remove(name);
        }
        oldest
    };
    match oldest {
        None => Ok(false),
        Some(oldest) => unload(inner, container, &oldest).await.map(|()| true),
    }
}

async fn unload(inner: &Inner, container: &Container, name: &str) -> Result<(), Fault> {
    let call = Call::bare(Method::DELETE, format!("/models/{name}"));
    let answer = container.ask(call, ANSWER_BYTES).await.map_err(|error| no_answer(&error))?;
    let _ = std::fs::remove_dir_all(inner.dir.join(name));
    match answer.status {
        200..=299 | NOT_FOUND => {
            tracing::info!(model = name, "unloaded");
            Ok(())
        }
        _ => Err(original(&answer)),
    }
}

/// A container's refusal, as clients see it.
pub(crate) fn original(answer: &Answer) -> Fault {
    const LONGEST: usize = 4096;
    let message = shorten(&String::from_utf8_lossy(&answer.body), LONGEST);
    Fault::model(Original { status: answer.status, message })
}

/// No answer of a container, as clients see it: it is gone, or it failed.
pub(crate) fn no_answer(error: &CallError) -> Fault {
    match error {
        CallError::Connect { .. } => Fault::new(FaultKind::Unavailable, chain(error)),
        _ => Fault::model(Original { status: 0, message: chain(error) }),
    }
}

/// A target is a path below the prefix.
fn check_target(target: &str) -> Result<(), Fault> {
    let is_part = |part: &str| !matches!(part, "" | "." | "..");
    let target_path = target.strip_prefix('/').unwrap_or(target);
    let is_target = target.len() <= MAX_TARGET_BYTES
        && target_path.split('/').all(is_part)
        && !target.contains(['\\', '?', '#'])
        && !target.chars().any(char::is_control);
    match is_target {
        true => Ok(()),
        false => Err(Fault::validation(
            "TargetModel: expected a path below the ModelDataUrl, such as models/a.tar.gz",
        )),
    }
}

fn name_of(target: &str) -> String {
    let target = target.strip_prefix('/').unwrap_or(target);
    Sha256::digest(target.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_stay_below_the_prefix() {
        for target in ["a.tar.gz", "/a.tar.gz", "x/y/a.tar.gz"] {
            assert!(check_target(target).is_ok(), "{target}");
        }
        for target in ["", "/", "..", "../a.tar.gz", "x/../../a", "a//b", "a?b", "a\\b", "a\nb"] {
            assert!(check_target(target).is_err(), "{target}");
        }
        assert!(check_target(&"a".repeat(1025)).is_err());
    }

    #[test]
    fn a_name_says_nothing_of_the_target() {
        // `printf %s a.tar.gz | sha256sum`.
        let wanted = "0a67bba7da46793c9f1908a7eec3d06a11ba7bc00bf749c31bb134f4f45ebcad";
        assert_eq!(name_of("a.tar.gz"), wanted);
        assert_eq!(name_of("a.tar.gz"), name_of("/a.tar.gz"));
        assert_ne!(name_of("a.tar.gz"), name_of("b.tar.gz"));
    }
}
