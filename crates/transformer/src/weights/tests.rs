//! Tests of the canonical weights.
