//! Sockeye's node agent.
//!
//! ```text
//! source (cluster | folder) → state → resolve → desired → plan → apply → kernel maps
//! └──── edge: kube, files ─┘ └────── pure: values in, values out ─────┘ └─ edge: aya ┘
//! ```
//!
//! The pure middle knows no I/O, clock, randomness, async or hash order: the same objects in any order end in the same
//! maps. One task, [`reconcile`], writes maps and owns retries.
//!
//! `kube` and `k8s_openapi` appear only in [`source`]; `aya` only in [`kernel`] and `store::kernel`.

pub mod agent;
mod bound;
pub mod cli;
pub mod config;
pub mod desired;
pub mod health_check;
mod host;
pub mod kernel;
mod lookup;
pub mod model;
pub mod netlink;
mod netns;
pub mod output;
pub mod pipeline;
pub mod plan;
pub mod reconcile;
pub mod resolve;
mod sock_diag;
pub mod source;
pub mod state;
pub mod status;
pub mod store;
pub mod story;
pub mod telemetry;
pub mod version;
