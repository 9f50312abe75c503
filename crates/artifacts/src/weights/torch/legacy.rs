//! Checkpoints from before PyTorch 1.6: five pickles (a magic number, a protocol number, facts about
//! the machine, the tensors, the keys of their storages), then each storage in order of the keys: its
//! number of elements in 8 bytes, and the elements.

use std::collections::HashMap;
use std::ops::Range;

use super::globals::StorageType;
use super::heap::{Heap, Value};
use super::{Checkpoint, Fault, MAX_PICKLE_BYTES, pickle, state_dict};
use crate::error::shorten;
use crate::weights::tensor::Layout;

const PROTOCOL: i64 = 1001;

pub(super) fn read(bytes: &[u8]) -> Result<Vec<(String, Layout)>, Fault> {
    let mut pickles = Pickles { bytes, at: 0, heap: Heap::default() };
    let wrong = |what: &str| Fault::File(format!("is not a PyTorch checkpoint: {what}"));
    if pickles.next()? != Value::Magic {
        return Err(wrong("it does not start with PyTorch's magic number"));
    }
    if pickles.next()? != Value::Int(PROTOCOL) {
        return Err(wrong("its protocol is not 1001"));
    }
    let machine = pickles.next()?;
    if pickles.heap.entry(machine, "little_endian") != Some(Value::Bool(true)) {
        return Err(wrong("it was not written by a little-endian machine"));
    }
    let root = pickles.next()?;
    let keys = pickles.next()?;
    let Pickles { at, heap, .. } = pickles;
    let storages = find_storages(bytes, at, &heap, keys).map_err(Fault::File)?;
    let locate = Box::new(move |key: &str| {
        storages
            .get(key)
            .cloned()
            .ok_or_else(|| format!("its storage {:?} is not in the file", shorten(key)))
    });
    state_dict::tensors(Checkpoint { heap, root, locate, file_bytes: bytes.len() })
}

/// Pickles one after another, with one heap.
struct Pickles<'a> {
    bytes: &'a [u8],
    at: usize,
    heap: Heap,
}

impl Pickles<'_> {
    fn next(&mut self) -> Result<Value, Fault> {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let window = &rest[..rest.len().min(MAX_PICKLE_BYTES)];
        let (value, n) = pickle::run(window, &mut self.heap).map_err(|fault| match fault {
            Fault::Pickle { offset, reason } => Fault::Pickle { offset: self.at + offset, reason },
            other => other,
        })?;
        self.at += n;
        Ok(value)
    }
}

/// The places of all storages, by key.
fn find_storages(
    bytes: &[u8],
    mut at: usize,
    heap: &Heap,
    keys: Value,
) -> Result<HashMap<String, Range<usize>>, String> {
    let kinds: HashMap<&str, StorageType> =
        heap.storages.iter().map(|storage| (storage.key.as_str(), storage.kind)).collect();
    let mut storages = HashMap::new();
    for key in heap.as_sequence(keys).ok_or("its list of storages is missing")? {
        let key = heap.as_str(*key).ok_or("its list of storages holds something else than keys")?;
        let broken = |reason: &str| format!("storage {:?} {reason}", shorten(key));
        let element_bytes = match kinds.get(key) {
            Some(StorageType::Typed(dtype)) => dtype.size(),
            Some(StorageType::Untyped) => 1,
            None => return Err(broken("is not used by any tensor")),
        };
        let count = bytes.get(at..).and_then(|rest| rest.first_chunk::<8>());
        let count = i64::from_le_bytes(*count.ok_or_else(|| broken("is cut off"))?);
        let start = at + 8;
        let end = usize::try_from(count)
            .ok()
            .and_then(|count| start.checked_add(count.checked_mul(element_bytes)?))
            .filter(|end| *end <= bytes.len())
            .ok_or_else(|| {
                broken(&format!("claims {count} elements, {} bytes follow", bytes.len() - start))
            })?;
        storages.insert(key.to_owned(), start..end);
        at = end;
    }
    Ok(storages)
}
