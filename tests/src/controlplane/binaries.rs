//! The control plane's programs, built once per version (`tests/controlplane/build.sh`).

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};

/// Builds what is missing and returns the folder that holds the programs.
pub(super) fn build() -> Result<PathBuf> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("controlplane/build.sh");
    let output = Command::new(&script)
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("cannot run {}", script.display()))?;
    ensure!(output.status.success(), "{} failed: {}", script.display(), output.status);
    let dir = String::from_utf8(output.stdout).context("the folder's name")?;
    Ok(PathBuf::from(dir.trim()))
}
