//! A library built with another abi_stable: only the beginning of its header is known.

use abi_stable::library::AbiHeader;

/// The part of the header that is the same in every version of abi_stable.
#[repr(C)]
pub struct Header {
    magic: [u8; 32],
    major: u32,
    minor: u32,
    rest: [usize; 16],
}

/// What the host looks for.
#[unsafe(export_name = "_1as_0lib_1header_0root_bmodule_bloader")]
pub static HEADER: Header = Header {
    magic: AbiHeader::VALUE.magic_string,
    major: AbiHeader::VALUE.abi_major,
    minor: AbiHeader::VALUE.abi_minor + 1,
    rest: [0; 16],
};
