//! Programs on devices: as links (tcx), and as filters of a clsact qdisc.

use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use aya::programs::{ProgramInfo, SchedClassifier, tc::TcAttachType};
use lb_common::config::programs;
use lb_userspace::kernel::{
    Attachment, Change, Kernel, KernelConfig, KernelError, Place as AttachedAt, XdpMode, cleanup, open_pinned,
};

use crate::machine::{Machine, ON_CGROUP, changes_of, no_addresses, start};

#[test]
fn devices_are_served_by_links_or_filters() -> Result<()> {
    let machine = Machine::new()?;
    // The dot is what VLAN devices have in their names.
    machine.netns.ip("link add ext type veth peer name far\nlink add ext.100 type veth peer name far.100")?;
    for clsact in [false, true, false] {
        let devices = vec!["ext".to_owned(), "ext.100".to_owned()];
        let config = KernelConfig { clsact, devices, ..machine.config.clone() };
        machine.netns.run(|| {
            let (mut kernel, changes) = start(&config)?;
            assert_eq!(
                changes_of(&changes, Change::Attached),
                if kernel.reused() { 4 } else { ON_CGROUP + 4 }
            );
            let places = || -> Result<_> { Ok(device_places(&kernel.attachments()?)) };
            let expected = |device: &str| [(device.to_owned(), clsact), (device.to_owned(), clsact)];
            assert_eq!(places()?, [expected("ext"), expected("ext.100")].concat());
            // Both kinds stay without the agent, and are switched by the next one.
            drop(kernel);
            let (next, changes) = start(&config)?;
            kernel = next;
            assert_eq!(changes_of(&changes, Change::Switched), ON_CGROUP + 4, "{changes:?}");
            kernel.detach_device("ext")?;
            assert_eq!(device_places(&kernel.attachments()?), expected("ext.100"));
            assert_eq!(kernel.attach_device("ext")?.len(), 2);
            assert_eq!(changes_of(&kernel.attach_device("ext")?, Change::Kept), 2);
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn programs_of_others_on_a_device_stay_where_they_are() -> Result<()> {
    let machine = Machine::new()?;
    machine.netns.ip("link add ext type veth peer name far")?;
    // What an agent of its own has attached is as foreign as any other program.
    let others = [Machine::new()?, Machine::new()?];
    let on_ext =
        |machine: &Machine| KernelConfig { devices: vec!["ext".to_owned()], ..machine.config.clone() };
    let [early, late] = others.each_ref().map(on_ext);
    let ours = on_ext(&machine);
    machine.netns.run(|| {
        drop(start(&early)?);
        let early = tcx_programs(&start(&early)?.0)?;
        let (kernel, _) = start(&ours)?;
        assert_eq!(order()?, [tcx_programs(&kernel)?, early.clone()].concat());
        let late = tcx_programs(&start(&late)?.0)?;
        assert_eq!(order()?, [late.clone(), tcx_programs(&kernel)?, early.clone()].concat());
        // A successor takes our place, and what goes leaves the others.
        drop(kernel);
        let (mut kernel, changes) = start(&ours)?;
        assert_eq!(changes_of(&changes, Change::Switched), ON_CGROUP + 2, "{changes:?}");
        assert_eq!(order()?, [late.clone(), tcx_programs(&kernel)?, early.clone()].concat());
        kernel.detach_device("ext")?;
        assert_eq!(order()?, [late.clone(), early.clone()].concat());
        kernel.attach_device("ext")?;
        assert_eq!(order()?, [tcx_programs(&kernel)?, late.clone(), early.clone()].concat());
        drop(kernel);
        cleanup(&ours.bpffs)?;
        assert_eq!(order()?, [late, early].concat());
        Ok(())
    })
}

/// The ids of the programs at the device's ingress and egress, in the order in which they run; one list, since each
/// owner here has one of each.
fn order() -> Result<Vec<[u32; 2]>> {
    let ids = |direction| -> Result<Vec<u32>> {
        let (_, programs) = SchedClassifier::query_tcx(c"ext", direction)?;
        Ok(programs.iter().map(ProgramInfo::id).collect())
    };
    let (ingress, egress) = (ids(TcAttachType::Ingress)?, ids(TcAttachType::Egress)?);
    ensure!(ingress.len() == egress.len(), "{ingress:?} at ingress, {egress:?} at egress");
    Ok(ingress.into_iter().zip(egress).map(|(ingress, egress)| [ingress, egress]).collect())
}

/// The ids of an owner's programs at the device, in the form of [`order`].
fn tcx_programs(kernel: &Kernel) -> Result<Vec<[u32; 2]>> {
    let attachments = kernel.attachments()?;
    let id = |program: &str| {
        let found = attachments.iter().find(|attachment| attachment.program == program);
        found.map(|attachment| attachment.program_id).with_context(|| format!("{program} is not attached"))
    };
    Ok(vec![[id(programs::TC_INGRESS)?, id(programs::TC_EGRESS)?]])
}

fn device_places(attachments: &[Attachment]) -> Vec<(String, bool)> {
    let mut places: Vec<_> = attachments
        .iter()
        .filter_map(|attachment| match &attachment.place {
            AttachedAt::Tcx { device, .. } => Some((device.clone(), false)),
            AttachedAt::Clsact { device, .. } => Some((device.clone(), true)),
            AttachedAt::Cgroup { .. } | AttachedAt::Xdp { .. } => None,
        })
        .collect();
    places.sort();
    places
}

#[test]
fn cleanup_removes_filters_and_the_qdisc_that_was_made_for_them() -> Result<()> {
    let machine = Machine::new()?;
    machine.netns.ip("link add ext type veth peer name far\nlink add own type veth peer name far2")?;
    let tc = |arguments: &str| -> Result<String> {
        let mut command = Command::new("tc");
        let output = command
            .args(["-n", machine.netns.name()])
            .args(arguments.split(' ').map(|word| word.replace('_', " ")))
            .output()?;
        ensure!(output.status.success(), "tc {arguments}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8(output.stdout)?)
    };
    tc("qdisc add dev own clsact")?;
    tc("filter add dev own ingress bpf bytecode 1,6_0_0_0 flowid 1:1")?;
    let devices = vec!["ext".to_owned(), "own".to_owned()];
    let config = KernelConfig { clsact: true, devices, ..machine.config.clone() };
    machine.netns.run(|| {
        drop(start(&config)?);
        Ok(())
    })?;
    assert!(tc("filter show dev ext ingress")?.contains("tc_ingress"));
    assert!(tc("filter show dev own egress")?.contains("tc_egress"));
    let removed = machine.netns.run(|| Ok(cleanup(&config.bpffs)?))?;
    assert!(removed.iter().any(|line| line.contains("tc_egress of own")), "{removed:?}");
    assert!(!tc("qdisc show dev ext")?.contains("clsact"));
    assert!(tc("qdisc show dev own")?.contains("clsact"));
    let own = tc("filter show dev own ingress")?;
    assert!(own.contains("bytecode") && !own.contains("tc_ingress"), "{own}");
    Ok(())
}

#[test]
fn a_device_that_vanished_does_not_spoil_the_next_attempt() -> Result<()> {
    let machine = Machine::new()?;
    let config = KernelConfig { devices: vec!["ext".to_owned()], ..machine.config.clone() };
    let mut kernel = Kernel::prepare(&config)?;
    kernel.configure(&no_addresses())?;
    let refused = machine.netns.run(|| Ok(kernel.activate()))?;
    assert!(matches!(refused, Err(KernelError::NoDevice { .. })), "{refused:?}");
    assert!(matches!(open_pinned(&config.bpffs), Err(KernelError::NotPinned { .. })));
    kernel.detach_device("ext")?;
    let changes = machine.netns.run(|| Ok(kernel.activate()?))?;
    assert_eq!(changes_of(&changes, Change::Kept), ON_CGROUP);
    assert_eq!(open_pinned(&config.bpffs)?.attachments()?.len(), ON_CGROUP);
    Ok(())
}

#[test]
fn a_device_that_is_made_again_is_served_again() -> Result<()> {
    let machine = Machine::new()?;
    machine.netns.ip("link add ext type veth peer name far")?;
    let config = KernelConfig { devices: vec!["ext".to_owned()], ..machine.config.clone() };
    let mut kernel = machine.netns.run(|| Ok(start(&config)?.0))?;
    machine.netns.ip("link del ext\nlink add ext type veth peer name far")?;
    let changes = machine.netns.run(|| Ok(kernel.attach_device("ext")?))?;
    assert_eq!(changes_of(&changes, Change::Moved), 2, "{changes:?}");
    machine.netns.ip("link del ext")?;
    let missing = machine.netns.run(|| Ok(kernel.attach_device("ext").map(drop)))?;
    assert!(matches!(missing, Err(KernelError::NoDevice { .. })), "{missing:?}");
    Ok(())
}

#[test]
fn xdp_runs_in_one_mode_at_a_time_and_leaves_nothing() -> Result<()> {
    let machine = Machine::new()?;
    machine.netns.ip("link add ext type veth peer name far")?;
    let config = KernelConfig { devices: vec!["ext".to_owned()], ..machine.config.clone() };
    machine.netns.run(|| {
        let (mut kernel, _) = start(&config)?;
        assert_eq!(xdp_modes(&kernel)?, []);
        assert_eq!(kernel.attach_xdp("ext", XdpMode::Generic)?.1, Change::Attached);
        assert_eq!(kernel.attach_xdp("ext", XdpMode::Generic)?.1, Change::Kept);
        kernel.activate()?;
        assert_eq!(xdp_modes(&kernel)?, [XdpMode::Generic]);
        assert_eq!(kernel.attach_xdp("ext", XdpMode::Native)?.1, Change::Attached);
        assert_eq!(xdp_modes(&kernel)?, [XdpMode::Native]);
        kernel.detach_device("ext")?;
        assert_eq!(xdp_modes(&kernel)?, []);
        kernel.attach_device("ext")?;
        kernel.attach_xdp("ext", XdpMode::Generic)?;
        // A successor that does not ask for XDP ends it.
        drop(kernel);
        let (mut kernel, _) = start(&config)?;
        assert_eq!(xdp_modes(&kernel)?, []);
        kernel.attach_xdp("ext", XdpMode::Generic)?;
        drop(kernel);
        cleanup(&config.bpffs)?;
        // Nothing is left that would refuse another owner.
        let other = Machine::new()?;
        let (mut kernel, _) =
            start(&KernelConfig { devices: config.devices.clone(), ..other.config.clone() })?;
        assert_eq!(kernel.attach_xdp("ext", XdpMode::Native)?.1, Change::Attached);
        Ok(())
    })
}

#[test]
fn an_xdp_program_of_others_stays_and_is_told() -> Result<()> {
    let machines = [Machine::new()?, Machine::new()?];
    let netns = &machines[0].netns;
    netns.ip("link add ext type veth peer name far")?;
    let [theirs, ours] = machines
        .each_ref()
        .map(|machine| KernelConfig { devices: vec!["ext".to_owned()], ..machine.config.clone() });
    netns.run(|| {
        let (mut foreign, _) = start(&theirs)?;
        foreign.attach_xdp("ext", XdpMode::Generic)?;
        let (mut kernel, _) = start(&ours)?;
        let refused = kernel.attach_xdp("ext", XdpMode::Generic);
        assert!(matches!(refused, Err(KernelError::Program { .. })), "{refused:?}");
        assert_eq!((xdp_modes(&kernel)?, xdp_modes(&foreign)?), (vec![], vec![XdpMode::Generic]));
        assert_eq!(device_places(&kernel.attachments()?).len(), 2, "TC goes on");
        Ok(())
    })
}

fn xdp_modes(kernel: &Kernel) -> Result<Vec<XdpMode>> {
    let mode = |attachment: Attachment| match attachment.place {
        AttachedAt::Xdp { mode, .. } => Some(mode),
        _ => None,
    };
    Ok(kernel.attachments()?.into_iter().filter_map(mode).collect())
}
