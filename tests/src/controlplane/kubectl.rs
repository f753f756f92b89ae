//! `kubectl`, as an operator would call it.

use std::{io::Write as _, path::PathBuf, process::Command, sync::Arc, time::Duration};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use crate::{
    netns::Netns,
    process::{self, Place},
};

/// One call on a busy machine.
const CALL: Duration = Duration::from_secs(60);

/// `kubectl` with a kubeconfig, inside a network namespace.
#[derive(Clone, Debug)]
pub struct Kubectl {
    program: PathBuf,
    netns: Arc<Netns>,
    kubeconfig: PathBuf,
    /// None: what the objects or the kubeconfig say.
    namespace: Option<String>,
}

impl Kubectl {
    pub(super) fn new(program: PathBuf, netns: Arc<Netns>, kubeconfig: PathBuf) -> Self {
        Self { program, netns, kubeconfig, namespace: None }
    }

    /// The same, for objects of a namespace of the cluster.
    pub fn in_namespace(&self, namespace: &str) -> Self {
        Self { namespace: Some(namespace.into()), ..self.clone() }
    }

    /// Runs it and returns what it prints; an error holds what it complains of.
    pub fn run(&self, args: &[&str]) -> Result<String> {
        let what = format!("kubectl {}", args.join(" "));
        process::run(&what, self.command(args), self.place(), CALL)?.success().context(what)
    }

    /// `kubectl apply`: makes the objects of these YAML documents what they say.
    pub fn apply(&self, yaml: &str) -> Result<()> {
        let mut file = tempfile::NamedTempFile::new().context("a file for the manifest")?;
        file.write_all(yaml.as_bytes()).context("the manifest")?;
        let path = file.path().display().to_string();
        self.run(&["apply", "-f", &path]).map(drop).with_context(|| yaml.to_owned())
    }

    /// `kubectl get … -o json`.
    pub fn get(&self, args: &[&str]) -> Result<Value> {
        let text = self.run(&[&["get", "-o", "json"], args].concat())?;
        serde_json::from_str(&text).with_context(|| format!("the answer to kubectl get {args:?}"))
    }

    /// `kubectl patch --type=merge`: for instance `&["service", "web"]`.
    pub fn patch(&self, object: &[&str], patch: &Value) -> Result<()> {
        let patch = format!("--patch={patch}");
        self.run(&[&["patch", "--type=merge", &patch], object].concat()).map(drop)
    }

    /// `kubectl patch --subresource=status`; lists such as conditions are merged by their keys.
    pub fn patch_status(&self, object: &[&str], status: &Value) -> Result<()> {
        let patch = format!("--patch={}", json!({ "status": status }));
        self.run(&[&["patch", "--subresource=status", &patch], object].concat()).map(drop)
    }

    /// Deletes an object without waiting until it is gone.
    pub fn delete(&self, object: &[&str]) -> Result<()> {
        self.run(&[&["delete", "--wait=false"], object].concat()).map(drop)
    }

    /// The command with these arguments, not started.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command
            .arg(format!("--kubeconfig={}", self.kubeconfig.display()))
            .args(self.namespace.iter().map(|namespace| format!("--namespace={namespace}")))
            .args(args)
            // What it learns of the API stays with this cluster.
            .env("KUBECACHEDIR", self.kubeconfig.with_file_name("kubectl-cache"));
        command
    }

    /// Where it runs.
    pub(super) fn place(&self) -> Place<'_> {
        Place { netns: Some(&self.netns), cgroup: None }
    }
}
