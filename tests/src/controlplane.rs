//! A real Kubernetes control plane inside a network namespace: etcd, kube-apiserver, kube-controller-manager.
//!
//! There is no scheduler and no kubelet: [`kubelet::Kubelet`] gives Pod objects what a kubelet would give them. The ports
//! are fixed, because the namespace is the test's own. Everything ends and is removed when the value is dropped; the logs
//! are in [`ControlPlane::logs`], and failures to start print their tail.

mod binaries;
pub mod kubectl;
pub mod kubelet;
mod pki;
pub mod pod_network;

use std::{
    fs::{self, File},
    net::{IpAddr, Ipv4Addr},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow};

use self::{kubectl::Kubectl, pki::Authority};
use crate::{
    netns::Netns,
    process::{Place, Process},
    wait,
};

/// Port of the API server, on every address of the namespace.
pub const API_PORT: u16 = 6443;
/// The Services' addresses: IPv4 is the primary family.
pub const SERVICE_CIDRS: &str = "10.96.0.0/16,fd00:10:96::/112";
/// The address of the Service `default/kubernetes`.
pub const KUBERNETES_SERVICE: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 96, 0, 1));

const CONTROLLERS_PORT: u16 = 10257;
const ETCD: &str = "http://127.0.0.1:2379";
/// A first start on a busy machine; later ones take about two seconds.
const START: Duration = Duration::from_secs(90);

/// The controllers that the tests need. Mirroring is apart: a cluster may run without it.
const CONTROLLERS: &[&str] = &[
    "daemonset-controller",
    "deployment-controller",
    "endpoints-controller",
    "endpointslice-controller",
    "garbage-collector-controller",
    "namespace-controller",
    "replicaset-controller",
];
const MIRRORING: &str = "endpointslice-mirroring-controller";

/// A running control plane.
pub struct ControlPlane {
    // Dropped first to last: etcd outlives its clients.
    controllers: Option<Process>,
    api_server: Option<Process>,
    etcd: Option<Process>,
    authority: Authority,
    netns: Arc<Netns>,
    advertise: IpAddr,
    bin: PathBuf,
    dir: PathBuf,
}

impl ControlPlane {
    /// Starts one in a network namespace. `dir` is an empty folder for its data, keys and logs. `advertise` is an address
    /// of the namespace, not on loopback: the endpoint of the Service `default/kubernetes`.
    ///
    /// Keep it on the thread that starts it: its processes end with that thread.
    pub fn start(netns: Arc<Netns>, dir: &Path, advertise: IpAddr) -> Result<Self> {
        let bin = binaries::build()?;
        let authority = Authority::create(&dir.join("pki"), &[advertise, KUBERNETES_SERVICE])?;
        fs::create_dir_all(dir.join("log")).context("the folder of the logs")?;
        let mut plane = Self {
            controllers: None,
            api_server: None,
            etcd: None,
            authority,
            netns,
            advertise,
            bin,
            dir: dir.to_owned(),
        };
        plane.write_kubeconfig("admin", &plane.authority.admin_user())?;
        plane.start_etcd()?;
        plane.start_api_server()?;
        plane.start_controllers(true)?;
        Ok(plane)
    }

    /// `kubectl` as the cluster's administrator.
    pub fn kubectl(&self) -> Kubectl {
        self.kubectl_as("admin")
    }

    /// `kubectl` with the kubeconfig of that name (see [`Self::write_kubeconfig`]).
    pub fn kubectl_as(&self, kubeconfig: &str) -> Kubectl {
        Kubectl::new(self.bin.join("kubectl"), Arc::clone(&self.netns), self.kubeconfig(kubeconfig))
    }

    /// Where the kubeconfig of that name is.
    pub fn kubeconfig(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}.kubeconfig"))
    }

    /// The certificate of whoever signed the API server's.
    pub fn certificate_authority(&self) -> PathBuf {
        self.authority.path("ca.crt")
    }

    /// Where the daemons write their logs.
    pub fn logs(&self) -> PathBuf {
        self.dir.join("log")
    }

    /// Writes a kubeconfig for the API server at loopback, with that `user` (a JSON object such as `{"token": "…"}`).
    pub fn write_kubeconfig(&self, name: &str, user: &serde_json::Value) -> Result<PathBuf> {
        let path = self.kubeconfig(name);
        let server = format!("https://127.0.0.1:{API_PORT}");
        let config = serde_json::json!({
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": name,
            "contexts": [{ "name": name, "context": { "cluster": "test", "user": name } }],
            "clusters": [{
                "name": "test",
                "cluster": { "server": server, "certificate-authority": self.certificate_authority() },
            }],
            "users": [{ "name": name, "user": user }],
        });
        fs::write(&path, config.to_string()).with_context(|| format!("kubeconfig {}", path.display()))?;
        Ok(path)
    }

    /// Writes a kubeconfig that has the identity and the rights of a service account.
    pub fn write_service_account_kubeconfig(
        &self,
        name: &str,
        namespace: &str,
        account: &str,
    ) -> Result<PathBuf> {
        let token =
            self.kubectl().run(&["create", "token", account, "--namespace", namespace, "--duration=1h"])?;
        self.write_kubeconfig(name, &serde_json::json!({ "token": token.trim() }))
    }

    /// Starts the API server and waits until it is ready.
    pub fn start_api_server(&mut self) -> Result<()> {
        let key = |name: &str| self.authority.path(name).display().to_string();
        let args = [
            format!("--etcd-servers={ETCD}"),
            format!("--service-cluster-ip-range={SERVICE_CIDRS}"),
            "--service-node-port-range=30000-32767".into(),
            "--bind-address=0.0.0.0".into(),
            format!("--secure-port={API_PORT}"),
            format!("--advertise-address={}", self.advertise),
            "--allow-privileged=true".into(),
            "--authorization-mode=RBAC".into(),
            // Pods of the tests use no service account, and nothing makes the default ones.
            "--disable-admission-plugins=ServiceAccount".into(),
            format!("--client-ca-file={}", key("ca.crt")),
            format!("--tls-cert-file={}", key("apiserver.crt")),
            format!("--tls-private-key-file={}", key("apiserver.key")),
            "--service-account-issuer=https://kubernetes.default.svc".into(),
            format!("--service-account-key-file={}", key("sa.pub")),
            format!("--service-account-signing-key-file={}", key("sa.key")),
            // Revisions older than a second or two are compacted: a watch that comes back later gets 410 Gone.
            "--etcd-compaction-interval=1s".into(),
            "--profiling=false".into(),
        ];
        let kubectl = self.kubectl();
        self.api_server = Some(
            self.daemon("kube-apiserver", &args, || kubectl.run(&["get", "--raw", "/readyz"]).map(drop))?,
        );
        Ok(())
    }

    /// Ends the API server; etcd keeps what it stored.
    pub fn stop_api_server(&mut self) {
        self.api_server = None;
    }

    /// Starts the controllers (`mirroring`: of hand-made Endpoints, too) and waits until they are ready; ends those that
    /// ran.
    pub fn start_controllers(&mut self, mirroring: bool) -> Result<()> {
        self.controllers = None;
        let mut controllers = CONTROLLERS.join(",");
        if mirroring {
            controllers = format!("{controllers},{MIRRORING}");
        }
        let kubeconfig = self.kubeconfig("admin").display().to_string();
        let key = |name: &str| self.authority.path(name).display().to_string();
        let args = [
            format!("--controllers={controllers}"),
            format!("--kubeconfig={kubeconfig}"),
            format!("--authentication-kubeconfig={kubeconfig}"),
            format!("--authorization-kubeconfig={kubeconfig}"),
            "--leader-elect=false".into(),
            format!("--service-cluster-ip-range={SERVICE_CIDRS}"),
            "--bind-address=127.0.0.1".into(),
            format!("--secure-port={CONTROLLERS_PORT}"),
            format!("--tls-cert-file={}", key("apiserver.crt")),
            format!("--tls-private-key-file={}", key("apiserver.key")),
            // Batches of changes would only make the tests slower.
            "--endpoint-updates-batch-period=0s".into(),
            "--endpointslice-updates-batch-period=0s".into(),
            "--profiling=false".into(),
        ];
        let kubectl = self.kubectl();
        let server = format!("--server=https://127.0.0.1:{CONTROLLERS_PORT}");
        let healthy = || kubectl.run(&[&server, "get", "--raw", "/healthz"]).map(drop);
        self.controllers = Some(self.daemon("kube-controller-manager", &args, healthy)?);
        Ok(())
    }

    fn start_etcd(&mut self) -> Result<()> {
        let data = self.dir.join("etcd").display().to_string();
        let args = [
            format!("--data-dir={data}"),
            "--unsafe-no-fsync".into(),
            format!("--listen-client-urls={ETCD}"),
            format!("--advertise-client-urls={ETCD}"),
            "--listen-peer-urls=http://127.0.0.1:2380".into(),
            "--initial-advertise-peer-urls=http://127.0.0.1:2380".into(),
            "--initial-cluster=default=http://127.0.0.1:2380".into(),
            "--log-level=warn".into(),
        ];
        // The API server waits for it.
        self.etcd = Some(self.daemon("etcd", &args, || Ok(()))?);
        Ok(())
    }

    /// Starts a program of the control plane and waits until `ready` succeeds.
    fn daemon(&self, name: &str, args: &[String], ready: impl Fn() -> Result<()>) -> Result<Process> {
        let path = self.logs().join(format!("{name}.log"));
        let log =
            File::options().create(true).append(true).open(&path).context(path.display().to_string())?;
        let mut command = Command::new(self.bin.join(name));
        command.args(args).stdin(Stdio::null()).stdout(log.try_clone().context("the log")?).stderr(log);
        let place = Place { netns: Some(&self.netns), cgroup: None };
        let mut process = Process::spawn(name, command, place)?;
        wait::until(&format!("{name} to be ready"), START, || match process.try_wait()? {
            Some(status) => Ok(Some(Err(anyhow!("{name} ended: {status}")))),
            None => ready().map(|()| Some(Ok(()))),
        })
        .flatten()
        .with_context(|| tail(&path))?;
        Ok(process)
    }
}

/// The end of a log, to be read with an error.
fn tail(log: &Path) -> String {
    let text = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<_> = text.lines().collect();
    format!("{} ends in:\n{}", log.display(), lines[lines.len().saturating_sub(20)..].join("\n"))
}
