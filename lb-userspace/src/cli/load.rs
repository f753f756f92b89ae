//! `sockeye load`: programs and maps without an agent, to see what the kernel says to them.

use std::fmt::Write as _;

use anyhow::{Context as _, bail};
use clap::Args;

use super::{Verdict, runtime};
use crate::{
    agent,
    config::{LoadConfig, LoadFlags, Machine},
    kernel::{self, Kernel, KernelError, open_pinned},
    netlink,
    output::{Columns, print_text, remark},
    status::from_kernel::attachments,
    telemetry,
};

#[derive(Debug, Args)]
pub(super) struct Flags {
    #[command(flatten)]
    load: LoadFlags,
}

pub(super) fn run(flags: Flags) -> anyhow::Result<Verdict> {
    let config = flags.load.resolve(&Machine::look())?;
    telemetry::start(&config.log)?;
    refuse_to_undo_others(&config)?;
    let runtime = runtime()?;
    runtime.block_on(load(&config))?;
    Ok(Verdict::Fine)
}

/// Without `--pin` everything goes on Ctrl-C: what was there before must not go with it.
fn refuse_to_undo_others(config: &LoadConfig) -> anyhow::Result<()> {
    let bpffs = config.instance.bpffs.display();
    match open_pinned(&config.instance.bpffs) {
        Err(KernelError::NotPinned { .. }) => Ok(()),
        _ if config.pin => Ok(()),
        Ok(_) | Err(KernelError::OtherLayout { .. }) => {
            bail!("programs are pinned in {bpffs} already: give --pin to take them over, or another --bpffs")
        }
        Err(error) => Err(error).context(format!("looking at what is pinned in {bpffs}")),
    }
}

async fn load(config: &LoadConfig) -> anyhow::Result<()> {
    let stop = agent::stop_signal()?;
    let LoadConfig { instance, node_ips, datapath, pin, log: _ } = config;
    let links = netlink::read().await?.links;
    let node_addresses = agent::devices::node_addresses(*node_ips, None);
    let (devices, problems) = agent::devices::choose(&datapath.devices, &node_addresses, &links);
    for problem in problems {
        remark(&format!("sockeye: {problem}"));
    }
    let mut kernel = Kernel::prepare(&agent::kernel_config(instance, datapath))?;
    for device in devices.values() {
        kernel.attach_device(&device.name)?;
    }
    let ips = agent::source_address::choose(*node_ips, None, &devices);
    let host = agent::switches::Host::look(datapath);
    let attached =
        kernel.configure(&host.switches(ips, datapath.snat_ports)).and_then(|()| kernel.activate());
    if *pin {
        attached?;
        print_text(&ids(&kernel)?)?;
        return Ok(());
    }
    // From here on, something may be attached: whatever happens, it goes.
    let shown = attached.map_err(anyhow::Error::from).and_then(|_| print_text(&ids(&kernel)?));
    if shown.is_ok() {
        remark("loaded; Ctrl-C detaches and removes everything");
        match kernel.logger() {
            Some(log) => tokio::select! {
                _ = stop => {}
                never = agent::forward(log) => match never {},
            },
            None => drop(stop.await),
        }
    }
    drop(kernel);
    let removed = kernel::cleanup(&instance.bpffs);
    shown?;
    removed?;
    Ok(())
}

/// The kernel's numbers of what is loaded, for bpftool.
fn ids(kernel: &Kernel) -> anyhow::Result<String> {
    let mut programs = Columns::with_heading(["PROGRAM", "ID", "LINK", "WHERE"]);
    for attachment in attachments(kernel.attachments()?) {
        let link = attachment.link_id.map_or_else(|| "-".to_owned(), |id| id.to_string());
        programs.row([&attachment.program, &attachment.program_id.to_string(), &link, &attachment.target]);
    }
    let mut maps = Columns::with_heading(["MAP", "ID", "PINNED AT"]);
    for (name, id) in kernel.map_ids()? {
        maps.row([name, &id.to_string(), &kernel.bpffs().join(name).display().to_string()]);
    }
    let mut text = programs.render(0);
    writeln!(text)?;
    text.push_str(&maps.render(0));
    Ok(text)
}
