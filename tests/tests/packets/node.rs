//! A node whose programs run on packets from a test (`BPF_PROG_TEST_RUN`), on maps that the agent filled.
//!
//! The agent attaches the programs and is ended; then they are detached and only run on what the test hands them, so that
//! every packet that is counted is the test's. Routes and neighbours are those of the node: a run names the device that
//! the packet arrives at.

use std::{cell::RefCell, fs};

use anyhow::{Context as _, Result, ensure};
use aya::{
    maps::{HashMap, Map, MapData},
    programs::{SchedClassifier, TcAttachType, TestRun as _, TestRunOptions, loaded_programs},
};
use lb_common::{
    config::{maps, programs},
    flow::{Flow, FlowKey},
};
use lb_tests::{
    agent::Installation,
    dump::{self, Outcomes, delta},
    manifests::Manifests,
    topology::{NODE_DEVICE, Topology},
    wait,
};
use lb_userspace::kernel::open_pinned;
use nix::net::if_::if_nametoindex;

use crate::text::{Direction, Verdict};

/// The node.
pub(crate) struct Node<'a> {
    topology: &'a Topology,
    sockeye: &'a Installation<'a>,
    ingress: SchedClassifier,
    egress: SchedClassifier,
    device: u32,
    flows: RefCell<HashMap<MapData, FlowKey, Flow>>,
}

/// What a program did.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) verdict: Verdict,
    pub(crate) packet: Vec<u8>,
    /// What was counted.
    pub(crate) counted: Outcomes,
}

impl<'a> Node<'a> {
    /// Runs a test on a node that serves some manifests.
    pub(crate) fn with(manifests: &Manifests, test: impl FnOnce(&Node<'_>) -> Result<()>) -> Result<()> {
        let topology = Topology::new()?;
        let sockeye = Installation::on(&topology)?;
        test(&Node::new(&topology, &sockeye, manifests)?)
    }

    fn new(topology: &'a Topology, sockeye: &'a Installation<'a>, manifests: &Manifests) -> Result<Self> {
        // Where the Service `lost` has its backend.
        topology.node_a.netns.ip("route add unreachable 192.0.2.77\nroute add unreachable 2001:db8:2::77")?;
        // Where the Service `narrow` has its backend; forwarding heeds only a size that is locked.
        topology.node_a.netns.ip(
            "route add 10.244.2.99 via 172.18.0.3 mtu lock 1300\nroute add fd00:244:2::99 via fd00:18::3 mtu lock 1300",
        )?;
        sockeye.start_with(&manifests.path(), &["--max-flows", "4096"])?.kill()?;
        let (ingress, egress) = (
            program(topology, sockeye, programs::TC_INGRESS)?,
            program(topology, sockeye, programs::TC_EGRESS)?,
        );
        detach(topology, sockeye)?;
        let flows = MapData::from_pin(sockeye.map_path(maps::FLOWS)).and_then(Map::from_map_data)?;
        let device = topology.node_a.netns.run(|| Ok(if_nametoindex(NODE_DEVICE)?))?;
        Ok(Self { topology, sockeye, ingress, egress, device, flows: RefCell::new(flows.try_into()?) })
    }

    /// How many instructions the verifier followed, for each program; none: the kernel does not tell (before 5.16).
    pub(crate) fn verified(&self) -> Result<[Option<u32>; 2]> {
        let programs = [self.ingress.info()?, self.egress.info()?];
        Ok(programs.map(|program| program.verified_instruction_count()))
    }

    /// Forgets all connections.
    pub(crate) fn forget(&self) -> Result<()> {
        let mut flows = self.flows.borrow_mut();
        let keys: Vec<_> = flows.keys().collect::<Result<_, _>>()?;
        keys.iter().try_for_each(|key| flows.remove(key)).context("forgetting flows")
    }

    /// Runs a program once.
    pub(crate) fn run(&self, direction: Direction, packet: &[u8]) -> Result<Run> {
        let before = self.outcomes()?;
        let program = match direction {
            Direction::Ingress => &self.ingress,
            Direction::Egress => &self.egress,
        };
        // `struct __sk_buff` (include/uapi/linux/bpf.h): the kernel takes the device from the word at 40, and wants zeros
        // in what it does not take.
        let mut context = [0_u8; 192];
        context[40..44].copy_from_slice(&self.device.to_ne_bytes());
        // Room for what a program might add.
        let mut out = vec![0; packet.len() + 256];
        let result = self.topology.node_a.netns.run(|| {
            let options = TestRunOptions {
                data_in: Some(packet),
                data_out: Some(&mut out),
                ctx_in: Some(&context),
                ..TestRunOptions::default()
            };
            program.test_run(options).context("running a program")
        })?;
        out.truncate(result.data_size_out as usize);
        let verdict = match result.return_value.cast_signed() {
            // TC_ACT_UNSPEC, TC_ACT_SHOT, TC_ACT_REDIRECT (include/uapi/linux/pkt_cls.h).
            -1 => Verdict::Pass,
            2 => Verdict::Drop,
            7 => Verdict::Redirect,
            other => anyhow::bail!("the verdict {other}"),
        };
        Ok(Run { verdict, packet: out, counted: delta(&before, &self.outcomes()?) })
    }

    fn outcomes(&self) -> Result<Outcomes> {
        dump::outcomes(&self.sockeye.map_path(maps::OUTCOMES))
    }
}

/// The program that is attached under a name.
fn program(topology: &Topology, sockeye: &Installation<'_>, name: &'static str) -> Result<SchedClassifier> {
    let pins = sockeye.pin_path();
    let attached = topology.node_a.netns.run(|| Ok(open_pinned(&pins)?.attachments()?))?;
    let id = attached.iter().find(|attachment| attachment.program == name).map(|found| found.program_id);
    let id = id.with_context(|| format!("{name} is not attached"))?;
    // A program may go between the listing and the look: it is another test's.
    let info = loaded_programs().flatten().find(|info| info.id() == id);
    let info = info.with_context(|| format!("no program has the id {id}"))?;
    Ok(SchedClassifier::from_program_info(info, name.into())?)
}

/// Removes the links, and waits until the device has no program.
fn detach(topology: &Topology, sockeye: &Installation<'_>) -> Result<()> {
    let links = sockeye.pin_path().join("links");
    let mut removed = 0;
    for entry in fs::read_dir(&links).with_context(|| format!("reading {}", links.display()))? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(NODE_DEVICE) {
            fs::remove_file(entry.path())?;
            removed += 1;
        }
    }
    ensure!(removed == 2, "{removed} links on {NODE_DEVICE}");
    wait::until("the programs to be detached", wait::SOON, || {
        topology.node_a.netns.run(|| {
            let device = if_nametoindex(NODE_DEVICE)?;
            for direction in [TcAttachType::Ingress, TcAttachType::Egress] {
                let (_, programs) = SchedClassifier::query_tcx(device, direction)?;
                if !programs.is_empty() {
                    return Ok(None);
                }
            }
            Ok(Some(()))
        })
    })
}
