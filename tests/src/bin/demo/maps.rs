//! The way through the pinned maps from a frontend to its backends, as `bpftool` shows it.

use std::{net::SocketAddr, process::Command};

use anyhow::{Context as _, Result};
use lb_common::{
    address::Protocol,
    config::maps::{BACKENDS, FRONTENDS, SERVICES},
};
use lb_tests::{
    agent::Installation,
    dump,
    process::{self, Place},
    wait,
};
use serde_json::Value;

use crate::teller::Teller;

/// Shows the entry of a frontend, its service record, and the slots of its cluster set.
pub(crate) fn show(
    teller: &Teller,
    sockeye: &Installation<'_>,
    frontend: SocketAddr,
    protocol: Protocol,
) -> Result<()> {
    let path = sockeye.map_path(FRONTENDS);
    let all = dump::entries(&path)?;
    let entry = find(&all, frontend, protocol)?;
    teller.command(&format!("bpftool map dump pinned {}", path.display()))?;
    teller.output(&format!("{}   (one of {} entries)", terse(entry), all.len()))?;

    let record = number(&entry["value"], "record")?;
    let service = element(teller, sockeye, SERVICES, record)?;
    teller.output(&format!(
        "cluster: {}  local: {}",
        terse(&service["cluster"]),
        terse(&service["local"])
    ))?;

    let (first, count) = (number(&service["cluster"], "first")?, number(&service["cluster"], "count")?);
    for slot in first..first + count {
        let backend = element(teller, sockeye, BACKENDS, slot)?;
        teller.output(&terse(&backend))?;
    }
    Ok(())
}

fn find(entries: &[Value], frontend: SocketAddr, protocol: Protocol) -> Result<&Value> {
    let is_it = |key: &Value| {
        dump::address(&key["address"]).is_ok_and(|ip| ip == frontend.ip())
            && dump::port(&key["port"]).is_ok_and(|port| port == frontend.port())
            && key["protocol"] == protocol as u8
    };
    let entry = entries.iter().find(|entry| is_it(&entry["key"]));
    entry.with_context(|| format!("{FRONTENDS} has no entry {frontend}/{protocol}"))
}

/// Shows the command that looks an element of an array up; gives the element.
fn element(teller: &Teller, sockeye: &Installation<'_>, map: &str, index: u32) -> Result<Value> {
    let [a, b, c, d] = index.to_ne_bytes();
    let path = sockeye.map_path(map);
    teller.command(&format!("bpftool map lookup pinned {} key {a} {b} {c} {d}", path.display()))?;
    look_up(sockeye, map, index)
}

fn look_up(sockeye: &Installation<'_>, map: &str, index: u32) -> Result<Value> {
    let path = sockeye.map_path(map);
    let mut command = Command::new("bpftool");
    command.args(["--json", "map", "lookup", "pinned"]).arg(&path).arg("key");
    command.args(index.to_ne_bytes().map(|byte| byte.to_string()));
    let what = format!("bpftool map lookup pinned {}", path.display());
    let text = process::run(&what, command, Place::default(), wait::SOON)?.success()?;
    let mut found: Value = serde_json::from_str(&text).with_context(|| format!("what {what} printed"))?;
    Ok(found["formatted"]["value"].take())
}

fn number(value: &Value, field: &str) -> Result<u32> {
    let number = value[field].as_u64().and_then(|number| number.try_into().ok());
    number.with_context(|| format!("no number {field} in {value}"))
}

/// Typed output on one line: addresses and ports as people write them, without reserved fields.
fn terse(value: &Value) -> String {
    match value {
        Value::Object(fields) => {
            if let Ok(address) = dump::address(value) {
                return address.to_string();
            }
            if let Ok(port) = dump::port(value) {
                return port.to_string();
            }
            let shown = fields.iter().filter(|(name, _)| *name != "reserved");
            let shown: Vec<_> = shown.map(|(name, value)| format!("{name} {}", terse(value))).collect();
            format!("{{ {} }}", shown.join(", "))
        }
        other => other.to_string(),
    }
}
