//! What the programs log (`aya-log`), for the agent's own log.

use aya_log::EbpfLogger;
use tokio::io::{Interest, unix::AsyncFd};

use super::error::KernelError;

/// The programs' log records, on their way to the `log` facade and from there, by `tracing-log`, to `tracing`.
pub struct ProgramLog {
    records: EbpfLogger<&'static dyn log::Log>,
}

impl ProgramLog {
    pub(crate) const fn new(records: EbpfLogger<&'static dyn log::Log>) -> Self {
        Self { records }
    }

    /// Forwards records until the future is dropped. Must be called inside a tokio runtime.
    pub async fn forward(self) -> Result<(), KernelError> {
        let error = || KernelError::io("waiting for the programs' log in", "AYA_LOGS");
        // SAFETY: the logger owns the descriptor of its map and keeps it until the `AsyncFd` is dropped.
        let registered = unsafe { AsyncFd::register_with_interest(self.records, Interest::READABLE) };
        let mut records = registered.map_err(|refused| error()(refused.into()))?;
        loop {
            let mut ready = records.readable_mut().await.map_err(error())?;
            ready.get_inner_mut().flush();
            ready.clear_ready();
        }
    }
}

impl std::fmt::Debug for ProgramLog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ProgramLog").finish_non_exhaustive()
    }
}
