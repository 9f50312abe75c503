//! Downloads from remotes that misbehave.

use std::ops::Range;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use futures::future::BoxFuture;
use futures::stream;

use super::*;

/// What a remote does wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    Nothing,
    /// Each answer ends after so many bytes, with or without an error.
    Ends(u64, bool),
    /// The first so many requests are turned away.
    Throttles(u64),
    /// Ranges are not answered.
    WholeOnly,
    /// The file is another one after so many requests.
    Changes(u64),
    /// More comes than was asked for.
    TooMuch,
    /// Not one byte comes.
    Dead,
    /// Other bytes come than the sum promises, for so many requests.
    Lies(u64),
}

struct Fake {
    content: Bytes,
    fault: Fault,
    n_requests: AtomicU64,
    asked: Mutex<Vec<Range<u64>>>,
}

impl Fake {
    fn answer(&self, range: Range<u64>, whole: bool) -> Result<Body, ReadError> {
        let n_before = self.n_requests.fetch_add(1, Ordering::SeqCst);
        self.asked.lock().unwrap().push(range.clone());
        let mut part = self.content.slice(range.start as usize..range.end as usize);
        let mut end = None;
        match self.fault {
            Fault::Throttles(n) if n_before < n => {
                return Err(ReadError::Again {
                    after: Some(Duration::from_millis(1)),
                    cause: "slow down".into(),
                });
            }
            Fault::WholeOnly if !whole => return Err(ReadError::NoRanges),
            Fault::Changes(n) if n_before >= n => return Err(ReadError::Changed),
            Fault::Dead => return Err(ReadError::again("dead")),
            Fault::Ends(after, with_error) if part.len() as u64 > after => {
                part.truncate(after as usize);
                end = with_error.then(|| Err(Cause::from("broken off")));
            }
            Fault::TooMuch => {
                let mut longer = part.to_vec();
                longer.push(0);
                part = longer.into();
            }
            Fault::Lies(n) if n_before < n => part = vec![b'?'; part.len()].into(),
            _ => {}
        }
        // In small pieces, as from a network.
        let pieces: Vec<Result<Bytes, Cause>> =
            part.chunks(700).map(|piece| Ok(Bytes::copy_from_slice(piece))).chain(end).collect();
        Ok(stream::iter(pieces).boxed())
    }
}

impl Remote for Fake {
    fn read(&self, range: Range<u64>, whole: bool) -> BoxFuture<'_, Result<Body, ReadError>> {
        Box::pin(async move { self.answer(range, whole) })
    }
}

fn content(n_bytes: usize) -> Bytes {
    (0..n_bytes).map(|idx| (idx * 31 % 251) as u8).collect()
}

fn fake(n_bytes: usize, fault: Fault) -> Arc<Fake> {
    let content = content(n_bytes);
    Arc::new(Fake { content, fault, n_requests: AtomicU64::new(0), asked: Mutex::default() })
}

fn object(remote: &Arc<Fake>, folder: &Path) -> Object {
    let mut hash = Sha256::new();
    hash.update(&remote.content);
    Object {
        name: "model.safetensors".to_owned(),
        size: remote.content.len() as u64,
        etag: "e".to_owned(),
        sha256: Some(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()),
        blob: folder.join("blob"),
        lock: folder.join("lock"),
        begun: None,
        remote: Arc::clone(remote) as Arc<dyn Remote>,
    }
}

fn limits() -> Limits {
    Limits { piece_bytes: 10_000, n_connections: 4, ..Limits::default() }
}

fn run(objects: Vec<Object>) -> (Result<(), super::Fault>, Arc<Counters>) {
    let counters = Arc::new(Counters::new());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let result = runtime.block_on(all("m", objects, &limits(), &counters));
    (result, counters)
}

#[test]
fn a_file_comes_whole_whatever_goes_wrong_on_the_way() {
    for fault in [
        Fault::Nothing,
        Fault::Ends(3_000, true),
        Fault::Ends(3_000, false),
        Fault::Throttles(12),
        Fault::WholeOnly,
        Fault::Lies(3),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let remote = fake(45_678, fault);
        run(vec![object(&remote, folder.path())]).0.unwrap();
        let found = std::fs::read(folder.path().join("blob")).unwrap();
        assert!(found == remote.content, "{fault:?}");
        let mut left: Vec<_> = std::fs::read_dir(folder.path()).unwrap().flatten().collect();
        left.retain(|entry| entry.file_name() != "blob" && entry.file_name() != "lock");
        assert!(left.is_empty(), "{fault:?}: {left:?}");
    }
}

#[test]
fn an_empty_file_is_a_file() {
    let folder = tempfile::tempdir().unwrap();
    run(vec![object(&fake(0, Fault::Nothing), folder.path())]).0.unwrap();
    assert_eq!(std::fs::read(folder.path().join("blob")).unwrap(), b"");
}

#[test]
fn what_never_comes_is_an_error_and_what_came_is_kept() {
    let check = |fault: Fault, wanted: &str| {
        let folder = tempfile::tempdir().unwrap();
        let error = match run(vec![object(&fake(45_678, fault), folder.path())]).0.unwrap_err() {
            super::Fault::Source(error) => error.to_string(),
            super::Fault::Changed(name) => format!("changed {name}"),
        };
        assert!(error.starts_with(wanted), "{fault:?}: {error}");
        assert!(!folder.path().join("blob").exists(), "{fault:?}");
    };
    check(Fault::Dead, "m model.safetensors: byte ");
    check(Fault::TooMuch, "m model.safetensors: byte");
    check(Fault::Changes(2), "changed model.safetensors");
    check(Fault::Lies(u64::MAX), "m model.safetensors: has the SHA-256");
}

#[test]
fn only_what_is_missing_is_asked_for_again() {
    let folder = tempfile::tempdir().unwrap();
    let dies = fake(45_678, Fault::Nothing);
    let begun = object(&dies, folder.path());
    // What a process leaves that is killed after three pieces.
    let partial = Partial::open(&begun.blob, "e", begun.size).unwrap();
    for start in [0, 20_000, 40_000] {
        let end = 45_678.min(start + 10_000);
        partial.write(start as u64, &[dies.content.slice(start..end)]).unwrap();
    }
    drop(partial);
    let remote = fake(45_678, Fault::Nothing);
    let (result, counters) = run(vec![object(&remote, folder.path())]);
    result.unwrap();
    let mut asked = remote.asked.lock().unwrap().clone();
    asked.sort_by_key(|range| range.start);
    assert_eq!(asked, [10_000..20_000, 30_000..40_000]);
    assert!(std::fs::read(folder.path().join("blob")).unwrap() == remote.content);
    struct Last(Mutex<(u64, u64)>);
    impl crate::Watch for Last {
        fn progress(&self, _: &str, done: u64, total: u64) {
            *self.0.lock().unwrap() = (done, total);
        }
        fn stop(&self) -> Option<crate::Stop> {
            None
        }
    }
    let last = Last(Mutex::new((0, 0)));
    counters.report(&last);
    assert_eq!(*last.0.lock().unwrap(), (45_678, 45_678));
}

#[test]
fn one_failure_ends_the_others_and_two_of_one_content_share_it() {
    let folder = tempfile::tempdir().unwrap();
    let good = fake(45_678, Fault::Nothing);
    let twice = vec![object(&good, folder.path()), object(&good, folder.path())];
    run(twice).0.unwrap();
    assert_eq!(good.n_requests.load(Ordering::SeqCst), 5);
    let other = tempfile::tempdir().unwrap();
    let (good, dead) = (fake(1_000, Fault::Nothing), fake(2_000, Fault::Dead));
    let mut objects = vec![object(&good, folder.path()), object(&dead, other.path())];
    objects[0].blob = other.path().join("good");
    assert!(run(objects).0.is_err());
    assert!(other.path().join("good").exists());
}

#[test]
fn a_full_disk_is_found_before_it_is_full() {
    let folder = tempfile::tempdir().unwrap();
    let mut huge = object(&fake(10, Fault::Nothing), folder.path());
    huge.size = 1 << 60;
    match run(vec![huge]).0.unwrap_err() {
        super::Fault::Source(SourceError::NoSpace { needed, .. }) => assert_eq!(needed, 1 << 60),
        other => panic!("{other:?}"),
    }
}
