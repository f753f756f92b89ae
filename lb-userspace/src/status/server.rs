//! Answering on the agent's Unix socket.
//!
//! One request a connection. A client that is slow or silent costs one of a few places and is sent away after a while;
//! it holds nothing else up.

use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use serde::Serialize;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{UnixListener, UnixStream},
    sync::Semaphore,
    time::timeout,
};
use tracing::debug;

use super::{Refusal, Request};

const MAX_CLIENTS: usize = 16;
const MAX_REQUEST: u64 = 1 << 10;
const PATIENCE: Duration = Duration::from_secs(5);

/// Why the socket cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// Somebody answers on the socket.
    #[error(
        "another agent answers on {}; give each agent of a machine its own --bpffs, --cgroup and --socket",
        path.display()
    )]
    Taken {
        /// The socket.
        path: PathBuf,
    },
    /// The socket could not be made.
    #[error("{operation} for the status socket {} (--socket)", path.display())]
    Socket {
        /// What was tried.
        operation: &'static str,
        /// The socket.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
}

/// Knows the answers.
pub trait Answer: Send + Sync + 'static {
    /// The answer as a JSON document.
    fn answer(&self, request: Request) -> impl Future<Output = Vec<u8>> + Send;
}

/// A document's bytes; a value that has no JSON form becomes a refusal.
pub fn document<T: Serialize>(value: &T) -> Vec<u8> {
    serde_json::to_vec(value).unwrap_or_else(|error| refusal(&error.to_string()))
}

/// The bytes of a refusal.
pub fn refusal(error: &str) -> Vec<u8> {
    // One string field always has a JSON form.
    serde_json::to_vec(&Refusal { error: error.to_owned() }).unwrap_or_default()
}

/// A bound socket; its file goes when it is dropped.
#[derive(Debug)]
pub struct Server {
    listener: UnixListener,
    path: PathBuf,
    /// Device and inode of our socket's file: one that a later agent put in its place stays.
    file: Option<(u64, u64)>,
}

/// Fails if somebody answers on the socket.
pub fn check_free(path: &Path) -> Result<(), ServerError> {
    match std::os::unix::net::UnixStream::connect(path) {
        Ok(_) => Err(ServerError::Taken { path: path.to_owned() }),
        Err(_) => Ok(()),
    }
}

impl Server {
    /// Makes the socket, readable for its owner alone. A file left by an agent that died is replaced.
    pub fn bind(path: &Path) -> Result<Self, ServerError> {
        let failed =
            |operation| move |source| ServerError::Socket { operation, path: path.to_owned(), source };
        if let Some(parent) = path.parent() {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o755)
                .create(parent)
                .map_err(failed("making the directory"))?;
        }
        check_free(path)?;
        match fs::symlink_metadata(path) {
            Ok(found) if !std::os::unix::fs::FileTypeExt::is_socket(&found.file_type()) => {
                let source =
                    io::Error::new(io::ErrorKind::AlreadyExists, "a file that is no socket is there");
                return Err(failed("replacing the file")(source));
            }
            Ok(_) => fs::remove_file(path).map_err(failed("removing the old file"))?,
            Err(_) => {}
        }
        let listener = UnixListener::bind(path).map_err(failed("binding"))?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o600)).map_err(failed("setting the mode"))?;
        Ok(Self { listener, file: identity(path), path: path.to_owned() })
    }

    /// Answers until the future is dropped.
    pub async fn serve<A: Answer>(self, answers: Arc<A>) {
        let places = Arc::new(Semaphore::new(MAX_CLIENTS));
        loop {
            // The semaphore is never closed.
            let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
            match self.listener.accept().await {
                Ok((stream, _)) => {
                    let answers = Arc::clone(&answers);
                    tokio::spawn(async move {
                        if let Err(error) = converse(stream, answers.as_ref()).await {
                            debug!(%error, "a client of the status socket went away");
                        }
                        drop(place);
                    });
                }
                Err(error) => {
                    debug!(%error, "accepting on the status socket");
                    // Out of descriptors, most likely: trying at once again would only burn time.
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if self.file.is_some() && identity(&self.path) == self.file {
            // The agent ends: there is nobody to tell, and the next one replaces the file.
            drop(fs::remove_file(&self.path));
        }
    }
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    fs::symlink_metadata(path).ok().map(|file| (file.dev(), file.ino()))
}

async fn converse<A: Answer>(stream: UnixStream, answers: &A) -> io::Result<()> {
    let (read, mut write) = stream.into_split();
    let mut line = String::new();
    let mut reader = BufReader::new(read.take(MAX_REQUEST));
    timeout(PATIENCE, reader.read_line(&mut line)).await??;
    let answer = match serde_json::from_str(&line) {
        Ok(request) => answers.answer(request).await,
        Err(error) => refusal(&format!(
            "{error}; ask with one line: {{\"get\":\"status\"}}, {{\"get\":\"services\"}} or {{\"get\":\"backends\"}}"
        )),
    };
    timeout(PATIENCE, async {
        write.write_all(&answer).await?;
        write.write_all(b"\n").await?;
        write.shutdown().await
    })
    .await?
}
