//! The layout of what crosses, as of this ABI version.

use std::collections::BTreeMap;

use abi_stable::StableAbi;
use abi_stable::type_layout::{TLData, TLField, TypeLayout};

use super::objects::EngineModuleRef;

/// Writes a type of this crate down with its size, alignment, fields or variants, and every type
/// that it leads to.
fn describe(layout: &'static TypeLayout, found: &mut BTreeMap<String, String>) {
    let key = format!("{:?}", layout.get_utypeid());
    if found.contains_key(&key) {
        return;
    }
    let is_ours = layout.package().as_str() == env!("CARGO_PKG_NAME");
    let (fields, variants): (Vec<TLField>, Vec<&str>) = match layout.data() {
        TLData::Struct { fields } | TLData::Union { fields } => (fields.iter().collect(), vec![]),
        TLData::Enum(data) => (data.fields.iter().collect(), data.variant_names_iter().collect()),
        TLData::PrefixType(data) => (data.fields.iter().collect(), vec![]),
        TLData::Primitive(_) | TLData::Opaque => (vec![], vec![]),
    };
    let mut text = format!("{} {}/{}\n", layout.full_type(), layout.size(), layout.alignment());
    for variant in variants {
        text.push_str(&format!("    {variant}\n"));
    }
    for field in &fields {
        text.push_str(&format!("    {}: {}\n", field.name(), field.full_type()));
        for function in field.function_range().iter() {
            text.push_str(&format!("        {function}\n"));
        }
    }
    found.insert(key, if is_ours { text } else { String::new() });
    for field in fields.into_iter().chain(layout.phantom_fields().iter()) {
        describe(field.layout(), found);
        for function in field.function_range().iter() {
            let parts = function.param_type_layouts.iter().chain(function.return_type_layout());
            parts.for_each(|part| describe(part(), found));
        }
    }
}

/// A difference here is another ABI: fields added to the end of `EngineModule` or of an object are a
/// new minor version of this crate, anything else is a new major one. Change the version first.
#[test]
#[cfg(target_pointer_width = "64")]
fn the_layout_is_the_one_of_this_version() {
    let mut found = BTreeMap::new();
    describe(EngineModuleRef::LAYOUT, &mut found);
    let mut texts: Vec<String> = found.into_values().collect();
    texts.sort();
    let found = texts.concat();
    assert!(found == include_str!("layout-1.0.txt"), "the layout is now\n{found}");
}
