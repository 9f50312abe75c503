//! Tests of the families.
