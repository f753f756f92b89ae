//! What the agent does at the kernel beside writing tables: the run-time switches, the programs, the devices.
//!
//! Each turn compares what should be with what is and does the difference; what fails is a problem in the status and is
//! tried again. Only the first activation may fail for good: an agent that cannot attach its programs must say so and end.

use std::{collections::BTreeMap, time::Duration};

use lb_common::config::Config;
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::Instant,
};
use tracing::{debug, info, warn};

use super::{
    AgentError,
    devices::{self, Device, Devices, device_object},
    source_address,
    switches::Host,
};
use crate::{
    config::{DeviceChoice, NodeIps, PortRange},
    host::Facing,
    kernel::{Attachment, Feature, Kernel, KernelError},
    model::{Change, Problem},
    netlink::Links,
    reconcile::{Backoff, Progress},
    status::DeviceStatus,
    telemetry::chain,
};

/// What this module's problems come from, for the reconciler.
const ORIGIN: &str = "datapath";
const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_LATEST: Duration = Duration::from_secs(10);

/// What others may ask.
#[derive(Debug)]
pub(super) enum Question {
    /// What is loaded and attached, and what it has done.
    Report(oneshot::Sender<Result<Report, KernelError>>),
}

/// What is loaded and attached, and what it has done.
#[derive(Debug, Default)]
pub(super) struct Report {
    pub(super) features: Vec<Feature>,
    pub(super) attachments: Vec<Attachment>,
    /// By number.
    pub(super) outcomes: Vec<u64>,
    /// The addresses for translated sources.
    pub(super) source_addresses: NodeIps,
    /// The devices that are to be served.
    pub(super) devices: Vec<DeviceStatus>,
}

/// Owns the kernel's side.
#[derive(Debug)]
pub(super) struct Datapath {
    kernel: Kernel,
    node_ips: NodeIps,
    snat_ports: PortRange,
    choice: DeviceChoice,
    facing: watch::Sender<Option<Facing>>,
    changes: mpsc::Sender<Change>,
    host: Host,
    /// The switches in force, and the addresses that they were made of.
    configured: Option<(Config, NodeIps)>,
    /// The devices that are to be served.
    devices: Devices,
    /// The devices that are served, by index.
    served: BTreeMap<u32, String>,
    /// What failed, by place, and is to be tried again.
    failures: BTreeMap<String, String>,
    /// The problems that were told last.
    said: Vec<Problem>,
    active: bool,
    retry: Backoff,
}

impl Datapath {
    pub(super) fn new(
        kernel: Kernel,
        host: Host,
        node_ips: NodeIps,
        snat_ports: PortRange,
        choice: DeviceChoice,
        facing: watch::Sender<Option<Facing>>,
        changes: mpsc::Sender<Change>,
    ) -> Self {
        Self {
            kernel,
            node_ips,
            snat_ports,
            choice,
            facing,
            changes,
            host,
            configured: None,
            devices: Devices::new(),
            served: BTreeMap::new(),
            failures: BTreeMap::new(),
            said: Vec::new(),
            active: false,
            retry: Backoff::new(RETRY_FIRST, RETRY_LATEST),
        }
    }

    /// Follows the reconciler and the devices until the reconciler ends. Tells through `ready` that all is in force.
    pub(super) async fn run(
        mut self,
        mut progress: watch::Receiver<Progress>,
        mut links: watch::Receiver<Links>,
        mut questions: mpsc::Receiver<Question>,
        ready: watch::Sender<bool>,
    ) -> Result<(), AgentError> {
        let mut differs = true;
        loop {
            if differs {
                let (now, present) =
                    (progress.borrow_and_update().clone(), links.borrow_and_update().clone());
                if now.in_force {
                    self.converge(&now, &present).await?;
                }
                if self.active && !ready.send_replace(true) {
                    info!("ready");
                }
            }
            differs = tokio::select! {
                changed = progress.changed() => {
                    changed.map(|()| true).map_err(|_| AgentError::Ended { part: "reconciler" })?
                }
                changed = links.changed() => {
                    changed.map(|()| true).map_err(|_| AgentError::Ended { part: "netlink" })?
                }
                () = self.retry.wait() => {
                    self.retry.fire();
                    true
                }
                Some(Question::Report(reply)) = questions.recv() => {
                    // Whoever asked may have gone away meanwhile.
                    drop(reply.send(self.report()));
                    false
                }
            };
        }
    }

    /// Makes what is in force what it should be.
    async fn converge(&mut self, progress: &Progress, links: &Links) -> Result<(), AgentError> {
        let node_addresses = devices::node_addresses(self.node_ips, progress.node.as_ref());
        let (devices, unserved) = devices::choose(&self.choice, &node_addresses, links);
        let ips = source_address::choose(self.node_ips, progress.node.as_ref(), &devices);
        let configured = self.configure(ips);
        if !self.active {
            configured?;
            if !self.activate(&devices)? {
                return Ok(());
            }
        } else if let Err(error) = configured {
            self.failures.insert("CONFIG".to_owned(), chain(&error));
        }
        self.serve(&devices);
        let mut problems = self.problems(ips, &devices);
        problems.extend(unserved);
        problems.extend(devices::foreign_sources(ips, links));
        self.devices = devices;
        self.tell_facing(ips);
        if self.failures.is_empty() {
            self.retry.reset();
        } else {
            self.retry.schedule(Instant::now());
        }
        self.tell(problems).await;
        Ok(())
    }

    fn configure(&mut self, ips: NodeIps) -> Result<(), KernelError> {
        let switches = self.host.switches(ips, self.snat_ports);
        self.failures.remove("CONFIG");
        if self.configured.is_some_and(|(configured, _)| configured == switches) {
            return Ok(());
        }
        self.kernel.configure(&switches)?;
        self.configured = Some((switches, ips));
        info!(v4 = ?ips.v4, v6 = ?ips.v6, "addresses for translated sources");
        Ok(())
    }

    /// Puts the programs into force. Not done if a device vanished at this moment: its going is on its way to us.
    fn activate(&mut self, devices: &Devices) -> Result<bool, AgentError> {
        // Noted before, so that the devices of an earlier agent are not given up for a moment.
        for Device { name, .. } in devices.values() {
            self.kernel.attach_device(name)?;
        }
        match self.kernel.activate() {
            Ok(changes) => {
                for (place, change) in changes {
                    debug!(place, ?change, "program in force");
                }
                self.served = devices.iter().map(|(index, device)| (*index, device.name.clone())).collect();
                self.active = true;
                Ok(true)
            }
            Err(KernelError::NoDevice { name, source }) => {
                warn!(device = name, error = %source, "a device is gone; starting without it");
                self.kernel.detach_device(&name)?;
                Ok(false)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Attaches to devices that came, and forgets those that went.
    fn serve(&mut self, devices: &Devices) {
        let is_there =
            |index: &u32, name: &String| devices.get(index).is_some_and(|device| device.name == *name);
        for name in self.served.extract_if(.., |index, name| !is_there(index, name)).map(|(_, name)| name) {
            match self.kernel.detach_device(&name) {
                Ok(()) => info!(device = name, "no longer serving a device"),
                // The links ended with the device; its pins are found and removed when it comes again.
                Err(error) => warn!(device = name, error = chain(&error), "cannot remove what a device left"),
            }
        }
        self.failures.retain(|place, _| devices.values().any(|device| device_object(&device.name) == *place));
        for (index, Device { name, .. }) in devices {
            if self.served.contains_key(index) {
                continue;
            }
            match self.kernel.attach_device(name) {
                Ok(_) => {
                    info!(device = name, "serving clients from outside");
                    self.served.insert(*index, name.clone());
                    self.failures.remove(&device_object(name));
                }
                Err(error) => {
                    self.failures.insert(device_object(name), chain(&error));
                }
            }
        }
    }

    /// What is wrong now, for the status.
    fn problems(&self, ips: NodeIps, devices: &Devices) -> Vec<Problem> {
        let problem = |object: String, what: String| Problem { object, field: String::new(), what };
        let failed = self
            .failures
            .iter()
            .map(|(place, error)| problem(place.clone(), format!("{error}; trying again")));
        let addressless = (!devices.is_empty() && ips == NodeIps::default()).then(|| {
            let what = "no address to translate sources to, so clients from outside reach only backends on this node; \
                        give --node-ip";
            problem("node".to_owned(), what.to_owned())
        });
        failed.chain(addressless).collect()
    }

    /// Says what of the node faces clients outside, for the checks of the host.
    fn tell_facing(&self, sources: NodeIps) {
        let devices = self.served.values().cloned().collect();
        let now = Some(Facing { devices, sources, ports: self.snat_ports });
        self.facing.send_if_modified(|facing| {
            let differs = *facing != now;
            *facing = now;
            differs
        });
    }

    async fn tell(&mut self, problems: Vec<Problem>) {
        if self.said != problems {
            self.said.clone_from(&problems);
            // The receiver goes away only when the agent ends.
            drop(self.changes.send(Change::Problems { origin: ORIGIN.to_owned(), problems }).await);
        }
    }

    fn report(&self) -> Result<Report, KernelError> {
        Ok(Report {
            features: self.kernel.features().to_vec(),
            attachments: self.kernel.attachments()?,
            outcomes: self.kernel.outcomes()?,
            source_addresses: self.configured.map(|(_, ips)| ips).unwrap_or_default(),
            devices: self.devices.iter().map(|(index, device)| self.device(*index, device)).collect(),
        })
    }

    fn device(&self, index: u32, device: &Device) -> DeviceStatus {
        DeviceStatus {
            name: device.name.clone(),
            served: self.served.contains_key(&index),
            why: device.why.iter().map(ToString::to_string).collect(),
        }
    }
}
