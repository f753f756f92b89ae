//! The sources at work: folders that really change, and API servers that misbehave on request.

#![expect(clippy::unwrap_used, reason = "set-up of tests")]

mod api_server;
mod cluster;
mod folder;
mod kubeconfig;
mod mirror;
