//! The address that clients on this machine connect to.

use std::io;
use std::path::{Path, PathBuf};

#[cfg(unix)]
pub use unix::*;
#[cfg(windows)]
pub use windows::*;

#[cfg(unix)]
mod unix {
    use tempfile::TempDir;
    /// Each direction ends separately. An error ends both.
    pub use tokio::io::copy_bidirectional as copy;
    use tokio::net::{UnixListener, UnixStream};

    use super::*;

    pub type Accepted = UnixStream;

    /// Whether a client can end its own direction and keep reading.
    pub const HALF_CLOSES: bool = true;

    /// The socket lies in a directory that no other user can enter. Dropping the listener removes it.
    pub struct Listener {
        socket: UnixListener,
        _directory: TempDir,
    }

    impl Listener {
        pub fn bind() -> io::Result<(Self, PathBuf)> {
            let _directory = tempfile::tempdir()?;
            let address = _directory.path().join("socket");
            let socket = UnixListener::bind(&address)?;
            Ok((Self { socket, _directory }, address))
        }

        pub async fn accept(&mut self) -> io::Result<Accepted> {
            Ok(self.socket.accept().await?.0)
        }
    }

    pub async fn connect(address: &Path) -> io::Result<UnixStream> {
        UnixStream::connect(address).await
    }
}

#[cfg(windows)]
mod windows {
    use tokio::io::{AsyncRead, AsyncWrite};
    use tokio::net::windows::named_pipe::{
        ClientOptions, NamedPipeClient, NamedPipeServer, ServerOptions,
    };

    use super::*;

    pub type Accepted = NamedPipeServer;

    /// No: a pipe has one end for both directions.
    pub const HALF_CLOSES: bool = false;

    /// Always holds one instance that waits for a client.
    pub struct Listener(NamedPipeServer, PathBuf);

    impl Listener {
        /// All processes share the names of pipes. So the name is random, and `bind` fails if it
        /// is taken.
        pub fn bind() -> io::Result<(Self, PathBuf)> {
            let address = PathBuf::from(format!(r"\\.\pipe\relay-{:016x}", getrandom::u64()?));
            let mut options = ServerOptions::new();
            let first = options.first_pipe_instance(true).create(&address)?;
            Ok((Self(first, address.clone()), address))
        }

        pub async fn accept(&mut self) -> io::Result<Accepted> {
            self.0.connect().await?;
            let next = ServerOptions::new().create(&self.1)?;
            Ok(std::mem::replace(&mut self.0, next))
        }
    }

    /// Another client may have taken the waiting instance. Windows does not report when the next
    /// one is ready, so retry, as tokio's documentation of `ClientOptions` does.
    pub async fn connect(address: &Path) -> io::Result<NamedPipeClient> {
        const ERROR_PIPE_BUSY: i32 = 231;
        loop {
            match ClientOptions::new().open(address) {
                Err(error) if error.raw_os_error() == Some(ERROR_PIPE_BUSY) => {
                    tokio::time::sleep(std::time::Duration::from_millis(10)).await;
                }
                result => return result,
            }
        }
    }

    /// The direction that ends first ends the other, because a pipe cannot close one alone.
    pub async fn copy(
        client: &mut Accepted,
        stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    ) -> io::Result<u64> {
        let (mut from_client, mut to_client) = tokio::io::split(client);
        let (mut from_agent, mut to_agent) = tokio::io::split(stream);
        tokio::select! {
            ended = tokio::io::copy(&mut from_client, &mut to_agent) => ended,
            ended = tokio::io::copy(&mut from_agent, &mut to_client) => ended,
        }
    }
}
