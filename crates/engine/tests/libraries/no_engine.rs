//! A library without an engine.

/// Something to export.
pub extern "C" fn nothing() {}
