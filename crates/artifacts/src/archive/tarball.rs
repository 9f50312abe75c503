//! tar files, plain and packed with gzip.

use std::cell::Cell;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::rc::Rc;

use flate2::read::MultiGzDecoder;
use tar::{Archive, Entry, EntryType};

use super::sink::Sink;
use crate::error::ArtifactError;

/// Most bytes of headers (long names, extended attributes) before one entry. The `tar` crate reads
/// them into memory.
const MAX_HEADER_BYTES: u64 = 1 << 20;

pub(super) fn unpack_plain(file: File, sink: &mut Sink<'_>) -> Result<(), ArtifactError> {
    unpack(BufReader::new(file), sink)
}

pub(super) fn unpack_gzip(file: File, sink: &mut Sink<'_>) -> Result<(), ArtifactError> {
    let packed = Counting { inner: file, n_bytes: sink.count_packed() };
    unpack(MultiGzDecoder::new(BufReader::new(packed)), sink)
}

fn unpack(stream: impl Read, sink: &mut Sink<'_>) -> Result<(), ArtifactError> {
    let allowance = Rc::new(Cell::new(Allowance::Bytes(MAX_HEADER_BYTES)));
    let mut archive = Archive::new(Metered { inner: stream, allowance: Rc::clone(&allowance) });
    let not_tar = |sink: &Sink<'_>, error| sink.broken("is no tar archive, or broken", Some(error));
    let mut entries = archive.entries().map_err(|error| not_tar(sink, error))?;
    loop {
        allowance.set(Allowance::Bytes(MAX_HEADER_BYTES));
        let Some(entry) = entries.next() else { break };
        let entry = entry.map_err(|error| not_tar(sink, error))?;
        // The content of an entry is counted by the sink.
        allowance.set(Allowance::Counted);
        unpack_entry(entry, sink)?;
    }
    allowance.set(Allowance::Counted);
    sink.drain(&mut archive.into_inner())
}

fn unpack_entry(mut entry: Entry<'_, impl Read>, sink: &mut Sink<'_>) -> Result<(), ArtifactError> {
    let name = entry.path_bytes().into_owned();
    let refused = match entry.header().entry_type() {
        EntryType::XGlobalHeader => return sink.drain(&mut entry),
        EntryType::Directory => return sink.directory(&name),
        EntryType::Regular | EntryType::Continuous => None,
        EntryType::Symlink | EntryType::Link => {
            let target = entry.link_name_bytes().unwrap_or_default().into_owned();
            let target = crate::error::shorten(&String::from_utf8_lossy(&target));
            return Err(sink.refuse(
                &name,
                format!("is a link to {target:?}: only files and directories are unpacked"),
            ));
        }
        EntryType::Fifo => Some("is a pipe"),
        EntryType::Block | EntryType::Char => Some("is a device"),
        EntryType::GNUSparse => Some("is a sparse file"),
        _ => Some("is of an unknown kind"),
    };
    let refused = refused.or_else(|| is_pax_sparse(&mut entry).then_some("is a sparse file"));
    if let Some(kind) = refused {
        return Err(sink.refuse(&name, format!("{kind}: only files and directories are unpacked")));
    }
    // Before ustar, a directory was a file whose name ends in a slash.
    if name.ends_with(b"/") && entry.size() == 0 {
        return sink.directory(&name);
    }
    let mode = entry.header().mode().ok();
    let (claimed, mut content) = (entry.size(), CountingRef { inner: &mut entry, n_bytes: 0 });
    sink.file(&name, &mut content, mode)?;
    match content.n_bytes == claimed {
        true => Ok(()),
        false => {
            let reason = format!("holds {} of the {claimed} bytes it claims", content.n_bytes);
            Err(sink.refuse(&name, reason))
        }
    }
}

/// A sparse file in the PAX format looks like an ordinary one whose content starts with a map.
fn is_pax_sparse(entry: &mut Entry<'_, impl Read>) -> bool {
    let Ok(Some(mut extensions)) = entry.pax_extensions() else { return false };
    extensions.any(|extension| {
        extension.is_ok_and(|extension| extension.key_bytes().starts_with(b"GNU.sparse"))
    })
}

#[derive(Clone, Copy)]
enum Allowance {
    /// So many more bytes may be read.
    Bytes(u64),
    /// What is read is counted elsewhere.
    Counted,
}

/// A reader that fails when its allowance is used up.
struct Metered<R> {
    inner: R,
    allowance: Rc<Cell<Allowance>>,
}

impl<R: Read> Read for Metered<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        if let Allowance::Bytes(left) = self.allowance.get() {
            let left = left.checked_sub(n as u64).ok_or_else(|| {
                io::Error::other(format!(
                    "an entry's header is larger than {MAX_HEADER_BYTES} bytes"
                ))
            })?;
            self.allowance.set(Allowance::Bytes(left));
        }
        Ok(n)
    }
}

/// Counts what is read of the packed file.
struct Counting {
    inner: File,
    n_bytes: Rc<Cell<u64>>,
}

impl Read for Counting {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.n_bytes.set(self.n_bytes.get() + n as u64);
        Ok(n)
    }
}

/// Counts what is read of one entry.
struct CountingRef<'a> {
    inner: &'a mut dyn Read,
    n_bytes: u64,
}

impl Read for CountingRef<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.n_bytes += n as u64;
        Ok(n)
    }
}
