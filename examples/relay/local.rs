//! Where clients on this machine connect.

use std::io;

#[cfg(unix)]
pub use unix::{Address, HALF_CLOSES, Listener, address, connect};
#[cfg(windows)]
pub use windows::{Address, HALF_CLOSES, Listener, address, connect};

#[cfg(unix)]
mod unix {
    use std::path::{Path, PathBuf};

    use tokio::net::{UnixListener, UnixStream};

    use super::*;

    pub type Address = PathBuf;

    /// A client may end its own direction and go on reading.
    pub const HALF_CLOSES: bool = true;

    /// The file is removed with it.
    pub struct Listener(UnixListener, PathBuf);

    pub fn address() -> Address {
        std::env::temp_dir().join(format!("relay-{}.sock", std::process::id()))
    }

    impl Listener {
        pub fn bind(address: &Path) -> io::Result<Self> {
            Ok(Self(UnixListener::bind(address)?, address.to_owned()))
        }

        pub async fn accept(&mut self) -> io::Result<UnixStream> {
            Ok(self.0.accept().await?.0)
        }
    }

    impl Drop for Listener {
        fn drop(&mut self) {
            let _ = std::fs::remove_file(&self.1);
        }
    }

    pub async fn connect(address: &Path) -> io::Result<UnixStream> {
        UnixStream::connect(address).await
    }
}

#[cfg(windows)]
mod windows {
    use tokio::net::windows::named_pipe::{
        ClientOptions, NamedPipeClient, NamedPipeServer, ServerOptions,
    };

    use super::*;

    pub type Address = String;

    /// A pipe has one end for both directions.
    pub const HALF_CLOSES: bool = false;

    /// There is always an instance that waits for a client.
    pub struct Listener(NamedPipeServer, String);

    pub fn address() -> Address {
        format!(r"\\.\pipe\relay-{}", std::process::id())
    }

    impl Listener {
        pub fn bind(address: &str) -> io::Result<Self> {
            let first = ServerOptions::new()
                .first_pipe_instance(true)
                .create(address)?;
            Ok(Self(first, address.to_owned()))
        }

        pub async fn accept(&mut self) -> io::Result<NamedPipeServer> {
            self.0.connect().await?;
            let next = ServerOptions::new().create(&self.1)?;
            Ok(std::mem::replace(&mut self.0, next))
        }
    }

    /// Another client may have taken the instance that waits.
    pub async fn connect(address: &str) -> io::Result<NamedPipeClient> {
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
}
