//! What a file says of itself, before the system's loader maps and runs it.
//!
//! The loader trusts a library's headers: one that was cut short ends the process with SIGBUS. So
//! the headers are read here first, every offset against the file's length.

use std::env::consts::ARCH;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};

/// What is wrong with a file.
pub(super) enum Misfit {
    /// What it is instead of a library.
    NotALibrary(String),
    /// The machine it is for.
    Architecture(String),
    /// It is a library that does not export the symbol.
    NoSymbol,
}

const HEADER_BYTES: usize = 64;
const PROGRAM_HEADER_BYTES: usize = 56;
const SECTION_HEADER_BYTES: u64 = 64;
const DYNAMIC_ENTRY_BYTES: usize = 16;
/// More than any library has; a header that says more lies.
const MAX_DYNAMIC_BYTES: u64 = 1 << 20;

const TYPE_SHARED: u16 = 3;
const SEGMENT_LOAD: u32 = 1;
const SEGMENT_DYNAMIC: u32 = 2;
const TAG_STRINGS: u64 = 5;
const TAG_STRINGS_BYTES: u64 = 10;
/// Hash table, strings, symbols, relocations, initialisers: addresses the loader follows.
const ADDRESS_TAGS: [u64; 9] = [4, TAG_STRINGS, 6, 7, 17, 23, 25, 26, 0x6fff_fef5];

/// Looks at `file` of `len` bytes: `Ok(Ok(()))` for a shared library of this machine that exports
/// `symbol`.
pub(super) fn inspect(file: &mut File, len: u64, symbol: &str) -> io::Result<Result<(), Misfit>> {
    if cfg!(any(target_os = "macos", target_os = "ios", windows)) {
        return Ok(Ok(()));
    }
    let mut start = Vec::with_capacity(512);
    file.take(512).read_to_end(&mut start)?;
    if !start.starts_with(b"\x7fELF") {
        return Ok(Err(Misfit::NotALibrary(describe(&start, len))));
    }
    let Some(header) = start.get(..HEADER_BYTES) else {
        return Ok(Err(cut_short(HEADER_BYTES as u64, len)));
    };
    if let Some(found) = other_machine(header) {
        return Ok(Err(Misfit::Architecture(found)));
    }
    if u16_at(header, 16) != TYPE_SHARED {
        let found = "an ELF file that is no shared library".to_owned();
        return Ok(Err(Misfit::NotALibrary(found)));
    }
    if cfg!(target_pointer_width = "64") { segments(file, len, header, symbol) } else { Ok(Ok(())) }
}

fn segments(
    file: &mut File,
    len: u64,
    header: &[u8],
    symbol: &str,
) -> io::Result<Result<(), Misfit>> {
    let n_bytes = usize::from(u16_at(header, 56)) * PROGRAM_HEADER_BYTES;
    if usize::from(u16_at(header, 54)) != PROGRAM_HEADER_BYTES {
        return Ok(Err(damaged("program headers of an unknown size")));
    }
    let table = match read_at(file, len, u64_at(header, 32), n_bytes as u64)? {
        Ok(table) => table,
        Err(misfit) => return Ok(Err(misfit)),
    };
    let section_bytes = u64::from(u16_at(header, 60)) * SECTION_HEADER_BYTES;
    let mut needed = u64_at(header, 40).saturating_add(section_bytes);
    let (mut loads, mut dynamic) = (Vec::new(), None);
    for entry in table.chunks_exact(PROGRAM_HEADER_BYTES) {
        let segment = Segment {
            offset: u64_at(entry, 8),
            address: u64_at(entry, 16),
            file_bytes: u64_at(entry, 32),
            memory_bytes: u64_at(entry, 40),
        };
        match u32_at(entry, 0) {
            SEGMENT_LOAD => loads.push(segment),
            SEGMENT_DYNAMIC => dynamic = Some(segment),
            _ => {}
        }
        needed = needed.max(segment.offset.saturating_add(segment.file_bytes));
    }
    if needed > len {
        return Ok(Err(cut_short(needed, len)));
    }
    let Some(dynamic) = dynamic.filter(|segment| segment.file_bytes <= MAX_DYNAMIC_BYTES) else {
        return Ok(Err(damaged("no dynamic section")));
    };
    let entries = match read_at(file, len, dynamic.offset, dynamic.file_bytes)? {
        Ok(entries) => entries,
        Err(misfit) => return Ok(Err(misfit)),
    };
    strings(file, len, &loads, &entries, symbol)
}

/// Checks the addresses of the dynamic section and looks for `symbol` among its strings.
fn strings(
    file: &mut File,
    len: u64,
    loads: &[Segment],
    dynamic: &[u8],
    symbol: &str,
) -> io::Result<Result<(), Misfit>> {
    let (mut address, mut n_bytes) = (None, 0);
    for entry in dynamic.chunks_exact(DYNAMIC_ENTRY_BYTES) {
        let (tag, value) = (u64_at(entry, 0), u64_at(entry, 8));
        if tag == 0 {
            break;
        }
        if ADDRESS_TAGS.contains(&tag) && !loads.iter().any(|load| load.holds(value)) {
            return Ok(Err(damaged("a dynamic section that points outside of the file")));
        }
        match tag {
            TAG_STRINGS => address = Some(value),
            TAG_STRINGS_BYTES => n_bytes = value,
            _ => {}
        }
    }
    let offset = address.and_then(|address| loads.iter().find_map(|load| load.offset_of(address)));
    let Some(offset) = offset else {
        return Ok(Err(damaged("no symbol names")));
    };
    match read_at(file, len, offset, n_bytes)? {
        Ok(names) if names.split(|byte| *byte == 0).any(|name| name == symbol.as_bytes()) => {
            Ok(Ok(()))
        }
        Ok(_) => Ok(Err(Misfit::NoSymbol)),
        Err(misfit) => Ok(Err(misfit)),
    }
}

#[derive(Clone, Copy)]
struct Segment {
    offset: u64,
    address: u64,
    file_bytes: u64,
    memory_bytes: u64,
}

impl Segment {
    fn holds(&self, address: u64) -> bool {
        address.checked_sub(self.address).is_some_and(|within| within < self.memory_bytes)
    }

    fn offset_of(&self, address: u64) -> Option<u64> {
        let within = address.checked_sub(self.address)?;
        (within < self.file_bytes).then(|| self.offset.checked_add(within))?
    }
}

/// `n_bytes` at `offset`, if the file of `len` bytes has them: nothing is allocated otherwise.
fn read_at(
    file: &mut File,
    len: u64,
    offset: u64,
    n_bytes: u64,
) -> io::Result<Result<Vec<u8>, Misfit>> {
    let end = offset.saturating_add(n_bytes);
    if end > len {
        return Ok(Err(cut_short(end, len)));
    }
    file.seek(SeekFrom::Start(offset))?;
    let mut bytes = Vec::new();
    file.take(n_bytes).read_to_end(&mut bytes)?;
    if bytes.len() as u64 == n_bytes { Ok(Ok(bytes)) } else { Ok(Err(cut_short(end, len))) }
}

fn cut_short(needed: u64, len: u64) -> Misfit {
    Misfit::NotALibrary(format!(
        "an ELF file that was cut short ({len} bytes of at least {needed})"
    ))
}

fn damaged(what: &str) -> Misfit {
    Misfit::NotALibrary(format!("a damaged ELF file ({what})"))
}

/// The machine that the header names, if it is not this one.
fn other_machine(header: &[u8]) -> Option<String> {
    let is_64_bit = header[4] == 2;
    let is_little_endian = header[5] == 1;
    let raw = [header[18], header[19]];
    let machine = if is_little_endian { u16::from_le_bytes(raw) } else { u16::from_be_bytes(raw) };
    let name = match machine {
        3 => "x86",
        8 => "mips",
        20 => "powerpc",
        21 => "powerpc64",
        22 => "s390x",
        40 => "arm",
        62 => "x86_64",
        183 => "aarch64",
        243 if is_64_bit => "riscv64",
        243 => "riscv32",
        258 => "loongarch64",
        _ => "",
    };
    let same = name == ARCH
        && is_64_bit == cfg!(target_pointer_width = "64")
        && is_little_endian == cfg!(target_endian = "little");
    (!same).then(|| match (name, is_64_bit) {
        ("", _) => format!("a machine with ELF number {machine}"),
        (ARCH, true) => format!("{ARCH} in the other byte order"),
        (ARCH, false) => format!("{ARCH} with 32-bit pointers"),
        (name, _) => name.to_owned(),
    })
}

/// What a file that is no ELF file looks like.
fn describe(start: &[u8], len: u64) -> String {
    let known: [(&[u8], &str); 9] = [
        (b"MZ", "a Windows program or library"),
        (b"\xcf\xfa\xed\xfe", "a macOS program or library"),
        (b"\xca\xfe\xba\xbe", "a macOS program or library"),
        (b"!<arch>\n", "a static archive"),
        (b"PK\x03\x04", "a zip archive"),
        (b"\x1f\x8b", "a gzip file"),
        (b"\x28\xb5\x2f\xfd", "a zstd file"),
        (b"#!", "a script"),
        (b"version https://git-lfs", "a Git LFS pointer in place of the file"),
    ];
    if len == 0 {
        return "an empty file (0 bytes)".to_owned();
    }
    if let Some((_, name)) = known.iter().find(|(magic, _)| start.starts_with(magic)) {
        return (*name).to_owned();
    }
    // The sample may end inside of a character.
    let is_text = match std::str::from_utf8(start) {
        Ok(_) => true,
        Err(error) => error.error_len().is_none() && error.valid_up_to() > 0,
    };
    if is_text && !start.contains(&0) {
        format!("a text file ({len} bytes)")
    } else {
        format!("{len} bytes of unknown data")
    }
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_ne_bytes(array_at(bytes, at))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes(array_at(bytes, at))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_ne_bytes(array_at(bytes, at))
}

/// The `N` bytes at `at`, which lies inside of a header whose length was checked.
fn array_at<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes[at..at + N].try_into().expect("a slice of N bytes")
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;
    use std::io::Write;

    /// Whatever the headers say, looking at them neither panics nor takes memory on their word.
    #[test]
    fn lying_headers_are_refused_or_taken_without_a_panic() {
        let exe = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        let path = std::env::temp_dir().join(format!("drivetrain-elf-{}", std::process::id()));
        let n_headers = usize::from(u16_at(&exe, 56));
        let table = u64_at(&exe, 32) as usize;
        let end = table + n_headers * PROGRAM_HEADER_BYTES;
        let mut file =
            File::options().read(true).write(true).create(true).truncate(true).open(&path).unwrap();
        file.write_all(&exe).unwrap();
        for at in (16..end).filter(|at| *at < HEADER_BYTES || *at >= table) {
            for value in [0, 0x7f, 0xff] {
                file.seek(SeekFrom::Start(at as u64)).unwrap();
                file.write_all(&[value]).unwrap();
                file.seek(SeekFrom::Start(0)).unwrap();
                let _ = inspect(&mut file, exe.len() as u64, "main").unwrap();
            }
            file.seek(SeekFrom::Start(at as u64)).unwrap();
            file.write_all(&exe[at..=at]).unwrap();
        }
        std::fs::remove_file(path).unwrap();
    }
}
