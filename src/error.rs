//! What can go wrong.

use std::io;

/// Why a stream could not be made, or why it takes no more.
///
/// The stream's own methods return [`io::Error`], as each of tokio's streams; one that comes from
/// here holds it as its source ([`io::Error::get_ref`]).
///
/// | error | [`io::ErrorKind`] |
/// | --- | --- |
/// | [`Capacity`](Error::Capacity) | [`InvalidInput`](io::ErrorKind::InvalidInput) |
/// | [`NoRuntime`](Error::NoRuntime) | [`Other`](io::ErrorKind::Other) |
/// | [`PipeInUse`](Error::PipeInUse) | [`AddrInUse`](io::ErrorKind::AddrInUse) |
/// | [`Os`](Error::Os) | that of the system's error |
/// | [`ShutDown`](Error::ShutDown), [`GuestGone`](Error::GuestGone) | [`BrokenPipe`](io::ErrorKind::BrokenPipe) |
/// | [`CutOff`](Error::CutOff) | [`UnexpectedEof`](io::ErrorKind::UnexpectedEof) |
///
/// Besides, the `try_` methods return [`WouldBlock`](io::ErrorKind::WouldBlock), and a wait fails
/// with [`Other`](io::ErrorKind::Other) if the stream's runtime has shut down; these come without a
/// source of ours.
///
/// # Examples
///
/// ```
/// # use tokio::io::AsyncWriteExt;
/// use tokio_krun::{AgentStream, Error};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> std::io::Result<()> {
/// # let (mut stream, port) = AgentStream::pair()?;
/// stream.shutdown().await?;
/// let error = stream.write_all(b"too late").await.unwrap_err();
/// let source = error.get_ref().and_then(|source| source.downcast_ref());
/// assert!(matches!(source, Some(Error::ShutDown))); // this side's doing: the guest is still there
/// # Ok(()) }
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// [`Options::capacity`](crate::Options::capacity) is out of its bounds.
    #[non_exhaustive]
    #[error("a capacity of {capacity} bytes is out of bounds: choose {least} to {most} bytes")]
    Capacity {
        /// What was asked for, in bytes.
        capacity: usize,
        /// The least that is allowed, in bytes.
        least: usize,
        /// The most that is allowed, in bytes.
        most: usize,
    },
    /// There is no tokio runtime here to register the stream with.
    #[error("no tokio runtime here: create the stream inside one, or under `Handle::enter`")]
    NoRuntime,
    /// The pipe's name is taken: only on Windows, where the port is a named pipe.
    #[non_exhaustive]
    #[error(
        "the pipe {name} is in use: choose another name, or none for one that cannot be guessed"
    )]
    PipeInUse {
        /// The pipe's name.
        name: String,
    },
    /// The system refused a descriptor, a pipe or a registration.
    #[error("the system refused a descriptor or a pipe")]
    Os(#[source] io::Error),
    /// The stream was written to after its own side had ended writing.
    #[error("the stream was shut down or hung up by this side: write before that, not after")]
    ShutDown,
    /// The guest has powered off, or the VM or its port was dropped.
    #[error("the guest has gone: read what it left; a new VM needs a new stream")]
    GuestGone,
    /// The guest's bytes from here on were discarded, as they found no room while the port was
    /// [quiesced](crate::PortHandle::quiesce).
    #[error(
        "the guest's bytes from here on found no room while the port was quiesced: \
         pause the guest first, or give the stream more capacity"
    )]
    CutOff,
}

impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        let kind = match error {
            Error::Capacity { .. } => io::ErrorKind::InvalidInput,
            Error::NoRuntime => io::ErrorKind::Other,
            Error::PipeInUse { .. } => io::ErrorKind::AddrInUse,
            // As it is: it has the system's own number.
            Error::Os(source) => return source,
            Error::ShutDown | Error::GuestGone => io::ErrorKind::BrokenPipe,
            Error::CutOff => io::ErrorKind::UnexpectedEof,
        };
        io::Error::new(kind, error)
    }
}
