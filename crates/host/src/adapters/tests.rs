//! Slots, leases and names.
