//! A stand-in for the Hugging Face hub: its API on one port, the content of large files on another,
//! as on the real one.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::wire::{Answered, Asked, Wire};

/// Files above this many bytes, and all weights, lie on the other port.
const LARGE: usize = 1000;

/// A repository.
#[derive(Clone, Debug, Default)]
pub struct Repository {
    /// The commit of its only branch, `main`; 40 hexadecimal digits.
    pub commit: String,
    /// Its files.
    pub files: BTreeMap<String, Vec<u8>>,
    /// The token without which it is not shown.
    pub token: Option<String>,
    /// Whether that token's account has yet to accept its terms.
    pub is_gated: bool,
}

impl Repository {
    /// The files of a directory.
    ///
    /// # Panics
    /// If they can't be read.
    pub fn of(dir: &Path) -> Self {
        let mut files = BTreeMap::new();
        add(dir, "", &mut files);
        let mut repository = Self { files, ..Self::default() };
        repository.commit();
        repository
    }

    /// Names the commit by what it holds.
    pub fn commit(&mut self) {
        let mut hash = Sha256::new();
        for (name, content) in &self.files {
            hash.update(name);
            hash.update([0]);
            hash.update(Sha256::digest(content));
        }
        self.commit = hex(&hash.finalize())[..40].to_owned();
    }
}

fn add(dir: &Path, under: &str, files: &mut BTreeMap<String, Vec<u8>>) {
    for entry in fs::read_dir(dir).expect("the directory is there").flatten() {
        let name = format!("{under}{}", entry.file_name().to_string_lossy());
        match entry.path() {
            path if path.is_dir() => add(&path, &format!("{name}/"), files),
            path => {
                files.insert(name, fs::read(path).expect("the file is there"));
            }
        }
    }
}

type Repositories = Arc<Mutex<BTreeMap<String, Repository>>>;

/// The stand-in.
pub struct Hub {
    /// What a client is pointed at.
    pub api: Wire,
    /// Where the content of large files lies.
    pub content: Wire,
    repositories: Repositories,
    /// What the content's host adds to its tags, so that they can change.
    tag: Arc<Mutex<String>>,
}

impl Default for Hub {
    fn default() -> Self {
        Self::new()
    }
}

impl Hub {
    /// A hub without repositories.
    pub fn new() -> Self {
        let repositories = Repositories::default();
        let tag = Arc::new(Mutex::new(String::new()));
        let (known, content_tag) = (Arc::clone(&repositories), Arc::clone(&tag));
        let content = Wire::start(move |asked| {
            let tag = content_tag.lock().unwrap_or_else(PoisonError::into_inner).clone();
            content_of(&known.lock().unwrap_or_else(PoisonError::into_inner), asked, &tag)
        });
        let (known, elsewhere) = (Arc::clone(&repositories), content.url());
        let api = Wire::start(move |asked| {
            answer(&known.lock().unwrap_or_else(PoisonError::into_inner), asked, &elsewhere)
        });
        Self { api, content, repositories, tag }
    }

    /// Adds a repository, or replaces the one of this id.
    pub fn put(&self, id: &str, repository: Repository) {
        let mut known = self.repositories.lock().unwrap_or_else(PoisonError::into_inner);
        known.insert(id.to_owned(), repository);
    }

    /// Changes the tags that the content's host answers with.
    pub fn retag(&self, tag: &str) {
        *self.tag.lock().unwrap_or_else(PoisonError::into_inner) = tag.to_owned();
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn is_large(name: &str, content: &[u8]) -> bool {
    content.len() > LARGE || name.ends_with(".safetensors") || name.ends_with(".bin")
}

/// What git would name the content by, in length and alphabet.
fn small_etag(content: &[u8]) -> String {
    hex(&Sha256::digest(content))[24..].to_owned()
}

fn refuse(status: u16, code: &str, message: &str) -> Answered {
    let headers = [("x-error-code", code), ("x-error-message", message)];
    let headers = headers.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
    Answered { status, headers, body: json!({"error": message}).to_string().into_bytes() }
}

fn json_answer(value: &Value) -> Answered {
    let headers = vec![("content-type".to_owned(), "application/json".to_owned())];
    Answered { status: 200, headers, body: value.to_string().into_bytes() }
}

/// The API's port.
fn answer(known: &BTreeMap<String, Repository>, asked: &Asked, content: &str) -> Answered {
    let path = asked.path.split('?').next().unwrap_or_default();
    let path = path.trim_start_matches('/');
    let is_api = path.starts_with("api/models/");
    let rest = path.strip_prefix("api/models/").unwrap_or(path);
    let found = known.iter().find_map(|(id, repository)| {
        Some((id, repository, rest.strip_prefix(id.as_str())?.strip_prefix('/')?))
    });
    let Some((id, repository, rest)) = found else {
        return refuse(401, "RepoNotFound", "Repository not found");
    };
    if let Some(token) = &repository.token {
        match asked.header("authorization") {
            None => return refuse(401, "RepoNotFound", "Repository not found"),
            Some(sent) if sent != format!("Bearer {token}") => {
                return refuse(401, "", "Invalid credentials in Authorization header");
            }
            Some(_) => {}
        }
    }
    let parts: Vec<&str> = rest.split('/').collect();
    let is_known = |revision: &str| revision == "main" || revision == repository.commit;
    match (is_api, parts.as_slice()) {
        (true, ["revision", revision]) if is_known(revision) => json_answer(&info(id, repository)),
        (true, ["tree", revision]) if is_known(revision) => json_answer(&tree(repository)),
        (true, _) => refuse(404, "RevisionNotFound", "Invalid rev id"),
        (false, ["resolve", revision, ..]) if !is_known(revision) => {
            refuse(404, "RevisionNotFound", "Invalid rev id")
        }
        (false, ["resolve", _, ..]) if repository.is_gated => {
            refuse(403, "GatedRepo", "Access to this model is restricted")
        }
        (false, ["resolve", _, name @ ..]) => match repository.files.get(&name.join("/")) {
            Some(file) => resolve(repository, &name.join("/"), file, asked, content),
            None => refuse(404, "EntryNotFound", "Entry not found"),
        },
        _ => refuse(404, "", "Not found"),
    }
}

fn info(id: &str, repository: &Repository) -> Value {
    let siblings: Vec<Value> =
        repository.files.keys().map(|name| json!({"rfilename": name})).collect();
    json!({
        "_id": "0", "id": id, "modelId": id, "sha": repository.commit, "private": false,
        "gated": false, "disabled": false, "downloads": 0, "likes": 0, "tags": [],
        "siblings": siblings,
    })
}

fn tree(repository: &Repository) -> Value {
    let entry = |(name, content): (&String, &Vec<u8>)| {
        let mut entry = json!({
            "type": "file", "oid": small_etag(content), "size": content.len(), "path": name,
        });
        if is_large(name, content) {
            let sum = hex(&Sha256::digest(content));
            entry["lfs"] = json!({"oid": sum, "size": content.len(), "pointerSize": 130});
        }
        entry
    };
    repository.files.iter().map(entry).collect()
}

fn resolve(
    repository: &Repository,
    name: &str,
    file: &[u8],
    asked: &Asked,
    content: &str,
) -> Answered {
    let commit = ("x-repo-commit".to_owned(), repository.commit.clone());
    if !is_large(name, file) {
        let mut answered = ranged(file, asked, &format!("\"{}\"", small_etag(file)));
        answered.headers.push(commit);
        return answered;
    }
    let sum = hex(&Sha256::digest(file));
    let headers = vec![
        commit,
        ("x-linked-etag".to_owned(), format!("\"{sum}\"")),
        ("x-linked-size".to_owned(), file.len().to_string()),
        ("etag".to_owned(), format!("\"{sum}\"")),
        ("location".to_owned(), format!("{content}/{sum}?Signature=verysecret")),
    ];
    Answered { status: 302, headers, body: Vec::new() }
}

/// The content's port.
fn content_of(known: &BTreeMap<String, Repository>, asked: &Asked, tag: &str) -> Answered {
    let Some((sum, "Signature=verysecret")) = asked.path.trim_start_matches('/').split_once('?')
    else {
        return Answered { status: 403, ..Answered::default() };
    };
    let mut files = known.values().flat_map(|repository| repository.files.values());
    match files.find(|file| hex(&Sha256::digest(file)) == sum) {
        Some(file) => ranged(file, asked, &format!("\"{}{tag}\"", &sum[..32])),
        None => Answered { status: 404, ..Answered::default() },
    }
}

fn ranged(file: &[u8], asked: &Asked, etag: &str) -> Answered {
    let mut headers = vec![
        ("etag".to_owned(), etag.to_owned()),
        ("accept-ranges".to_owned(), "bytes".to_owned()),
    ];
    match asked.range() {
        None => Answered { status: 200, headers, body: file.to_vec() },
        Some((start, end)) if start < end.min(file.len()) => {
            let end = end.min(file.len());
            let range = format!("bytes {start}-{}/{}", end - 1, file.len());
            headers.push(("content-range".to_owned(), range));
            Answered { status: 206, headers, body: file[start..end].to_vec() }
        }
        Some(_) => Answered { status: 416, headers, body: Vec::new() },
    }
}
