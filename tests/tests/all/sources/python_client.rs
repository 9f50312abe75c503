//! The hub's cache is shared with its Python client: what one downloads, the other finds.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use drivetrain_tests::{Hub, Repository, fixture, python, scripts, skip};

use super::{bring, options};

fn run(python: &Path, hub: &Hub, cache: &Path, action: &str, patterns: &str) -> PathBuf {
    let mut child = Command::new(python)
        .arg(scripts().join("hub_cache.py"))
        .args([action, "tiny/gpt2"])
        .env("HF_ENDPOINT", hub.api.url())
        .env("HF_HUB_CACHE", cache)
        .env("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        .env("HF_HUB_DISABLE_TELEMETRY", "1")
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(patterns.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{action}: {}", String::from_utf8_lossy(&output.stderr));
    PathBuf::from(String::from_utf8(output.stdout).unwrap().trim())
}

/// Names, link targets and contents of everything under a cache, without locks and notes.
fn content(cache: &Path) -> Vec<(String, String, Vec<u8>)> {
    fn walk(dir: &Path, root: &Path, found: &mut Vec<(String, String, Vec<u8>)>) {
        for entry in fs::read_dir(dir).unwrap().flatten() {
            let path = entry.path();
            let name = path.strip_prefix(root).unwrap().display().to_string();
            if entry.file_type().unwrap().is_dir() {
                walk(&path, root, found);
                continue;
            }
            let target =
                fs::read_link(&path).map(|to| to.display().to_string()).unwrap_or_default();
            found.push((name, target, fs::read(&path).unwrap()));
        }
    }
    let mut found = Vec::new();
    walk(cache, cache, &mut found);
    found.retain(|(name, ..)| {
        !name.starts_with(".locks") && !name.contains("/trees/") && !name.contains("CACHEDIR.TAG")
    });
    found.sort();
    found
}

#[test]
fn the_cache_is_one_with_pythons() {
    let python = match python() {
        Ok(python) => python,
        Err(why) => return skip("the_cache_is_one_with_pythons", &why),
    };
    let hub = Hub::new();
    let mut gpt2 = Repository::of(&fixture("gpt2"));
    gpt2.files.retain(|name, _| !name.starts_with("reference") && name != "generations.json");
    gpt2.files.insert("1_Pooling/config.json".to_owned(), b"{}".to_vec());
    gpt2.commit();
    let names: Vec<&str> = gpt2.files.keys().map(String::as_str).collect();
    let patterns = names.join("\n");
    hub.put("tiny/gpt2", gpt2.clone());

    // Ours first, then Python's from the same hub: the same files, links and names.
    let (ours, theirs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let options_at = |cache: &Path| {
        let mut options = options(ours.path(), &hub.api.url());
        options.hub.cache = cache.to_owned();
        options
    };
    let dir = bring("tiny/gpt2", &options_at(ours.path())).unwrap();
    run(&python, &hub, theirs.path(), "fill", &patterns);
    let (our_content, their_content) = (content(ours.path()), content(theirs.path()));
    let shown = |content: &[(String, String, Vec<u8>)]| -> Vec<String> {
        content.iter().map(|(name, target, _)| format!("{name} -> {target}")).collect()
    };
    assert_eq!(shown(&our_content), shown(&their_content));
    assert!(our_content == their_content);

    // Python finds ours without a network; we find Python's, online and offline.
    assert_eq!(run(&python, &hub, ours.path(), "find", ""), dir);
    hub.content.forget();
    let mut options = options_at(theirs.path());
    let commit = &gpt2.commit;
    let wanted = theirs.path().join("models--tiny--gpt2/snapshots").join(commit);
    assert_eq!(bring("tiny/gpt2", &options).unwrap(), wanted);
    assert_eq!(hub.content.seen().len(), 0);
    options.offline = true;
    options.hub.endpoint = "http://127.0.0.1:1".to_owned();
    assert_eq!(bring("tiny/gpt2", &options).unwrap(), wanted);

    // What Python has in part is completed, not taken for whole.
    let part = tempfile::tempdir().unwrap();
    run(&python, &hub, part.path(), "fill", "config.json");
    let mut options = options_at(part.path());
    options.offline = true;
    assert!(bring("tiny/gpt2", &options).is_err());
    options.offline = false;
    let dir = bring("tiny/gpt2", &options).unwrap();
    for (name, bytes) in &gpt2.files {
        assert!(fs::read(dir.join(name)).unwrap() == *bytes, "{name}");
    }
}
