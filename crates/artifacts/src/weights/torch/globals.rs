//! The only names a pickle may use, and what calling them does.

use super::heap::{Heap, Storage, TensorSpec, Value};
use crate::weights::dtype::DType;

/// Something a pickle may name.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Global {
    OrderedDict,
    /// `torch.Size`, a tuple of numbers.
    Size,
    /// `_rebuild_tensor_v2(storage, offset, shape, strides, requires_grad, hooks, ..)`
    RebuildTensor,
    /// The same with the element type as seventh argument, over an untyped storage.
    RebuildTyped,
    /// `_rebuild_parameter(tensor, requires_grad, hooks)`
    RebuildParameter,
    Storage(StorageType),
    DType(DType),
}

/// What a storage holds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum StorageType {
    Typed(DType),
    /// Bytes, whose type the tensors say.
    Untyped,
}

/// The meaning of a name, or `None` for one that is refused.
pub(super) fn resolve(module: &str, name: &str) -> Option<Global> {
    Some(match (module, name) {
        ("collections", "OrderedDict") => Global::OrderedDict,
        ("torch", "Size") => Global::Size,
        ("torch._utils", "_rebuild_tensor_v2") => Global::RebuildTensor,
        ("torch._utils", "_rebuild_tensor_v3") => Global::RebuildTyped,
        ("torch._utils", "_rebuild_parameter") => Global::RebuildParameter,
        ("torch" | "torch.storage", "UntypedStorage") => Global::Storage(StorageType::Untyped),
        ("torch", storage) if storage.ends_with("Storage") => {
            Global::Storage(StorageType::Typed(storage_dtype(storage)?))
        }
        ("torch", dtype) => Global::DType(named_dtype(dtype)?),
        _ => return None,
    })
}

fn storage_dtype(name: &str) -> Option<DType> {
    Some(match name {
        "DoubleStorage" => DType::F64,
        "FloatStorage" => DType::F32,
        "HalfStorage" => DType::F16,
        "BFloat16Storage" => DType::BF16,
        "LongStorage" => DType::I64,
        "IntStorage" => DType::I32,
        "ShortStorage" => DType::I16,
        "CharStorage" => DType::I8,
        "ByteStorage" => DType::U8,
        "BoolStorage" => DType::Bool,
        "ComplexFloatStorage" => DType::C64,
        _ => return None,
    })
}

fn named_dtype(name: &str) -> Option<DType> {
    Some(match name {
        "float64" | "double" => DType::F64,
        "float32" | "float" => DType::F32,
        "float16" | "half" => DType::F16,
        "bfloat16" => DType::BF16,
        "float8_e4m3fn" => DType::F8E4M3,
        "float8_e5m2" => DType::F8E5M2,
        "float8_e8m0fnu" => DType::F8E8M0,
        "int64" | "long" => DType::I64,
        "int32" | "int" => DType::I32,
        "int16" | "short" => DType::I16,
        "int8" => DType::I8,
        "uint64" => DType::U64,
        "uint32" => DType::U32,
        "uint16" => DType::U16,
        "uint8" => DType::U8,
        "bool" => DType::Bool,
        "complex64" => DType::C64,
        _ => return None,
    })
}

/// What `function(*arguments)` gives.
pub(super) fn call(heap: &mut Heap, function: Global, arguments: Value) -> Result<Value, String> {
    let arguments = heap.as_sequence(arguments).ok_or("calls without a tuple of arguments")?;
    match (function, arguments) {
        (Global::OrderedDict, []) => heap.dict(Vec::new()),
        (Global::OrderedDict, &[pairs]) => ordered_dict(heap, pairs),
        (Global::Size, &[items @ Value::Sequence(_)]) => Ok(items),
        (Global::RebuildTensor, &[storage, offset, shape, strides, _, _, ..]) => {
            rebuild(heap, None, [storage, offset, shape, strides])
        }
        (Global::RebuildTyped, &[storage, offset, shape, strides, _, _, dtype, ..]) => {
            let Value::Global(Global::DType(dtype)) = dtype else {
                return Err("makes a tensor without a dtype".to_owned());
            };
            rebuild(heap, Some(dtype), [storage, offset, shape, strides])
        }
        (Global::RebuildParameter, &[tensor @ Value::Tensor(_), ..]) => Ok(tensor),
        _ => Err(format!("calls {function:?} with {} unsuitable arguments", arguments.len())),
    }
}

/// `OrderedDict([[key, value], ..])`, as Python 2 wrote it.
fn ordered_dict(heap: &mut Heap, pairs: Value) -> Result<Value, String> {
    let pair = |item: &Value| match heap.as_sequence(*item) {
        Some(&[key, value]) => Some((key, value)),
        _ => None,
    };
    let entries = heap.as_sequence(pairs).and_then(|items| items.iter().map(pair).collect());
    heap.dict(entries.ok_or("makes an OrderedDict from something else than pairs")?)
}

fn rebuild(
    heap: &mut Heap,
    dtype: Option<DType>,
    [storage, offset, shape, strides]: [Value; 4],
) -> Result<Value, String> {
    let (Value::Storage(storage), Value::Int(offset)) = (storage, offset) else {
        return Err("makes a tensor without a storage and an offset".to_owned());
    };
    let numbers = |value| -> Option<Vec<i64>> {
        let items = heap.as_sequence(value)?;
        items.iter().map(|item| if let Value::Int(n) = item { Some(*n) } else { None }).collect()
    };
    let (Some(shape), Some(strides)) = (numbers(shape), numbers(strides)) else {
        return Err("makes a tensor whose shape or strides are not whole numbers".to_owned());
    };
    heap.tensor(TensorSpec { storage, dtype, offset, shape, strides })
}

/// What a persistent id stands for: `("storage", type, key, location, n_elements[, None])`.
pub(super) fn persistent(heap: &mut Heap, id: Value) -> Result<Value, String> {
    let Some(&[tag, kind, key, _, n_elements, ref view @ ..]) = heap.as_sequence(id) else {
        return Err("has a persistent id that is not a storage".to_owned());
    };
    let (Value::Global(Global::Storage(kind)), Value::Int(n_elements)) = (kind, n_elements) else {
        return Err("has a storage without a type and a size".to_owned());
    };
    if heap.as_str(tag) != Some("storage") || !matches!(view, [] | [Value::None]) {
        return Err("has a persistent id that is not a whole storage".to_owned());
    }
    let key = heap.as_str(key).ok_or("has a storage without a key")?.to_owned();
    let n_elements = usize::try_from(n_elements)
        .map_err(|_| format!("has a storage of {n_elements} elements"))?;
    heap.storage(Storage { kind, key, n_elements })
}
