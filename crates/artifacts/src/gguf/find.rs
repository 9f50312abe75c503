//! Which GGUF files a model is made of.

use std::collections::BTreeMap;
use std::path::PathBuf;

use crate::error::{ArtifactError, shorten};
use crate::model_dir::ModelDir;
use crate::weights::has_hugging_face_weights;

/// Most parts of a model.
const MAX_PARTS: u32 = 10_000;

/// The files of a model that comes as GGUF, the one with the metadata first; `None` for other
/// models. A file that was opened as the model counts always; in a directory, `*.gguf` files count
/// where there are no Hugging Face weights.
///
/// # Errors
/// The directory can't be listed, holds several models, or a part is missing.
pub(crate) fn find(dir: &ModelDir) -> Result<Option<Vec<PathBuf>>, ArtifactError> {
    if let Some(name) = dir.lone_file() {
        return parts(dir, name).map(Some);
    }
    let mut models: BTreeMap<String, String> = BTreeMap::new();
    let io = |source| ArtifactError::Io { path: dir.path().to_owned(), action: "list", source };
    for entry in std::fs::read_dir(dir.path()).map_err(io)? {
        let name = entry.map_err(io)?.file_name();
        let Some(name) = name.to_str() else { continue };
        if is_gguf(name) && !name.starts_with('.') && !is_projector(name) {
            let model = split(name).map_or(name, |(stem, _, _)| stem);
            let known = models.entry(model.to_owned()).or_insert_with(|| name.to_owned());
            if name < known.as_str() {
                name.clone_into(known);
            }
        }
    }
    if models.is_empty() || has_hugging_face_weights(dir)? {
        return Ok(None);
    }
    let mut names = models.values();
    match (names.next(), models.len()) {
        (Some(name), 1) => parts(dir, name).map(Some),
        (_, n) => Err(ArtifactError::WeightFile {
            path: dir.path().to_owned(),
            reason: format!(
                "holds {n} GGUF models ({}, …): name one of the files as the model",
                models.values().take(3).map(|name| shorten(name)).collect::<Vec<_>>().join(", ")
            ),
        }),
    }
}

/// Whether a file's name says that it is a GGUF file.
pub(crate) fn is_gguf(name: &str) -> bool {
    let extension = name.rsplit_once('.').map(|(_, extension)| extension);
    extension.is_some_and(|extension| extension.eq_ignore_ascii_case("gguf"))
}

/// Whether the file is the part of a model that reads images, which lies beside the model.
fn is_projector(name: &str) -> bool {
    name.to_ascii_lowercase().contains("mmproj")
}

/// All parts of the model that the file `name` belongs to.
fn parts(dir: &ModelDir, name: &str) -> Result<Vec<PathBuf>, ArtifactError> {
    let one = |name: &str| {
        dir.file(name)?.ok_or_else(|| ArtifactError::MissingFile {
            dir: dir.path().to_owned(),
            wanted: format!("{:?}", shorten(name)),
        })
    };
    let Some((stem, _, n)) = split(name) else { return Ok(vec![one(name)?]) };
    let suffix = &name[name.len() - "gguf".len()..];
    (1..=n).map(|part| one(&format!("{stem}-{part:05}-of-{n:05}.{suffix}"))).collect()
}

/// `NAME-00002-of-00003.gguf` as the name, 2 and 3.
fn split(name: &str) -> Option<(&str, u32, u32)> {
    let (stem, _) = name.rsplit_once('.')?;
    let number = |text: &str| {
        let plain = text.len() == 5 && text.bytes().all(|b| b.is_ascii_digit());
        plain.then(|| text.parse::<u32>().ok()).flatten()
    };
    let (rest, n) = stem.rsplit_once("-of-")?;
    let (stem, part) = rest.rsplit_once('-')?;
    let (part, n) = (number(part)?, number(n)?);
    (1..=n.min(MAX_PARTS)).contains(&part).then_some((stem, part, n))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_told_by_their_names() {
        assert_eq!(split("a-b-00002-of-00003.gguf"), Some(("a-b", 2, 3)));
        for other in
            ["a.gguf", "a-00000-of-00003.gguf", "a-00004-of-00003.gguf", "a-2-of-3.gguf", "of.gguf"]
        {
            assert_eq!(split(other), None, "{other}");
        }
    }
}
