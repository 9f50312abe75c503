//! Exit codes: 0, 1 for a failed start or command, 2 for an address that can't be bound.

use std::process::ExitCode;

use drivetrain_http::HttpError;
use drivetrain_sagemaker::LocalError;

/// Prints what went wrong with its causes, and says which code to exit with.
pub(crate) fn code(result: anyhow::Result<()>) -> ExitCode {
    let Err(error) = result else { return ExitCode::SUCCESS };
    eprintln!("drivetrain: {error:#}");
    let cannot_bind = error.chain().any(|cause| {
        matches!(cause.downcast_ref::<HttpError>(), Some(HttpError::Bind { .. }))
            || matches!(cause.downcast_ref::<LocalError>(), Some(LocalError::Bind { .. }))
    });
    ExitCode::from(if cannot_bind { 2 } else { 1 })
}
