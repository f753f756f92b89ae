//! How the programs are linked.

fn main() {
    // The linker's default expands memcpy in order and, as LLVM couples the two, calls functions for memset and memmove
    // of any size, a few bytes included. Such a call costs more than the bytes, and spills what the verifier follows.
    println!("cargo::rustc-link-arg-bins=--disable-expand-memcpy-in-order");
    println!("cargo::rerun-if-changed=build.rs");
}
