//! `cargo xtask check-cuda`: whether the engine `accelerate` compiles with its feature `cuda`.
//!
//! candle has its kernels compiled by nvcc. Where that isn't installed a script takes its place, which makes
//! empty files: all that is Rust is checked, nothing is linked, and no CUDA code is looked at.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result};

use crate::process::{cargo, run, target_dir};

/// What answers in place of nvcc.
const NVCC: &str = r#"#!/bin/sh
case "$1" in
  --version)
    printf 'a script in place of nvcc\n\n\nCuda compilation tools, release 13.0, V13.0.48\n'
    exit ;;
  --list-gpu-code) echo sm_90; exit ;;
esac
folder= source=
while [ $# -gt 0 ]; do
  case "$1" in
    -o) : > "$2" ;;
    --output-directory) folder=$2 ;;
    --output-directory=*) folder=${1#*=} ;;
    *.cu) source=$1 ;;
  esac
  shift
done
[ -z "$folder" ] || : > "$folder/$(basename "$source" .cu).ptx"
"#;

/// Checks the engine in a target folder of its own: the feature changes what it depends on.
pub(crate) fn check_cuda() -> Result<()> {
    let target = target_dir().join("cuda");
    let mut check = cargo(["check", "--locked", "--package", "drivetrain-accelerate", "--lib"]);
    check.args(["--features", "cuda", "--target-dir"]).arg(&target);
    let found = Command::new("nvcc").arg("--version").stdout(Stdio::null()).status();
    if !found.is_ok_and(|status| status.success()) {
        eprintln!("nvcc is not installed: CUDA code is left out");
        let folder = target.join("bin");
        stand_in(&folder.join("nvcc"))?;
        let before = std::env::var_os("PATH").unwrap_or_default();
        let path = std::iter::once(folder).chain(std::env::split_paths(&before));
        check.env("PATH", std::env::join_paths(path)?).env("CUDA_COMPUTE_CAP", "90");
    }
    run(&mut check)
}

fn stand_in(path: &PathBuf) -> Result<()> {
    let write = || {
        path.parent().map_or(Ok(()), fs::create_dir_all)?;
        fs::write(path, NVCC)?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o755))
    };
    write().with_context(|| format!("writing {}", path.display()))
}
