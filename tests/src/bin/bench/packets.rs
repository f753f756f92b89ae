//! What the packet programs cost: the kernel runs each on packets from here, and its own statistics say how long it took.
//!
//! Every run gets a packet that no program has seen: one that was translated already would be another case.

use std::{
    collections::BTreeMap,
    fs,
    net::{Ipv4Addr, SocketAddrV4},
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
};

use anyhow::{Context as _, ensure};
use aya::{
    programs::loaded_programs,
    sys::{Stats, enable_stats},
};
use lb_common::{
    config::{capacity, programs},
    outcome::{Outcome, Reason},
};
use lb_tests::{bpf, netns::Netns};
use lb_userspace::kernel::Kernel;

use crate::{
    datapath::Datapath,
    machine::Corner,
    objects,
    statistics::median_difference,
    yardstick::{self, Lookup},
};

/// Packets in a row; the statistics are read between batches.
const BATCH: u32 = 200;
/// Connections that the packets of existing flows belong to.
const FLOWS: u32 = 256;
/// The node, and the router behind which the pods of other nodes are.
const NODE: Ipv4Addr = Ipv4Addr::new(172, 18, 0, 2);
const DEVICE: &str = "ext";

/// Verdicts of TC (include/uapi/linux/pkt_cls.h): TC_ACT_UNSPEC, TC_ACT_REDIRECT.
const TO_STACK: u32 = u32::MAX;
const REDIRECT: u32 = 7;

/// What one kind of packet costs at TC, in nanoseconds beyond an empty program.
#[derive(Debug)]
pub(crate) struct Costs {
    /// The second yardstick: parse, and look one key up.
    pub(crate) yardstick: f64,
    /// To an address that no Service has, and that is not the node's.
    pub(crate) stranger: f64,
    /// To a port of the node that is no node port.
    pub(crate) other_port: f64,
    /// To backends on this node.
    pub(crate) local: Way,
    /// To backends on other nodes: the source is translated too, and the packet leaves by a route.
    pub(crate) remote: Way,
}

/// A node port's packets to backends of one kind.
#[derive(Debug)]
pub(crate) struct Way {
    /// Of a connection that is known.
    pub(crate) existing: f64,
    /// The first of a connection.
    pub(crate) new: f64,
}

/// Measures on a cluster of so many Services, some of which are in use, in so many rounds.
pub(crate) fn measure(corner: &Corner, services: u32, rounds: usize) -> anyhow::Result<Costs> {
    let place = Place::new()?;
    let mut datapath = Datapath::on_device(corner, DEVICE)?;
    datapath.serve(objects::initial_node_ports(services, NODE))?;
    place.netns.run(|| datapath.attach_for_packets(NODE))?;
    let bench = Bench::new(&place, &datapath.kernel, services)?;
    let local = place.netns.run(|| bench.run(Ipv4Addr::new(10, 200, 0, 1), TO_STACK, rounds))?;
    place.netns.ip(&format!("route replace 10.128.0.0/10 via 172.18.0.3 dev {DEVICE}"))?;
    let remote = place.netns.run(|| bench.run(Ipv4Addr::new(10, 210, 0, 1), REDIRECT, rounds))?;
    drop(bench);
    prove(&datapath, rounds as u64)?;
    datapath.remove(corner)?;
    let added = |rounds: &Rounds, of: fn(&Rounds) -> &Vec<f64>| median_difference(of(rounds), &rounds.empty);
    let way = |rounds: &Rounds| Way {
        existing: added(rounds, |rounds| &rounds.existing),
        new: added(rounds, |rounds| &rounds.new),
    };
    Ok(Costs {
        yardstick: added(&local, |rounds| &rounds.yardstick),
        stranger: added(&local, |rounds| &rounds.stranger),
        other_port: added(&local, |rounds| &rounds.other_port),
        local: way(&local),
        remote: way(&remote),
    })
}

/// All packets ended as the table says, and no others passed.
fn prove(datapath: &Datapath, rounds: u64) -> anyhow::Result<()> {
    let ways = 2;
    let batches = rounds * u64::from(BATCH);
    let expected = BTreeMap::from([
        (Outcome::FlowForwarded.number(), ways * batches),
        (Outcome::FlowOpened.number(), ways * (batches + u64::from(FLOWS))),
        (Reason::NotAService.number(), ways * 2 * batches),
    ]);
    let counts = (0..).zip(datapath.kernel.outcomes()?).filter(|(_, count)| *count != 0);
    let counts: BTreeMap<u32, u64> = counts.collect();
    ensure!(counts == expected, "counted {counts:?} instead of {expected:?}");
    Ok(())
}

/// A node: a network namespace with an external device, a router behind it, and pods behind another device.
struct Place {
    netns: Netns,
}

impl Place {
    fn new() -> anyhow::Result<Self> {
        let netns = Netns::new("bench-packets")?;
        // No packet but the benchmark's: nobody asks for neighbours, and IPv6 does not announce itself.
        netns.set_sysctls(&[("net/ipv4/ip_forward", "1"), ("net/ipv6/conf/all/disable_ipv6", "1")])?;
        netns.set_sysctls(&[("net/ipv6/conf/default/disable_ipv6", "1")])?;
        netns.ip(&format!(
            "link add {DEVICE} type veth peer name wire\nlink set wire up\nlink set {DEVICE} up\n\
             addr add {NODE}/24 dev {DEVICE}\n\
             neigh add 172.18.0.3 lladdr 02:00:00:00:00:03 dev {DEVICE} nud permanent\n\
             link add pods type veth peer name pod\nlink set pod up\nlink set pods up\n\
             route add 10.128.0.0/10 dev pods"
        ))?;
        Ok(Self { netns })
    }
}

/// Nanoseconds a run, one value a round.
#[derive(Default)]
struct Rounds {
    empty: Vec<f64>,
    yardstick: Vec<f64>,
    stranger: Vec<f64>,
    other_port: Vec<f64>,
    existing: Vec<f64>,
    new: Vec<f64>,
}

/// The programs.
struct Bench {
    empty: OwnedFd,
    lookup: Lookup,
    ingress: OwnedFd,
    context: [u8; 192],
    /// The node ports that are in use.
    ports: Vec<u16>,
    /// While it is open, the kernel counts and times runs.
    _statistics: OwnedFd,
}

impl Bench {
    fn new(place: &Place, kernel: &Kernel, services: u32) -> anyhow::Result<Self> {
        let attachments = place.netns.run(|| Ok(kernel.attachments()?))?;
        let ingress = attachments.iter().find(|attachment| attachment.program == programs::TC_INGRESS);
        let id = ingress.context("the program is not attached")?.program_id;
        let info = loaded_programs().flatten().find(|info| info.id() == id).context("the program is gone")?;
        let device = place.netns.run(|| Ok(nix::net::if_::if_nametoindex(DEVICE)?))?;
        // `struct __sk_buff` (include/uapi/linux/bpf.h): the kernel takes the device from the word at 40.
        let mut context = [0; 192];
        context[40..44].copy_from_slice(&device.to_ne_bytes());
        Ok(Self {
            empty: yardstick::empty()?,
            // As large as the map of connections, and as full: how far a look-up has to go is the same.
            lookup: Lookup::load(capacity::FLOWS)?,
            ingress: info.fd()?.as_fd().try_clone_to_owned()?,
            context,
            ports: objects::node_ports(services).take(crate::SMALL as usize).collect(),
            _statistics: enable_stats(Stats::RunTime)?,
        })
    }

    /// All kinds of packets in turns. `client`: the first of those that nobody has been before.
    fn run(&self, client: Ipv4Addr, verdict: u32, rounds: usize) -> anyhow::Result<Rounds> {
        let first = client.to_bits();
        // Clients are told apart by their ports, then by their addresses.
        let source = |number: u32| {
            SocketAddrV4::new(Ipv4Addr::from_bits(first + number / 20_000), 20_000 + (number % 20_000) as u16)
        };
        let port = |number: u32| self.ports[number as usize % self.ports.len()];
        let to_service =
            |number: u32, flags: u8| frame(source(number), SocketAddrV4::new(NODE, port(number)), flags);
        let numbers = (0..FLOWS).cycle();
        let existing: Vec<_> = (0..FLOWS).map(|number| to_service(number, ACK)).collect();
        let strangers: Vec<_> = (0..FLOWS)
            .map(|number| frame(source(number), SocketAddrV4::new(objects::stranger(number), 80), ACK))
            .collect();
        let other_ports: Vec<_> =
            (0..FLOWS).map(|number| frame(source(number), SocketAddrV4::new(NODE, 22), ACK)).collect();
        for number in 0..FLOWS {
            self.time(&self.ingress, &[to_service(number, SYN)], verdict)?;
            self.lookup.add(key(&existing[number as usize]))?;
        }
        let mut next = FLOWS;
        let mut result = Rounds::default();
        for round in 0..rounds {
            let batch = |frames: &[Frame], round: usize| -> Vec<Frame> {
                numbers
                    .clone()
                    .skip(round % FLOWS as usize)
                    .take(BATCH as usize)
                    .map(|n| frames[n as usize])
                    .collect()
            };
            let known = batch(&existing, round);
            let new: Vec<_> = (next..next + BATCH).map(|number| to_service(number, SYN)).collect();
            next += BATCH;
            result.empty.push(self.time(&self.empty, &known, TO_STACK)?);
            result.yardstick.push(self.time(&self.lookup.program, &known, yardstick::FOUND)?);
            result.stranger.push(self.time(&self.ingress, &batch(&strangers, round), TO_STACK)?);
            result.other_port.push(self.time(&self.ingress, &batch(&other_ports, round), TO_STACK)?);
            result.existing.push(self.time(&self.ingress, &known, verdict)?);
            result.new.push(self.time(&self.ingress, &new, verdict)?);
        }
        Ok(result)
    }

    /// Runs a program on each packet once; the mean of a run, in nanoseconds.
    fn time(&self, program: &OwnedFd, frames: &[Frame], verdict: u32) -> anyhow::Result<f64> {
        let before = Spent::of(program)?;
        for frame in frames {
            let given = bpf::run(program.as_fd(), frame, &self.context)?;
            ensure!(
                given == verdict,
                "the verdict {} instead of {}",
                given.cast_signed(),
                verdict.cast_signed()
            );
        }
        let after = Spent::of(program)?;
        ensure!(after.runs - before.runs == frames.len() as u64, "somebody else ran the program");
        #[expect(clippy::cast_precision_loss, reason = "nanoseconds of a batch")]
        Ok((after.nanoseconds - before.nanoseconds) as f64 / frames.len() as f64)
    }
}

/// What the kernel says of a program's runs.
struct Spent {
    nanoseconds: u64,
    runs: u64,
}

impl Spent {
    fn of(program: &OwnedFd) -> anyhow::Result<Self> {
        let path = format!("/proc/self/fdinfo/{}", program.as_raw_fd());
        let text = fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
        let field = |name: &str| {
            let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            value.and_then(|value| value.trim().parse().ok()).with_context(|| format!("{path}: no {name}"))
        };
        Ok(Self { nanoseconds: field("run_time_ns")?, runs: field("run_cnt")? })
    }
}

/// An Ethernet frame of the least length.
type Frame = [u8; 60];

/// TCP's flags.
const SYN: u8 = 0x02;
const ACK: u8 = 0x10;

/// TCP over IPv4. TCP's checksum is not filled in: programs update it by differences.
fn frame(source: SocketAddrV4, destination: SocketAddrV4, flags: u8) -> Frame {
    let mut frame = [0; 60];
    frame[12..14].copy_from_slice(&[0x08, 0x00]);
    let network = &mut frame[14..34];
    network[..10].copy_from_slice(&[0x45, 0, 0, 46, 0, 0, 0x40, 0, 64, 6]);
    network[12..16].copy_from_slice(&source.ip().octets());
    network[16..20].copy_from_slice(&destination.ip().octets());
    let sum: u32 = network.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    network[10..12].copy_from_slice(&(!(((folded & 0xffff) + (folded >> 16)) as u16)).to_be_bytes());
    let transport = &mut frame[34..54];
    transport[..2].copy_from_slice(&source.port().to_be_bytes());
    transport[2..4].copy_from_slice(&destination.port().to_be_bytes());
    transport[12..16].copy_from_slice(&[0x50, flags, 0xff, 0xff]);
    frame
}

/// The yardstick's key of a frame: addresses, ports, protocol, as they stand there.
fn key(frame: &Frame) -> yardstick::Key {
    let word = |at: usize| u32::from_ne_bytes([frame[at], frame[at + 1], frame[at + 2], frame[at + 3]]);
    [word(26), word(30), word(34), 6]
}
