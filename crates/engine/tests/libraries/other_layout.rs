//! A library that states this ABI version and lays its root module out in another way: built with a
//! changed drivetrain-engine whose version was forgotten.

use abi_stable::StableAbi;
use abi_stable::library::{CheckTypeLayout, LibHeader, RootModule, RootModuleResult};
use abi_stable::prefix_type::PrefixTypeTrait;
use abi_stable::sabi_types::VersionStrings;

/// A root module with the same first field.
#[repr(C)]
#[derive(StableAbi)]
#[sabi(kind(Prefix(prefix_ref = EngineModuleRef)))]
#[sabi(missing_field(panic))]
pub struct EngineModule {
    /// The ABI version.
    pub abi: drivetrain_engine::AbiVersion,
    /// Something else than an engine.
    #[sabi(last_prefix_field)]
    pub start: extern "C" fn(u64) -> u64,
}

impl RootModule for EngineModuleRef {
    abi_stable::declare_root_module_statics! {EngineModuleRef}
    const BASE_NAME: &'static str = "drivetrain_engine";
    const NAME: &'static str = "drivetrain_engine";
    const VERSION_STRINGS: VersionStrings = abi_stable::package_version_strings!();
}

extern "C" fn start(n: u64) -> u64 {
    n
}

extern "C" fn root() -> RootModuleResult {
    abi_stable::library::__call_root_module_loader(|| {
        let abi = drivetrain_engine::ABI_VERSION;
        EngineModule { abi, start }.leak_into_prefix()
    })
}

/// What the host looks for.
#[unsafe(export_name = "_1as_0lib_1header_0root_bmodule_bloader")]
pub static HEADER: LibHeader =
    // SAFETY: `root` returns an erased `PrefixRef<EngineModule>`, the module of `EngineModuleRef`.
    unsafe { LibHeader::from_constructor::<EngineModuleRef>(root, CheckTypeLayout::Yes) };
