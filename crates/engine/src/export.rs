//! `export_engine!`, and what it expands to.

use abi_stable::library::{CheckTypeLayout, LibHeader, RootModuleResult};
use abi_stable::prefix_type::PrefixTypeTrait;

use crate::boundary::objects::{EngineBox, EngineModule, EngineModuleRef};
use crate::boundary::types::AbiResult;
use crate::version::ABI_VERSION;

pub use crate::boundary::plugin::EngineCell;

/// What the library's `engine` function returns.
pub type Exported = AbiResult<EngineBox>;
/// The static by which a host finds the engine.
pub type Header = LibHeader;
/// What the library's root function returns.
pub type Root = RootModuleResult;

/// The header of a library whose root function is `root`, which has to return what [`root`] does.
pub const fn header(root: extern "C" fn() -> Root) -> Header {
    // SAFETY: `root` returns the erased `PrefixRef<EngineModule>` that `self::root` made, as
    // `from_constructor` asks; only `export_engine!` calls this, and it passes no other function.
    unsafe { LibHeader::from_constructor::<EngineModuleRef>(root, CheckTypeLayout::Yes) }
}

/// The root module of a library whose engine comes from `engine`.
pub fn module(engine: extern "C" fn() -> Exported) -> EngineModuleRef {
    EngineModule { abi: ABI_VERSION, engine }.leak_into_prefix()
}

/// Makes the root module by `make`, once.
pub fn root(make: fn() -> EngineModuleRef) -> Root {
    abi_stable::library::__call_root_module_loader(make)
}

/// Exports an engine from a library: the expression makes it, once, when a host first opens the
/// library. The crate needs `crate-type = ["cdylib"]` and no other dependency than this one.
///
/// ```
/// # use drivetrain_engine::{Engine, EngineError, EngineInfo, LoadRequest, LoadedModel};
/// #[derive(Default)]
/// struct Mine;
///
/// impl Engine for Mine {
///     fn info(&self) -> EngineInfo {
///         EngineInfo { name: "mine".into(), ..EngineInfo::default() }
///     }
///
///     fn load(&self, request: &LoadRequest<'_>) -> Result<LoadedModel, EngineError> {
///         Err(EngineError::unsupported(format!("{}: not yet", request.model_dir.display())))
///     }
/// }
///
/// drivetrain_engine::export_engine!(Mine::default());
/// # fn main() {}
/// ```
///
/// A panic of the expression, or of any method of the engine and its models, reaches the host as
/// an error. A process can link at most one crate that exports an engine; it may open any number.
#[macro_export]
macro_rules! export_engine {
    ($engine:expr $(,)?) => {
        const _: () = {
            static ENGINE: $crate::__private::EngineCell =
                $crate::__private::EngineCell::new(|| ::std::boxed::Box::new($engine));

            extern "C" fn engine() -> $crate::__private::Exported {
                ENGINE.get()
            }

            extern "C" fn root() -> $crate::__private::Root {
                $crate::__private::root(|| $crate::__private::module(engine))
            }

            // The name is abi_stable's for the static that its own loader looks for.
            #[unsafe(export_name = "_1as_0lib_1header_0root_bmodule_bloader")]
            pub static HEADER: $crate::__private::Header = $crate::__private::header(root);
        };
    };
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_exported_name_is_the_one_that_abi_stable_looks_for() {
        let exported = "_1as_0lib_1header_0root_bmodule_bloader";
        assert_eq!(abi_stable::library::ROOT_MODULE_LOADER_NAME, exported);
    }
}
