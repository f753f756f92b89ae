//! Sockeye's tasks.

fn main() {}
