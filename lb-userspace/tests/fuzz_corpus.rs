//! The corpus of the fuzz targets, replayed without a fuzzer: what one of them has found stays found.
#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

#[expect(unreachable_pub, reason = "it is a library where the fuzzer uses it")]
#[path = "../../fuzz/src/lib.rs"]
mod fuzz;

use std::{
    fs,
    panic::catch_unwind,
    path::{Path, PathBuf},
};

/// Runs a target with each file of its corpus.
fn replay(target: &str, run: fn(&[u8])) {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus").join(target);
    let mut files: Vec<PathBuf> = fs::read_dir(corpus).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(!files.is_empty());
    let read = |path: &PathBuf| fs::read(path).unwrap();
    files.retain(|path| catch_unwind(|| run(&read(path))).is_err());
    assert_eq!(files, [] as [PathBuf; 0], "these fail");
}

#[test]
fn every_manifest_of_the_corpus_is_survived() {
    replay("manifests", fuzz::manifests);
}

#[test]
fn every_history_of_the_corpus_ends_in_the_tables_that_its_objects_mean() {
    replay("events", fuzz::events);
}
