//! Names for what differs between the families, so that a case is written once and runs for both.

use anyhow::{Context as _, Result};

use crate::text::{Case, Layer};

/// The machines of the topology and the addresses of the services, in each family.
const ADDRESSES: [(&str, [&str; 2]); 12] = [
    ("client", ["172.18.0.10", "fd00:18::10"]),
    ("neighbour", ["172.18.0.99", "fd00:18::99"]),
    ("node", ["172.18.0.2", "fd00:18::2"]),
    ("router", ["172.18.0.1", "fd00:18::1"]),
    ("pod1", ["10.244.1.11", "fd00:244:1::11"]),
    ("pod2", ["10.244.1.12", "fd00:244:1::12"]),
    ("pod3", ["10.244.2.13", "fd00:244:2::13"]),
    ("narrow", ["10.244.2.99", "fd00:244:2::99"]),
    ("balancer", ["203.0.113.10", "2001:db8:113::10"]),
    ("external", ["198.51.100.7", "2001:db8:100::7"]),
    ("abandoned", ["198.51.100.8", "2001:db8:100::8"]),
    ("stranger", ["192.0.2.1", "2001:db8:2::1"]),
];

/// Types and codes of ICMP: RFC 792 and RFC 4443.
const ICMP: [(&str, [[&str; 2]; 2]); 7] = [
    ("no-route", [["3", "0"], ["1", "0"]]),
    ("prohibited", [["3", "13"], ["1", "1"]]),
    ("closed-port", [["3", "3"], ["1", "4"]]),
    ("too-big", [["3", "4"], ["2", "0"]]),
    ("expired", [["11", "0"], ["3", "0"]]),
    ("echo", [["8", "0"], ["128", "0"]]),
    ("echo-reply", [["0", "0"], ["129", "0"]]),
];

/// A case for each family, if it speaks of `ip`; else the case itself.
pub(crate) fn for_each_family(case: Case) -> Result<Vec<Case>> {
    let layers = case.steps.iter().flat_map(|step| step.input.iter().chain(&step.output));
    if !layers.into_iter().any(|layer| layer.kind == "ip") {
        return Ok(vec![case]);
    }
    (0..2).map(|family| of_family(&case, family).with_context(|| case.name.clone())).collect()
}

fn of_family(case: &Case, family: usize) -> Result<Case> {
    let mut case = case.clone();
    case.name = format!("{} (IPv{})", case.name, [4, 6][family]);
    for step in &mut case.steps {
        for layers in [&mut step.input, &mut step.output] {
            layers.iter_mut().try_for_each(|layer| resolve(layer, family))?;
            absorb_fragments(layers);
        }
    }
    Ok(case)
}

/// What IPv6 has in a header of its own stands in IPv4's.
fn absorb_fragments(layers: &mut Vec<Layer>) {
    while let Some(index) =
        layers.windows(2).position(|two| two[0].kind == "ipv4" && two[1].kind == "fragment")
    {
        let fragment = layers.remove(index + 1);
        layers[index].absorb(fragment);
    }
}

fn resolve(layer: &mut Layer, family: usize) -> Result<()> {
    if layer.kind == "ip" {
        ["ipv4", "ipv6"][family].clone_into(&mut layer.kind);
        for word in &mut layer.words {
            let known = ADDRESSES.iter().find(|(name, _)| name == word);
            let (_, addresses) = known.with_context(|| format!("no machine is called {word:?}"))?;
            addresses[family].clone_into(word);
        }
    } else if layer.kind == "icmp"
        && let Some((_, numbers)) = ICMP.iter().find(|(name, _)| layer.words.iter().eq([name]))
    {
        layer.words = numbers[family].map(str::to_owned).to_vec();
    }
    Ok(())
}
