//! A folder of manifests that a test or the demo edits while an agent watches it.

use std::{
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};
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

/// The manifest of one slice of a Service: its ports as a YAML list, and its endpoints, of one family, by address and node.
pub fn endpoint_slice(service: &str, ports: &str, endpoints: &[(&str, &str)]) -> String {
    let is_v6 = endpoints.iter().any(|(address, _)| address.contains(':'));
    let (family, number) = if is_v6 { ("IPv6", 6) } else { ("IPv4", 4) };
    let endpoints: Vec<_> = endpoints
        .iter()
        .map(|(address, node)| format!("{{addresses: ['{address}'], nodeName: {node}}}"))
        .collect();
    format!(
        "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
         metadata: {{name: {service}-{number}, namespace: default, labels: {{kubernetes.io/service-name: {service}}}}}\n\
         addressType: {family}\nports: {ports}\nendpoints: [{}]\n",
        endpoints.join(", ")
    )
}

/// The text of an example without one endpoint: the line with its address and the indented ones below it.
pub fn without_endpoint(text: &str, address: IpAddr) -> Result<String> {
    let starts = [format!("  - addresses: [{address}]"), format!("  - addresses: [\"{address}\"]")];
    let mut inside = false;
    let kept = text.split_inclusive('\n').filter(|line| {
        inside = starts.iter().any(|start| line.trim_end() == start) || (inside && line.starts_with("    "));
        !inside
    });
    let kept: String = kept.collect();
    ensure!(kept != text, "no endpoint {address} in\n{text}");
    Ok(kept)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_endpoint_of_an_example_can_be_taken_out() {
        let text = Manifests::examples().unwrap().read("dual-stack.yaml").unwrap();
        for address in ["10.244.1.12", "fd00:244:2::13"] {
            let without = without_endpoint(&text, address.parse().unwrap()).unwrap();
            assert!(text.contains(address) && !without.contains(address));
            assert_eq!(without.lines().count(), text.lines().count() - 3);
        }
        assert!(without_endpoint(&text, "10.244.1.1".parse().unwrap()).is_err());
    }
}
