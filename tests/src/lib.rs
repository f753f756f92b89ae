//! The harness of the integration tests and of the demo: namespaces as machines, real cgroups, real sockets.
//!
//! What a test makes, a guard undoes: on success, on each error path and on a panic, in the order in which the guards
//! are dropped. Names carry the process id, so tests run side by side, and what a killed run left behind is removed by
//! the next one ([`unique`]). Nothing here touches the machine's own network, its sysctls or its root cgroup.
//!
//! ```text
//! topology ── netns, cgroup      machines, and where their processes live
//! server, probe ── process       who answers, and who asks and reports what an application sees
//! agent ── bpffs, process        the `sockeye` under test, and what it logs
//! dump                           what the pinned maps hold
//! controlplane                   a real API server with its controllers, and pods without containers
//! ```
//!
//! Root is needed. Without it every guard fails with one clear line; nothing is skipped. A kernel that is too old for a
//! feature is the only reason to skip a test ([`require!`]).

pub mod agent;
pub mod bpf;
pub mod bpffs;
pub mod cgroup;
pub mod cluster;
pub mod controlplane;
pub mod dump;
pub mod manifests;
pub mod netns;
pub mod probe;
pub mod process;
pub mod require;
pub mod server;
pub mod topology;
pub mod unique;
pub mod wait;
