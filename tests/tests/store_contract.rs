//! The contract of `Store`, on the kernel's maps: what is written is read back, and nothing else changes.

use std::{
    collections::{BTreeMap, BTreeSet},
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use aya::maps::{Array, Map, MapData};
use lb_common::{
    address::{Address, Port, Protocol},
    backend::Backend,
    config::{NodeAddress, capacity, maps, node_address},
    frontend::{FrontendEntry, FrontendKey, FrontendKind},
    namespace::NamespaceAddresses,
    prefix::Prefix,
    service::{Range, ServiceRecord, Set, Settings, flags},
};
use lb_tests::{
    bpf::{self, RawMap, instruction},
    bpffs::Bpffs,
    cgroup::Cgroup,
    wait,
};
use lb_userspace::{
    kernel::{Kernel, KernelConfig},
    store::{Capacity, Store, StoreError, Tables, Write, kernel::KernelStore},
};

/// Maps of a small agent that is never activated: they go with it.
struct Maps {
    store: KernelStore,
    kernel: Kernel,
    _cgroup: Cgroup,
    _bpffs: Bpffs,
}

const CAPACITY: Capacity = Capacity {
    frontends: 64,
    services: 16,
    backends: 100,
    source_ranges: 4,
    maglev: 1 << 17,
    node_addresses: 8,
};

impl Maps {
    fn new(capacity: Capacity) -> Result<Self> {
        let (bpffs, cgroup) = (Bpffs::new()?, Cgroup::new("store")?);
        let config = KernelConfig {
            bpffs: bpffs.pin_path(),
            cgroup: cgroup.path().to_owned(),
            capacity,
            ..KernelConfig::default()
        };
        let kernel = Kernel::prepare(&config)?;
        Ok(Self { store: kernel.store()?, kernel, _cgroup: cgroup, _bpffs: bpffs })
    }
}

fn key(number: u32) -> FrontendKey {
    let [a, b, c, d] = number.to_be_bytes();
    FrontendKey::new(Address::from_v4_bytes([10 + a, 96 + b, c, d]), Port::new(443), Protocol::Tcp)
}

fn frontend(number: u32, record: u32) -> Write {
    let key = key(number);
    Write::PutFrontend { key, entry: FrontendEntry::new(&key, FrontendKind::ClusterIp, record) }
}

fn backend(number: u32) -> Backend {
    let [_, b, c, d] = number.to_be_bytes();
    let address = Address::from_v4_bytes([10, b, c, d]);
    Backend { address, port: Port::new(8080), flags: 0, id: number }
}

/// The first `bits` bits of an address that no shorter prefix of it is equal to.
fn range(bits: u8) -> Prefix {
    Prefix::of([255, 255, 255, 255].into(), bits)
}

fn put_range(record: u32, bits: u8) -> Write {
    Write::PutSourceRange { record, prefix: range(bits) }
}

fn apply(store: &mut KernelStore, writes: &[Write]) -> Result<()> {
    writes.iter().try_for_each(|write| store.apply(write).with_context(|| format!("{write:?}")))
}

#[test]
fn every_write_is_read_back() -> Result<()> {
    let mut maps = Maps::new(CAPACITY)?;
    let store = &mut maps.store;
    assert_eq!(store.capacity(), CAPACITY);
    assert_eq!(store.read()?, Tables::default());

    let settings = Settings { flags: flags::INTERNAL_LOCAL, affinity_seconds: 10_800 };
    let (cluster, local) = (Range { first: 10, count: 3 }, Range { first: 99, count: 1 });
    let record = ServiceRecord::new(7, settings, cluster, local);
    let node = Address::from_v4_bytes([172, 18, 0, 2]);
    let value = NodeAddress { flags: node_address::NODE_PORTS };
    apply(
        store,
        &[
            Write::Slots { first: 10, backends: vec![backend(1), backend(2), backend(3)] },
            Write::Slots { first: 99, backends: vec![backend(3)] },
            Write::Record { index: 15, record },
            frontend(1, 15),
            frontend(2, 15),
            Write::PutNodeAddress { address: node, value },
            put_range(15, 24),
            put_range(15, 16),
            put_range(3, 24),
        ],
    )?;
    let tables = store.read()?;
    assert_eq!(tables.services.into_iter().collect::<Vec<_>>(), [(15, record)]);
    let slots = [(10, backend(1)), (11, backend(2)), (12, backend(3)), (99, backend(3))];
    assert_eq!(tables.backends.into_iter().collect::<Vec<_>>(), slots);
    assert_eq!(tables.frontends.keys().copied().collect::<Vec<_>>(), [key(1), key(2)]);
    assert_eq!(tables.frontends[&key(1)], FrontendEntry::new(&key(1), FrontendKind::ClusterIp, 15));
    assert_eq!(tables.node_addresses.into_iter().collect::<Vec<_>>(), [(node, value)]);
    let ranges = [(3, BTreeSet::from([range(24)])), (15, BTreeSet::from([range(16), range(24)]))];
    assert_eq!(tables.source_ranges, BTreeMap::from(ranges));

    let changed = Settings { flags: flags::EXTERNAL_LOCAL, affinity_seconds: 0 };
    apply(
        store,
        &[
            Write::Range { index: 15, set: Set::Cluster, range: Range { first: 11, count: 1 } },
            Write::Range { index: 15, set: Set::Local, range: Range::EMPTY },
            Write::Settings { index: 15, settings: changed },
            frontend(2, 3),
            Write::DeleteFrontend { key: key(1) },
            Write::DeleteNodeAddress { address: node },
            Write::DeleteSourceRange { record: 15, prefix: range(16) },
            Write::DeleteSourceRange { record: 3, prefix: range(24) },
        ],
    )?;
    let tables = store.read()?;
    let expected = ServiceRecord::new(7, changed, Range { first: 11, count: 1 }, Range::EMPTY);
    assert_eq!(tables.services.into_iter().collect::<Vec<_>>(), [(15, expected)]);
    assert_eq!(tables.backends.into_iter().collect::<Vec<_>>(), [(11, backend(2))]);
    assert_eq!(
        tables.frontends.into_iter().map(|(key, entry)| (key, entry.record)).collect::<Vec<_>>(),
        [(key(2), 3)]
    );
    assert_eq!(tables.node_addresses.len(), 0);
    assert_eq!(tables.source_ranges, BTreeMap::from([(15, BTreeSet::from([range(24)]))]));

    apply(store, &[Write::Record { index: 15, record: ServiceRecord::default() }])?;
    assert_eq!(store.read()?.services.len(), 0);
    Ok(())
}

#[test]
fn deleting_what_is_not_there_is_fine() -> Result<()> {
    let mut maps = Maps::new(CAPACITY)?;
    let writes = [
        Write::DeleteFrontend { key: key(1) },
        Write::DeleteNodeAddress { address: Address::UNSPECIFIED },
        Write::DeleteSourceRange { record: 1, prefix: range(24) },
        put_range(1, 8),
        Write::DeleteSourceRange { record: 1, prefix: range(24) },
        frontend(1, 1),
        Write::DeleteFrontend { key: key(1) },
        Write::DeleteFrontend { key: key(1) },
    ];
    apply(&mut maps.store, &writes)
}

#[test]
fn a_full_map_keeps_what_it_has_and_takes_more_once_there_is_room() -> Result<()> {
    let mut maps = Maps::new(CAPACITY)?;
    let store = &mut maps.store;
    for number in 0..CAPACITY.frontends {
        apply(store, &[frontend(number, number)])?;
    }
    let before = store.read()?;
    let refused = store.apply(&frontend(1_000, 1));
    assert!(matches!(refused, Err(StoreError::Full { map: maps::FRONTENDS })), "{refused:?}");
    assert_eq!(store.read()?, before);
    // A present one can still be changed: nothing is inserted.
    apply(store, &[frontend(5, 50), Write::DeleteFrontend { key: key(6) }, frontend(1_000, 1)])?;
    let after = store.read()?.frontends;
    assert_eq!(after[&key(5)].record, 50);
    assert!(after.contains_key(&key(1_000)) && !after.contains_key(&key(6)));

    for bits in 1..=4 {
        apply(store, &[put_range(7, bits), put_range(7, bits)])?;
    }
    let refused = store.apply(&put_range(7, 5));
    assert!(matches!(refused, Err(StoreError::Full { map: maps::SOURCE_RANGES })), "{refused:?}");
    apply(store, &[Write::DeleteSourceRange { record: 7, prefix: range(1) }, put_range(7, 5)])?;
    assert_eq!(store.read()?.source_ranges[&7], BTreeSet::from([2, 3, 4, 5].map(range)));

    let value = NodeAddress { flags: 0 };
    let address = |last| Address::from_v4_bytes([172, 18, 0, last]);
    for last in 0..8 {
        apply(store, &[Write::PutNodeAddress { address: address(last), value }])?;
    }
    let refused = store.apply(&Write::PutNodeAddress { address: address(8), value });
    assert!(matches!(refused, Err(StoreError::Full { map: maps::NODE_ADDRESSES })), "{refused:?}");
    Ok(())
}

#[test]
fn what_lies_beyond_a_map_is_refused_and_changes_nothing() -> Result<()> {
    let mut maps = Maps::new(CAPACITY)?;
    let store = &mut maps.store;
    let record = ServiceRecord::new(1, Settings::default(), Range { first: 0, count: 100 }, Range::EMPTY);
    apply(store, &[Write::Record { index: 0, record }])?;
    let before = store.read()?;
    let slots = |first, count: u32| Write::Slots { first, backends: (1..=count).map(backend).collect() };
    for (write, map, index) in [
        (slots(99, 2), maps::BACKENDS, 100),
        (slots(0, 101), maps::BACKENDS, 100),
        (slots(u32::MAX, 1), maps::BACKENDS, u32::MAX),
        (Write::Record { index: 16, record }, maps::SERVICES, 16),
        (Write::Range { index: 16, set: Set::Local, range: Range::EMPTY }, maps::SERVICES, 16),
        (Write::Settings { index: u32::MAX, settings: Settings::default() }, maps::SERVICES, u32::MAX),
    ] {
        let refused = store.apply(&write);
        let Err(StoreError::OutOfBounds { map: said, index: at }) = refused else {
            panic!("{write:?}: {refused:?}")
        };
        assert_eq!((said, at), (map, index), "{write:?}");
        assert_eq!(store.read()?, before, "{write:?}");
    }
    apply(store, &[slots(0, 100), slots(99, 1)])
}

#[test]
fn a_grace_period_ends_after_the_programs_that_were_running() -> Result<()> {
    const ROUNDS: u32 = 5;
    let mut maps = Maps::new(CAPACITY)?;
    let slow = SlowProgram::load()?;
    let mut met_it_running = 0;
    for _ in 0..ROUNDS {
        thread::scope(|scope| {
            let run = scope.spawn(|| slow.run());
            let start = Instant::now();
            let mut state = slow.state()?;
            while state == State::Idle {
                ensure!(start.elapsed() < wait::SOON, "the program does not start");
                state = slow.state()?;
            }
            met_it_running += u32::from(state == State::Running);
            maps.store.apply(&Write::Grace)?;
            assert_eq!(slow.state()?, State::Ended);
            run.join().expect("the thread of the program")
        })?;
        slow.reset()?;
    }
    assert!(met_it_running > ROUNDS / 2, "the program was running in {met_it_running} rounds only");
    Ok(())
}

#[test]
fn a_large_cluster_is_written_fast() -> Result<()> {
    let capacity = Capacity {
        frontends: 65_536,
        services: 50_000,
        backends: 500_000,
        source_ranges: 8,
        maglev: 1 << 17,
        node_addresses: 8,
    };
    let mut maps = Maps::new(capacity)?;
    let store = &mut maps.store;
    let slots: Vec<Backend> = (0..500_000).map(backend).collect();
    let services = (0..50_000).map(|index| {
        let range = Range { first: index * 10, count: 10 };
        let record = ServiceRecord::new(index + 1, Settings::default(), range, Range::EMPTY);
        Write::Record { index, record }
    });
    let phases: [(&str, Vec<Write>, Duration); 3] = [
        ("500,000 slots", vec![Write::Slots { first: 0, backends: slots }], Duration::from_millis(500)),
        ("50,000 records", services.collect(), Duration::from_millis(500)),
        ("50,000 frontends", (0..50_000).map(|n| frontend(n, n)).collect(), Duration::from_secs(2)),
    ];
    for (what, writes, limit) in &phases {
        let start = Instant::now();
        apply(store, writes)?;
        let took = start.elapsed();
        println!("{what}: {took:?}");
        // Far above what a release build needs; a system call for each slot would not keep it.
        assert!(took < *limit, "{what} took {took:?}");
    }
    let start = Instant::now();
    let tables = store.read()?;
    println!("read back: {:?}", start.elapsed());
    assert_eq!(
        (tables.frontends.len(), tables.services.len(), tables.backends.len()),
        (50_000, 50_000, 500_000)
    );
    Ok(())
}

/// A program that runs for a tenth of a second or longer: it marks its start, asks for the time again and again, calls
/// itself as often as the kernel allows, and marks its end.
struct SlowProgram {
    program: OwnedFd,
    marks: RawMap,
    _itself: RawMap,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Idle,
    Running,
    Ended,
}

impl SlowProgram {
    /// As many turns as the verifier follows: three instructions each, of a million.
    const TURNS: i32 = 300_000;

    fn load() -> Result<Self> {
        const SOCKET_FILTER: u32 = 1;
        let (marks, itself) = (create_array(2, 16)?, create_array(3, 4)?);
        let program = bpf::load(SOCKET_FILTER, &Self::instructions(&marks, &itself))?;
        itself.update(&0_u32, &program.as_raw_fd()).context("pointing the slow program at itself")?;
        Ok(Self { program, marks, _itself: itself })
    }

    fn instructions(marks: &RawMap, itself: &RawMap) -> [u64; 16] {
        [
            instruction(0xbf, 8, 1, 0, 0),                 // r8 = context
            instruction(0x18, 6, 2, 0, marks.as_raw_fd()), // r6 = &marks[0]
            bpf::SECOND_HALF,
            instruction(0x7a, 6, 0, 0, 1),                  // started = 1
            instruction(0xb7, 7, 0, 0, 0),                  // r7 = 0
            instruction(0x85, 0, 0, 0, 5),                  // call bpf_ktime_get_ns
            instruction(0x07, 7, 0, 0, 1),                  // r7 += 1
            instruction(0xa5, 7, 0, -3, Self::TURNS),       // if r7 < TURNS goto the call
            instruction(0xbf, 1, 8, 0, 0),                  // r1 = context
            instruction(0x18, 2, 1, 0, itself.as_raw_fd()), // r2 = itself
            bpf::SECOND_HALF,
            instruction(0xb7, 3, 0, 0, 0),  // r3 = 0
            instruction(0x85, 0, 0, 0, 12), // call bpf_tail_call: returns after the last one
            instruction(0x7a, 6, 0, 8, 1),  // ended = 1
            instruction(0xb7, 0, 0, 0, 0),  // r0 = 0
            instruction(0x95, 0, 0, 0, 0),  // exit
        ]
    }

    /// Runs it once; returns when it has ended.
    fn run(&self) -> Result<()> {
        bpf::run(self.program.as_fd(), &[0; 64], &[]).map(drop).context("running the slow program")
    }

    fn state(&self) -> Result<State> {
        Ok(match self.marks()?.get(&0, 0)? {
            [0, _] => State::Idle,
            [_, 0] => State::Running,
            [..] => State::Ended,
        })
    }

    fn reset(&self) -> Result<()> {
        Ok(self.marks()?.set(0, &[0, 0], 0)?)
    }

    fn marks(&self) -> Result<Array<MapData, [u64; 2]>> {
        Ok(Map::from_map_data(MapData::from_fd(self.marks.as_fd().try_clone_to_owned()?)?)?.try_into()?)
    }
}

/// An array of one element of programs (3) or of bytes (2).
fn create_array(map_type: u32, value_size: u32) -> Result<RawMap> {
    RawMap::new(map_type, 4, value_size, 1)
}

#[test]
fn the_pods_addresses_are_what_was_set_last_and_what_does_not_fit_is_named() -> Result<()> {
    let maps = Maps::new(CAPACITY)?;
    let mut namespaces = maps.kernel.namespaces()?;
    let pod = |number: u32| NamespaceAddresses { v4: key(number).address(), ..NamespaceAddresses::NONE };
    let pods = |numbers: &mut dyn Iterator<Item = u32>| -> BTreeMap<u64, NamespaceAddresses> {
        numbers.map(|number| (u64::from(number) << 32, pod(number))).collect()
    };
    assert_eq!(namespaces.read()?, BTreeMap::new());
    assert_eq!(namespaces.set(&pods(&mut (1..=3)))?, [0_u64; 0]);
    let mut changed = pods(&mut (2..=4));
    changed.insert(2 << 32, NamespaceAddresses { v6: key(9).address(), ..pod(7) });
    assert_eq!(namespaces.set(&changed)?, [0_u64; 0]);
    assert_eq!(maps.kernel.namespaces()?.read()?, changed);

    // What is gone makes room first; what is there stays when nothing more fits.
    let full = pods(&mut (10..10 + capacity::NAMESPACES));
    assert_eq!(namespaces.set(&full)?, [0_u64; 0]);
    let mut more = full.clone();
    more.extend(pods(&mut (1..=2)));
    assert_eq!(namespaces.set(&more)?.len(), 2);
    assert_eq!(namespaces.read()?, full);
    Ok(())
}
