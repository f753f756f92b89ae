//! The embedded object: its maps' definitions, and loading its programs.

use std::collections::BTreeMap;

use aya::{
    Ebpf, EbpfLoader,
    programs::{Program, ProgramError, SchedClassifier, Xdp},
};
use aya_obj::Object;
use lb_common::config::{globals, maps, programs};

use super::{
    KernelConfig,
    error::KernelError,
    features::{Features, SET_RETVAL, running_kernel},
    pins::Pins,
};

/// The programs and their maps, as `build.rs` made them.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/sockeye-ebpf"));

/// What a map must be to be used by the programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Definition {
    pub(crate) map_type: u32,
    pub(crate) key_size: u32,
    pub(crate) value_size: u32,
    pub(crate) max_entries: u32,
    pub(crate) flags: u32,
}

/// The definitions of the maps that are pinned, with the configured sizes.
pub(crate) fn definitions(config: &KernelConfig) -> Result<BTreeMap<&'static str, Definition>, KernelError> {
    let object = Object::parse(OBJECT)
        .map_err(|error| KernelError::Object { what: format!("it cannot be parsed: {error}") })?;
    let sizes = sizes(config);
    maps::ALL
        .iter()
        .map(|name| {
            let map = object
                .maps
                .get(*name)
                .ok_or_else(|| KernelError::Object { what: format!("it lacks the map {name}") })?;
            let size = sizes.iter().find(|(sized, _)| sized == name);
            let definition = Definition {
                map_type: map.map_type(),
                key_size: map.key_size(),
                value_size: map.value_size(),
                max_entries: size.map_or(map.max_entries(), |(_, size)| *size),
                flags: map.map_flags(),
            };
            Ok((*name, definition))
        })
        .collect()
}

/// The sizes that are configured.
fn sizes(config: &KernelConfig) -> [(&'static str, u32); 8] {
    [
        (maps::FRONTENDS, config.capacity.frontends),
        (maps::SERVICES, config.capacity.services),
        (maps::BACKENDS, config.capacity.backends),
        (maps::MAGLEV, config.capacity.maglev),
        (maps::SOURCE_RANGES, config.capacity.source_ranges),
        (maps::NODE_ADDRESSES, config.capacity.node_addresses),
        (maps::DATAGRAMS, config.datagrams),
        (maps::FLOWS, config.flows),
    ]
}

/// Creates the maps, except those that are kept, and loads the programs that attach to cgroups.
pub(crate) fn load(
    config: &KernelConfig,
    features: &Features,
    pins: &Pins,
    kept: &[&'static str],
) -> Result<Ebpf, KernelError> {
    let has_set_retval = u8::from(features.has(SET_RETVAL) && !config.closed_ports);
    let mut loader = EbpfLoader::new();
    loader.override_global(globals::HAS_SET_RETVAL, &has_set_retval, true);
    for (name, size) in sizes(config) {
        loader.map_max_entries(name, size);
    }
    for name in kept {
        loader.map_pin_path(name, pins.map(name));
    }
    let mut ebpf = loader.load(OBJECT).map_err(|error| KernelError::Create(Box::new(error)))?;
    for name in cgroup_programs() {
        let done = match program(&mut ebpf, name)? {
            Program::CgroupSockAddr(program) => program.load(),
            Program::CgroupSock(program) => program.load(),
            _ => return Err(wrong_type(name)),
        };
        done.map_err(|error| refused(name, error))?;
    }
    Ok(ebpf)
}

/// Loads a program for devices, if it is not loaded yet: where there are no devices, no kernel has to accept it.
pub(crate) fn device_program<'a>(
    ebpf: &'a mut Ebpf,
    name: &'static str,
) -> Result<&'a mut SchedClassifier, KernelError> {
    let program: &mut SchedClassifier = program(ebpf, name)?.try_into().map_err(|_| wrong_type(name))?;
    match program.load() {
        Ok(()) | Err(ProgramError::AlreadyLoaded) => Ok(program),
        Err(error) => Err(refused(name, error)),
    }
}

/// Loads the XDP program, if it is not loaded yet: where nobody wants it, no kernel has to accept it.
pub(crate) fn xdp_program(ebpf: &mut Ebpf) -> Result<&mut Xdp, KernelError> {
    let name = programs::XDP_INGRESS;
    let program: &mut Xdp = program(ebpf, name)?.try_into().map_err(|_| wrong_type(name))?;
    match program.load() {
        Ok(()) | Err(ProgramError::AlreadyLoaded) => Ok(program),
        Err(error) => Err(refused(name, error)),
    }
}

/// The programs that attach to cgroups, in the order in which they are attached.
pub(crate) fn cgroup_programs() -> impl Iterator<Item = &'static str> {
    programs::CGROUP.into_iter().chain(programs::BIND)
}

/// A program of the object.
pub(crate) fn program<'a>(ebpf: &'a mut Ebpf, name: &'static str) -> Result<&'a mut Program, KernelError> {
    ebpf.program_mut(name).ok_or_else(|| KernelError::Object { what: format!("it lacks the program {name}") })
}

fn wrong_type(name: &str) -> KernelError {
    KernelError::Object { what: format!("the program {name} is of another type") }
}

/// A verifier's log is long, and its end says why.
pub(crate) fn refused(program: &str, error: ProgramError) -> KernelError {
    match error {
        ProgramError::LoadError { io_error, verifier_log } => {
            let log = verifier_log.to_string();
            tracing::debug!(program, %log, "refused by the verifier");
            KernelError::Refused {
                program: program.to_owned(),
                running: running_kernel(),
                excerpt: last_lines(&log, 5),
                source: io_error,
            }
        }
        other => KernelError::program("loading", program, String::new())(other),
    }
}

/// The last lines that say something: the statistics at the end do not.
fn last_lines(log: &str, count: usize) -> String {
    let lines: Vec<&str> =
        log.lines().map(str::trim).filter(|line| !line.is_empty() && !is_statistics(line)).collect();
    lines[lines.len().saturating_sub(count)..].join("; ")
}

fn is_statistics(line: &str) -> bool {
    ["processed ", "verification time", "stack depth", "insns processed"]
        .iter()
        .any(|start| line.starts_with(start))
}

#[cfg(test)]
mod tests {
    use lb_common::{
        backend::Backend,
        config::Config,
        frontend::FrontendKey,
        service::ServiceRecord,
        service_cidr::ServiceCidrs,
        source::{SourceKey, SourceRange},
    };

    use super::*;

    #[test]
    fn the_object_holds_every_map_and_program_with_the_layout_of_lb_common() {
        let config = KernelConfig { flows: 7, ..KernelConfig::default() };
        let definitions = definitions(&config).unwrap();
        let size = |name: &str| (definitions[name].key_size as usize, definitions[name].value_size as usize);
        assert_eq!(size(maps::FRONTENDS), (size_of::<FrontendKey>(), 8));
        assert_eq!(size(maps::SERVICES), (4, size_of::<ServiceRecord>()));
        assert_eq!(size(maps::BACKENDS), (4, size_of::<Backend>()));
        assert_eq!(size(maps::SOURCE_RANGES), (4 + size_of::<SourceKey>(), size_of::<SourceRange>()));
        assert_eq!(size(maps::SERVICE_CIDRS), (4, size_of::<ServiceCidrs>()));
        assert_eq!(size(maps::CONFIG), (4, size_of::<Config>()));
        assert_eq!(definitions[maps::FLOWS].max_entries, 7);
        let object = Object::parse(OBJECT).unwrap();
        for name in
            cgroup_programs().chain([programs::TC_INGRESS, programs::TC_EGRESS, programs::CONNECTED_UDP])
        {
            assert!(object.programs.contains_key(name), "{name}");
        }
    }

    #[test]
    fn an_excerpt_is_the_end_without_the_statistics() {
        let log = "0: (bf) r6 = r1\n1: call 187\n\nunknown func bpf_set_retval#187\nprocessed 2 insns (limit 1000000)\n";
        assert_eq!(last_lines(log, 2), "1: call 187; unknown func bpf_set_retval#187");
        assert_eq!(last_lines("", 2), "");
    }
}
