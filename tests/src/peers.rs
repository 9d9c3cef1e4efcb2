//! Where the real peers are: built once into the user's cache folder.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};

/// The path of a peer's binary, for example `grpcurl`. A missing peer is an error: a test that did not run is not
/// green.
///
/// # Errors
/// When it is not built; the error says what to run.
pub fn path(name: &str) -> Result<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .context("the workspace")?;
    let output = Command::new(root.join("tests/peers/path"))
        .arg(name)
        .output()
        .context("tests/peers/path")?;
    ensure!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(PathBuf::from(String::from_utf8(output.stdout)?.trim()))
}
