//! The stage: a cluster, and how to ask on it so that the audience can follow.

use std::{collections::BTreeSet, net::SocketAddr, process::Command};

use anyhow::{Context as _, Result, ensure};
use lb_tests::{
    cluster::Cluster,
    probe::{Answer, Kind, Target},
    topology::Machine,
};

use crate::teller::Teller;

/// Enough questions for each of a few backends to be chosen: that one of three is not is as likely as (2/3)⁶⁰.
const ENOUGH: u32 = 60;

pub(crate) struct Stage<'a> {
    pub(crate) tell: &'a Teller,
    pub(crate) cluster: Cluster<'a>,
}

impl Stage<'_> {
    /// Asks once and tells who answered, which must be one of those expected.
    pub(crate) fn ask(&self, from: &str, target: Target, expected: &[&str]) -> Result<Answer> {
        let answer = self.cluster.prober(from)?.ask_once(target)?;
        let reply = answer.reply().with_context(|| format!("{from}: {target}"))?;
        ensure!(
            expected.contains(&reply.backend.as_str()),
            "{from}: {target}: answered by {}, not by {expected:?}",
            reply.backend
        );
        check_what_the_application_sees(&answer)?;
        self.tell.answer(
            from,
            &question(target),
            &format!("{} at port {}", reply.backend, reply.port),
            Some(answer.took),
        )?;
        Ok(answer)
    }

    /// Asks many times and tells how the answers spread, over exactly those expected.
    pub(crate) fn spread(&self, from: &str, target: Target, expected: &[&str]) -> Result<()> {
        let spread = self.cluster.prober(from)?.spread(target, ENOUGH)?;
        let answered: BTreeSet<_> = spread.keys().map(String::as_str).collect();
        ensure!(
            answered == expected.iter().copied().collect(),
            "{from}: {target}: answered by {answered:?}, not by {expected:?}"
        );
        let counts: Vec<_> = spread.iter().map(|(name, count)| format!("{name} {count}×")).collect();
        let question = format!("{ENOUGH} more times");
        self.tell.answer(from, &question, &counts.join(", "), None)
    }

    /// Asks a service that must refuse, and tells how.
    pub(crate) fn refused(&self, from: &str, target: Target) -> Result<()> {
        let answer = self.cluster.prober(from)?.ask_once(target)?;
        let errno = answer.errno().with_context(|| format!("{from}: {target}"))?;
        ensure!(errno == "ECONNREFUSED", "{from}: {target}: {errno}, not ECONNREFUSED");
        self.tell.answer(from, &question(target), &format!("{errno}, at once"), Some(answer.took))
    }

    /// Shows a subcommand of `sockeye`, and the lines of its output that contain one of these words (none: all).
    pub(crate) fn show_sockeye(&self, subcommand: &[&str], words: &[&str]) -> Result<()> {
        self.tell.command(&format!("sockeye {}", subcommand.join(" ")))?;
        let text = self.cluster.sockeye.sockeye(subcommand)?.success()?;
        let shown = text
            .lines()
            .enumerate()
            .filter(|(i, line)| words.is_empty() || *i == 0 || words.iter().any(|word| line.contains(word)));
        let shown: Vec<_> = shown.map(|(_, line)| line).collect();
        ensure!(shown.len() > words.len().min(1), "{words:?} are not in\n{text}");
        self.tell.output(&shown.join("\n"))
    }

    /// Where a Service of the examples is reachable in the cluster, as the agent tells.
    pub(crate) fn cluster_ip(&self, service: &str, port: u16) -> Result<SocketAddr> {
        let list = self.cluster.sockeye.services()?;
        let found = list.services.iter().find(|known| known.name.as_deref() == Some(service));
        let found = found.with_context(|| format!("the agent knows no Service {service}"))?;
        let frontends = found.ports.iter().flat_map(|port| &port.frontends).filter(|f| f.kind == "ClusterIP");
        let addresses = frontends.filter_map(|frontend| frontend.address.parse::<SocketAddr>().ok());
        let address = addresses.into_iter().find(|address| address.port() == port);
        address.with_context(|| format!("{service} has no ClusterIP with port {port}"))
    }

    /// How to look around in a demo that was kept.
    pub(crate) fn tell_how_to_enter(&self) -> Result<()> {
        let tell = self.tell;
        tell.line("")?;
        tell.line(&tell.bold("Everything is left running. Look around from another terminal, as root:"))?;
        let t = self.cluster.topology;
        for machine in [&t.pod1, &t.pod2, &t.node_a, &t.client] {
            tell.line("")?;
            tell.line(&format!("  A shell in {}:", machine.name))?;
            tell.command(&enter(machine))?;
        }
        tell.line("")?;
        tell.line("  There, for example:")?;
        tell.command("curl http://10.96.0.10/          # in a pod or on node-a")?;
        tell.command("curl http://172.18.0.2:30080/    # on client")?;
        tell.line("")?;
        tell.line("  Change what is served, and ask the agent:")?;
        tell.command(&format!("$EDITOR {}/cluster-ip.yaml", self.cluster.manifests.path().display()))?;
        for subcommand in ["status", "service list", "backend list"] {
            let words: Vec<_> = subcommand.split(' ').collect();
            tell.command(&shell_words(&self.cluster.sockeye.command(&words)?))?;
        }
        tell.command(&format!(
            "bpftool map dump pinned {}/FRONTENDS",
            self.cluster.sockeye.pin_path().display()
        ))?;
        tell.line("")?;
        tell.line(&tell.bold("Ctrl-C here removes everything, the shells inside included."))
    }
}

/// A socket belongs to the cgroup that its process is in, so a shell goes there first.
fn enter(machine: &Machine) -> String {
    let netns = machine.netns.path().display();
    match &machine.cgroup {
        Some(cgroup) => {
            let procs = cgroup.path().join("cgroup.procs");
            format!("sh -c 'echo $$ > {}; exec nsenter --net={netns} bash'", procs.display())
        }
        None => format!("nsenter --net={netns} bash"),
    }
}

fn shell_words(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

/// What an application asks, in few words.
fn question(target: Target) -> String {
    let to = target.destination();
    match target.kind {
        Kind::Tcp => format!("GET http://{to}/"),
        Kind::Udp => format!("UDP connect {to}"),
        Kind::Datagram => format!("UDP sendto {to}"),
    }
}

/// The translation must not show: the peer and the sender are the service that was asked.
fn check_what_the_application_sees(answer: &Answer) -> Result<()> {
    for (what, seen) in [("getpeername", answer.peer), ("recvfrom", answer.source)] {
        let seen = seen.unwrap_or(answer.to);
        ensure!(seen == answer.to, "{what} shows {seen} instead of {}", answer.to);
    }
    Ok(())
}
