//! Asking a running agent.

use std::{
    io::{self, BufReader, Read as _, Write as _},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::de::DeserializeOwned;

use super::{Refusal, Request};

/// A busy agent answers after the write it is at; a list of 50,000 services takes well below a second.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens on the socket.
    #[error("no agent answers on {}", path.display())]
    NotRunning {
        /// The socket.
        path: PathBuf,
    },
    /// The socket cannot be used.
    #[error("asking the agent on {}", path.display())]
    Socket {
        /// The socket.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// Somebody listens, and says nothing.
    #[error("the agent on {} has not answered for {} s; look at its log", path.display(), PATIENCE.as_secs())]
    Silent {
        /// The socket.
        path: PathBuf,
    },
    /// The agent said no.
    #[error("the agent refused: {0}")]
    Refused(String),
    /// The agent is of another version.
    #[error("the agent's answer is of another version of Sockeye")]
    Unreadable(#[source] serde_json::Error),
}

/// Asks the agent on a socket and reads its answer.
pub fn ask<T: DeserializeOwned>(path: &Path, request: Request) -> Result<T, ClientError> {
    let answer = exchange(path, request)?;
    if let Ok(Refusal { error }) = serde_json::from_slice(&answer) {
        return Err(ClientError::Refused(error));
    }
    serde_json::from_slice(&answer).map_err(ClientError::Unreadable)
}

fn exchange(path: &Path, request: Request) -> Result<Vec<u8>, ClientError> {
    let failed = |source: io::Error| match source.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
            ClientError::NotRunning { path: path.to_owned() }
        }
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => ClientError::Silent { path: path.to_owned() },
        _ => ClientError::Socket { path: path.to_owned(), source },
    };
    let mut line = serde_json::to_vec(&request).map_err(|error| failed(error.into()))?;
    line.push(b'\n');
    let mut stream = UnixStream::connect(path).map_err(failed)?;
    stream.set_read_timeout(Some(PATIENCE)).map_err(failed)?;
    stream.set_write_timeout(Some(PATIENCE)).map_err(failed)?;
    stream.write_all(&line).map_err(failed)?;
    let mut answer = Vec::new();
    BufReader::new(stream).read_to_end(&mut answer).map_err(failed)?;
    Ok(answer)
}
