//! A folder of manifests that a test or the demo edits while an agent watches it.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use tempfile::TempDir;

/// A folder, removed on drop.
#[derive(Debug)]
pub struct Manifests {
    root: TempDir,
}

impl Manifests {
    /// An empty one.
    pub fn new() -> Result<Self> {
        let root = tempfile::Builder::new()
            .prefix("sockeye-manifests-")
            .tempdir()
            .context("making a folder of manifests")?;
        for directory in ["manifests", "staging"] {
            fs::create_dir(root.path().join(directory)).context("making a folder of manifests")?;
        }
        Ok(Self { root })
    }

    /// One with the project's examples.
    pub fn examples() -> Result<Self> {
        let manifests = Self::new()?;
        let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples");
        let entries = fs::read_dir(&examples).with_context(|| format!("reading {}", examples.display()))?;
        for entry in entries {
            let path = entry.with_context(|| format!("reading {}", examples.display()))?.path();
            if path.extension().is_some_and(|extension| extension == "yaml") {
                let name = path.file_name().unwrap_or_default();
                fs::copy(&path, manifests.path().join(name))
                    .with_context(|| format!("copying {}", path.display()))?;
            }
        }
        Ok(manifests)
    }

    /// The folder.
    pub fn path(&self) -> PathBuf {
        self.root.path().join("manifests")
    }

    /// A file's text.
    pub fn read(&self, name: &str) -> Result<String> {
        let path = self.path().join(name);
        fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))
    }

    /// Makes or replaces a file in one step, so that nobody reads half of it.
    pub fn write(&self, name: &str, text: &str) -> Result<()> {
        let staged = self.root.path().join("staging").join(name);
        fs::write(&staged, text).with_context(|| format!("writing {}", staged.display()))?;
        let path = self.path().join(name);
        fs::rename(&staged, &path).with_context(|| format!("replacing {}", path.display()))
    }

    /// Removes a file.
    pub fn remove(&self, name: &str) -> Result<()> {
        let path = self.path().join(name);
        fs::remove_file(&path).with_context(|| format!("removing {}", path.display()))
    }
}
