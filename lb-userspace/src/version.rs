//! What this binary is.

/// Sockeye's version.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
/// The commit it was built from; none where it was not built from a repository.
pub const COMMIT: Option<&str> = option_env!("SOCKEYE_COMMIT");
