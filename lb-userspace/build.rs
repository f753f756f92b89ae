//! Builds the eBPF programs and puts the object into `OUT_DIR`, where `kernel::load` embeds it.
//!
//! The pinned stable toolchain builds them too: `RUSTC_BOOTSTRAP=1` opens `-Z build-std` for `core` on the BPF target,
//! which is what `aya_build` turns on when it sees that variable. It is set here, for the nested cargo alone; in the
//! environment of the whole build it would make every crate rebuild and let some of them find a nightly compiler.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};
use aya_build::{Package, Toolchain};

const SET_UP: &str = "run `./x setup`, which installs what the build needs";

fn main() -> Result<()> {
    if let Some(commit) = commit() {
        println!("cargo::rustc-env=SOCKEYE_COMMIT={commit}");
    }
    // The nested build embeds lb-common and follows the workspace's versions and profiles; aya_build watches lb-ebpf.
    for path in ["../lb-common", "../Cargo.toml", "../Cargo.lock", "../rust-toolchain.toml"] {
        println!("cargo::rerun-if-changed={path}");
    }
    let toolchain = pinned_toolchain(Path::new("../rust-toolchain.toml"))?;
    println!("cargo::rerun-if-changed={}", bpf_linker()?.display());
    check_rust_src(&toolchain)?;
    // Cargo repeats what a build script prints as warnings at every build; errors still come through.
    for (name, value) in [("RUSTC_BOOTSTRAP", "1"), ("CARGO_TERM_QUIET", "true")] {
        // SAFETY: a build script's main thread, before any other thread exists.
        unsafe { env::set_var(name, value) };
    }
    let programs = Package { name: "lb-ebpf", root_dir: "../lb-ebpf", ..Package::default() };
    aya_build::build_ebpf([programs], Toolchain::Custom(&toolchain)).context("building the eBPF programs")
}

/// The channel in `rust-toolchain.toml`: the one place that names the version.
fn pinned_toolchain(file: &Path) -> Result<String> {
    let text = fs::read_to_string(file).with_context(|| format!("reading {}", file.display()))?;
    let channel = text
        .lines()
        .filter_map(|line| line.split_once('='))
        .find(|(key, _)| key.trim() == "channel")
        .map(|(_, value)| value.trim().trim_matches('"').to_owned());
    channel.with_context(|| format!("{} names no channel", file.display()))
}

/// Where the linker for the BPF target is; rustc finds it on the same `PATH`.
fn bpf_linker() -> Result<PathBuf> {
    println!("cargo::rerun-if-env-changed=PATH");
    let path = env::var_os("PATH").unwrap_or_default();
    match env::split_paths(&path).map(|directory| directory.join("bpf-linker")).find(|file| file.is_file()) {
        Some(file) => Ok(file),
        None => bail!("bpf-linker is not on the PATH; {SET_UP}"),
    }
}

/// Without the sources of `core` the nested build fails with a message that does not say what to do.
fn check_rust_src(toolchain: &str) -> Result<()> {
    let mut sysroot = Command::new("rustup");
    sysroot.args(["run", toolchain, "rustc", "--print", "sysroot"]);
    let output = match sysroot.output() {
        Ok(output) if output.status.success() => output,
        Ok(_) => bail!("toolchain {toolchain} is not installed; {SET_UP}"),
        // No rustup: aya_build uses the compiler at hand, and so does this.
        Err(_) => {
            let rustc = env::var_os("RUSTC").context("RUSTC is not set")?;
            Command::new(rustc)
                .args(["--print", "sysroot"])
                .output()
                .context("asking rustc for its sysroot")?
        }
    };
    let root = PathBuf::from(String::from_utf8(output.stdout)?.trim());
    if !root.join("lib/rustlib/src/rust/library/core/Cargo.toml").is_file() {
        bail!("toolchain {toolchain} lacks the component rust-src; {SET_UP}");
    }
    Ok(())
}

/// The commit that this is built from, for `sockeye version`; none outside a repository, such as in a source archive.
fn commit() -> Option<String> {
    println!("cargo::rerun-if-env-changed=SOCKEYE_COMMIT");
    if let Ok(given) = env::var("SOCKEYE_COMMIT") {
        return Some(given).filter(|commit| !commit.is_empty());
    }
    // The log of HEAD grows with each commit and each checkout; HEAD itself often only names a branch.
    let log = PathBuf::from(git(&["rev-parse", "--path-format=absolute", "--git-path", "logs/HEAD"])?);
    if log.is_file() {
        println!("cargo::rerun-if-changed={}", log.display());
    }
    git(&["rev-parse", "--short=12", "HEAD"])
}

fn git(arguments: &[&str]) -> Option<String> {
    let output =
        Command::new("git").args(arguments).output().ok().filter(|output| output.status.success())?;
    Some(String::from_utf8(output.stdout).ok()?.trim().to_owned())
}
