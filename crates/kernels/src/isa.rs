//! Which vector instructions the machine has, as a token that only detection makes.

use std::fmt;

use crate::error::IsaError;
use crate::vector::{Arithmetic, Scalar};

/// The variable whose value [`Isa::choose`] takes. Whoever reads the environment passes it on.
pub const FORCE_VARIABLE: &str = "DRIVETRAIN_FORCE_ISA";

/// The instruction sets, each with all that come before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Level {
    Scalar,
    Avx2,
    Avx512,
    Avx512Vnni,
    Avx512Fp16,
}

const LEVELS: [Level; 5] =
    [Level::Scalar, Level::Avx2, Level::Avx512, Level::Avx512Vnni, Level::Avx512Fp16];

impl Level {
    fn name(self) -> &'static str {
        match self {
            Self::Scalar => "scalar",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
            Self::Avx512Vnni => "avx512vnni",
            Self::Avx512Fp16 => "avx512fp16",
        }
    }
}

/// Proof that the machine has a set of vector instructions. Ask once, at load, and pass it down.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Isa(Level);

impl fmt::Debug for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Isa {
    /// Plain Rust, which every machine runs.
    pub const SCALAR: Self = Self(Level::Scalar);

    /// The most that this machine has.
    pub fn detect() -> Self {
        Self(detect())
    }

    /// This and all below it, the least first.
    pub fn and_below(self) -> impl Iterator<Item = Self> {
        let Self(most) = self;
        LEVELS.into_iter().filter(move |level| *level <= most).map(Self)
    }

    /// What this machine lacks: what a test can't run here.
    pub fn absent() -> impl Iterator<Item = &'static str> {
        let most = detect();
        LEVELS.into_iter().filter(move |level| *level > most).map(Level::name)
    }

    /// The most that this machine has; or what `forced` says, the value of
    /// [`FORCE_VARIABLE`] where it is set.
    ///
    /// # Errors
    /// `forced` names nothing, or something that this machine lacks.
    pub fn choose(forced: Option<&str>) -> Result<Self, IsaError> {
        let Some(name) = forced.map(str::trim).filter(|name| !name.is_empty()) else {
            return Ok(Self::detect());
        };
        let found = LEVELS.into_iter().find(|level| level.name().eq_ignore_ascii_case(name));
        match found {
            None => Err(IsaError::Unknown { value: name.to_owned(), choices: Self::names() }),
            Some(level) if level > detect() => {
                Err(IsaError::Absent { wanted: level.name(), most: detect().name() })
            }
            Some(level) => Ok(Self(level)),
        }
    }

    /// `scalar`, `avx2`, `avx512`, `avx512vnni` or `avx512fp16`.
    pub fn name(self) -> &'static str {
        self.0.name()
    }

    /// Whether this has the dot product of bytes.
    pub fn has_byte_dot(self) -> bool {
        self.0 >= Level::Avx512Vnni
    }

    /// Whether this computes with f16 as such.
    pub fn has_f16_arithmetic(self) -> bool {
        self.0 >= Level::Avx512Fp16
    }

    fn names() -> String {
        LEVELS.map(Level::name).join(", ")
    }

    /// Runs `task` with the vectors of f32 of this instruction set. Work that multiplies bytes has a
    /// runner of its own: compiling all else for VNNI, too, would make the same code twice.
    #[inline]
    pub(crate) fn run<T: Arithmetic>(self, task: T) -> T::Output {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => {
                // SAFETY: only detection makes this level, so the machine has its features.
                unsafe { crate::vector::avx2::run(task) }
            }
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 | Level::Avx512Vnni | Level::Avx512Fp16 => {
                // SAFETY: as above.
                unsafe { crate::vector::avx512::run(task) }
            }
            _ => task.run(Scalar),
        }
    }

    /// [`Self::run`] for work that multiplies bytes.
    #[inline]
    pub(crate) fn run_bytes<T: Arithmetic>(self, task: T) -> T::Output {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            Level::Avx512Vnni | Level::Avx512Fp16 => {
                // SAFETY: only detection makes these levels, so the machine has their features.
                unsafe { crate::vector::avx512::run_vnni(task) }
            }
            _ => self.run(task),
        }
    }

    /// [`Self::run_bytes`] for work on vectors of 256 bits, to which AVX-512 without the dot product of
    /// bytes adds nothing.
    #[inline]
    pub(crate) fn run_256<T: Arithmetic>(self, task: T) -> T::Output {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 | Level::Avx512 => {
                // SAFETY: only detection makes these levels, so the machine has their features.
                unsafe { crate::vector::avx2::run(task) }
            }
            #[cfg(target_arch = "x86_64")]
            Level::Avx512Vnni | Level::Avx512Fp16 => {
                // SAFETY: as above.
                unsafe { crate::vector::avx512::run_vnni(task) }
            }
            _ => task.run(Scalar),
        }
    }
}

#[cfg(target_arch = "x86_64")]
fn detect() -> Level {
    use std::arch::is_x86_feature_detected as has;
    if !(has!("avx2") && has!("fma") && has!("f16c")) {
        return Level::Scalar;
    }
    if !(has!("avx512f") && has!("avx512bw") && has!("avx512vl") && has!("avx512dq")) {
        return Level::Avx2;
    }
    if !has!("avx512vnni") {
        return Level::Avx512;
    }
    if !has!("avx512fp16") {
        return Level::Avx512Vnni;
    }
    Level::Avx512Fp16
}

#[cfg(not(target_arch = "x86_64"))]
fn detect() -> Level {
    Level::Scalar
}
