//! Adapters of a handler.
