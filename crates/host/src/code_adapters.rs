//! Adapters of a model that answers with code of its own: the host keeps the list, the code's own
//! functions load them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use drivetrain_engine::EngineError;

use crate::adapters::found_in;
use crate::{AdapterChange, AdapterInfo, HostError, RawHead, RawReply, RawRequest};

/// Most bytes that the code may answer.
const MAX_ANSWER_BYTES: usize = 1 << 20;

/// What is asked of a model's code about an adapter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CodeChange {
    /// To register it.
    Register(AdapterInfo),
    /// To read the adapter of this name or alias again, with what has changed of it.
    Update(String, AdapterChange),
    /// To forget the adapter of this name or alias.
    Unregister(String),
}

/// What a model's code answered.
#[derive(Clone, Debug)]
pub struct CodeAnswer {
    /// Status, reason and headers.
    pub head: RawHead,
    /// The body.
    pub body: Bytes,
}

/// The adapters of one model.
pub(crate) struct CodeAdapters {
    /// Where relative directories start.
    root: PathBuf,
    known: Mutex<BTreeMap<String, AdapterInfo>>,
    /// Held while the code is asked, so that its answers come in the order of the list's changes.
    pub(crate) turn: tokio::sync::Mutex<()>,
}

/// A change that the code is to make, and what the list says afterwards.
pub(crate) struct Planned {
    pub(crate) request: RawRequest,
    name: String,
    becomes: Option<AdapterInfo>,
}

impl CodeAdapters {
    /// Those in the model's directory, which the engine tells the code of by itself.
    pub(crate) fn new(root: &Path) -> Result<Self, HostError> {
        let found = found_in(&root.join("adapters"))?.into_iter().map(|(name, dir)| {
            let src = dir.display().to_string();
            (name.clone(), AdapterInfo { name, src, alias: None, preload: true, pin: false })
        });
        let known = Mutex::new(found.collect());
        Ok(Self { root: root.to_owned(), known, turn: tokio::sync::Mutex::default() })
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, AdapterInfo>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All of them, by name.
    pub(crate) fn list(&self) -> Vec<AdapterInfo> {
        self.lock().values().cloned().collect()
    }

    /// The one with this name or alias.
    pub(crate) fn get(&self, name: &str) -> Result<AdapterInfo, HostError> {
        let known = self.lock();
        let is_called = |info: &&AdapterInfo| info.alias.as_deref() == Some(name);
        let found = known.get(name).or_else(|| known.values().find(is_called));
        found.cloned().ok_or_else(|| HostError::AdapterNotFound { name: name.to_owned() })
    }

    /// The request by which the code makes `change`. `parameters` are the caller's own.
    ///
    /// # Errors
    /// The name is taken or unknown, or there is no such directory.
    pub(crate) fn plan(
        &self,
        change: CodeChange,
        parameters: Vec<(String, String)>,
    ) -> Result<Planned, HostError> {
        let (function, info, stays) = match change {
            CodeChange::Register(info) => {
                if info.name.is_empty() {
                    return Err(HostError::bad_request("the adapter's name is empty"));
                }
                for name in std::iter::once(&info.name).chain(&info.alias) {
                    if self.get(name).is_ok() {
                        return Err(HostError::AdapterExists { name: name.clone() });
                    }
                }
                ("register_adapter", info, true)
            }
            CodeChange::Update(name, change) => {
                let mut info = self.get(&name)?;
                info.src = change.src.unwrap_or(info.src);
                info.preload = change.preload.unwrap_or(info.preload);
                info.pin = change.pin.unwrap_or(info.pin);
                ("update_adapter", info, true)
            }
            CodeChange::Unregister(name) => ("unregister_adapter", self.get(&name)?, false),
        };
        let src = self.dir(&info.src)?.display().to_string();
        let own = [
            ("handler", function.to_owned()),
            ("name", info.name.clone()),
            ("src", src),
            ("preload", info.preload.to_string()),
            ("pin", info.pin.to_string()),
        ];
        let mut properties: Vec<(String, String)> =
            own.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        // What is the host's to say can't be said by others.
        let is_new = |(name, _): &(String, String)| {
            ["handler", "name", "src", "preload", "pin"]
                .iter()
                .all(|own| !name.eq_ignore_ascii_case(own))
        };
        properties.extend(parameters.into_iter().filter(is_new));
        let entries = properties.iter().filter(|(name, _)| name != "handler");
        let content =
            entries.map(|(name, value)| (name.clone(), Bytes::from(value.clone()))).collect();
        let request = RawRequest { properties, content, ..RawRequest::default() };
        Ok(Planned { request, name: info.name.clone(), becomes: stays.then_some(info) })
    }

    /// Changes the list as planned, once the code has made the change.
    pub(crate) async fn settle(
        &self,
        planned: Planned,
        mut reply: RawReply,
    ) -> Result<CodeAnswer, HostError> {
        let mut body = Vec::new();
        while let Some(frame) = reply.frames.next().await {
            let frame = frame?;
            if body.len() + frame.len() <= MAX_ANSWER_BYTES {
                body.extend_from_slice(&frame);
            }
        }
        let Planned { name, becomes, .. } = planned;
        if reply.head.status >= 300 {
            let message = String::from_utf8_lossy(&body).trim().to_owned();
            let message = if message.is_empty() { reply.head.reason.clone() } else { message };
            return Err(match reply.head.status {
                507 => HostError::OutOfMemory { message, source: None },
                _ => HostError::AdapterFailed { name, error: EngineError::bad_input(message) },
            });
        }
        match becomes {
            Some(info) => self.lock().insert(name, info),
            None => self.lock().remove(&name),
        };
        Ok(CodeAnswer { head: reply.head, body: body.into() })
    }

    fn dir(&self, src: &str) -> Result<PathBuf, HostError> {
        let path = src.strip_prefix("file://").unwrap_or(src);
        let dir = self.root.join(path);
        if path.is_empty() || path.contains("://") || !dir.is_dir() {
            return Err(HostError::AdapterSource { src: src.to_owned() });
        }
        Ok(dir)
    }
}
