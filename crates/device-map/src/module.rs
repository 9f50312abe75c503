//! What a model consists of: modules in modules, with tensors.

use crate::sizes::Bits;

/// How an element is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Dtype {
    bits: u32,
    numbers: Numbers,
}

/// Whether loading may change how an element is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Numbers {
    /// Converted to the requested type.
    Floating,
    /// Left as they are.
    Whole,
}

impl Dtype {
    /// 64-bit floating point.
    pub const F64: Self = Self::floating(64);
    /// 32-bit floating point.
    pub const F32: Self = Self::floating(32);
    /// 16-bit floating point.
    pub const F16: Self = Self::floating(16);
    /// 16-bit floating point with the exponent of 32 bits.
    pub const BF16: Self = Self::floating(16);
    /// 8-bit floating point.
    pub const F8: Self = Self::floating(8);
    /// 64-bit integer.
    pub const I64: Self = Self::whole(64);
    /// 32-bit integer.
    pub const I32: Self = Self::whole(32);
    /// 16-bit integer.
    pub const I16: Self = Self::whole(16);
    /// 8-bit integer.
    pub const I8: Self = Self::whole(8);
    /// 4-bit integer.
    pub const I4: Self = Self::whole(4);
    /// 2-bit integer.
    pub const I2: Self = Self::whole(2);
    /// A boolean, which counts one bit.
    pub const BOOL: Self = Self::whole(1);

    /// Floating point numbers of this many bits.
    pub const fn floating(bits: u32) -> Self {
        Self { bits, numbers: Numbers::Floating }
    }

    /// Integers of this many bits.
    pub const fn whole(bits: u32) -> Self {
        Self { bits, numbers: Numbers::Whole }
    }

    /// Size of `n` elements.
    pub(crate) fn bits(self, n: u64) -> Bits {
        Bits::from(n) * Bits::from(self.bits)
    }
}

/// A parameter or buffer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tensor {
    pub(crate) name: String,
    pub(crate) elements: Elements,
}

/// A tensor's elements, as they are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Elements {
    pub(crate) n: u64,
    pub(crate) bits: Bits,
    pub(crate) numbers: Numbers,
}

impl Tensor {
    /// A tensor with this name in its module, such as `weight`.
    pub fn new(name: impl Into<String>, n_elements: u64, dtype: Dtype) -> Self {
        let elements =
            Elements { n: n_elements, bits: dtype.bits(n_elements), numbers: dtype.numbers };
        Self { name: name.into(), elements }
    }

    /// A tensor of floating point numbers that are packed into `bytes`, as in blocks of quantised ones.
    pub fn packed(name: impl Into<String>, n_elements: u64, bytes: u64) -> Self {
        let bits = Bits::from(bytes) * 8;
        let elements = Elements { n: n_elements, bits, numbers: Numbers::Floating };
        Self { name: name.into(), elements }
    }
}

/// A module: tensors of its own, and modules in it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Module {
    /// Its name in the module around it, such as `layers` or `0`; the model's own is not used.
    pub name: String,
    /// Its class, by which it can be told not to be split.
    pub class: String,
    /// Parameters that are directly its own, in the order of their definition.
    pub parameters: Vec<Tensor>,
    /// Buffers that are directly its own.
    pub buffers: Vec<Tensor>,
    /// The modules in it, in the order of their definition.
    pub children: Vec<Module>,
}

impl Module {
    /// A module without anything in it.
    pub fn new(name: impl Into<String>, class: impl Into<String>) -> Self {
        Self { name: name.into(), class: class.into(), ..Self::default() }
    }

    /// The module with one more parameter.
    #[must_use]
    pub fn with_parameter(mut self, parameter: Tensor) -> Self {
        self.parameters.push(parameter);
        self
    }

    /// The module with one more buffer.
    #[must_use]
    pub fn with_buffer(mut self, buffer: Tensor) -> Self {
        self.buffers.push(buffer);
        self
    }

    /// The module with one more module in it.
    #[must_use]
    pub fn with_child(mut self, child: Module) -> Self {
        self.children.push(child);
        self
    }
}
