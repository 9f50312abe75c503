//! safetensors files: a JSON header of names, types, shapes and offsets, then the data.
//!
//! The header is checked here tensor by tensor, so that an error can name the tensor, and then once
//! more by the `safetensors` crate, so that nothing it refuses is accepted.

use std::fmt;

use serde::Deserialize;
use serde::de::{IgnoredAny, MapAccess, Visitor};
use serde_json::Value;

use super::dtype::DType;
use super::tensor::{Layout, MAX_RANK, element_count, row_major};
use crate::error::{ArtifactError, shorten};
use crate::mapping::MappedFile;

/// Length of the header's length.
const PREFIX_BYTES: usize = 8;

/// What the `safetensors` crate allows, too.
const MAX_HEADER_BYTES: u64 = 100_000_000;

/// The tensors of one file, in order of their data.
pub(super) fn read_header(file: &MappedFile) -> Result<Vec<(String, Layout)>, ArtifactError> {
    let broken = |reason| ArtifactError::WeightFile { path: file.path().to_owned(), reason };
    let (header, data_start) = split_header(file)?;
    let entries: Header = serde_json::from_slice(header)
        .map_err(|source| ArtifactError::Json { path: file.path().to_owned(), source })?;
    let data_bytes = file.bytes().len() - data_start;
    let mut tensors = Vec::with_capacity(entries.0.len());
    for (name, info) in entries.0 {
        let layout = read_info(&info, data_start, data_bytes).map_err(|reason| {
            ArtifactError::Tensor { path: file.path().to_owned(), tensor: shorten(&name), reason }
        })?;
        tensors.push((name, layout));
    }
    check_cover(file, &mut tensors, data_start)?;
    ::safetensors::SafeTensors::read_metadata(file.bytes())
        .map_err(|error| broken(format!("is not a valid safetensors file: {error}")))?;
    Ok(tensors)
}

/// The header's bytes, and where the data start.
fn split_header(file: &MappedFile) -> Result<(&[u8], usize), ArtifactError> {
    let broken = |reason| Err(ArtifactError::WeightFile { path: file.path().to_owned(), reason });
    let bytes = file.bytes();
    if bytes.starts_with(b"version https://git-lfs") {
        let reason = "is a git-lfs pointer, not the weights; fetch the file with git lfs pull";
        return broken(reason.to_owned());
    }
    let Some((prefix, rest)) = bytes.split_first_chunk::<PREFIX_BYTES>() else {
        return broken(format!("holds {} bytes, a safetensors file at least 8", bytes.len()));
    };
    let header_bytes = u64::from_le_bytes(*prefix);
    if header_bytes > rest.len() as u64 {
        return broken(format!(
            "its header claims {header_bytes} bytes, {} follow; the file is cut off or no \
             safetensors file",
            rest.len()
        ));
    }
    if header_bytes > MAX_HEADER_BYTES {
        return broken(format!(
            "its header claims {header_bytes} bytes, at most {MAX_HEADER_BYTES} are allowed"
        ));
    }
    let header = &rest[..header_bytes as usize];
    Ok((header, PREFIX_BYTES + header.len()))
}

/// One tensor's entry, checked by itself.
fn read_info(info: &Value, data_start: usize, data_bytes: usize) -> Result<Layout, String> {
    let dtype_name = info.get("dtype").and_then(Value::as_str).ok_or("has no dtype")?;
    let dtype = DType::from_name(dtype_name)
        .ok_or_else(|| format!("its dtype {:?} is not supported", shorten(dtype_name)))?;
    let shape: Box<[usize]> =
        whole_numbers(info, "shape").ok_or("its shape is not a list of whole numbers")?.into();
    if shape.len() > MAX_RANK {
        return Err(format!(
            "its shape has {} dimensions, at most {MAX_RANK} are allowed",
            shape.len()
        ));
    }
    let offsets = whole_numbers(info, "data_offsets");
    let Some(&[begin, end]) = offsets.as_deref() else {
        return Err("its data_offsets are not two whole numbers".to_owned());
    };
    if begin > end || end > data_bytes {
        return Err(format!(
            "its data_offsets [{begin}, {end}] are not inside the {data_bytes} bytes of data"
        ));
    }
    let strides = row_major(&shape);
    let size = element_count(&shape).and_then(|n| Some((n, n.checked_mul(dtype.size())?)));
    let (Some(strides), Some((n_elements, bytes))) = (strides, size) else {
        return Err(format!("its shape {shape:?} has more elements than memory has addresses"));
    };
    if bytes != end - begin {
        return Err(format!(
            "its shape {shape:?} of {dtype} takes {bytes} bytes, its data_offsets [{begin}, {end}] \
             give {}",
            end - begin
        ));
    }
    let span = data_start + begin..data_start + end;
    Ok(Layout::plain(dtype, shape, strides, span, n_elements))
}

fn whole_numbers(info: &Value, key: &str) -> Option<Vec<usize>> {
    let items = info.get(key)?.as_array()?;
    items.iter().map(|item| usize::try_from(item.as_u64()?).ok()).collect()
}

/// Sorts the tensors by place and checks that they cover the data without overlap, gap or rest.
fn check_cover(
    file: &MappedFile,
    tensors: &mut [(String, Layout)],
    data_start: usize,
) -> Result<(), ArtifactError> {
    tensors.sort_by_key(|(_, layout)| (layout.span.start, layout.span.end));
    let mut at = data_start;
    let mut before = "the header";
    for (name, layout) in tensors.iter() {
        if layout.span.start != at {
            let what = if layout.span.start < at { "overlap" } else { "leave a gap after" };
            return Err(ArtifactError::Tensor {
                path: file.path().to_owned(),
                tensor: shorten(name),
                reason: format!(
                    "its data at [{}, {}] {what} {:?}",
                    layout.span.start - data_start,
                    layout.span.end - data_start,
                    shorten(before)
                ),
            });
        }
        at = layout.span.end;
        before = name;
    }
    match file.bytes().len() - at {
        0 => Ok(()),
        rest => Err(ArtifactError::WeightFile {
            path: file.path().to_owned(),
            reason: format!("{rest} bytes follow the last tensor, {:?}", shorten(before)),
        }),
    }
}

/// The header's entries as they stand, so that a name that occurs twice is seen.
struct Header(Vec<(String, Value)>);

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Header;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
                let mut seen = std::collections::HashSet::new();
                let mut entries = Vec::new();
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        map.next_value::<IgnoredAny>()?;
                        continue;
                    }
                    if !seen.insert(name.clone()) {
                        let text = format!("tensor {:?} occurs twice", shorten(&name));
                        return Err(serde::de::Error::custom(text));
                    }
                    entries.push((name, map.next_value()?));
                }
                Ok(Header(entries))
            }
        }
        deserializer.deserialize_map(Entries)
    }
}
