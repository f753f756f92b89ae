//! Each story of `tests/stories` on a store in memory, and on one where a tenth of the writes fail.
//!
//! `UPDATE_STORIES=1` writes what was found into the stories: read the difference before you keep it.
#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

use std::{env, fs, path::Path};

use lb_userspace::{
    store::{checked::CheckedStore, fake::FakeStore, faulty::FaultyStore},
    story::Story,
};

fn stories() -> Vec<(std::path::PathBuf, Story)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/stories");
    let stories = Story::load_all(&folder).unwrap();
    assert!(!stories.is_empty());
    stories
}

#[test]
fn every_story_happens_as_told() {
    let update = env::var_os("UPDATE_STORIES").is_some();
    let mut failures = Vec::new();
    for (path, story) in stories() {
        let mut store = CheckedStore::new(FakeStore::new(story.capacity())).unwrap();
        if update {
            fs::write(path, story.retell(&mut store).unwrap()).unwrap();
        } else if let Err(error) = story.verify(&mut store) {
            failures.push(error.to_string());
        }
        failures.extend(store.violations().iter().map(|what| format!("{}: {what}", story.name)));
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn a_tenth_of_the_writes_failing_changes_no_ending() {
    let mut failed_writes = 0;
    for (_, story) in stories() {
        for seed in 0..20 {
            let checked = CheckedStore::new(FakeStore::new(story.capacity())).unwrap();
            let mut store = FaultyStore::new(checked, 10, seed);
            if let Err(error) = story.verify(&mut store) {
                panic!("seed {seed}: {error}");
            }
            assert_eq!(store.inner().violations(), &[] as &[String], "seed {seed}: {}", story.name);
            failed_writes += store.failures();
        }
    }
    assert!(failed_writes > 0);
}
