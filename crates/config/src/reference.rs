//! `docs/configuration.md`, written from the table of keys.

use std::fmt::Write;

use crate::engine::ENGINE_ALIASES;
use crate::keys::{self, Key, Role, Scope};

const HEAD: &str = "\
# Configuration

<!-- Written from the table of keys in crates/config/src/keys. To write it anew:
     DRIVETRAIN_WRITE_DOCS=1 cargo test -p drivetrain-config -->

The server reads `config.properties`, each model a `serving.properties` in its directory. Both have
Java's properties syntax: `key=value`, `key: value` or `key value`; `#` and `!` begin comments; a
backslash at the end of a line continues it; `\\uXXXX` and the usual escapes are undone; a later
duplicate wins. Blanks at the end of a value belong to it, except where a number, a switch or a name
is expected. Files are UTF-8, or Latin-1 where they are not valid UTF-8.

";

const SERVER: &str = "\
## The server

The file is `--config-file FILE`, else `$MODEL_SERVER_HOME/conf/config.properties`, else
`$MODEL_SERVER_HOME/config.properties`. Later wins: defaults, the file, `--model-store` and the
models of the command line, `SERVING_<KEY>` in the environment, SageMaker's variables, `--host` and
`--port`.

Variables without a key: `HF_MODEL_ID` adds a model (a hub id, an `s3://` prefix or a path) to those
that are loaded anyway; `SAGEMAKER_BIND_TO_PORT` is the port to listen on, and a management listener
outside `SAGEMAKER_SAFE_PORT_RANGE` moves to it; `DRIVETRAIN_PLUGINS` lists directories of engine
libraries, separated as in `PATH`, after those of `--plugins`; `OMP_NUM_THREADS` lowers the threads that a
model computes on.

";

const MODEL: &str = "\
## A model

Every key may be written with or without `option.`; where both are there, the one with the prefix
counts. Highest first: SageMaker's variables, parameters of the registration, the file, `OPTION_<KEY>`
and `ARGS_<KEY>` in the environment (they fill gaps and never replace what the file sets), the
variables named below, the server's settings, defaults. Unknown keys go to the engine.

";

/// The reference of every key, as Markdown: what `docs/configuration.md` holds.
pub fn configuration_markdown() -> String {
    let mut out = String::from(HEAD);
    for (scope, text) in [(Scope::Server, SERVER), (Scope::Model, MODEL)] {
        out.push_str(text);
        for (title, group) in keys::groups(scope) {
            write_group(&mut out, title, group);
        }
    }
    out.push_str("## Engine names\n\nNames are matched without case. Other names for engines:");
    for (n, (alias, name)) in ENGINE_ALIASES.iter().enumerate() {
        let separator = if n == 0 { " " } else { ", " };
        let _ = write!(out, "{separator}`{alias}` is `{name}`");
    }
    out.push_str(
        ".\n`Python` without a `model.py` and without an entry point of its own is the default \
         engine.\n",
    );
    out
}

fn write_group(out: &mut String, title: &str, group: &[Key]) {
    let _ = writeln!(out, "### {title}\n\n| Key | Values | Default | Meaning |\n|---|---|---|---|");
    for key in group {
        let prefix = if key.is_option { "option." } else { "" };
        let values = match key.role {
            Role::Used => key.kind.wanted(),
            Role::Passed | Role::Ignored => "any".to_owned(),
        };
        let default = match key.default {
            "" => "".to_owned(),
            text => format!("`{text}`"),
        };
        let _ = writeln!(
            out,
            "| `{prefix}{}` | {values} | {default} | {}{} |",
            key.name,
            key.text,
            names(key)
        );
    }
    out.push('\n');
}

/// What else sets the key, as sentences after its meaning.
fn names(key: &Key) -> String {
    let mut text = String::from(".");
    let mut list = |lead: &str, names: &[&str]| {
        if let Some((first, rest)) = names.split_first() {
            let _ = write!(text, " {lead} `{first}`");
            for name in rest {
                let _ = write!(text, ", `{name}`");
            }
            text.push('.');
        }
    };
    list("Also called", key.aliases);
    if key.by_device {
        list("For one kind of device, prefixed with", &["gpu.", "cpu.", "nc."]);
    }
    list("Variables:", key.env);
    list("Opposite of the variable", key.inverse_env.as_slice());
    list("Overridden by", key.sagemaker);
    text
}
