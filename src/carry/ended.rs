//! How a carry ends, and what it has carried.

use std::{fmt, io};

use bytes::Bytes;

#[cfg(doc)]
use super::Carry;
use crate::error::Error;
use crate::stream::AgentStream;

/// How a [`Carry`] ended.
///
/// # Examples
///
/// ```
/// use tokio::io::DuplexStream;
/// use tokio_krun::{Carry, CarryError, Ended};
///
/// async fn serve(mut carry: Carry<DuplexStream>) -> Result<(), CarryError> {
///     match carry.run().await? {
///         Ended::Guest => eprintln!("the VM has ended"),
///         Ended::Client => eprintln!("the client has gone: the VM is hung up"),
///         _ => {}
///     }
///     Ok(())
/// }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Ended {
    /// The guest has powered off, or its VM or port was dropped. The client has all that it wrote, and the end of file.
    Guest,
    /// The client has closed its socket or ended its writing. The guest has all that it wrote, and is hung up.
    Client,
}

/// Why a [`Carry`] failed: on which side, and the side's own error.
///
/// It becomes an [`io::Error`] of the same kind, which holds it.
///
/// # Examples
///
/// ```
/// use tokio::io::{AsyncReadExt, AsyncWriteExt};
/// # use tokio_krun::test_util::Guest;
/// use tokio_krun::{AgentStream, Carry, CarryError};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> std::io::Result<()> {
/// let (stream, port) = AgentStream::pair()?;
/// # let guest = Guest::boot(port);
/// # let mut agent = guest.open()?;
/// let client = tokio_test::io::Builder::new().read_error(std::io::ErrorKind::ConnectionReset.into()).build();
/// let error = Carry::new(stream, client).run().await.unwrap_err();
/// assert!(matches!(error, CarryError::Client(_)));
/// assert_eq!(error.to_string(), "the client's socket failed");
/// # assert_eq!(agent.read(&mut [0; 8]).await?, 0);
/// # assert_eq!(std::io::Error::from(error).kind(), std::io::ErrorKind::ConnectionReset);
/// # Ok(()) }
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CarryError {
    /// Reading from the stream or writing to it failed. Most often the error holds an [`Error`](crate::Error).
    #[error("the guest's stream failed")]
    Guest(#[source] io::Error),
    /// Reading from the client's socket or writing to it failed.
    #[error("the client's socket failed")]
    Client(#[source] io::Error),
}

impl CarryError {
    /// The same, as far as it can be said again.
    pub(super) fn again(&self) -> Self {
        match self {
            Self::Guest(error) => Self::Guest(again(error)),
            Self::Client(error) => Self::Client(again(error)),
        }
    }

    fn kind(&self) -> io::ErrorKind {
        match self {
            Self::Guest(error) | Self::Client(error) => error.kind(),
        }
    }
}

/// The system's error or the crate's. Of any other, only the kind.
fn again(error: &io::Error) -> io::Error {
    if let Some(code) = error.raw_os_error() {
        return io::Error::from_raw_os_error(code);
    }
    match error.get_ref().and_then(|reason| reason.downcast_ref()) {
        Some(Error::CutOff) => Error::CutOff.into(),
        Some(Error::Os(error)) => Error::Os(again(error)).into(),
        Some(Error::RuntimeGone) => Error::RuntimeGone.into(),
        Some(Error::ShutDown) => Error::ShutDown.into(),
        _ => error.kind().into(),
    }
}

impl From<CarryError> for io::Error {
    fn from(error: CarryError) -> Self {
        Self::new(error.kind(), error)
    }
}

/// How many bytes a [`Carry`] has carried so far.
///
/// # Examples
///
/// ```
/// use tokio_krun::Carried;
///
/// fn total(carried: Carried) -> u64 {
///     carried.from_guest + carried.to_guest
/// }
/// # assert_eq!(total(Carried::default()), 0);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Carried {
    /// Bytes of the guest that were written to the client's socket.
    pub from_guest: u64,
    /// Bytes of the client that were written to the stream. The guest may not have taken them.
    pub to_guest: u64,
}

/// What a [`Carry`] is made of, from [`into_parts`](Carry::into_parts).
///
/// # Examples
///
/// ```
/// use tokio::io::DuplexStream;
/// use tokio_krun::{AgentStream, CarryParts};
///
/// /// How many bytes were taken from one side, and are not written to the other.
/// fn on_the_way(parts: &CarryParts<DuplexStream>) -> usize {
///     parts.to_guest.len() + parts.to_client.iter().map(|chunk| chunk.len()).sum::<usize>()
/// }
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> std::io::Result<()> {
/// # let (stream, _port) = AgentStream::pair()?;
/// # let carry = tokio_krun::Carry::new(stream, tokio::io::duplex(64).0);
/// # assert_eq!(on_the_way(&carry.into_parts()), 0);
/// # Ok(()) }
/// ```
#[non_exhaustive]
pub struct CarryParts<S> {
    /// The guest's stream.
    pub stream: AgentStream,
    /// The client's socket.
    pub socket: S,
    /// The guest's bytes that were read from the stream and not yet written to the client, in their order.
    pub to_client: Vec<Bytes>,
    /// The client's bytes that were read from its socket and not yet written to the stream.
    pub to_guest: Bytes,
}

impl<S: fmt::Debug> fmt::Debug for CarryParts<S> {
    /// Shows no payload.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let to_client: usize = self.to_client.iter().map(Bytes::len).sum();
        f.debug_struct("CarryParts")
            .field("stream", &self.stream)
            .field("socket", &self.socket)
            .field("to_client", &format_args!("{to_client} bytes"))
            .field("to_guest", &format_args!("{} bytes", self.to_guest.len()))
            .finish()
    }
}
