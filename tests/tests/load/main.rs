//! Loading, attaching, pinning, replacing and removing what Sockeye has in the kernel.

mod closed_ports;
mod crash;
mod devices;
mod machine;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    thread,
};

use anyhow::{Context as _, Result, ensure};
use aya::{
    maps::{Array, Map, MapData, MapInfo},
    programs::loaded_programs,
};
use lb_common::{
    address::Protocol,
    config::{Config, maps, programs},
    outcome::Outcome,
};
use lb_tests::{
    cgroup::Cgroup,
    probe::{Prober, Request},
    server::Server,
};
use lb_userspace::{
    kernel::{
        Attachment, Change, Kernel, KernelConfig, KernelError, Place as AttachedAt, XdpMode, cleanup,
        open_pinned,
    },
    store::Store as _,
};

use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, unshare},
    sys::statfs::{BPF_FS_MAGIC, statfs},
};

use crate::machine::{Ids, Machine, ON_CGROUP, VIP, changes_of, fill, no_addresses, start, target};

#[test]
fn every_program_loads_and_says_how_much_the_verifier_read() -> Result<()> {
    let machine = Machine::new()?;
    machine.netns.ip("link add ext type veth peer name far")?;
    let config = KernelConfig { devices: vec!["ext".to_owned()], ..machine.config.clone() };
    let mut kernel = machine.netns.run(|| Ok(start(&config)?.0))?;
    machine.netns.run(|| Ok(kernel.attach_xdp("ext", XdpMode::Generic)?))?;
    let attachments = machine.netns.run(|| Ok(kernel.attachments()?))?;
    let mut names: Vec<&str> = attachments.iter().map(|attachment| attachment.program.as_str()).collect();
    names.sort_unstable();
    let mut expected = [
        &programs::CGROUP[..],
        &programs::BIND,
        &[programs::TC_INGRESS, programs::TC_EGRESS, programs::XDP_INGRESS],
    ]
    .concat();
    expected.sort_unstable();
    assert_eq!(names, expected);
    for attachment in &attachments {
        let info = loaded_programs().flatten().find(|info| info.id() == attachment.program_id);
        let info = info.with_context(|| format!("{} is not loaded", attachment.program))?;
        let count = info.verified_instruction_count().context("kernel 5.16 tells the count")?;
        println!("{:13} {count:6} instructions verified", attachment.program);
        // The verifier gives up at a million, and older ones read more of the same program.
        assert!((1..350_000).contains(&count), "{}: {count}", attachment.program);
    }
    for feature in kernel.features() {
        println!(
            "{:18} since {:5} {}",
            feature.name,
            feature.since,
            if feature.found { "found" } else { "MISSING" }
        );
    }
    Ok(())
}

#[test]
fn nothing_is_in_force_before_it_is_activated() -> Result<()> {
    let machine = Machine::new()?;
    let _server = Server::start("backend", machine.place(), &[(Protocol::Tcp, 8080)])?;
    let prober = Prober::start("client", machine.place())?;
    let mut kernel = Kernel::prepare(&machine.config)?;
    assert!(!kernel.reused());
    fill(&kernel)?;
    kernel.configure(&no_addresses())?;
    assert_eq!(prober.ask_once(target()?)?.errno()?, "ENETUNREACH");
    assert!(matches!(open_pinned(&machine.config.bpffs), Err(KernelError::NotPinned { .. })));
    assert_eq!(kernel.attachments()?, []);

    let changes = kernel.activate()?;
    assert_eq!(changes_of(&changes, Change::Attached), ON_CGROUP);
    let answer = prober.ask_once(target()?)?;
    assert_eq!(answer.backend()?, "backend");
    assert_eq!(answer.peer.context("no peer")?.to_string(), VIP);
    assert_eq!(kernel.outcomes()?[Outcome::ConnectTranslated.number() as usize], 1);
    assert_eq!(changes_of(&kernel.activate()?, Change::Kept), ON_CGROUP);
    Ok(())
}

#[test]
fn restarts_upgrades_and_other_sizes_fail_no_connection() -> Result<()> {
    let machine = Machine::new()?;
    let _server = Server::start("backend", machine.place(), &[(Protocol::Tcp, 8080)])?;
    let prober = Prober::start("client", machine.place())?;
    let long_lived = Prober::start("long-lived client", machine.place())?;
    let (mut kernel, _) = start(&machine.config)?;
    let opened = long_lived.answer(&Request::Open(1, target()?))?;
    assert_eq!(opened.backend()?, "backend");
    prober.answers(&Request::StartLoop(vec![target()?]))?;

    let mut frontends = machine.config.capacity.frontends;
    let mut ids = Ids::of(&machine.config.bpffs, &kernel.attachments()?)?;
    for round in 0..6 {
        // The agent is gone, and with it all that is not pinned.
        drop(kernel);
        let grow = round % 2 == 1;
        let mut config = machine.config.clone();
        if grow {
            frontends += 1_000;
        }
        config.capacity.frontends = frontends;
        let mut next = Kernel::prepare(&config)?;
        assert!(next.reused(), "the tables are gone on with, or copied");
        assert_eq!(next.store()?.capacity(), config.capacity);
        let tables = next.store()?.read()?;
        assert_eq!((tables.frontends.len(), tables.services.len(), tables.backends.len()), (1, 1, 1));
        next.configure(&no_addresses())?;
        let changes = next.activate()?;
        assert_eq!(changes_of(&changes, Change::Switched), ON_CGROUP);
        let now = Ids::of(&machine.config.bpffs, &next.attachments()?)?;
        assert_eq!(now.links, ids.links, "links are switched, not replaced");
        assert_eq!(now.maps == ids.maps, !grow);
        kernel = next;
        ids = now;
    }
    // What a socket remembers is not lost with the tables.
    let again = long_lived.answer(&Request::Again(1, VIP.parse()?))?;
    assert_eq!(again.peer.context("no peer")?.to_string(), VIP);

    let report = prober.stop_loop()?;
    assert_eq!(report.failed, 0, "{:?}", report.failures);
    assert!(report.attempts > 100, "only {} attempts", report.attempts);
    let counted = kernel.outcomes()?[Outcome::ConnectTranslated.number() as usize];
    assert!(counted > report.attempts, "{counted} counted of {} and one more", report.attempts);
    assert_eq!(report.backends.len(), 1);
    Ok(())
}

#[test]
fn another_layout_is_replaced_beside_the_one_in_force() -> Result<()> {
    let machine = Machine::new()?;
    let _server = Server::start("backend", machine.place(), &[(Protocol::Tcp, 8080)])?;
    let prober = Prober::start("client", machine.place())?;
    let (kernel, _) = start(&machine.config)?;
    let before = Ids::of(&machine.config.bpffs, &kernel.attachments()?)?;
    drop(kernel);
    prober.answers(&Request::StartLoop(vec![target()?]))?;
    set_layout_version(&machine.config.bpffs, 0x00ff_ffff)?;
    let other = open_pinned(&machine.config.bpffs);
    assert!(matches!(other, Err(KernelError::OtherLayout { .. })), "{other:?}");

    let (kernel, changes) = start(&machine.config)?;
    assert!(!kernel.reused());
    assert_eq!(changes_of(&changes, Change::Switched), ON_CGROUP);
    let after = Ids::of(&machine.config.bpffs, &kernel.attachments()?)?;
    assert!(after.maps.iter().all(|map| !before.maps.contains(map)), "{before:?} {after:?}");
    assert_eq!(after.links, before.links);
    let report = prober.stop_loop()?;
    assert_eq!(report.failed, 0, "{:?}", report.failures);
    Ids { links: Vec::new(), ..before }.wait_until_gone()
}

/// As an agent of another version would have left it.
fn set_layout_version(pins: &Path, version: u32) -> Result<()> {
    let map = Map::from_map_data(MapData::from_pin(pins.join(maps::CONFIG))?)?;
    let mut map: Array<MapData, Config> = map.try_into()?;
    let config = Config { layout_version: version, ..map.get(&0, 0)? };
    Ok(map.set(0, &config, 0)?)
}

#[test]
fn the_default_file_system_is_mounted_where_there_is_none() -> Result<()> {
    let machine = Machine::new()?;
    let config = KernelConfig { bpffs: "/sys/fs/bpf/sockeye-test".into(), ..machine.config.clone() };
    // In a mount namespace of its own, which goes with the thread: the machine's mounts stay as they are.
    let alone = thread::spawn(move || -> Result<()> {
        unshare(CloneFlags::CLONE_NEWNS)?;
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)?;
        while umount2("/sys/fs/bpf", MntFlags::MNT_DETACH).is_ok() {}
        drop(start(&config)?);
        ensure!(statfs("/sys/fs/bpf")?.filesystem_type() == BPF_FS_MAGIC, "nothing is mounted");
        ensure!(open_pinned(&config.bpffs)?.tables()?.frontends.len() == 1, "nothing is pinned");
        cleanup(&config.bpffs)?;
        Ok(())
    });
    alone.join().expect("the thread in a mount namespace of its own")
}

#[test]
fn cleanup_leaves_nothing_and_can_be_repeated() -> Result<()> {
    let machine = Machine::new()?;
    let _server = Server::start("backend", machine.place(), &[(Protocol::Tcp, 8080)])?;
    let prober = Prober::start("client", machine.place())?;
    let (kernel, _) = start(&machine.config)?;
    let ids = Ids::of(&machine.config.bpffs, &kernel.attachments()?)?;
    assert_eq!(ids.alive(), ids);
    let busy = cleanup(&machine.config.bpffs);
    assert!(matches!(busy, Err(KernelError::Busy { .. })), "{busy:?}");
    drop(kernel);
    assert_eq!(ids.alive(), ids, "the state outlives the agent");
    assert_eq!(prober.ask_once(target()?)?.backend()?, "backend");

    let removed = cleanup(&machine.config.bpffs)?;
    assert!(removed.iter().any(|line| line.contains("FRONTENDS")), "{removed:?}");
    assert!(!machine.config.bpffs.exists());
    ids.wait_until_gone()?;
    assert_eq!(prober.ask_once(target()?)?.errno()?, "ENETUNREACH");
    assert_eq!(cleanup(&machine.config.bpffs)?, Vec::<String>::new());
    Ok(())
}

#[test]
fn cleanup_keeps_what_is_not_ours_and_says_so() -> Result<()> {
    let machine = Machine::new()?;
    drop(start(&machine.config)?);
    let foreign = machine.config.bpffs.join("neighbour");
    fs::create_dir(&foreign)?;
    let refused = cleanup(&machine.config.bpffs);
    let Err(KernelError::Foreign { names, .. }) = refused else { panic!("{refused:?}") };
    assert_eq!(names, "neighbour");
    assert!(foreign.exists() && !machine.config.bpffs.join("links").exists());
    fs::remove_dir(&foreign)?;
    assert_eq!(cleanup(&machine.config.bpffs)?.len(), 1);
    Ok(())
}

#[test]
fn a_link_to_another_or_a_removed_cgroup_is_replaced() -> Result<()> {
    let machine = Machine::new()?;
    let first = machine.cgroup.child("first")?;
    let second = machine.cgroup.child("second")?;
    let at = |cgroup: &Cgroup| KernelConfig { cgroup: cgroup.path().to_owned(), ..machine.config.clone() };
    let cgroups = |kernel: &Kernel| -> Result<Vec<Option<PathBuf>>> {
        let of = |attachment: Attachment| match attachment.place {
            AttachedAt::Cgroup { path, .. } => Ok(path),
            other => anyhow::bail!("attached at {other:?}"),
        };
        kernel.attachments()?.into_iter().map(of).collect()
    };
    let (kernel, _) = start(&at(&first))?;
    assert_eq!(cgroups(&kernel)?, vec![Some(first.path().to_owned()); ON_CGROUP]);
    drop(kernel);
    let (kernel, changes) = start(&at(&second))?;
    assert_eq!(changes_of(&changes, Change::Moved), ON_CGROUP);
    assert_eq!(cgroups(&kernel)?, vec![Some(second.path().to_owned()); ON_CGROUP]);
    drop((kernel, second));
    let (kernel, changes) = start(&at(&first))?;
    assert_eq!(changes_of(&changes, Change::Moved), ON_CGROUP);
    assert_eq!(cgroups(&kernel)?, vec![Some(first.path().to_owned()); ON_CGROUP]);
    Ok(())
}

#[test]
fn what_was_unpinned_behind_our_back_is_put_back() -> Result<()> {
    let machine = Machine::new()?;
    let (mut kernel, _) = start(&machine.config)?;
    let pins = &machine.config.bpffs;
    fs::remove_file(pins.join("links/connect4"))?;
    fs::remove_file(pins.join(maps::SERVICES))?;
    let changes = kernel.activate()?;
    assert_eq!(changes_of(&changes, Change::Attached), 1, "{changes:?}");
    assert_eq!(changes_of(&changes, Change::Kept), ON_CGROUP - 1);
    assert_eq!(open_pinned(pins)?.tables()?.services.len(), 1);
    assert_eq!(kernel.attachments()?.len(), ON_CGROUP);
    Ok(())
}

#[test]
fn an_interrupted_change_of_generation_is_finished_or_dropped() -> Result<()> {
    let machine = Machine::new()?;
    let pins = &machine.config.bpffs;
    drop(start(&machine.config)?);
    let before = MapInfo::from_pin(pins.join(maps::SERVICES))?.id();

    // Died before the new maps were in force: they are dropped.
    fs::create_dir(pins.join("staged"))?;
    pin_new_array(&pins.join("staged").join(maps::SERVICES))?;
    let (kernel, _) = start(&machine.config)?;
    assert!(kernel.reused() && !pins.join("staged").exists());
    assert_eq!(MapInfo::from_pin(pins.join(maps::SERVICES))?.id(), before);
    drop(kernel);

    // Died after the links were switched, with some maps moved: the rest follows.
    fs::create_dir(pins.join("committed"))?;
    pin_new_array(&pins.join("committed").join(maps::SERVICES))?;
    let moved = MapInfo::from_pin(pins.join("committed").join(maps::SERVICES))?.id();
    let kernel = Kernel::prepare(&machine.config)?;
    assert_eq!(MapInfo::from_pin(pins.join(maps::SERVICES))?.id(), moved);
    assert!(!kernel.reused(), "one element is no SERVICES of this layout");
    Ok(())
}

/// A map that is none of ours, by the tool that an operator would use.
fn pin_new_array(path: &Path) -> Result<()> {
    let mut command = Command::new("bpftool");
    command.args(["map", "create"]).arg(path);
    command.args(["type", "array", "key", "4", "value", "8", "entries", "1", "name", "other"]);
    let output = command.output().context("starting bpftool")?;
    ensure!(output.status.success(), "bpftool: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

#[test]
fn what_is_missing_is_named_with_what_to_do() -> Result<()> {
    let machine = Machine::new()?;
    let refused = |config: KernelConfig| -> Result<String> {
        match Kernel::prepare(&config) {
            Ok(_) => anyhow::bail!("prepared with {config:?}"),
            Err(error) => Ok(error.to_string()),
        }
    };
    let elsewhere = refused(KernelConfig { bpffs: "/tmp/sockeye-nowhere".into(), ..machine.config.clone() })?;
    assert!(elsewhere.contains("mount -t bpf"), "{elsewhere}");
    let no_cgroup = refused(KernelConfig { cgroup: "/proc".into(), ..machine.config.clone() })?;
    assert!(no_cgroup.contains("/proc is no directory of a cgroup2"), "{no_cgroup}");
    let _kernel = Kernel::prepare(&machine.config)?;
    let busy = refused(machine.config.clone())?;
    assert!(busy.contains("another agent uses"), "{busy}");
    assert!(matches!(
        cleanup(machine.bpffs.path().parent().context("a parent")?),
        Err(KernelError::NoBpffs { .. })
    ));
    Ok(())
}
