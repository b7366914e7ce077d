//! What can go wrong before there is a stream.

use std::io;

use crate::options::Options;

/// Why a stream could not be made.
///
/// | error | [`io::ErrorKind`] |
/// | --- | --- |
/// | [`Capacity`](Error::Capacity), [`Slots`](Error::Slots) | [`InvalidInput`](io::ErrorKind::InvalidInput) |
/// | [`NoRuntime`](Error::NoRuntime) | [`Other`](io::ErrorKind::Other) |
/// | [`Os`](Error::Os) | that of the system's error |
///
/// Errors of a stream that exists are plain [`io::Error`]s, as for each of tokio's streams.
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
}

impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        let kind = match &error {
            Error::Capacity { .. } | Error::Slots { .. } => io::ErrorKind::InvalidInput,
            Error::NoRuntime => io::ErrorKind::Other,
            Error::Os(source) => source.kind(),
        };
        io::Error::new(kind, error)
    }
}
