//! What stands ahead of the data of a GGUF file: metadata and the places of the tensors.
//!
//! A count is believed only as far as the file could hold that many; nothing is allocated ahead.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::ops::Range;
use std::path::Path;

use super::metadata::{Array, Broken, Cursor, Kind, Value};
use crate::error::{ArtifactError, shorten};
use crate::mapping::MappedFile;
use crate::weights::DType;

const MAGIC: &[u8; 4] = b"GGUF";

/// Where data start and tensors are aligned to, unless the file says otherwise.
const DEFAULT_ALIGNMENT: u64 = 32;

/// Largest alignment that is believed.
const MAX_ALIGNMENT: u64 = 1 << 20;

/// Most dimensions of a tensor.
const MAX_DIMS: u32 = 4;

/// The metadata and the tensors of a model.
pub(super) struct Header<'a> {
    files: &'a [MappedFile],
    metadata: Metadata<'a>,
    /// The keys of the metadata that were asked for.
    asked: RefCell<BTreeSet<&'a str>>,
    /// In the order of the files.
    pub(super) tensors: Vec<TensorInfo<'a>>,
    by_name: HashMap<&'a str, usize>,
    /// `general.architecture`.
    pub(super) architecture: &'a str,
}

/// One tensor, inside its file.
#[derive(Clone, Debug)]
pub(super) struct TensorInfo<'a> {
    pub(super) name: &'a str,
    /// Outermost first, as everywhere else here; the file has them the other way round.
    pub(super) shape: Vec<usize>,
    pub(super) dtype: DType,
    /// The part that holds it.
    pub(super) file_idx: usize,
    /// First byte in the file.
    pub(super) start: usize,
    pub(super) n_elements: usize,
}

impl TensorInfo<'_> {
    /// Where the tensor lies in its file.
    pub(super) fn span(&self) -> Range<usize> {
        self.start..self.start + self.dtype.bytes_for(self.n_elements)
    }
}

impl<'a> Header<'a> {
    /// Reads and checks the headers of a model's parts; the first has the metadata.
    pub(super) fn read(files: &'a [MappedFile]) -> Result<Self, ArtifactError> {
        let mut header = Self {
            files,
            metadata: BTreeMap::new(),
            asked: RefCell::default(),
            tensors: Vec::new(),
            by_name: HashMap::new(),
            architecture: "",
        };
        for (file_idx, file) in files.iter().enumerate() {
            let (metadata, tensors) = read_file(file, file_idx)?;
            check_overlap(file.path(), &tensors)?;
            if file_idx == 0 {
                header.metadata = metadata;
            }
            for tensor in tensors {
                if header.by_name.insert(tensor.name, header.tensors.len()).is_some() {
                    return Err(ArtifactError::Tensor {
                        path: file.path().to_owned(),
                        tensor: shorten(tensor.name),
                        reason: "is in another part, too".to_owned(),
                    });
                }
                header.tensors.push(tensor);
            }
        }
        header.architecture = header.str("general.architecture")?.unwrap_or_default();
        Ok(header)
    }

    /// The file that has the metadata.
    pub(super) fn path(&self) -> &'a Path {
        self.files.first().map_or(Path::new(""), MappedFile::path)
    }

    /// The tensor of this name.
    pub(super) fn tensor(&self, name: &str) -> Option<&TensorInfo<'a>> {
        self.tensors.get(*self.by_name.get(name)?)
    }

    /// Whether there is a tensor of this name.
    pub(super) fn has(&self, name: &str) -> bool {
        self.by_name.contains_key(name)
    }

    /// The data of a tensor.
    pub(super) fn bytes_of(&self, tensor: &TensorInfo<'_>) -> Option<&'a [u8]> {
        self.files.get(tensor.file_idx)?.bytes().get(tensor.span())
    }

    /// The file of a tensor.
    pub(super) fn path_of(&self, tensor: &TensorInfo<'_>) -> &'a Path {
        self.files.get(tensor.file_idx).map_or(self.path(), MappedFile::path)
    }

    /// The values of all keys that start with `prefix`, by the rest of the key.
    pub(super) fn with_prefix(&self, prefix: &str) -> impl Iterator<Item = (&'a str, Value<'a>)> {
        self.metadata
            .iter()
            .filter_map(move |(key, value)| Some((key.strip_prefix(prefix)?, *value)))
    }

    /// The value of a key.
    pub(super) fn get(&self, key: &str) -> Option<Value<'a>> {
        let (name, value) = self.metadata.get_key_value(key)?;
        self.asked.borrow_mut().insert(name);
        Some(*value)
    }

    /// The keys of the family that nobody asked for, sorted.
    pub(super) fn unread(&self) -> Vec<String> {
        let prefix = format!("{}.", self.architecture);
        let asked = self.asked.borrow();
        let unread =
            self.metadata.keys().filter(|key| key.starts_with(&prefix) && !asked.contains(**key));
        unread.map(|key| (*key).to_owned()).collect()
    }

    /// A whole number of 32 bits.
    pub(super) fn u32(&self, key: &str) -> Result<Option<u32>, ArtifactError> {
        let number = |value: Value<'_>| value.as_u64().and_then(|n| u32::try_from(n).ok());
        self.typed(key, "a whole number from 0 to 4294967295", number)
    }

    /// A finite number.
    pub(super) fn f64(&self, key: &str) -> Result<Option<f64>, ArtifactError> {
        self.typed(key, "a finite number", |value| value.as_f64())
    }

    /// `true` or `false`.
    pub(super) fn bool(&self, key: &str) -> Result<Option<bool>, ArtifactError> {
        self.typed(key, "true or false", |value| value.as_bool())
    }

    /// A text.
    pub(super) fn str(&self, key: &str) -> Result<Option<&'a str>, ArtifactError> {
        self.typed(key, "a text in UTF-8", |value| value.as_str())
    }

    /// An array.
    pub(super) fn array(&self, key: &str) -> Result<Option<Array<'a>>, ArtifactError> {
        self.typed(key, "an array", |value| value.as_array())
    }

    fn typed<T>(
        &self,
        key: &str,
        wanted: &str,
        read: impl FnOnce(Value<'a>) -> Option<T>,
    ) -> Result<Option<T>, ArtifactError> {
        match self.get(key) {
            None => Ok(None),
            Some(value) => match read(value) {
                Some(value) => Ok(Some(value)),
                None => Err(self.invalid(key, wanted)),
            },
        }
    }

    /// The error for a key that is missing.
    pub(super) fn missing(&self, key: &str, wanted: &str) -> ArtifactError {
        ArtifactError::MissingKey {
            path: self.path().to_owned(),
            key: key.to_owned(),
            wanted: wanted.to_owned(),
        }
    }

    /// The error for a key whose value can't be used.
    pub(super) fn invalid(&self, key: &str, wanted: &str) -> ArtifactError {
        let found = match self.metadata.get(key) {
            None => return self.missing(key, wanted),
            Some(Value::Text(bytes)) => format!("{:?}", String::from_utf8_lossy(bytes)),
            Some(Value::Array(array)) => format!("an array of {} items", array.len()),
            Some(Value::Unsigned(value)) => value.to_string(),
            Some(Value::Signed(value)) => value.to_string(),
            Some(Value::Float(value)) => value.to_string(),
            Some(Value::Bool(value)) => value.to_string(),
        };
        ArtifactError::InvalidKey {
            path: self.path().to_owned(),
            key: shorten(key),
            found: shorten(&found),
            wanted: wanted.to_owned(),
        }
    }
}

type Metadata<'a> = BTreeMap<&'a str, Value<'a>>;

/// The header of one file.
fn read_file(
    file: &MappedFile,
    file_idx: usize,
) -> Result<(Metadata<'_>, Vec<TensorInfo<'_>>), ArtifactError> {
    let broken = |reason| ArtifactError::WeightFile { path: file.path().to_owned(), reason };
    let mut cursor = Cursor::new(file.bytes());
    let (n_tensors, n_keys) = read_counts(&mut cursor, file.bytes()).map_err(broken)?;
    let metadata = read_metadata(&mut cursor, n_keys).map_err(broken)?;
    let alignment = match metadata.get("general.alignment").map(|value| value.as_u64()) {
        None => DEFAULT_ALIGNMENT,
        Some(Some(n)) if n.is_power_of_two() && n <= MAX_ALIGNMENT => n,
        Some(_) => {
            let wanted = format!("a power of two up to {MAX_ALIGNMENT}");
            return Err(broken(format!("general.alignment: expected {wanted}")));
        }
    };
    let raw = read_infos(&mut cursor, n_tensors).map_err(broken)?;
    let data = Data {
        start: (cursor.position() as u64).next_multiple_of(alignment),
        end: file.bytes().len() as u64,
        alignment,
        file_idx,
    };
    let mut tensors = Vec::with_capacity(raw.len());
    for info in raw {
        tensors.push(info.check(&data).map_err(|reason| {
            let (path, tensor) = (file.path().to_owned(), shorten(info.name));
            ArtifactError::Tensor { path, tensor, reason }
        })?);
    }
    Ok((metadata, tensors))
}

/// Each byte belongs to one tensor at most.
fn check_overlap(path: &Path, tensors: &[TensorInfo<'_>]) -> Result<(), ArtifactError> {
    let mut order: Vec<&TensorInfo<'_>> =
        tensors.iter().filter(|tensor| tensor.n_elements > 0).collect();
    order.sort_by_key(|tensor| tensor.start);
    for pair in order.windows(2) {
        if pair[0].span().end > pair[1].start {
            return Err(ArtifactError::Tensor {
                path: path.to_owned(),
                tensor: shorten(pair[1].name),
                reason: format!("its data overlap those of {:?}", shorten(pair[0].name)),
            });
        }
    }
    Ok(())
}

/// Where the data of a file lie.
struct Data {
    start: u64,
    end: u64,
    alignment: u64,
    file_idx: usize,
}

/// Magic number, version, and the numbers of tensors and keys.
fn read_counts(cursor: &mut Cursor<'_>, bytes: &[u8]) -> Result<(u64, u64), Broken> {
    if bytes.starts_with(b"version https://git-lfs") {
        let text = "is a git-lfs pointer, not the model; fetch the file with git lfs pull";
        return Err(text.to_owned());
    }
    if bytes.get(..4) != Some(MAGIC) {
        return Err("does not start with \"GGUF\"; it is no GGUF file".to_owned());
    }
    cursor.u32()?;
    match cursor.u32()? {
        2 | 3 => {}
        version if version.swap_bytes() <= 0xffff && version > 0xffff => {
            return Err("is big-endian; convert it with gguf-py's gguf_convert_endian".to_owned());
        }
        version => {
            return Err(format!(
                "is of GGUF version {version}, 2 and 3 can be read; convert the model anew"
            ));
        }
    }
    Ok((cursor.u64()?, cursor.u64()?))
}

fn read_metadata<'a>(cursor: &mut Cursor<'a>, n_keys: u64) -> Result<Metadata<'a>, Broken> {
    // A key takes its length, its type and a byte at least.
    check_count(cursor, "keys", n_keys, 13)?;
    let mut metadata = BTreeMap::new();
    for _ in 0..n_keys {
        let key = cursor.name()?;
        let kind = Kind::read(cursor)?;
        let value =
            cursor.value(kind, 0).map_err(|error| format!("{error} (key {:?})", shorten(key)))?;
        if metadata.insert(key, value).is_some() {
            return Err(format!("has the key {:?} twice", shorten(key)));
        }
    }
    Ok(metadata)
}

fn check_count(cursor: &Cursor<'_>, what: &str, n: u64, least: u64) -> Result<(), Broken> {
    if n > cursor.rest() / least {
        return Err(format!(
            "claims {n} {what}, which can't be in the {} bytes that follow; the file is cut off or \
             broken",
            cursor.rest()
        ));
    }
    Ok(())
}

/// A tensor's entry as it stands.
struct RawInfo<'a> {
    name: &'a str,
    /// Innermost first.
    dims: [u64; MAX_DIMS as usize],
    n_dims: usize,
    dtype: u32,
    offset: u64,
}

fn read_infos<'a>(cursor: &mut Cursor<'a>, n: u64) -> Result<Vec<RawInfo<'a>>, Broken> {
    // A tensor takes the length of its name, its number of dimensions, its type and its offset.
    check_count(cursor, "tensors", n, 24)?;
    let mut infos = Vec::new();
    let mut names = HashSet::new();
    for _ in 0..n {
        let name = cursor.name()?;
        if !names.insert(name) {
            return Err(format!("has the tensor {:?} twice", shorten(name)));
        }
        let n_dims = cursor.u32()?;
        if n_dims > MAX_DIMS {
            return Err(format!(
                "has the tensor {:?} of {n_dims} dimensions, at most {MAX_DIMS} are allowed",
                shorten(name)
            ));
        }
        let mut dims = [1; MAX_DIMS as usize];
        for dim in dims.iter_mut().take(n_dims as usize) {
            *dim = cursor.u64()?;
        }
        let (dtype, offset) = (cursor.u32()?, cursor.u64()?);
        infos.push(RawInfo { name, dims, n_dims: n_dims as usize, dtype, offset });
    }
    Ok(infos)
}

impl<'a> RawInfo<'a> {
    fn check(&self, data: &Data) -> Result<TensorInfo<'a>, Broken> {
        let Data { start: data_start, end, alignment, file_idx } = *data;
        let dtype = DType::from_ggml(self.dtype)?;
        let dims = self.dims.iter().take(self.n_dims);
        let shape: Option<Vec<usize>> = dims.rev().map(|dim| usize::try_from(*dim).ok()).collect();
        let count = |shape: &Vec<usize>| {
            // The other dimensions of an empty tensor must be sane, too.
            shape.iter().try_fold(1usize, |n, dim| n.checked_mul((*dim).max(1)))?;
            let n: usize = shape.iter().product();
            n.checked_mul(dtype.size()).map(|_| n)
        };
        let Some((shape, n_elements)) =
            shape.and_then(|shape| Some((count(&shape)?, shape))).map(|(n, shape)| (shape, n))
        else {
            let dims = &self.dims[..self.n_dims];
            return Err(format!("its dimensions {dims:?} are more than memory has addresses"));
        };
        let row_len = shape.last().copied().unwrap_or(1);
        if !row_len.is_multiple_of(dtype.block_len()) {
            return Err(format!(
                "its rows of {row_len} are no whole blocks of {dtype}, which have {}",
                dtype.block_len()
            ));
        }
        if !self.offset.is_multiple_of(alignment) {
            return Err(format!("its offset {} is no multiple of {alignment}", self.offset));
        }
        let n_bytes = dtype.bytes_for(n_elements) as u64;
        let start = data_start.checked_add(self.offset);
        let inside = start.and_then(|start| start.checked_add(n_bytes)).filter(|last| *last <= end);
        let (Some(start), Some(_)) = (start, inside) else {
            return Err(format!(
                "its {n_bytes} bytes at offset {} are not inside the {} bytes of data; the file is \
                 cut off or broken",
                self.offset,
                end.saturating_sub(data_start)
            ));
        };
        let start = start as usize;
        Ok(TensorInfo { name: self.name, shape, dtype, file_idx, start, n_elements })
    }
}
