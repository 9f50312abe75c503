//! From a pickle's result to checked tensors.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;

use super::globals::StorageType;
use super::heap::{Storage, TensorSpec, Value};
use super::{Checkpoint, Fault};
use crate::error::shorten;
use crate::weights::dtype::DType;
use crate::weights::tensor::{Layout, MAX_RANK, element_count};

/// Keys under which training scripts put the dictionary of tensors.
const WRAPPERS: [&str; 3] = ["state_dict", "model", "module"];

/// The tensors of a checkpoint's dictionary. Of equal names the last counts; what is no tensor is
/// left out.
pub(super) fn tensors(mut checkpoint: Checkpoint<'_>) -> Result<Vec<(String, Layout)>, Fault> {
    let heap = &checkpoint.heap;
    let mut found = named_tensors(&checkpoint, checkpoint.root);
    if found.is_empty() {
        let inner = WRAPPERS.iter().find_map(|key| heap.entry(checkpoint.root, key));
        found = inner.map(|inner| named_tensors(&checkpoint, inner)).unwrap_or_default();
    }
    if found.is_empty() {
        return Err(Fault::File("holds no dictionary of tensors".to_owned()));
    }
    let mut places = HashMap::new();
    let mut tensors = Vec::with_capacity(found.len());
    for (name, idx) in found {
        let layout = place(&mut checkpoint, &mut places, idx)
            .map_err(|reason| Fault::Tensor { tensor: shorten(&name), reason })?;
        tensors.push((name, layout));
    }
    Ok(tensors)
}

fn named_tensors(checkpoint: &Checkpoint<'_>, dict: Value) -> Vec<(String, usize)> {
    let mut found = BTreeMap::new();
    for (key, value) in checkpoint.heap.as_dict(dict).unwrap_or_default() {
        if let (Some(name), Value::Tensor(idx)) = (checkpoint.heap.as_str(*key), value) {
            found.insert(name, *idx);
        }
    }
    found.into_iter().map(|(name, idx)| (name.to_owned(), idx)).collect()
}

/// Finds a tensor's storage, each once, and checks that the tensor lies inside it.
fn place(
    checkpoint: &mut Checkpoint<'_>,
    places: &mut HashMap<String, Range<usize>>,
    idx: usize,
) -> Result<Layout, String> {
    let Checkpoint { heap, locate, file_bytes, .. } = checkpoint;
    let tensor = heap.tensors.get(idx).ok_or("is not there")?;
    let storage = heap.storages.get(tensor.storage).ok_or("has no storage")?;
    let (dtype, storage_bytes) = size_of(tensor, storage)?;
    let data = match places.get(&storage.key) {
        Some(data) => data.clone(),
        None => {
            let data = locate(&storage.key)?;
            places.insert(storage.key.clone(), data.clone());
            data
        }
    };
    if data.len() < storage_bytes {
        return Err(format!(
            "its storage {:?} takes {storage_bytes} bytes, the file holds {}",
            shorten(&storage.key),
            data.len()
        ));
    }
    lay_out(tensor, dtype, data.start..data.start + storage_bytes, *file_bytes)
}

/// The type of the elements, and the bytes of the whole storage.
fn size_of(tensor: &TensorSpec, storage: &Storage) -> Result<(DType, usize), String> {
    let (dtype, unit) = match (storage.kind, tensor.dtype) {
        (StorageType::Typed(dtype), None) => (dtype, dtype.size()),
        (StorageType::Untyped, Some(dtype)) => (dtype, 1),
        (StorageType::Untyped, None) => (DType::U8, 1),
        (StorageType::Typed(stored), Some(dtype)) => (dtype, stored.size()),
    };
    let bytes = storage
        .n_elements
        .checked_mul(unit)
        .ok_or_else(|| format!("its storage claims {} elements", storage.n_elements))?;
    Ok((dtype, bytes))
}

/// The layout of a tensor in the storage at `data`.
fn lay_out(
    tensor: &TensorSpec,
    dtype: DType,
    data: Range<usize>,
    file_bytes: usize,
) -> Result<Layout, String> {
    let TensorSpec { shape, strides, .. } = tensor;
    if shape.len() != strides.len() || shape.len() > MAX_RANK {
        return Err(format!("has {} dimensions and {} strides", shape.len(), strides.len()));
    }
    let impossible = || {
        format!(
            "its shape {shape:?} with strides {strides:?} at {} does not fit into its storage of {} \
             {dtype} elements",
            tensor.offset,
            data.len() / dtype.size()
        )
    };
    let whole = |numbers: &[i64]| -> Option<Box<[usize]>> {
        numbers.iter().map(|n| usize::try_from(*n).ok()).collect()
    };
    let parts = (whole(shape), whole(strides), usize::try_from(tensor.offset).ok());
    let (Some(shape), Some(strides), Some(offset)) = parts else { return Err(impossible()) };
    let n_elements = element_count(&shape).ok_or_else(impossible)?;
    if n_elements == 0 {
        let span = data.start..data.start;
        return Ok(Layout::plain(dtype, shape, strides, span, n_elements));
    }
    let last = shape
        .iter()
        .zip(&strides)
        .try_fold(offset, |last, (n, stride)| last.checked_add((n - 1).checked_mul(*stride)?));
    let end = last.and_then(|last| last.checked_add(1)?.checked_mul(dtype.size()));
    let end = end.filter(|end| *end <= data.len()).ok_or_else(impossible)?;
    // Strides of 0 make a large tensor from little data; what is read out of it must stay in
    // proportion to the file.
    if n_elements.checked_mul(dtype.size()).is_none_or(|bytes| bytes > file_bytes) {
        return Err(format!("its shape {shape:?} repeats its data beyond the size of the file"));
    }
    let span = data.start + offset * dtype.size()..data.start + end;
    Ok(Layout::plain(dtype, shape, strides, span, n_elements))
}
