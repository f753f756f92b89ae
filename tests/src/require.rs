//! What a test needs of the kernel, and the record of what was skipped.
//!
//! A skip must be proven: it happens only on a kernel that is older than the one that brought the feature. On a newer
//! one the test runs, and a missing feature fails it.

use std::{env, fs::OpenOptions, io::Write as _};

use anyhow::{Context as _, Result, ensure};
use nix::sys::utsname::uname;

/// File that skips are appended to, one a line; the test runner counts them.
pub const SKIPS_FILE: &str = "SOCKEYE_TEST_SKIPS";

/// Ends the test, skipped, if the running kernel is older than the given version; for functions that return
/// `anyhow::Result<()>`.
///
/// ```no_run
/// # fn main() -> anyhow::Result<()> {
/// lb_tests::require!(kernel >= (6, 6), "tcx");
/// # Ok(())
/// # }
/// ```
#[macro_export]
macro_rules! require {
    (kernel >= ($major:literal, $minor:literal), $feature:literal) => {
        if !$crate::require::kernel_has(($major, $minor), $feature)? {
            return Ok(());
        }
    };
}

/// Whether the running kernel is of this version or newer; if not, records and prints the skip.
pub fn kernel_has(needed: (u32, u32), feature: &str) -> Result<bool> {
    let running = kernel_version()?;
    if running >= needed {
        return Ok(true);
    }
    let test = std::thread::current().name().unwrap_or("a test").to_owned();
    let line = format!(
        "SKIPPED {test}: {feature} needs kernel {}.{}, this is {}.{}\n",
        needed.0, needed.1, running.0, running.1
    );
    // Straight to the descriptor: libtest captures what goes through the print macros, and a skip must be seen.
    std::io::stderr().write_all(line.as_bytes()).context("printing a skip")?;
    if let Some(path) = env::var_os(SKIPS_FILE) {
        let mut file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&path)
            .with_context(|| format!("opening {}", path.display()))?;
        file.write_all(line.as_bytes()).with_context(|| format!("recording a skip in {}", path.display()))?;
    }
    Ok(false)
}

/// Major and minor version of the running kernel.
pub fn kernel_version() -> Result<(u32, u32)> {
    let name = uname().context("uname")?;
    let release = name.release().to_string_lossy();
    parse_release(&release).with_context(|| format!("the kernel's release {release:?}"))
}

fn parse_release(release: &str) -> Result<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    let mut next = || numbers.next().unwrap_or_default().parse::<u32>().context("no number");
    let version = (next()?, next()?);
    ensure!(version.0 >= 2, "no Linux version");
    Ok(version)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_are_read() {
        assert_eq!(parse_release("6.18.44-fc-v669").unwrap(), (6, 18));
        assert_eq!(parse_release("5.10.0-32-cloud-amd64").unwrap(), (5, 10));
        assert_eq!(parse_release("7.2").unwrap(), (7, 2));
        assert!(parse_release("x").is_err());
    }

    #[test]
    fn a_kernel_that_is_new_enough_runs_the_test() {
        assert!(kernel_has((2, 6), "nothing new").unwrap());
    }
}
