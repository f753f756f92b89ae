//! What the pinned maps hold: the counters of outcomes, and entries as `bpftool` shows them.

use std::{collections::BTreeMap, net::IpAddr, path::Path, process::Command};

use anyhow::{Context as _, Result, ensure};
use aya::maps::{Array, HashMap, Map, MapData, PerCpuArray};
use lb_common::{
    address::Address,
    config::maps::{FRONTENDS, SERVICES},
    frontend::{FrontendEntry, FrontendKey},
    outcome::{COUNT, describe},
    service::ServiceRecord,
};
use serde_json::Value;

use crate::{
    process::{self, Place},
    wait,
};

/// How often decisions ended in each way, by name; those that never happened are left out.
pub type Outcomes = BTreeMap<&'static str, u64>;

/// Reads the counters, added up over all processors.
pub fn outcomes(map: &Path) -> Result<Outcomes> {
    let data = MapData::from_pin(map).with_context(|| format!("opening {}", map.display()))?;
    let array: PerCpuArray<_, u64> = Map::PerCpuArray(data)
        .try_into()
        .with_context(|| format!("{} is no per-CPU array of counters", map.display()))?;
    let mut counts = Outcomes::new();
    for number in 0..COUNT {
        let values = array.get(&number, 0).with_context(|| format!("reading counter {number}"))?;
        let count = values.iter().sum();
        if count > 0 {
            let (name, _) = describe(number).with_context(|| format!("counter {number} has no name"))?;
            counts.insert(name, count);
        }
    }
    Ok(counts)
}

/// What was counted between two readings.
pub fn delta(before: &Outcomes, after: &Outcomes) -> Outcomes {
    let since = |name| before.get(name).copied().unwrap_or(0);
    after.iter().map(|(name, count)| (*name, count - since(name))).filter(|(_, count)| *count > 0).collect()
}

/// The service record that a frontend leads to: two look-ups, as the programs do.
pub fn record(pins: &Path, frontend: &FrontendKey) -> Result<ServiceRecord> {
    let open = |name| MapData::from_pin(pins.join(name)).with_context(|| format!("opening {name}"));
    let frontends: HashMap<_, FrontendKey, FrontendEntry> =
        Map::HashMap(open(FRONTENDS)?).try_into().context("the map of frontends")?;
    let services: Array<_, ServiceRecord> =
        Map::Array(open(SERVICES)?).try_into().context("the map of service records")?;
    let entry = frontends.get(frontend, 0).with_context(|| format!("no frontend {frontend:?}"))?;
    services.get(&entry.record, 0).with_context(|| format!("no service record {}", entry.record))
}

/// The entries of a pinned map, as `bpftool map dump pinned` prints them with the map's type information.
pub fn entries(map: &Path) -> Result<Vec<Value>> {
    let mut command = Command::new("bpftool");
    command.args(["--json", "map", "dump", "pinned"]).arg(map);
    let what = format!("bpftool map dump pinned {}", map.display());
    let text = process::run(&what, command, Place::default(), wait::SOON)?.success()?;
    let dump: Value = serde_json::from_str(&text).with_context(|| format!("what {what} printed"))?;
    let all = dump.as_array().with_context(|| format!("{what} printed no list"))?;
    // With type information, an entry has the typed form beside the raw one.
    all.iter()
        .map(|entry| {
            entry.get("formatted").cloned().with_context(|| format!("{what}: no type information: {entry}"))
        })
        .collect()
}

/// Reads an address of a dump: the bytes in network order.
pub fn address(value: &Value) -> Result<IpAddr> {
    let bytes: Vec<u8> =
        serde_json::from_value(value["bytes"].clone()).with_context(|| format!("an address: {value}"))?;
    let bytes: [u8; 16] = bytes.try_into().ok().context("an address of 16 bytes")?;
    Ok(Address::from_bytes(bytes).into())
}

/// Reads a port of a dump: two bytes in network order.
pub fn port(value: &Value) -> Result<u16> {
    let bytes: Vec<u8> =
        serde_json::from_value(value["bytes"].clone()).with_context(|| format!("a port: {value}"))?;
    ensure!(bytes.len() == 2, "a port of two bytes: {value}");
    Ok(u16::from_be_bytes([bytes[0], bytes[1]]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_changed_is_in_the_delta() {
        let before = Outcomes::from([("a", 1), ("b", 2)]);
        let after = Outcomes::from([("a", 1), ("b", 5), ("c", 1)]);
        assert_eq!(delta(&before, &after), Outcomes::from([("b", 3), ("c", 1)]));
    }
}
