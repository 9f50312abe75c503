//! `cargo xtask serve | test | dist | check-cuda | bench-peers`: builds, serves, tests, lays out and
//! compares Drivetrain.
#![forbid(unsafe_code)]

mod bench_peers;
mod check_cuda;
mod dist;
mod mpi;
mod process;
mod serve;
mod test;

use anyhow::{Result, bail};

const USAGE: &str = "\
cargo xtask COMMAND

  serve [ARG ...]   build in release mode, lay out under target/dist, and run
                    `drivetrain serve ARG ...` from there; without a model it serves the shipped one
  test [FILTER ...] format, lints, documentation and the whole test suite; a filter runs only the
                    tests whose names contain it
  dist --out DIR    DIR/bin/drivetrain, DIR/lib/drivetrain/plugins/*, DIR/share/drivetrain/models/*
  check-cuda        checks the engine `accelerate` with its feature `cuda`, without a toolkit, too
  bench-peers [OPTION ...]
                    the engines against other libraries, which it installs into a cache; `--help` lists
                    the options, `--small` is a quick look";

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let command = args.next();
    let rest: Vec<String> = args.collect();
    match (command.as_deref(), rest.as_slice()) {
        (Some("serve"), args) => serve::serve(args),
        (Some("test"), filters) => test::test(filters),
        (Some("dist"), [flag, out]) if flag == "--out" => dist::dist(out.as_ref()),
        (Some("check-cuda"), []) => check_cuda::check_cuda(),
        (Some("bench-peers"), args) => bench_peers::bench_peers(args),
        (None | Some("help" | "-h" | "--help"), _) => {
            println!("{USAGE}");
            Ok(())
        }
        (Some(command), args) => {
            bail!("`cargo xtask {command} {}` is not a command\n\n{USAGE}", args.join(" "))
        }
    }
}
