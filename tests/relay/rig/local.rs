//! Local connections: Unix sockets, or on Windows pipes in memory.

use tokio::sync::mpsc;

#[cfg(unix)]
pub use unix::*;
#[cfg(windows)]
pub use windows::*;

#[cfg(unix)]
mod unix {
    use tempfile::TempDir;
    use tokio::net::{UnixListener, UnixStream};

    use super::*;

    pub type Socket = UnixStream;

    /// The socket of a directory that is removed with it.
    pub struct Listener(TempDir);

    impl Listener {
        pub fn bind() -> (Self, mpsc::Receiver<Socket>) {
            let directory = tempfile::tempdir().unwrap();
            let listener = UnixListener::bind(directory.path().join("socket")).unwrap();
            let (accepted, connections) = mpsc::channel(1);
            tokio::spawn(async move {
                while let Ok((socket, _)) = listener.accept().await {
                    if accepted.send(socket).await.is_err() {
                        break;
                    }
                }
            });
            (Self(directory), connections)
        }

        pub async fn connect(&self) -> Socket {
            UnixStream::connect(self.0.path().join("socket"))
                .await
                .unwrap()
        }
    }
}

#[cfg(windows)]
mod windows {
    use tokio::io::{DuplexStream, duplex};

    use super::*;

    pub type Socket = DuplexStream;

    pub struct Listener(mpsc::Sender<Socket>);

    impl Listener {
        pub fn bind() -> (Self, mpsc::Receiver<Socket>) {
            let (accepted, connections) = mpsc::channel(1);
            (Self(accepted), connections)
        }

        pub async fn connect(&self) -> Socket {
            let (client, accepted) = duplex(64 * 1024);
            self.0.send(accepted).await.unwrap();
            client
        }
    }
}
