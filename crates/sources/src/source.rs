//! What a text that names a model stands for.

use std::fmt;
use std::path::PathBuf;

use crate::error::{SourceError, shorten};

/// Archives that a model may come in, by the end of their names.
const ARCHIVES: [&str; 5] = [".tar.gz", ".tgz", ".tar", ".zip", ".mar"];

/// Longest hub id; the hub's own limit.
const MAX_ID_CHARS: usize = 96;

/// Where a model's files are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ModelSource {
    /// A directory or an archive on this machine.
    Local(PathBuf),
    /// A repository of the Hugging Face hub.
    Hub(HubId),
    /// Objects of S3.
    S3(S3Location),
    /// An archive behind an `http` or `https` address.
    Http(HttpLocation),
}

/// A repository of the hub, and the revision where the text names one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HubId {
    id: String,
    revision: Option<String>,
}

/// A bucket, and the key or the prefix in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct S3Location {
    bucket: String,
    key: String,
}

/// The address of an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpLocation {
    url: String,
}

impl ModelSource {
    /// Reads a model id: `s3://bucket/prefix`, `s3://bucket/key.tar.gz`, `hf://org/name`,
    /// `https://host/model.tar.gz`, `file:///path`, a path that begins with `/`, `./`, `../` or `~`,
    /// else a hub id (`org/name` or `name`). Whether a relative path exists is for the caller to
    /// look at first.
    ///
    /// # Errors
    /// Another scheme, a bucket or id that can't be one, an address that is no archive's.
    pub fn parse(text: &str) -> Result<Self, SourceError> {
        let unreadable = |reason: String| SourceError::Unreadable {
            source_text: shorten(without_query(text)),
            reason,
        };
        if let Some(rest) = text.strip_prefix("file:") {
            let path = rest.strip_prefix("//").unwrap_or(rest);
            return match path.is_empty() {
                true => Err(unreadable("names no path".to_owned())),
                false => Ok(Self::Local(PathBuf::from(path))),
            };
        }
        let Some((scheme, rest)) = text.split_once("://") else {
            if is_path(text) {
                return Ok(Self::Local(PathBuf::from(text)));
            }
            return HubId::parse(text).map(Self::Hub).map_err(unreadable);
        };
        match scheme.to_ascii_lowercase().as_str() {
            "s3" | "s3a" => S3Location::parse(rest).map(Self::S3).map_err(unreadable),
            "hf" => HubId::parse(rest).map(Self::Hub).map_err(unreadable),
            "http" | "https" => {
                let location = HttpLocation { url: text.to_owned() };
                match is_archive(location.name()) {
                    true => Ok(Self::Http(location)),
                    false => Err(unreadable(format!(
                        "expected the address of an archive, which ends in {}; a model of the hub \
                         is named by its id alone, as in org/name",
                        ARCHIVES.join(", ")
                    ))),
                }
            }
            "djl" | "jar" => Err(unreadable(format!(
                "{scheme}:// names models of the Java library's own zoo, which are not served: give \
                 a path, a hub id or an s3:// address"
            ))),
            _ => Err(unreadable(
                "expected a path, a hub id such as org/name, s3://bucket/prefix, hf://org/name or \
                 https://host/model.tar.gz"
                    .to_owned(),
            )),
        }
    }
}

impl HubId {
    /// Reads `org/name` or `name`, with `@revision` where one is meant.
    fn parse(text: &str) -> Result<Self, String> {
        const WANTED: &str = "is no hub id: expected org/name or name, of letters, digits, -, _ and \
                              ., at most 96 of them, and no path of this machine begins so";
        let (id, revision) = match text.split_once('@') {
            Some((id, revision)) => (id, Some(revision)),
            None => (text, None),
        };
        let id = id.trim_end_matches('/');
        let is_part = |part: &str| {
            let bytes = part.as_bytes();
            let fits = |b: &u8| b.is_ascii_alphanumeric() || b"-_.".contains(b);
            let edge = |b: Option<&u8>| b.is_some_and(|b| !b"-.".contains(b));
            bytes.iter().all(fits)
                && edge(bytes.first())
                && edge(bytes.last())
                && !part.contains("--")
                && !part.contains("..")
        };
        let n_parts = id.split('/').count();
        if n_parts > 2 || id.len() > MAX_ID_CHARS || !id.split('/').all(is_part) {
            return Err(WANTED.to_owned());
        }
        if let Some(revision) = revision {
            check_revision(revision)?;
        }
        Ok(Self { id: id.to_owned(), revision: revision.map(str::to_owned) })
    }

    /// `org/name` or `name`.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The revision that the text itself names.
    pub fn revision(&self) -> Option<&str> {
        self.revision.as_deref()
    }

    /// The same repository at `revision`, unless the text itself names one.
    ///
    /// # Errors
    /// `revision` can't be one.
    pub fn at(self, revision: Option<&str>) -> Result<Self, SourceError> {
        let Some(revision) = revision.filter(|_| self.revision.is_none()) else { return Ok(self) };
        check_revision(revision).map_err(|reason| SourceError::Unreadable {
            source_text: format!("{} at {}", self.id, shorten(revision)),
            reason,
        })?;
        Ok(Self { revision: Some(revision.to_owned()), ..self })
    }
}

/// A branch, a tag or a commit: what git takes for one, and what is no path that leads elsewhere.
fn check_revision(revision: &str) -> Result<(), String> {
    let fits = |c: char| c.is_ascii_alphanumeric() || "-_./+".contains(c);
    let is_part = |part: &str| !part.is_empty() && !part.starts_with('.') && part != "..";
    let ok = revision.len() <= 255
        && revision.chars().all(fits)
        && revision.split('/').all(is_part)
        && !revision.contains("..");
    match ok {
        true => Ok(()),
        false => {
            Err(format!("revision {:?} can't be a branch, a tag or a commit", shorten(revision)))
        }
    }
}

impl S3Location {
    fn parse(rest: &str) -> Result<Self, String> {
        let (bucket, key) = rest.split_once('/').unwrap_or((rest, ""));
        let fits = |b: u8| b.is_ascii_alphanumeric() || b".-_".contains(&b);
        let is_bucket = (3..=63).contains(&bucket.len()) && bucket.bytes().all(fits);
        if !is_bucket {
            return Err(
                "expected s3://bucket/prefix with a bucket of 3 to 63 letters, digits, - and \
                        ."
                .to_owned(),
            );
        }
        let key = key.trim_end_matches('/');
        let is_segment = |part: &str| !matches!(part, "" | "." | "..");
        if !key.is_empty() && (!key.split('/').all(is_segment) || key.chars().any(char::is_control))
        {
            return Err(
                "expected a key whose parts between slashes are neither empty nor . nor .. \
                        and hold no control characters"
                    .to_owned(),
            );
        }
        Ok(Self { bucket: bucket.to_owned(), key: key.to_owned() })
    }

    /// The bucket.
    pub fn bucket(&self) -> &str {
        &self.bucket
    }

    /// The key or prefix, without slashes at its ends.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// Whether the key is an archive's rather than a prefix.
    pub fn is_archive(&self) -> bool {
        is_archive(&self.key)
    }
}

impl HttpLocation {
    /// The address.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The last part of its path.
    pub(crate) fn name(&self) -> &str {
        let path = without_query(&self.url);
        let path = path.split_once("://").map_or(path, |(_, rest)| rest);
        path.split_once('/').and_then(|(_, path)| path.rsplit('/').next()).unwrap_or_default()
    }
}

impl fmt::Display for ModelSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Local(path) => path.display().fmt(f),
            Self::Hub(id) => id.fmt(f),
            Self::S3(location) => location.fmt(f),
            Self::Http(location) => location.fmt(f),
        }
    }
}

impl fmt::Display for HubId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.id)?;
        match &self.revision {
            Some(revision) => write!(f, "@{revision}"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for S3Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "s3://{}/{}", self.bucket, self.key)
    }
}

impl fmt::Display for HttpLocation {
    /// Without the query, and without a password: both may be what grants access.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&shown_url(&self.url))
    }
}

/// An address that may stand in a message: no query, no user and password.
pub(crate) fn shown_url(url: &str) -> String {
    let url = without_query(url);
    match url.split_once("://") {
        Some((scheme, rest)) => {
            let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
            let host = host.rsplit('@').next().unwrap_or(host);
            shorten(&format!("{scheme}://{host}/{path}"))
        }
        None => shorten(url),
    }
}

fn without_query(url: &str) -> &str {
    url.split(['?', '#']).next().unwrap_or(url)
}

fn is_path(text: &str) -> bool {
    text.is_empty()
        || text.starts_with(['/', '~'])
        || matches!(text, "." | "..")
        || text.starts_with("./")
        || text.starts_with("../")
}

fn is_archive(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    ARCHIVES.iter().any(|end| name.len() > end.len() && name.ends_with(end))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, wanted: &str) {
        let found = match ModelSource::parse(text) {
            Ok(ModelSource::Local(path)) => format!("path {}", path.display()),
            Ok(ModelSource::Hub(id)) => format!("hub {id}"),
            Ok(ModelSource::S3(at)) => format!("s3 {} {} {}", at.bucket, at.key, at.is_archive()),
            Ok(ModelSource::Http(at)) => format!("http {at}"),
            Err(error) => error.to_string(),
        };
        match wanted.strip_suffix('*') {
            Some(start) => assert!(found.starts_with(start), "{text}: {found}"),
            None => assert_eq!(found, wanted, "{text}"),
        }
    }

    #[test]
    fn each_form_is_told_apart() {
        check("gpt2", "hub gpt2");
        check("facebook/bart-large", "hub facebook/bart-large");
        check("hf://org/name@v1.0", "hub org/name@v1.0");
        check("org/name@refs/pr/3", "hub org/name@refs/pr/3");
        check("/opt/ml/model", "path /opt/ml/model");
        check("./gpt2", "path ./gpt2");
        check("file:///m", "path /m");
        check("s3://bucket/a/b/", "s3 bucket a/b false");
        check("s3://bucket", "s3 bucket  false");
        check("s3://my.bucket/m.tar.gz", "s3 my.bucket m.tar.gz true");
        check("https://h:1/a/m.TGZ?sig=secret", "http https://h:1/a/m.TGZ");
        check("https://u:p@h/m.zip", "http https://h/m.zip");
    }

    #[test]
    fn what_is_none_is_refused_by_name() {
        check("a/b/c", "a/b/c: is no hub id*");
        check("org/na me", "org/na me: is no hub id*");
        check("org/..", "org/..: is no hub id*");
        check("org/-x", "org/-x: is no hub id*");
        check("org/a--b", "org/a--b: is no hub id*");
        check(&"x".repeat(97), "x*");
        check("org/name@../x", "org/name@../x: revision*");
        check("s3://b/k", "s3://b/k: expected s3://bucket/prefix*");
        check("s3://bucket/a/../b", "s3://bucket/a/../b: expected a key*");
        check("s3://bucket/a//b", "s3://bucket/a//b: expected a key*");
        check("https://h/model", "https://h/model: expected the address of an archive*");
        check("https://h/model?token=x", "https://h/model: expected*");
        check("djl://ai.djl/x", "djl://ai.djl/x: djl:// names models*");
        check("ftp://h/x", "ftp://h/x: expected a path*");
        check("file://", "file://: names no path");
    }

    #[test]
    fn a_revision_of_the_text_goes_before_the_setting() {
        let at = |text: &str, revision: Option<&str>| match ModelSource::parse(text) {
            Ok(ModelSource::Hub(id)) => id.at(revision).map(|id| id.to_string()),
            other => panic!("{other:?}"),
        };
        assert_eq!(at("org/name", Some("main")).unwrap(), "org/name@main");
        assert_eq!(at("org/name@v1", Some("main")).unwrap(), "org/name@v1");
        assert_eq!(at("org/name", None).unwrap(), "org/name");
        assert!(at("org/name", Some("../../etc")).is_err());
        assert!(at("org/name", Some("a b")).is_err());
    }
}
