//! What the fuzz targets do with their bytes. `cargo test` does it too, with the committed corpus and without a fuzzer
//! (lb-userspace/tests/fuzz_corpus.rs).
#![expect(clippy::unwrap_used, reason = "a fuzz target ends at the first surprise")]

mod agent;
mod events;
mod manifests;

pub use self::{events::events, manifests::manifests};
