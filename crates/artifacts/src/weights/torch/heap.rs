//! The values of the pickle machine.
//!
//! Containers refer to their content by number, not by pointer, so that neither a cycle nor a chain
//! of a million nested tuples is any trouble: a heap is dropped as a few flat vectors.

use super::globals::{Global, StorageType};
use crate::weights::dtype::DType;

/// Most containers, strings and tensors of a pickle. A checkpoint of 50,000 tensors has 200,000.
const MAX_OBJECTS: usize = 1 << 20;

/// A value; the numbers are places in the [`Heap`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Value {
    None,
    Bool(bool),
    Int(i64),
    /// The number that a legacy checkpoint starts with, which is longer than 64 bits.
    Magic,
    /// A float, bytes or a longer number: nothing a tensor is made from.
    Opaque,
    Str(usize),
    /// A tuple, list or set.
    Sequence(usize),
    Dict(usize),
    Global(Global),
    Storage(usize),
    Tensor(usize),
}

/// A storage as the pickle describes it.
#[derive(Clone, Debug)]
pub(super) struct Storage {
    pub(super) kind: StorageType,
    pub(super) key: String,
    /// In elements of its type; in bytes for an untyped one.
    pub(super) n_elements: usize,
}

/// A tensor as the pickle describes it; nothing is checked yet.
#[derive(Clone, Debug)]
pub(super) struct TensorSpec {
    pub(super) storage: usize,
    /// Named apart from the storage where that is untyped.
    pub(super) dtype: Option<DType>,
    pub(super) offset: i64,
    pub(super) shape: Vec<i64>,
    pub(super) strides: Vec<i64>,
}

/// All objects of a pickle.
#[derive(Default)]
pub(super) struct Heap {
    pub(super) strings: Vec<String>,
    pub(super) sequences: Vec<Vec<Value>>,
    pub(super) dicts: Vec<Vec<(Value, Value)>>,
    pub(super) storages: Vec<Storage>,
    pub(super) tensors: Vec<TensorSpec>,
}

impl Heap {
    pub(super) fn string(&mut self, text: String) -> Result<Value, String> {
        Ok(Value::Str(push(&mut self.strings, text)?))
    }

    pub(super) fn sequence(&mut self, items: Vec<Value>) -> Result<Value, String> {
        Ok(Value::Sequence(push(&mut self.sequences, items)?))
    }

    pub(super) fn dict(&mut self, entries: Vec<(Value, Value)>) -> Result<Value, String> {
        Ok(Value::Dict(push(&mut self.dicts, entries)?))
    }

    pub(super) fn storage(&mut self, storage: Storage) -> Result<Value, String> {
        Ok(Value::Storage(push(&mut self.storages, storage)?))
    }

    pub(super) fn tensor(&mut self, tensor: TensorSpec) -> Result<Value, String> {
        Ok(Value::Tensor(push(&mut self.tensors, tensor)?))
    }

    pub(super) fn as_str(&self, value: Value) -> Option<&str> {
        match value {
            Value::Str(idx) => self.strings.get(idx).map(String::as_str),
            _ => None,
        }
    }

    pub(super) fn as_sequence(&self, value: Value) -> Option<&[Value]> {
        match value {
            Value::Sequence(idx) => self.sequences.get(idx).map(Vec::as_slice),
            _ => None,
        }
    }

    pub(super) fn as_dict(&self, value: Value) -> Option<&[(Value, Value)]> {
        match value {
            Value::Dict(idx) => self.dicts.get(idx).map(Vec::as_slice),
            _ => None,
        }
    }

    /// The value of a string key; the last of equal ones.
    pub(super) fn entry(&self, dict: Value, key: &str) -> Option<Value> {
        let entries = self.as_dict(dict)?;
        entries.iter().rev().find(|(name, _)| self.as_str(*name) == Some(key)).map(|(_, v)| *v)
    }
}

fn push<T>(objects: &mut Vec<T>, object: T) -> Result<usize, String> {
    if objects.len() >= MAX_OBJECTS {
        return Err(format!("makes more than {MAX_OBJECTS} objects of a kind, the limit"));
    }
    objects.push(object);
    Ok(objects.len() - 1)
}
