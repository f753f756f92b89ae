//! Where log lines go: standard error, as text or JSON.
//!
//! Levels: changes of state are info, each reconciliation debug; addresses of clients never stand above debug. A level
//! alone, such as `debug`, is meant for Sockeye: its libraries say more than warnings only where the filter names them.

use std::{
    error::Error,
    io::{self, IsTerminal as _},
};

use tracing::Level;
use tracing_subscriber::{
    EnvFilter, Layer as _,
    filter::{FilterExt as _, filter_fn},
    fmt,
    layer::SubscriberExt as _,
    registry,
    util::SubscriberInitExt as _,
};

use crate::{
    config::{LogConfig, LogFormat},
    source::cluster::NOISY_LOG_TARGETS,
};

/// Why logging did not start.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The filter is not in the syntax of `RUST_LOG`.
    #[error("log filter {filter:?}")]
    Filter {
        /// The filter.
        filter: String,
        /// Where it is wrong.
        #[source]
        source: tracing_subscriber::filter::ParseError,
    },
    /// The process logs already.
    #[error("logging has started before")]
    Started(#[source] Box<dyn Error + Send + Sync>),
}

/// Starts logging for the whole process.
pub fn start(config: &LogConfig) -> Result<(), TelemetryError> {
    let filter = EnvFilter::builder()
        .parse(&config.filter)
        .map_err(|source| TelemetryError::Filter { filter: config.filter.clone(), source })?;
    let names = config.filter.clone();
    let filter = filter.and(filter_fn(move |line| is_wanted(line.target(), *line.level(), &names)));
    let lines = fmt::layer().with_writer(io::stderr);
    let lines = match config.format {
        LogFormat::Text => lines.with_ansi(io::stderr().is_terminal()).boxed(),
        LogFormat::Json => lines.json().flatten_event(true).with_current_span(false).boxed(),
    };
    registry()
        .with(lines.with_filter(filter))
        .try_init()
        .map_err(|error| TelemetryError::Started(error.into()))
}

/// Libraries that say much about themselves below a warning.
const QUIET: [&str; 9] =
    ["aya", "aya_obj", "h2", "hyper", "hyper_util", "netlink_proto", "rustls", "tower", "tower_http"];

/// Whether a line is Sockeye's own, of a library that the filter names, or important.
fn is_wanted(target: &str, level: Level, filter: &str) -> bool {
    let library = target.split("::").next().unwrap_or(target);
    filter.contains(library)
        || !(NOISY_LOG_TARGETS.contains(&library) || QUIET.contains(&library) && level > Level::WARN)
}

/// An error with its causes, on one line.
pub fn chain(error: &dyn Error) -> String {
    let mut line = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        line.push_str(": ");
        line.push_str(&cause.to_string());
        source = cause.source();
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_alone_is_meant_for_sockeye() {
        for (target, level, filter, wanted) in [
            ("lb_userspace::agent", Level::DEBUG, "debug", true),
            ("aya_obj::relocation", Level::DEBUG, "debug", false),
            ("aya_obj::relocation", Level::WARN, "debug", true),
            ("aya_obj::relocation", Level::DEBUG, "info,aya_obj=debug", true),
            ("kube_client::client::builder", Level::ERROR, "debug", false),
            ("kube_client::client::builder", Level::DEBUG, "kube_client=debug", true),
        ] {
            assert_eq!(is_wanted(target, level, filter), wanted, "{target} {level} {filter}");
        }
    }

    #[test]
    fn a_chain_is_one_line() {
        let cause = Failure(None);
        assert_eq!(chain(&Failure(Some(cause.into()))), "it failed: it failed");
    }

    #[derive(Debug, thiserror::Error)]
    #[error("it failed")]
    struct Failure(#[source] Option<Box<Failure>>);
}
