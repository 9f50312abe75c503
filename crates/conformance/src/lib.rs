//! What every engine has to do, as a suite: the body of `drivetrain plugin check LIB`.
//!
//! [`check`] drives an engine the way the host does, and the way a hostile host would, and returns a
//! [`Report`] with a line for each case. Everything random follows from [`CheckOptions::seed`].
#![forbid(unsafe_code)]

mod cases;
mod compare;
mod driver;
mod memory;
mod random;
mod report;
mod suite;

pub use report::{Case, Outcome, Report};
pub use suite::{CheckOptions, check, model_beside};
