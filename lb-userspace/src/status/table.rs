//! The documents for people.

use super::{
    AgentStatus, BackendList, BackendStatus, EndpointStatus, FrontendStatus, Membership, PortStatus,
    ServiceList, ServiceStatus, SourceKind, SourceStatus, State, Status,
};
use crate::output::{Columns, Table, age};

const INDENT: usize = 2;

impl Table for Status {
    fn table(&self) -> String {
        let mut text = self.headline();
        text.push('\n');
        text.push_str(&self.facts().render(0));
        section(&mut text, "Missing in this kernel", &self.missing_columns());
        for (title, columns) in [
            ("Tables", self.table_columns()),
            ("Devices", self.device_columns()),
            ("Attached programs", self.attachment_columns()),
            ("Outcomes", self.outcome_columns()),
        ] {
            section(&mut text, title, &columns);
        }
        text.push_str("\nProblems\n");
        if self.problems.is_empty() {
            text.push_str("  none\n");
        }
        for problem in &self.problems {
            let place = if problem.field.is_empty() { String::new() } else { format!("{}: ", problem.field) };
            text.push_str(&["  ", &problem.object, ": ", &place, &problem.what, "\n"].concat());
        }
        text
    }
}

impl Status {
    fn headline(&self) -> String {
        match self.state {
            State::Ready => "ready".to_owned(),
            State::Waiting if self.waiting_for.is_empty() => "waiting".to_owned(),
            State::Waiting => format!("waiting for {}", self.waiting_for.join(", ")),
            State::NotRunning => "the agent is not running; this is what is pinned in the kernel".to_owned(),
        }
    }

    fn facts(&self) -> Columns {
        let mut facts = Columns::default();
        if let Some(agent) = &self.agent {
            let AgentStatus { version, commit, pid, uptime_seconds, bpffs, ended_sockets } = agent;
            let commit = commit.as_ref().map(|commit| format!(" ({commit})")).unwrap_or_default();
            let up = age(*uptime_seconds);
            facts.row(["Agent", &format!("{version}{commit}, process {pid}, up {up}, pinned in {bpffs}")]);
            if *ended_sockets > 0 {
                let what = format!("{ended_sockets}: their backends had left (ECONNABORTED)");
                facts.row(["Ended UDP sockets", &what]);
            }
        }
        if let Some(source) = &self.source {
            facts.row(["Source", &source.line()]);
        }
        if let Some(node) = &self.node {
            let zone = node.zone.as_ref().map(|zone| format!(", zone {zone}")).unwrap_or_default();
            facts.row(["Node", &format!("{}{zone}", node.name)]);
            let addresses: Vec<_> = node.source_addresses.iter().map(ToString::to_string).collect();
            let addresses = if addresses.is_empty() { "none".to_owned() } else { addresses.join(", ") };
            facts.row(["Translated sources", &addresses]);
        }
        let found = self.kernel.features.iter().filter(|feature| feature.found);
        let found: Vec<_> = found.map(|feature| feature.name.as_str()).collect();
        facts.row(["Kernel", &format!("{} with {}", self.kernel.release, found.join(", "))]);
        facts
    }

    fn table_columns(&self) -> Columns {
        let mut columns = Columns::with_heading(["MAP", "USED", "CAPACITY", "FULL"]);
        for table in &self.tables {
            let percent = (table.used * 100).div_ceil(table.capacity.max(1));
            let (used, capacity) = (table.used.to_string(), table.capacity.to_string());
            columns.row([&table.map, &used, &capacity, &format!("{percent}%")]);
        }
        columns
    }

    fn missing_columns(&self) -> Columns {
        let mut columns = Columns::with_heading(["FEATURE", "SINCE", "MEANING"]);
        for feature in self.kernel.features.iter().filter(|feature| !feature.found) {
            let needed = if feature.required { ", required" } else { "" };
            let since = format!("{}{needed}", feature.since);
            columns.row([&feature.name, &since, &feature.meaning]);
        }
        columns
    }

    fn device_columns(&self) -> Columns {
        let mut columns = Columns::with_heading(["DEVICE", "SERVED", "WHY"]);
        for device in &self.devices {
            let served = if device.served { "yes" } else { "no" };
            columns.row([&device.name, served, &device.why.join(", ")]);
        }
        columns
    }

    fn attachment_columns(&self) -> Columns {
        let mut columns = Columns::with_heading(["PROGRAM", "ID", "LINK", "WHERE"]);
        for attachment in &self.attachments {
            let link = attachment.link_id.map_or_else(|| "-".to_owned(), |id| id.to_string());
            columns.row([&attachment.program, &attachment.program_id.to_string(), &link, &attachment.target]);
        }
        columns
    }

    fn outcome_columns(&self) -> Columns {
        let mut columns = Columns::with_heading(["OUTCOME", "COUNT", "MEANING"]);
        for outcome in &self.outcomes {
            columns.row([&outcome.name, &outcome.count.to_string(), &outcome.meaning]);
        }
        columns
    }
}

impl SourceStatus {
    fn line(&self) -> String {
        let kind = match self.kind {
            SourceKind::Folder => "folder",
            SourceKind::Cluster => "cluster",
        };
        let reachable = if self.reachable { "reachable" } else { "not reachable" };
        let heard = match self.last_heard_seconds {
            Some(seconds) => format!("last heard of {} ago", age(seconds)),
            None => "never heard of".to_owned(),
        };
        format!("{kind} {}, {reachable} for {}, {heard}", self.location, age(self.since_seconds))
    }
}

impl Table for ServiceList {
    fn table(&self) -> String {
        let mut columns = Columns::with_heading([
            "SERVICE",
            "PORT",
            "KIND",
            "PROTOCOL",
            "FRONTEND",
            "CLUSTER/LOCAL",
            "ID",
            "NOTE",
        ]);
        for service in &self.services {
            let name = service.display_name();
            if service.ports.is_empty() {
                let note = service.skipped.as_deref().unwrap_or("no ports");
                let kind = service.service_type.as_deref().unwrap_or("-");
                columns.row([&name, "-", kind, "-", "-", "-", "-", note]);
            }
            for port in &service.ports {
                port.rows(&name, &mut columns);
            }
        }
        columns.render(0)
    }
}

impl ServiceStatus {
    fn display_name(&self) -> String {
        match (&self.namespace, &self.name) {
            (Some(namespace), Some(name)) => format!("{namespace}/{name}"),
            _ => "?".to_owned(),
        }
    }
}

impl PortStatus {
    fn rows(&self, service: &str, columns: &mut Columns) {
        let port = if self.name.is_empty() { "-" } else { &self.name };
        let used = |set: fn(&EndpointStatus) -> &Membership| {
            self.endpoints.iter().filter(|endpoint| set(endpoint).used).count()
        };
        let (cluster, local) = (used(|endpoint| &endpoint.cluster_set), used(|endpoint| &endpoint.local_set));
        let backends = format!("{cluster}/{local} of {}", self.endpoints.len());
        let id = self.service_id.map_or_else(|| "-".to_owned(), |id| id.to_string());
        if self.frontends.is_empty() {
            columns.row([service, port, "-", &self.protocol, "-", &backends, &id, "no frontend"]);
        }
        for frontend in &self.frontends {
            let note = match &frontend.taken_by {
                Some(other) => format!("taken by {other}"),
                None if frontend.in_force => String::new(),
                None => "not in force".to_owned(),
            };
            let FrontendStatus { address, kind, .. } = frontend;
            columns.row([service, port, kind, &self.protocol, address, &backends, &id, &note]);
        }
    }
}

impl Table for BackendList {
    fn table(&self) -> String {
        let mut columns = Columns::with_heading(["BACKEND", "PROTOCOL", "ID", "NODE", "SERVICES"]);
        for backend in &self.backends {
            let BackendStatus { address, protocol, id, local, node, services } = backend;
            let node = match (node, local) {
                (Some(node), true) => format!("{node} (this)"),
                (Some(node), false) => node.clone(),
                (None, true) => "this".to_owned(),
                (None, false) => "-".to_owned(),
            };
            columns.row([address, protocol, &id.to_string(), &node, &services.join(" ")]);
        }
        columns.render(0)
    }
}

fn section(text: &mut String, title: &str, columns: &Columns) {
    text.push('\n');
    text.push_str(title);
    text.push('\n');
    if columns.is_empty() {
        text.push_str("  none\n");
    } else {
        text.push_str(&columns.render(INDENT));
    }
}
