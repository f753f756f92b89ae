//! Connects in a tight loop on every processor, while a Service's endpoints change two thousand times a second and two
//! hundred other Services come and go.
//!
//! The writer is the pipeline on the kernel's maps, as in the agent; only a source that is fast enough is missing. Where a
//! connection really went is the kernel's word: nobody listens anywhere, and the ICMP error names the address that the
//! datagram was sent to.

use std::{
    env,
    net::{IpAddr, Ipv4Addr, SocketAddrV4, UdpSocket},
    os::fd::AsRawFd as _,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering::SeqCst},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use lb_common::{config::Config, outcome::Reason};
use lb_tests::{bpffs::Bpffs, cgroup::Cgroup, netns::Netns};
use lb_userspace::{
    kernel::{Kernel, KernelConfig},
    model::{
        Change, Conditions, Endpoint, EndpointPort, EndpointSlice, Family, Kind, Node, Object, ObjectName,
        Protocol, Service, ServicePort, ServiceType, TrafficPolicy,
    },
    pipeline::{DefaultAlgorithm, NodePortAddresses, Pipeline, PipelineSettings},
    store::{Store as _, kernel::KernelStore},
};
use nix::{
    errno::Errno,
    sched::{CpuSet, sched_setaffinity},
    sys::socket::{MsgFlags, SockaddrIn, recvmsg, setsockopt, sockopt::Ipv4RecvErr},
    unistd::Pid,
};

/// For how many seconds, unless this is set: 60 for the figures of a whole run.
const SECONDS: &str = "SOCKEYE_STRESS_SECONDS";
const SHORT: u64 = 8;

/// Endpoint changes each second.
const CHANGES: u32 = 2_000;
/// Of which each tenth comes with another Service, created and deleted: 200 of each a second.
const EACH: u32 = 10;
/// Endpoints of the Service that changes. Each change replaces the oldest one.
const WINDOW: u32 = 10;
/// Other Services that are there at a time.
const OTHERS: u32 = 100;

const NODE: &str = "node-1";
const PORT: u16 = 53;
const TARGET_PORT: u16 = 8080;

/// The Service whose endpoints change.
const CHANGING: u32 = 0x0a60_0001;
/// The other Services' addresses, by number.
const OTHER: u32 = 0x0a61_0000;
/// The changing Service's endpoints, by number.
const ENDPOINTS: u32 = 0x0a80_0000;
/// The other Services' endpoints, by the number of the Service.
const OTHER_ENDPOINTS: u32 = 0x0a20_0000;

/// How far the writer is. Each number is stored before a change begins, or after it is in force, as its name says.
#[derive(Default)]
struct Progress {
    /// The set from endpoint N to endpoint N + WINDOW - 1.
    begun: AtomicU32,
    in_force: AtomicU32,
    /// Other Services below this number are in force, unless they are given up.
    created: AtomicU32,
    /// Other Services below this number may be gone.
    given_up: AtomicU32,
    /// Other Services below this number are gone.
    gone: AtomicU32,
    stop: AtomicBool,
}

/// What one processor's loop saw.
#[derive(Debug, Default)]
struct Report {
    changing: u64,
    others: u64,
    gone: u64,
    wrong: Vec<String>,
}

struct Writer {
    pipeline: Pipeline,
    store: KernelStore,
    progress: Arc<Progress>,
}

#[test]
fn no_connect_fails_or_strays_while_everything_changes() -> Result<()> {
    let seconds = match env::var(SECONDS) {
        Ok(text) => text.parse().with_context(|| format!("{SECONDS}={text}"))?,
        Err(_) => SHORT,
    };
    let netns = Netns::new("stress")?;
    // Every address of a Service or an endpoint has a route, and nobody listens there.
    netns.ip("route add local 10.0.0.0/8 dev lo")?;
    let (bpffs, cgroup) = (Bpffs::new()?, Cgroup::new("stress")?);
    let config =
        KernelConfig { bpffs: bpffs.pin_path(), cgroup: cgroup.path().to_owned(), ..KernelConfig::default() };
    let mut kernel = Kernel::prepare(&config)?;
    let mut writer = Writer::new(&kernel)?;
    let zero: Config = bytemuck::Zeroable::zeroed();
    kernel.configure(&zero)?;
    kernel.activate()?;

    let progress = Arc::clone(&writer.progress);
    let processors = thread::available_parallelism()?.get();
    let inside = cgroup.enter()?;
    let (written, reports) = thread::scope(|scope| {
        let loops: Vec<_> = (0..processors)
            .map(|processor| {
                let (netns, progress) = (&netns, &*progress);
                scope.spawn(move || netns.run(|| connect_until_told(processor, progress)))
            })
            .collect();
        let written = writer.run(Duration::from_secs(seconds));
        progress.stop.store(true, SeqCst);
        let reports: Vec<_> = loops.into_iter().map(thread::ScopedJoinHandle::join).collect();
        (written, reports)
    });
    drop(inside);

    let (changes, took) = written?;
    let rate = f64::from(changes) / took.as_secs_f64();
    println!(
        "{changes} endpoint changes in {:.1} s: {rate:.0}/s, with {:.0} others created and deleted/s",
        took.as_secs_f64(),
        rate / f64::from(EACH)
    );
    for report in reports {
        let Report { changing, others, gone, wrong } = match report {
            Ok(report) => report?,
            Err(_) => bail!("a loop panicked"),
        };
        println!(
            "connects: {changing} to the changing Service, {others} to others, {gone} to deleted ones; {} wrong",
            wrong.len()
        );
        assert!(wrong.is_empty(), "{wrong:#?}");
        // A processor that others keep busy connects less often; this much proves something.
        let enough = seconds * 100;
        assert!(changing > enough && others > enough && gone > enough, "too few connects");
    }
    assert!(rate > f64::from(CHANGES) / 4.0, "too few changes");
    for never in [Reason::NoBackends, Reason::NoLocalBackends, Reason::BrokenTables, Reason::NotStored] {
        assert_eq!(kernel.outcomes()?[never.number() as usize], 0, "{}", never.name());
    }
    Ok(())
}

impl Writer {
    /// The first set and the first other Services are in force.
    fn new(kernel: &Kernel) -> Result<Self> {
        let store = kernel.store()?;
        let settings = PipelineSettings {
            node_name: NODE.into(),
            node_port_addresses: NodePortAddresses::default(),
            external_ips: true,
            algorithm: DefaultAlgorithm::default(),
        };
        let pipeline = Pipeline::new(settings, store.capacity());
        let mut writer = Self { pipeline, store, progress: Arc::default() };
        let services = vec![Object::Service(service("changing", CHANGING))];
        for kind in Kind::ALL {
            let objects = match kind {
                Kind::Service => services.clone(),
                Kind::EndpointSlice => vec![Object::EndpointSlice(window(0))],
                Kind::Node => {
                    vec![Object::Node(Node { name: NODE.into(), zone: None, addresses: Vec::new() })]
                }
                Kind::Endpoints | Kind::ServiceCidr => Vec::new(),
            };
            writer.pipeline.apply(Change::Reset(kind, objects));
        }
        for number in 0..OTHERS {
            writer.create(number)?;
        }
        Ok(writer)
    }

    /// Gives how many endpoint changes there were, and the time that they took.
    fn run(&mut self, duration: Duration) -> Result<(u32, Duration)> {
        let start = Instant::now();
        let mut number = 0;
        while start.elapsed() < duration {
            // The rate, not a wait for something: a change that is late is followed by the next one at once.
            thread::sleep(
                (start + Duration::from_secs(1) / CHANGES * number).saturating_duration_since(Instant::now()),
            );
            number += 1;
            self.change(number)?;
            if number.is_multiple_of(EACH) {
                self.create(OTHERS + number / EACH - 1)?;
                self.delete(number / EACH - 1)?;
            }
            if self.pipeline.summary().slots.retired > 50_000 {
                self.pipeline.reclaim(&mut self.store)?;
            }
        }
        Ok((number, start.elapsed()))
    }

    fn change(&mut self, number: u32) -> Result<()> {
        self.progress.begun.store(number, SeqCst);
        self.pipeline.apply(Change::Apply(Object::EndpointSlice(window(number))));
        self.sync()?;
        self.progress.in_force.store(number, SeqCst);
        Ok(())
    }

    fn create(&mut self, number: u32) -> Result<()> {
        let name = other(number);
        let endpoints = slice(&name, OTHER_ENDPOINTS + number, 1);
        self.pipeline.apply(Change::Apply(Object::EndpointSlice(endpoints)));
        self.pipeline.apply(Change::Apply(Object::Service(service(&name, OTHER + number))));
        self.sync()?;
        self.progress.created.store(number + 1, SeqCst);
        Ok(())
    }

    fn delete(&mut self, number: u32) -> Result<()> {
        self.progress.given_up.store(number + 1, SeqCst);
        let name = other(number);
        self.pipeline.apply(Change::Delete(Kind::Service, ObjectName::new("stress", name.clone())));
        self.pipeline.apply(Change::Delete(Kind::EndpointSlice, ObjectName::new("stress", name)));
        self.sync()?;
        self.progress.gone.store(number + 1, SeqCst);
        Ok(())
    }

    fn sync(&mut self) -> Result<()> {
        let report = self.pipeline.sync(&mut self.store);
        ensure!(report.dirty == 0 && report.blocked == 0, "not everything was written: {report:?}");
        Ok(())
    }
}

/// Connects on one processor, and checks each destination.
fn connect_until_told(processor: usize, progress: &Progress) -> Result<Report> {
    let mut cpus = CpuSet::new();
    cpus.set(processor)?;
    sched_setaffinity(Pid::from_raw(0), &cpus).context("staying on one processor")?;
    let mut report = Report::default();
    while !progress.stop.load(SeqCst) && report.wrong.len() < 10 {
        check_changing(progress, &mut report);
        // As far from being deleted as from having been created.
        let number = progress.created.load(SeqCst) - OTHERS / 2;
        check_other(number, progress, &mut report);
        if let Some(number) = progress.gone.load(SeqCst).checked_sub(1) {
            check_gone(number, &mut report);
        }
    }
    Ok(report)
}

/// The endpoint must be of a set that was in force at some moment of the call.
fn check_changing(progress: &Progress, report: &mut Report) {
    let first = progress.in_force.load(SeqCst);
    let went = destination(CHANGING);
    let last = progress.begun.load(SeqCst) + WINDOW - 1;
    report.changing += 1;
    match went {
        Ok((ip, TARGET_PORT)) if (ENDPOINTS + first..=ENDPOINTS + last).contains(&ip.to_bits()) => {}
        other => report.wrong.push(format!("endpoints {first} to {last}: {other:?}")),
    }
}

fn check_other(number: u32, progress: &Progress, report: &mut Report) {
    let went = destination(OTHER + number);
    if progress.given_up.load(SeqCst) > number {
        // This thread stood still for so long that the Service's time has come.
        return;
    }
    report.others += 1;
    match went {
        Ok((ip, TARGET_PORT)) if ip.to_bits() == OTHER_ENDPOINTS + number => {}
        other => report.wrong.push(format!("other {number}: {other:?}")),
    }
}

/// The address is nobody's any more: the call passes untouched.
fn check_gone(number: u32, report: &mut Report) {
    report.gone += 1;
    match destination(OTHER + number) {
        Ok((ip, PORT)) if ip.to_bits() == OTHER + number => {}
        other => report.wrong.push(format!("deleted {number}: {other:?}")),
    }
}

/// Where a socket is sent that connects there.
fn destination(address: u32) -> Result<(Ipv4Addr, u16)> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).context("bind")?;
    setsockopt(&socket, Ipv4RecvErr, &true).context("IP_RECVERR")?;
    socket.connect((Ipv4Addr::from_bits(address), PORT)).context("connect")?;
    socket.send(b"?").context("send")?;
    let start = Instant::now();
    loop {
        match recvmsg::<SockaddrIn>(socket.as_raw_fd(), &mut [], None, MsgFlags::MSG_ERRQUEUE) {
            Ok(message) => {
                let address = message.address.context("an error without a destination")?;
                let address = SocketAddrV4::from(address);
                return Ok((*address.ip(), address.port()));
            }
            // Loopback answers at once, unless the softirq has much to do.
            Err(Errno::EAGAIN) if start.elapsed() < Duration::from_secs(2) => thread::yield_now(),
            Err(error) => return Err(error).context("the ICMP error"),
        }
    }
}

fn other(number: u32) -> String {
    format!("other-{number}")
}

fn window(first: u32) -> EndpointSlice {
    slice("changing", ENDPOINTS + first, WINDOW)
}

fn slice(service: &str, first: u32, count: u32) -> EndpointSlice {
    let endpoints = (first..first + count).map(|address| Endpoint {
        address: IpAddr::V4(Ipv4Addr::from_bits(address)),
        conditions: Conditions::default(),
        node: Some(NODE.into()),
        zone_hints: Vec::new(),
        node_hints: Vec::new(),
    });
    EndpointSlice {
        name: ObjectName::new("stress", service),
        service: service.into(),
        family: Family::V4,
        ports: vec![EndpointPort { name: "dns".into(), protocol: Protocol::Udp, port: TARGET_PORT }],
        endpoints: endpoints.collect(),
    }
}

fn service(name: &str, address: u32) -> Service {
    Service {
        name: ObjectName::new("stress", name),
        created: Some(1_700_000_000),
        labels: [].into(),
        service_type: ServiceType::ClusterIp,
        cluster_ips: vec![IpAddr::V4(Ipv4Addr::from_bits(address))],
        headless: false,
        external_ips: Vec::new(),
        ingress_ips: Vec::new(),
        ports: vec![ServicePort { name: "dns".into(), protocol: Protocol::Udp, port: PORT, node_port: None }],
        affinity_seconds: None,
        internal_policy: TrafficPolicy::Cluster,
        external_policy: TrafficPolicy::Cluster,
        source_ranges: Vec::new(),
        health_check_node_port: None,
        algorithm: None,
    }
}
