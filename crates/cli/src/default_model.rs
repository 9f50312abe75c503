//! The model that ships with Drivetrain, which is served when nobody names one.

use std::path::{Path, PathBuf};

/// The shipped model's folder.
const SHIPPED: &str = "bart-g2p";

/// The shipped model, if it is found beside the binary: in an installation's `share`, or in the tree
/// the binary was built in.
pub(crate) fn shipped(executable: &Path) -> Option<PathBuf> {
    let installed = executable.ancestors().nth(2)?.join("share/drivetrain/models").join(SHIPPED);
    let mut places = vec![installed];
    places.extend(executable.ancestors().map(|dir| dir.join("config/models").join(SHIPPED)));
    places.into_iter().find(|place| place.join("config.json").is_file())
}

/// A model to check the engine of this name with: its own, as `dist` lays it out or the tree has it.
pub(crate) fn of_engine(executable: &Path, name: &str) -> Option<PathBuf> {
    let installed = executable.ancestors().nth(2)?.join("share/drivetrain/models").join(name);
    let in_tree = executable.ancestors().map(|dir| dir.join("plugins").join(name).join("model"));
    std::iter::once(installed).chain(in_tree).find(|place| place.join("config.json").is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shipped_model_is_found_from_the_build_and_from_an_installation() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap();
        let found = shipped(&root.join("target/debug/drivetrain"));
        assert_eq!(found, Some(root.join("config/models").join(SHIPPED)));
        assert_eq!(shipped(Path::new("/nowhere/bin/drivetrain")), None);
    }
}
