//! What can go wrong.

use std::io;

use crate::options::Options;

/// Why a stream could not be made, or why it takes no more.
///
/// The stream's own methods return [`io::Error`], as each of tokio's streams; one that comes from
/// here holds it as its source ([`io::Error::get_ref`]).
///
/// | error | [`io::ErrorKind`] |
/// | --- | --- |
/// | [`Capacity`](Error::Capacity), [`Slots`](Error::Slots) | [`InvalidInput`](io::ErrorKind::InvalidInput) |
/// | [`NoRuntime`](Error::NoRuntime) | [`Other`](io::ErrorKind::Other) |
/// | [`Os`](Error::Os) | that of the system's error |
/// | [`ShutDown`](Error::ShutDown), [`GuestGone`](Error::GuestGone) | [`BrokenPipe`](io::ErrorKind::BrokenPipe) |
///
/// Besides, the `try_` methods return [`WouldBlock`](io::ErrorKind::WouldBlock), and a wait fails
/// with [`Other`](io::ErrorKind::Other) if the stream's runtime has shut down; these come without a
/// source of ours.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// [`Options::capacity`] is out of its bounds.
    #[error(
        "a capacity of {capacity} bytes is out of bounds: choose {min} to {max} bytes",
        min = Options::MIN_CAPACITY,
        max = Options::MAX_CAPACITY
    )]
    Capacity {
        /// What was asked for, in bytes.
        capacity: usize,
    },
    /// [`Options::slots`] is out of its bounds for the capacity.
    #[error(
        "{slots} slots are out of bounds for a capacity of {capacity} bytes: choose 2 to {max}",
        max = capacity / Options::MIN_CHUNK
    )]
    Slots {
        /// What was asked for.
        slots: usize,
        /// The capacity it was asked for with, in bytes.
        capacity: usize,
    },
    /// There is no tokio runtime here to register the stream with.
    #[error("no tokio runtime here: create the stream inside one, or under `Handle::enter`")]
    NoRuntime,
    /// The system refused a descriptor or its registration.
    #[error("the system refused a wake descriptor: {0}")]
    Os(#[from] io::Error),
    /// The stream was written to after its own side had ended writing.
    #[error("the stream was shut down or hung up by this side: write before that, not after")]
    ShutDown,
    /// The guest has powered off, or the VM or its port was dropped.
    #[error("the guest has gone: read what it left; a new VM needs a new stream")]
    GuestGone,
}

impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        let kind = match &error {
            Error::Capacity { .. } | Error::Slots { .. } => io::ErrorKind::InvalidInput,
            Error::NoRuntime => io::ErrorKind::Other,
            Error::Os(source) => source.kind(),
            Error::ShutDown | Error::GuestGone => io::ErrorKind::BrokenPipe,
        };
        io::Error::new(kind, error)
    }
}
