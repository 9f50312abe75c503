//! Where connections come from: a TCP port or a Unix domain socket.

use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use drivetrain_config::Address;
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};

use crate::error::HttpError;

/// A bound listener.
#[derive(Debug)]
pub(crate) enum Listener {
    Tcp(TcpListener),
    /// The file goes when the listener does.
    Unix(UnixListener, #[expect(dead_code, reason = "held to be dropped")] SocketFile),
}

/// A connection just accepted, and the client's address for the log.
pub(crate) enum Accepted {
    Tcp(TcpStream, String),
    Unix(UnixStream),
}

impl Listener {
    /// Binds `address`, which the setting `key` holds.
    ///
    /// # Errors
    /// `Bind`, or `Address` for TLS.
    pub(crate) async fn bind(key: &'static str, address: &Address) -> Result<Self, HttpError> {
        let bind_error = |source| HttpError::Bind { address: address.to_string(), source };
        if address.is_tls() {
            return Err(HttpError::Address {
                key,
                address: address.to_string(),
                reason: "this server speaks no tls: use http:// or unix:, behind a proxy that does",
            });
        }
        match address {
            Address::Unix(path) => {
                remove_stale(path).await.map_err(bind_error)?;
                let listener = UnixListener::bind(path).map_err(bind_error)?;
                Ok(Self::Unix(listener, SocketFile(path.clone())))
            }
            Address::Tcp { host, port, .. } => {
                TcpListener::bind((host.as_str(), *port)).await.map(Self::Tcp).map_err(bind_error)
            }
        }
    }

    /// `asked` with the port that the system chose.
    pub(crate) fn address(&self, asked: &Address) -> Address {
        match self {
            Self::Tcp(listener) => {
                let port = listener.local_addr().map(|address| address.port()).ok();
                port.map_or_else(|| asked.clone(), |port| asked.with_port(port))
            }
            Self::Unix(..) => asked.clone(),
        }
    }

    /// The next connection.
    ///
    /// # Errors
    /// What the operating system said; a connection may still come later.
    pub(crate) async fn accept(&self) -> io::Result<Accepted> {
        match self {
            Self::Tcp(listener) => {
                let (socket, peer) = listener.accept().await?;
                // Replies are written whole; waiting for more would only add latency.
                socket.set_nodelay(true)?;
                Ok(Accepted::Tcp(socket, peer.to_string()))
            }
            Self::Unix(listener, _) => Ok(Accepted::Unix(listener.accept().await?.0)),
        }
    }
}

/// Removes the socket file when the listener goes.
#[derive(Debug)]
pub(crate) struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.0) {
            tracing::debug!("{}: {error}", self.0.display());
        }
    }
}

/// Removes a socket that a server which is gone left behind; anything else at `path` stays.
async fn remove_stale(path: &Path) -> io::Result<()> {
    let Ok(found) = std::fs::symlink_metadata(path) else { return Ok(()) };
    if !found.file_type().is_socket() {
        return Ok(());
    }
    match UnixStream::connect(path).await {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path)
        }
        _ => Ok(()),
    }
}
