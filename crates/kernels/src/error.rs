//! What a caller of a kernel can do wrong, and what a machine can lack.

/// Why an instruction set could not be chosen.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IsaError {
    /// The name is none of ours.
    #[error("DRIVETRAIN_FORCE_ISA={value}: no such instruction set; choose one of {choices}")]
    Unknown {
        /// What was asked for.
        value: String,
        /// What can be asked for.
        choices: String,
    },
    /// The machine doesn't have it.
    #[error(
        "DRIVETRAIN_FORCE_ISA={wanted}: this machine has {most} at most, and the setting can only \
         lower that"
    )]
    Absent {
        /// What was asked for.
        wanted: &'static str,
        /// The most that the machine has.
        most: &'static str,
    },
}

/// Why a kernel refused its arguments. Nothing was computed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KernelError {
    /// A slice doesn't have the length that the other arguments call for.
    #[error("{what} has {found} elements where {wanted} are wanted")]
    Length {
        /// Which argument.
        what: &'static str,
        /// Its length.
        found: usize,
        /// The length it should have.
        wanted: usize,
    },
    /// A number is not one that the kernel can work with.
    #[error("{what} is {found}, and should be {wanted}")]
    Value {
        /// Which argument.
        what: &'static str,
        /// What it is.
        found: usize,
        /// What it may be, in words.
        wanted: &'static str,
    },
    /// The scratch memory is too small; nothing is allocated on the way.
    #[error("scratch memory of {found} bytes where {wanted} are needed; reserve it at load")]
    Scratch {
        /// Bytes there are.
        found: usize,
        /// Bytes needed.
        wanted: usize,
    },
    /// The instruction set has no such arithmetic.
    #[error("{what} needs {needs}, and the chosen instruction set is {isa}")]
    Unsupported {
        /// What was asked for.
        what: &'static str,
        /// The instruction set that has it.
        needs: &'static str,
        /// The one in use.
        isa: &'static str,
    },
    /// A rank that others exchange results with has given up.
    #[error("another rank has failed")]
    Abandoned,
}

/// Compares a length with what it should be.
pub(crate) fn length(what: &'static str, found: usize, wanted: usize) -> Result<(), KernelError> {
    if found == wanted { Ok(()) } else { Err(KernelError::Length { what, found, wanted }) }
}
