//! Set-up, tests, serving and packaging.
fn main() {}
