//! The suite sees memory that leaks. Alone in its process, whose memory it watches.

mod libraries;

use libraries::faulty;

#[test]
fn memory_that_every_load_leaks_is_caught() {
    let report = faulty("decoder", "leaks-memory", 1000);
    let caught = report
        .failures()
        .any(|(name, why)| name == "loading leaks nothing" && why.contains("grew by"));
    assert!(caught, "{report}");
}
