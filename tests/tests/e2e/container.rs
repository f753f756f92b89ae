//! The agent's container as the DaemonSet describes it, without an image and without a kubelet.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};
use lb_tests::{
    controlplane::{API_PORT, ControlPlane},
    process,
};
use serde_json::Value;

use crate::world::NODE;

/// The DaemonSet's container: a root file system that is made of mounts in a mount namespace of its own.
pub(crate) struct Container {
    spec: Value,
    root: PathBuf,
    cgroup: PathBuf,
}

impl Container {
    /// The container of the DaemonSet that the API server has. `root` is a folder to be made; `cgroup` stands for the root
    /// of the node's cgroups.
    pub(crate) fn new(plane: &ControlPlane, namespace: &str, root: &Path, cgroup: &Path) -> Result<Self> {
        let kubectl = plane.kubectl().in_namespace(namespace);
        let spec =
            kubectl.get(&["daemonset", "sockeye"])?["spec"]["template"]["spec"]["containers"][0].take();
        let account = root.join("var/run/secrets/kubernetes.io/serviceaccount");
        fs::create_dir_all(&account).with_context(|| format!("making {}", account.display()))?;
        fs::write(account.join("token"), kubectl.run(&["create", "token", "sockeye"])?.trim())?;
        fs::write(account.join("namespace"), namespace)?;
        fs::copy(plane.certificate_authority(), account.join("ca.crt")).context("copying a certificate")?;
        Ok(Self { spec, root: root.to_owned(), cgroup: cgroup.to_owned() })
    }

    /// What becomes the agent.
    pub(crate) fn command(&self) -> Result<Command> {
        let log = File::create(self.log_path()).context("making a log")?;
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation=private", "sh", "-euc", &self.mounts()?, "sh"]);
        command.args(self.words("/args")?.iter().map(|word| word.replace("$(NODE_NAME)", NODE)));
        // The ConfigMap `sockeye-api-server`.
        command
            .env("KUBERNETES_SERVICE_HOST", "127.0.0.1")
            .env("KUBERNETES_SERVICE_PORT", API_PORT.to_string());
        command.stdin(Stdio::null()).stdout(log.try_clone().context("sharing a log")?).stderr(log);
        Ok(command)
    }

    /// A shell script that mounts what the container sees, and becomes the agent with its arguments.
    fn mounts(&self) -> Result<String> {
        let root = self.root.display();
        let program = process::program("sockeye")?;
        let mut lines = Vec::new();
        // The last three in place of a static binary: what a dynamic one needs.
        for folder in ["/sys", "/proc", "/lib", "/lib64", "/usr"] {
            lines.push(format!("mkdir -p {root}{folder}; mount --rbind {folder} {root}{folder}"));
        }
        lines.push(format!("touch {root}/sockeye; mount --bind {} {root}/sockeye", program.display()));
        for mount in self.spec["volumeMounts"].as_array().context("no volumeMounts")? {
            let target = format!("{root}{}", mount["mountPath"].as_str().context("no mountPath")?);
            lines.push(format!("mkdir -p {target}"));
            match mount["name"].as_str() {
                Some("bpffs") => lines.push(format!("mount -t bpf bpf {target}")),
                Some("cgroup") => lines.push(format!("mount --bind {} {target}", self.cgroup.display())),
                Some("run") => {}
                other => bail!("a volume that this test does not know: {other:?}"),
            }
        }
        lines.push(format!("exec chroot {root} /sockeye \"$@\""));
        Ok(lines.join("\n"))
    }

    /// The readiness probe, as the kubelet executes it in the container of that process.
    pub(crate) fn probe(&self, pid: u32) -> Result<Command> {
        let mut command = Command::new("nsenter");
        command.args([&format!("--target={pid}"), "--mount", "--root", "--wd"]);
        command.args(self.words("/readinessProbe/exec/command")?);
        Ok(command)
    }

    fn words(&self, pointer: &str) -> Result<Vec<&str>> {
        let words =
            self.spec.pointer(pointer).and_then(Value::as_array).with_context(|| format!("no {pointer}"))?;
        Ok(words.iter().filter_map(Value::as_str).collect())
    }

    fn log_path(&self) -> PathBuf {
        self.root.with_extension("log")
    }

    /// What the agent logged.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.log_path()).unwrap_or_default()
    }
}
