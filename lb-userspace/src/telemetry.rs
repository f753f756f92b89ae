//! Where log lines go: standard error, as text or JSON.
//!
//! Levels: changes of state are info, each reconciliation debug; addresses of clients never stand above debug. A level
//! alone, such as `debug`, is meant for Sockeye: its libraries say more than warnings only where the filter names them.

use std::{
    error::Error,
    io::{self, IsTerminal as _},
};

use tracing::{Level, Metadata};
use tracing_subscriber::{
    EnvFilter, Layer as _,
    filter::{FilterExt as _, filter_fn},
    fmt,
    layer::SubscriberExt as _,
    registry,
    util::SubscriberInitExt as _,
};

use crate::config::{LogConfig, LogFormat};

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
    let named: Vec<_> = LIBRARIES.into_iter().filter(|(target, _)| config.filter.contains(target)).collect();
    let filter = filter.and(filter_fn(move |line| is_wanted(line, &named)));
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

/// Libraries with the level that they are quiet at. The client of the API server warns at each retry, while the source
/// tells each change of reachability once.
const LIBRARIES: [(&str, Level); 9] = [
    ("aya", Level::WARN),
    ("aya_obj", Level::WARN),
    ("h2", Level::WARN),
    ("hyper", Level::WARN),
    ("kube_client", Level::ERROR),
    ("kube_runtime", Level::ERROR),
    ("netlink_proto", Level::WARN),
    ("rustls", Level::WARN),
    ("tower", Level::WARN),
];

/// Whether a line is Sockeye's own, a library's that the filter names, or important.
fn is_wanted(line: &Metadata<'_>, named: &[(&str, Level)]) -> bool {
    let library = |(target, _): &&(&str, Level)| {
        let rest = line.target().strip_prefix(target);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
    };
    match LIBRARIES.iter().find(library) {
        Some((_, quiet)) => line.level() <= quiet || named.iter().any(|one| library(&one)),
        None => true,
    }
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
