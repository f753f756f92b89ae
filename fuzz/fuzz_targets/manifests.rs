//! Any text as a manifest.
#![no_main]

libfuzzer_sys::fuzz_target!(|text: &[u8]| lb_fuzz::manifests(text));
