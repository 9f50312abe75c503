//! Functions that change what every worker has loaded: those of adapters. Each worker is asked, and one
//! that starts later is told what the others know.

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use drivetrain_engine::{LogLevel, Reply, Request};

use crate::error::PythonError;
use crate::follow::Following;
use crate::pool::Pool;
use crate::worker::Worker;

const REGISTER: &str = "register_adapter";
const UPDATE: &str = "update_adapter";
const UNREGISTER: &str = "unregister_adapter";

/// Most bytes of a reply to such a call.
const MAX_REPLY_BYTES: usize = 1 << 20;

/// The adapters that workers were told of.
#[derive(Debug, Default)]
pub(crate) struct Adapters(Mutex<Vec<Registered>>);

/// The call that registered an adapter.
#[derive(Debug)]
pub(crate) struct Registered {
    name: String,
    properties: Vec<(String, String)>,
    content: Vec<(String, Vec<u8>)>,
}

impl Adapters {
    /// The adapters in a model's `adapters/`, each in a directory of its own.
    pub(crate) fn in_dir(model_dir: &Path) -> Self {
        let entries = std::fs::read_dir(model_dir.join("adapters")).into_iter().flatten().flatten();
        let mut found: Vec<Registered> = entries
            .filter(|entry| entry.path().is_dir())
            .filter_map(|entry| Some((entry.file_name().into_string().ok()?, entry.path())))
            .filter(|(name, _)| !name.starts_with('.'))
            .map(|(name, dir)| Registered::of_dir(name, &dir))
            .collect();
        found.sort_by(|a, b| a.name.cmp(&b.name));
        Self(Mutex::new(found))
    }

    /// Holds them as they are: no worker is told of one, and none takes its seat meanwhile.
    pub(crate) fn lock(&self) -> MutexGuard<'_, Vec<Registered>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Registered {
    fn of_dir(name: String, dir: &Path) -> Self {
        let said = [
            ("handler", REGISTER.to_owned()),
            ("name", name.clone()),
            ("src", dir.display().to_string()),
            ("preload", "true".to_owned()),
            ("pin", "false".to_owned()),
        ];
        let properties: Vec<(String, String)> =
            said.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
        let entries = properties.iter().skip(1);
        let content = entries.map(|(key, value)| (key.clone(), value.clone().into_bytes()));
        Self { name, content: content.collect(), properties }
    }

    /// The call once more, to one worker and perhaps another function.
    fn ask(
        &self,
        pool: &Pool,
        worker: &Worker,
        function: &str,
    ) -> Result<Option<Kept>, PythonError> {
        let properties: Vec<(&str, &str)> =
            self.properties.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        let content: Vec<(&str, &[u8])> =
            self.content.iter().map(|(k, v)| (k.as_str(), v.as_slice())).collect();
        ask(pool, worker, function, &Request { id: "", properties: &properties, content: &content })
    }
}

/// Whether every worker is to be asked for this function.
pub(crate) fn is_for_all(function: &str) -> bool {
    [REGISTER, UPDATE, UNREGISTER].contains(&function)
}

/// Has every worker answer; the first answer goes to `reply`, or the first that is no success. Then those
/// that were asked before go back to what they had, so that all know the same.
pub(crate) fn answer(
    pool: &Pool,
    function: &str,
    request: &Request<'_>,
    reply: &mut dyn Reply,
) -> Result<(), PythonError> {
    if pool.alive().is_empty() {
        drop(pool.acquire(pool.launch.settings.predict_timeout)?);
    }
    let mut properties = request.properties.iter();
    let name = properties.find(|(key, _)| *key == "name").map(|(_, name)| *name);
    let mut known = pool.adapters.lock();
    let mut changed = Vec::new();
    let mut answer: Option<Kept> = None;
    for worker in pool.alive() {
        // A worker has this call in its turn, as any other: it may be in the middle of a long stream.
        let limit = pool.launch.settings.predict_timeout;
        let Some(_lease) = pool.acquire_of(&worker, limit)? else { continue };
        match ask(pool, &worker, function, request) {
            Ok(Some(one)) if one.status >= 300 => {
                if function != UNREGISTER
                    && let Some(name) = name
                {
                    let before = known.iter().find(|one| one.name == name);
                    changed.iter().for_each(|worker| undo(pool, worker, name, before));
                }
                return one.send(reply);
            }
            Ok(Some(one)) => {
                changed.push(worker);
                answer.get_or_insert(one);
            }
            // The one in its place will be told.
            Ok(None) | Err(PythonError::Ended { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    let Some(answer) = answer else {
        let reason = "no worker is there to be told of an adapter".to_owned();
        return Err(PythonError::NoWorker { model: pool.model.clone(), reason });
    };
    if let Some(name) = name {
        keep(&mut known, function, name, request);
    }
    drop(known);
    answer.send(reply)
}

/// Gives a worker back what it had of an adapter: nothing, if it wasn't there.
fn undo(pool: &Pool, worker: &Arc<Worker>, name: &str, before: Option<&Registered>) {
    let limit = pool.launch.settings.predict_timeout;
    let Ok(Some(_lease)) = pool.acquire_of(worker, limit) else { return };
    let end = match before {
        Some(before) => before.ask(pool, worker, UPDATE),
        None => {
            let properties = [("handler", UNREGISTER), ("name", name)];
            let content = [("name", name.as_bytes())];
            let request = Request { id: "", properties: &properties, content: &content };
            ask(pool, worker, UNREGISTER, &request)
        }
    };
    // One that has gone is replaced by one that is told what the others know.
    if !matches!(&end, Ok(None)) && !matches!(&end, Ok(Some(answer)) if answer.status < 300) {
        let number = worker.number();
        let text = format!("worker {number} could not undo a change of the adapter {name}");
        pool.launch.services.log(LogLevel::Error, &text);
    }
}

fn keep(known: &mut Vec<Registered>, function: &str, name: &str, request: &Request<'_>) {
    known.retain(|one| one.name != name);
    if function != UNREGISTER {
        let own = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
        let bytes = |(key, value): &(&str, &[u8])| ((*key).to_owned(), value.to_vec());
        known.push(Registered {
            name: name.to_owned(),
            properties: request.properties.iter().map(own).collect(),
            content: request.content.iter().map(bytes).collect(),
        });
    }
}

/// Tells a worker that has just started of the adapters there are. What it can't load is logged: it
/// answers requests without.
pub(crate) fn tell(pool: &Pool, known: &[Registered], worker: &Worker) {
    for one in known {
        let end = one.ask(pool, worker, REGISTER);
        if !matches!(&end, Ok(Some(answer)) if answer.status < 300) {
            let (number, name) = (worker.number(), &one.name);
            let text = format!("worker {number} could not load the adapter {name}");
            pool.launch.services.log(LogLevel::Error, &text);
        }
    }
}

/// Has one worker answer; `None` if it has gone.
fn ask(
    pool: &Pool,
    worker: &Worker,
    function: &str,
    request: &Request<'_>,
) -> Result<Option<Kept>, PythonError> {
    let Some(given) = worker.give(function, &[*request]) else { return Ok(None) };
    let mut kept = Kept { status: 200, ..Kept::default() };
    for (id, events) in given.calls {
        let end = Following { pool, worker, id, events }.run(&mut kept);
        worker.forget(std::iter::once(id));
        end?;
    }
    Ok(Some(kept))
}

/// A reply that is kept until all have answered.
#[derive(Debug, Default)]
struct Kept {
    status: u16,
    reason: String,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

impl Kept {
    fn send(&self, reply: &mut dyn Reply) -> Result<(), PythonError> {
        let headers: Vec<(&str, &str)> =
            self.headers.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        reply.head(self.status, &self.reason, &headers);
        if !self.body.is_empty() {
            reply.frame(&self.body);
        }
        Ok(())
    }
}

impl Reply for Kept {
    fn head(&mut self, status: u16, reason: &str, headers: &[(&str, &str)]) {
        let headers = headers.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        (self.status, self.reason, self.headers) = (status, reason.to_owned(), headers);
    }

    fn frame(&mut self, bytes: &[u8]) -> bool {
        if self.body.len() + bytes.len() > MAX_REPLY_BYTES {
            return false;
        }
        self.body.extend_from_slice(bytes);
        true
    }
}
