//! What the running kernel can do, found by asking it: distributions backport, and builds leave things out.

use std::{fs, io};

use aya::{
    maps::{Array, MapData, MapType},
    programs::{ProgramError, ProgramType, SchedClassifier, TcAttachType},
    sys::{
        BpfHelper, SyscallError, is_bpf_global_data_supported, is_btf_supported, is_helper_supported,
        is_map_supported,
    },
};
use aya_obj::generated::{BPF_F_MMAPABLE, bpf_attach_type};
use serde::Serialize;

use super::{bpf, error::KernelError, netns::netns_cookie};
use crate::sock_diag;

/// Something that a kernel has or lacks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Feature {
    /// Short name.
    pub name: &'static str,
    /// What Sockeye uses it for; if it is optional, what happens without it.
    pub purpose: &'static str,
    /// The first upstream kernel that has it. Distributions may have it earlier.
    pub since: &'static str,
    /// Whether Sockeye refuses to start without it.
    pub required: bool,
    /// Whether this kernel has it.
    pub found: bool,
}

/// All features, as found at start.
#[derive(Clone, Debug)]
pub(crate) struct Features {
    pub(crate) list: Vec<Feature>,
}

/// The features that change what is loaded or how it is attached.
pub(crate) const SET_RETVAL: &str = "bpf_set_retval";
pub(crate) const TCX: &str = "tcx";
pub(crate) const NETNS_COOKIE: &str = "SO_NETNS_COOKIE";
pub(crate) const SOCKET_ITERATOR: &str = "socket iterator";
pub(crate) const SOCK_DESTROY: &str = "SOCK_DESTROY";

/// A line of the table below.
struct Probe {
    name: &'static str,
    purpose: &'static str,
    since: &'static str,
    required: bool,
    ask: fn() -> io::Result<bool>,
}

const PROBES: [Probe; 18] = [
    Probe {
        name: "btf",
        purpose: "maps with types, which socket storage needs",
        since: "4.18",
        required: true,
        ask: is_btf_supported,
    },
    Probe {
        name: "global data",
        purpose: "facts of the kernel for the programs",
        since: "5.2",
        required: true,
        ask: is_bpf_global_data_supported,
    },
    Probe {
        name: "mapped arrays",
        purpose: "endpoint changes by one store to memory",
        since: "5.5",
        required: true,
        ask: mapped_arrays,
    },
    Probe {
        name: "array of maps",
        purpose: "waiting until all running programs have ended",
        since: "4.12",
        required: true,
        ask: || map(MapType::ArrayOfMaps),
    },
    Probe {
        name: "lru hash",
        purpose: "datagrams and north-south connections",
        since: "4.10",
        required: true,
        ask: || map(MapType::LruHash),
    },
    Probe {
        name: "socket storage",
        purpose: "what a socket was translated to",
        since: "5.3",
        required: true,
        ask: || Ok(map(MapType::SkStorage)? && helper(BpfHelper::BPF_FUNC_sk_storage_get)?),
    },
    Probe {
        name: "socket cookie",
        purpose: "datagrams of one socket to several services",
        since: "4.18",
        required: true,
        ask: || helper(BpfHelper::BPF_FUNC_get_socket_cookie),
    },
    Probe {
        name: "netns cookie",
        purpose: "telling the host's sockets from the pods'",
        since: "5.7",
        required: true,
        ask: || helper(BpfHelper::BPF_FUNC_get_netns_cookie),
    },
    Probe {
        name: "cgroup id",
        purpose: "clients behind one address are told apart by their pod",
        since: "5.7",
        required: true,
        ask: || helper(BpfHelper::BPF_FUNC_get_current_ancestor_cgroup_id),
    },
    Probe {
        name: "recvmsg hooks",
        purpose: "datagrams' sources show the service",
        since: "5.2",
        required: true,
        ask: || bpf::accepts_sock_addr(bpf_attach_type::BPF_CGROUP_UDP6_RECVMSG),
    },
    Probe {
        name: "getpeername hooks",
        purpose: "connected sockets show the service",
        since: "5.8",
        required: true,
        ask: || bpf::accepts_sock_addr(bpf_attach_type::BPF_CGROUP_INET6_GETPEERNAME),
    },
    Probe {
        name: "links",
        purpose: "programs stay attached without the agent, and are replaced without a gap",
        since: "5.7",
        required: true,
        ask: bpf::has_links,
    },
    Probe {
        name: "redirect to a neighbour",
        purpose: "clients from outside reach backends on other nodes",
        since: "5.10",
        required: true,
        ask: || helper_of(ProgramType::SchedClassifier, BpfHelper::BPF_FUNC_redirect_neigh),
    },
    Probe {
        name: NETNS_COOKIE,
        purpose: "knowing the host's and the pods' network namespaces; without it node ports do not answer at loopback \
                  addresses and may be bound, Services with source ranges refuse unbound sockets, and connected UDP \
                  sockets stay with a backend that has left",
        since: "5.14",
        required: false,
        ask: netns_cookie_option,
    },
    Probe {
        name: SET_RETVAL,
        purpose: "choosing the error of a refused call; without it a closed port refuses connections, and bind() gets \
                  EPERM",
        since: "5.18",
        required: false,
        ask: || helper(BpfHelper::BPF_FUNC_set_retval),
    },
    Probe {
        name: SOCKET_ITERATOR,
        purpose: "connected UDP sockets end when their backend has left; without it they stay with it",
        since: "5.12",
        required: false,
        ask: socket_iterator,
    },
    Probe {
        name: SOCK_DESTROY,
        purpose: "connected UDP sockets end when their backend has left; without it (CONFIG_INET_DIAG_DESTROY, \
                  CONFIG_INET_UDP_DIAG) they stay with it",
        since: "4.9",
        required: false,
        ask: sock_diag::can_destroy_udp,
    },
    Probe {
        name: TCX,
        purpose: "north-south programs as links; without it as clsact filters",
        since: "6.6",
        required: false,
        ask: tcx,
    },
];

impl Features {
    /// Asks the kernel.
    pub(crate) fn probe() -> Result<Self, KernelError> {
        let list = PROBES.iter().map(|Probe { name, purpose, since, required, ask }| {
            let found = ask().map_err(|source| KernelError::Probe { feature: name, source })?;
            Ok(Feature { name, purpose, since, required: *required, found })
        });
        Ok(Self { list: list.collect::<Result<_, KernelError>>()? })
    }

    /// Fails if a required one is missing, and names them all.
    pub(crate) fn check(&self) -> Result<(), KernelError> {
        let missing: Vec<String> = self
            .list
            .iter()
            .filter(|feature| feature.required && !feature.found)
            .map(|feature| format!("{} (kernel {}, for {})", feature.name, feature.since, feature.purpose))
            .collect();
        if missing.is_empty() {
            return Ok(());
        }
        Err(KernelError::Unsupported { running: running_kernel(), missing: missing.join("; ") })
    }

    /// Whether the kernel has it.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.list.iter().any(|feature| feature.name == name && feature.found)
    }
}

/// Probes the kernel: for `sockeye status` where no agent runs.
pub fn probe_features() -> Result<Vec<Feature>, KernelError> {
    Features::probe().map(|features| features.list)
}

/// The running kernel's release, as `uname -r` prints it.
pub(crate) fn running_kernel() -> String {
    nix::sys::utsname::uname()
        .map_or_else(|_| "unknown".to_owned(), |name| name.release().to_string_lossy().into_owned())
}

fn helper(helper: BpfHelper) -> io::Result<bool> {
    helper_of(ProgramType::CgroupSockAddr, helper)
}

fn helper_of(program: ProgramType, helper: BpfHelper) -> io::Result<bool> {
    is_helper_supported(program, helper).map_err(|error| match error {
        ProgramError::SyscallError(SyscallError { io_error, .. }) => io_error,
        other => io::Error::other(other),
    })
}

fn map(map_type: MapType) -> io::Result<bool> {
    is_map_supported(map_type).map_err(|SyscallError { io_error, .. }| io_error)
}

fn mapped_arrays() -> io::Result<bool> {
    use aya::maps::MapError;
    match Array::<MapData, u64>::create(1, BPF_F_MMAPABLE) {
        Ok(_) => Ok(true),
        Err(MapError::CreateError { io_error, .. }) if io_error.raw_os_error() == Some(libc::EINVAL) => {
            Ok(false)
        }
        Err(MapError::CreateError { io_error, .. }) => Err(io_error),
        Err(other) => Err(io::Error::other(other)),
    }
}

fn netns_cookie_option() -> io::Result<bool> {
    match netns_cookie() {
        Ok(_) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ENOPROTOOPT) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Iterators over socket storage (5.9), and a socket's cookie for them (5.12): the kernel's own types name what it has.
fn socket_iterator() -> io::Result<bool> {
    const NAMES: [&[u8]; 2] = [b"\0bpf_iter_bpf_sk_storage_map\0", b"\0bpf_get_socket_ptr_cookie\0"];
    let types = match fs::read("/sys/kernel/btf/vmlinux") {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        types => types?,
    };
    Ok(NAMES.iter().all(|name| memchr::memmem::find(&types, name).is_some()))
}

/// Asks the loopback device, which every network namespace has as its first, for its programs.
fn tcx() -> io::Result<bool> {
    match SchedClassifier::query_tcx(c"lo", TcAttachType::Ingress) {
        Ok(_) => Ok(true),
        Err(ProgramError::SyscallError(SyscallError { io_error, .. })) => match io_error.raw_os_error() {
            Some(libc::EINVAL) => Ok(false),
            _ => Err(io_error),
        },
        Err(other) => Err(io::Error::other(other)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn feature(name: &'static str, required: bool, found: bool) -> Feature {
        Feature { name, purpose: "a test", since: "9.9", required, found }
    }

    #[test]
    fn refuses_without_a_required_feature_and_names_its_version() {
        let features = Features {
            list: vec![feature("a", true, true), feature("b", true, false), feature("c", false, false)],
        };
        let error = features.check().unwrap_err().to_string();
        assert!(error.contains("b (kernel 9.9, for a test)"), "{error}");
        assert!(!error.contains("c (kernel"), "{error}");
        assert!(features.has("a") && !features.has("b") && !features.has("d"));
    }

    #[test]
    fn starts_without_an_optional_one() {
        Features { list: vec![feature("a", true, true), feature("c", false, false)] }.check().unwrap();
    }
}
