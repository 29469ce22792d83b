//! The shell completions, made from the definition of the flags.

use crate::cli;
use anyhow::{Context as _, Result};
use clap_complete::Shell;
use std::path::Path;

const NAMES: [&str; 2] = ["bud", "build-using-dockerfile"];
const SHELLS: [Shell; 3] = [Shell::Bash, Shell::Zsh, Shell::Fish];

/// Writes the completions of both names for all shells into a folder.
pub fn write(folder: &Path) -> Result<()> {
    std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    for (file, text) in all() {
        let path = folder.join(file);
        std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

fn all() -> Vec<(String, Vec<u8>)> {
    let mut files = Vec::new();
    for shell in SHELLS {
        for name in NAMES {
            let mut text = Vec::new();
            clap_complete::generate(shell, &mut cli::command(name), name, &mut text);
            let file = match shell {
                Shell::Zsh => format!("_{name}"),
                Shell::Fish => format!("{name}.fish"),
                _ => format!("{name}.bash"),
            };
            files.push((file, text));
        }
    }
    files
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_files_in_the_repository_are_current() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("completions");
        for (file, text) in all() {
            let found = std::fs::read(folder.join(&file)).unwrap_or_default();
            assert!(found == text, "completions/{file} is not current: run `cargo run -- completions completions`");
        }
    }
}
