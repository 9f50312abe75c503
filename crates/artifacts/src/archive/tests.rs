//! Archives good and hostile.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use flate2::Compression;
use flate2::write::GzEncoder;
use tar::{EntryType, Header};
use tempfile::TempDir;
use zip::write::SimpleFileOptions;

use crate::model_dir::{ModelDir, UnpackOptions};

/// A tar file in memory; names are written as they are, without the checks of the `tar` crate.
struct Tar(tar::Builder<Vec<u8>>);

impl Tar {
    fn new() -> Self {
        Self(tar::Builder::new(Vec::new()))
    }

    fn entry(mut self, name: &str, kind: EntryType, link: &str, content: &[u8]) -> Self {
        let mut header = Header::new_gnu();
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_entry_type(kind);
        header.set_mode(0o6777);
        header.set_size(content.len() as u64);
        header.set_cksum();
        self.0.append(&header, content).unwrap();
        self
    }

    fn file(self, name: &str, content: &[u8]) -> Self {
        self.entry(name, EntryType::Regular, "", content)
    }

    fn gz(self) -> Vec<u8> {
        gzip(&self.0.into_inner().unwrap())
    }
}

fn gzip(content: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(content).unwrap();
    encoder.finish().unwrap()
}

struct Case {
    dir: TempDir,
    options: UnpackOptions,
}

impl Case {
    fn new() -> Self {
        let dir = TempDir::new().unwrap();
        let into = dir.path().join("unpacked");
        Self { dir, options: UnpackOptions { into, ..UnpackOptions::default() } }
    }

    fn write(&self, name: &str, content: &[u8]) -> PathBuf {
        let path = self.dir.path().join(name);
        fs::write(&path, content).unwrap();
        path
    }

    fn open(&self, path: &Path) -> Result<ModelDir, String> {
        ModelDir::open(path, &self.options).map_err(|error| error.to_string())
    }

    /// Opens an archive that must be refused; checks that the message names it and that nothing is
    /// left behind.
    fn refused(&self, name: &str, content: &[u8], expect: &str) {
        let path = self.write(name, content);
        let message = self.open(&path).expect_err("the archive is refused");
        assert!(message.contains(name) && message.contains(expect), "{message}");
        let left: Vec<_> = fs::read_dir(&self.options.into).into_iter().flatten().collect();
        assert!(left.is_empty(), "{left:?}");
    }
}

#[test]
fn a_tarball_unpacks_once_and_again_when_it_changes() {
    let case = Case::new();
    let tar = Tar::new().file("./model/config.json", b"{}").file("./.hidden", b"x");
    let path = case.write("model.tar.gz", &tar.gz());
    let model = case.open(&path).unwrap();
    assert_eq!(fs::read(model.file("config.json").unwrap().unwrap()).unwrap(), b"{}");
    assert!(model.path().ends_with("files/model"), "{:?}", model.path());
    assert_eq!(model.source(), path);
    assert_eq!(case.open(&path).unwrap().path(), model.path());

    // A copy that lost a file is made anew.
    fs::remove_file(model.path().join("config.json")).unwrap();
    assert!(case.open(&path).unwrap().file("config.json").unwrap().is_some());

    case.write("model.tar.gz", &Tar::new().file("config.json", b"{\"a\": 1}").gz());
    let changed = case.open(&path).unwrap();
    assert_eq!(fs::read(changed.path().join("config.json")).unwrap(), b"{\"a\": 1}");
    assert_ne!(changed.path(), model.path());
}

#[test]
fn modes_keep_no_more_than_executable() {
    use std::os::unix::fs::PermissionsExt;
    let case = Case::new();
    let path = case.write("m.tgz", &Tar::new().file("run", b"x").file("other", b"y").gz());
    let mode = fs::metadata(case.open(&path).unwrap().path().join("run")).unwrap().permissions();
    assert_eq!(mode.mode() & 0o7022, 0);
}

#[test]
fn plain_tar_and_zip_are_told_by_content() {
    let case = Case::new();
    let tar = Tar::new().file("config.json", b"{}").0.into_inner().unwrap();
    assert!(case.open(&case.write("a.bin", &tar)).unwrap().file("config.json").unwrap().is_some());

    let mut zip = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    zip.add_directory("m/", SimpleFileOptions::default()).unwrap();
    zip.start_file("m/config.json", SimpleFileOptions::default()).unwrap();
    zip.write_all(b"{}").unwrap();
    let zip = zip.finish().unwrap().into_inner();
    let model = case.open(&case.write("b.mar", &zip)).unwrap();
    assert!(model.file("config.json").unwrap().is_some());

    // A directory that holds nothing but a zip stands for it.
    let dir = case.dir.path().join("only");
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("m.zip"), &zip).unwrap();
    assert!(case.open(&dir).unwrap().file("config.json").unwrap().is_some());
}

#[test]
fn entries_that_leave_the_target_are_refused() {
    let case = Case::new();
    let check = |tar: Tar, expect: &str| case.refused("m.tar.gz", &tar.gz(), expect);
    check(Tar::new().file("../evil", b"x"), "\"../evil\" leads out of the archive");
    check(Tar::new().file("a/../../evil", b"x"), "leads out of the archive");
    check(Tar::new().file("/etc/evil", b"x"), "is an absolute path");
    check(Tar::new().file("a\\..\\b", b"x"), "backslash");
    let link = |kind| Tar::new().file("ok", b"x").entry("link", kind, "/etc", b"");
    check(link(EntryType::Symlink), "\"link\" is a link to \"/etc\"");
    check(link(EntryType::Link), "is a link");
    check(link(EntryType::Fifo), "is a pipe");
    check(link(EntryType::Char), "is a device");
    check(link(EntryType::GNUSparse), "");
    check(Tar::new().entry("only/", EntryType::Directory, "", b""), "holds no files");
    check(
        Tar::new().file(&"d/".repeat(45), b"x").file("a", b"").file("a/b", b"x"),
        "can't be written",
    );
}

#[test]
fn zip_links_and_escapes_are_refused() {
    let case = Case::new();
    let mut zip = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    zip.add_symlink("link", "/etc/passwd", SimpleFileOptions::default()).unwrap();
    case.refused("m.zip", zip.finish().unwrap().get_ref(), "\"link\" is a link");
    let mut zip = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    zip.start_file("xx/evil", SimpleFileOptions::default()).unwrap();
    let mut bytes = zip.finish().unwrap().into_inner();
    let at: Vec<_> = (0..bytes.len() - 2).filter(|&i| &bytes[i..i + 2] == b"xx").collect();
    for i in at {
        bytes[i..i + 2].copy_from_slice(b"..");
    }
    case.refused("m.zip", &bytes, "leads out of the archive");
    case.refused("m.zip", &bytes[..bytes.len() / 2], "");
}

#[test]
fn limits_are_kept_while_streaming() {
    let mut case = Case::new();
    let zeros = vec![0u8; 4 << 20];
    let big = Tar::new().file("zeros", &zeros);
    case.options.max_bytes = 1 << 20;
    case.refused("m.tar.gz", &big.gz(), "\"zeros\" makes the archive unpack to more than 1048576");

    case.options = UnpackOptions { into: case.options.into, ..UnpackOptions::default() };
    // 80 MiB of zeros is past the floor of the ratio.
    let mut bomb = Tar::new();
    for idx in 0..20 {
        bomb = bomb.file(&format!("zeros{idx}"), &zeros);
    }
    case.refused("m.tar.gz", &bomb.gz(), "100 times");

    case.options.max_entries = 3;
    let many = (0..5).fold(Tar::new(), |tar, idx| tar.file(&format!("f{idx}"), b"x"));
    case.refused("m.tar.gz", &many.gz(), "more than 3 entries");
}

#[test]
fn a_name_larger_than_memory_is_refused_early() {
    let case = Case::new();
    let name = vec![b'a'; 8 << 20];
    let tar = Tar::new().entry("././@LongLink", EntryType::GNULongName, "", &name).file("x", b"x");
    case.refused("m.tar.gz", &tar.gz(), "broken");
}

#[test]
fn broken_archives_are_refused() {
    let case = Case::new();
    let good = Tar::new().file("config.json", &vec![7; 100_000]).gz();
    case.refused("m.tar.gz", &good[..good.len() / 2], "");
    case.refused("m.tar.gz", &good[..good.len() - 4], "cut off");
    case.refused("m.tar.gz", &gzip(b"not a tar file at all, but long enough to look at"), "");
    case.refused("m.tar.gz", b"", "is an empty file");
    case.refused("m.tar.gz", b"plain text", "is no archive");
    case.refused("m.tar.xz", b"\xfd7zXZ\0", "packed with xz");
    assert!(case.open(&case.dir.path().join("none")).unwrap_err().contains("there is no such"));
}

#[test]
fn many_at_once_get_one_copy() {
    let case = Case::new();
    let path = case.write("m.tar.gz", &Tar::new().file("config.json", &vec![7; 1 << 20]).gz());
    let roots: Vec<PathBuf> = std::thread::scope(|scope| {
        let open = || case.open(&path).map(|model| model.path().to_owned()).unwrap();
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(open)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert!(roots.iter().all(|root| root == &roots[0]));
    assert_eq!(fs::read(roots[0].join("config.json")).unwrap().len(), 1 << 20);
    assert_eq!(fs::read_dir(&case.options.into).unwrap().count(), 1);
}
