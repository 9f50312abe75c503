//! Whether this machine can build the program that ranks under MPI are.

use std::process::{Command, Stdio};

/// What cargo is told where it can: the feature by which `drivetrain-rank` is built.
pub(crate) const FEATURES: &[&str] = &["--features", "drivetrain-deepspeed/mpi"];

/// [`FEATURES`], or nothing, which is said.
pub(crate) fn features() -> &'static [&'static str] {
    let answers = |program: &str, arg: &str| {
        let mut command = Command::new(program);
        let command = command.arg(arg).stdout(Stdio::null()).stderr(Stdio::null());
        command.status().is_ok_and(|status| status.success())
    };
    let missing = match (answers("mpicc", "-show"), has_libclang()) {
        (true, true) => return FEATURES,
        (false, _) => "mpicc (Debian: libopenmpi-dev)",
        (true, false) => "libclang (Debian: libclang-dev)",
    };
    eprintln!("skipped: ranks under MPI ({missing} is not installed)");
    &[]
}

/// Whether there is the library that reads MPI's headers, where clang-sys looks for it.
fn has_libclang() -> bool {
    if std::env::var_os("LIBCLANG_PATH").is_some() {
        return true;
    }
    let list = |folder: &str| std::fs::read_dir(folder).into_iter().flatten().flatten();
    let versions = list("/usr/lib").map(|entry| entry.path());
    let versions = versions.filter(|path| path.to_string_lossy().starts_with("/usr/lib/llvm"));
    let folders = versions.map(|path| path.join("lib")).chain(
        ["/usr/lib", "/usr/lib64", "/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu"]
            .map(Into::into),
    );
    let mut files = folders.flat_map(|folder| list(&folder.to_string_lossy()).collect::<Vec<_>>());
    files.any(|file| {
        let name = file.file_name();
        let name = name.to_string_lossy();
        let version = name.strip_prefix("libclang-").filter(|rest| rest.contains(".so"));
        name.starts_with("libclang.so") || version.is_some_and(|v| v.starts_with(char::is_numeric))
    })
}
