//! The crate's errors.

use std::io;

/// Why a stream could not be created, or why it reads or writes no more.
///
/// Like tokio's streams, the stream's methods return [`io::Error`]. Where the reason is one of these,
/// the `io::Error` holds it: get it with [`io::Error::get_ref`].
///
/// | error | [`io::ErrorKind`] |
/// | --- | --- |
/// | [`Capacity`](Error::Capacity), [`TooLong`](Error::TooLong), [`StateTooLarge`](Error::StateTooLarge) | [`InvalidInput`](io::ErrorKind::InvalidInput) |
/// | [`NoRuntime`](Error::NoRuntime), [`NoIoDriver`](Error::NoIoDriver), [`NoTimer`](Error::NoTimer), [`RuntimeGone`](Error::RuntimeGone) | [`Other`](io::ErrorKind::Other) |
/// | [`PipeInUse`](Error::PipeInUse) | [`AddrInUse`](io::ErrorKind::AddrInUse) |
/// | [`Os`](Error::Os) | the kind of the system's error |
/// | [`ShutDown`](Error::ShutDown), [`GuestGone`](Error::GuestGone) | [`BrokenPipe`](io::ErrorKind::BrokenPipe) |
/// | [`CutOff`](Error::CutOff) | [`UnexpectedEof`](io::ErrorKind::UnexpectedEof) |
/// | [`NotAtRest`](Error::NotAtRest) | [`ResourceBusy`](io::ErrorKind::ResourceBusy) |
/// | [`InPipe`](Error::InPipe), [`StateVersion`](Error::StateVersion) | [`Unsupported`](io::ErrorKind::Unsupported) |
/// | [`StateDamaged`](Error::StateDamaged) | [`InvalidData`](io::ErrorKind::InvalidData) |
///
/// One error holds no `Error`: the `try_` methods return [`WouldBlock`](io::ErrorKind::WouldBlock)
/// instead of waiting.
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
/// let reason = error.get_ref().and_then(|reason| reason.downcast_ref());
/// assert!(matches!(reason, Some(Error::ShutDown))); // the guest is still there
/// # Ok(()) }
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// [`Options::capacity`](crate::Options::capacity) is too small or too large.
    #[non_exhaustive]
    #[error(
        "a capacity of {capacity} bytes is too {too}: \
         choose {} to {} ({least} to {most} bytes)",
        with_unit(.least),
        with_unit(.most),
        too = if .capacity < .least { "small" } else { "large" }
    )]
    Capacity {
        /// The capacity that you chose, in bytes.
        capacity: usize,
        /// The smallest valid capacity, in bytes.
        least: usize,
        /// The largest valid capacity, in bytes.
        most: usize,
    },
    /// More bytes are to be written at once than the stream ever has room for, or than the [`Permit`](crate::Permit) is
    /// for.
    #[non_exhaustive]
    #[error("{length} bytes are too many to write at once: there is room for {most}")]
    TooLong {
        /// How many bytes they are.
        length: usize,
        /// How many there can be.
        most: usize,
    },
    /// The current thread is outside any tokio runtime, and the stream needs one to register with.
    #[error(
        "this thread is outside any tokio runtime: \
         create the stream inside one, or with `Options::create_on`"
    )]
    NoRuntime,
    /// The runtime has no I/O driver, and the stream needs it to be woken.
    ///
    /// tokio tells this only by a panic, which `create` catches. So your panic hook runs first: by default, it prints
    /// tokio's words. In a program that aborts on panics (`panic = "abort"`), the process ends there.
    #[error("the tokio runtime has no I/O driver: build it with `enable_io` or `enable_all`")]
    NoIoDriver,
    /// The runtime has no timer, and a [stall timeout](crate::Options::stall_timeout) needs one. Only on Windows.
    ///
    /// `create` finds out in the same way as for [`NoIoDriver`](Self::NoIoDriver).
    #[error(
        "the tokio runtime has no timer, which a stall timeout needs: \
         build it with `enable_time` or `enable_all`"
    )]
    NoTimer,
    /// The stream's runtime has shut down, so nothing would wake a task that waits.
    ///
    /// What needs no wait still succeeds: reading bytes that are already there, and writing bytes that find room. On
    /// Windows the port ends with the runtime instead, as if the guest had gone.
    #[error(
        "the stream's runtime has shut down, so a read or write can no longer wait: \
         keep that runtime for as long as the stream"
    )]
    RuntimeGone,
    /// The pipe name is in use. Only on Windows, where the port is a named pipe.
    #[non_exhaustive]
    #[error("the pipe name {name} is in use: choose another, or none to get a random one")]
    PipeInUse {
        /// The pipe's name.
        name: String,
    },
    /// The system refused a descriptor, a pipe or a registration.
    #[error("the system refused a descriptor or a pipe: see the source error")]
    Os(#[source] io::Error),
    /// You wrote to the stream after you had shut it down, hung up or closed it. Or you closed it while you waited for the
    /// guest to open its port.
    #[error(
        "this side has already shut down, hung up or closed the stream: write everything before that"
    )]
    ShutDown,
    /// The other end is closed: the guest has powered off, or its VM or port was dropped.
    ///
    /// A port that you drop before it has a guest counts too. What the guest wrote before can still
    /// be read.
    #[error("the other end is closed: the guest has powered off, or its VM or port was dropped")]
    GuestGone,
    /// The guest's bytes from here on were discarded: they found no room while the port was
    /// [quiesced](crate::PortHandle::quiesce), or within the
    /// [stall timeout](crate::Options::stall_timeout).
    #[error(
        "the guest's bytes from here on were discarded, as they found no room while the port was \
         quiesced or within the stall timeout: read in time, or choose a larger capacity"
    )]
    CutOff,
    /// The stream cannot be [captured](crate::Checkpoint::capture) now, as a thread of krun's is still at its port.
    #[error(
        "krun is still at the port: pause the vCPUs and capture the console's device state first"
    )]
    NotAtRest,
    /// The stream cannot be [captured](crate::Checkpoint::capture), as krun may hold bytes for the guest. Only on Windows.
    #[error(
        "krun has opened the port's pipe and may hold bytes for the guest, which cannot be captured"
    )]
    InPipe,
    /// A [stream's state](crate::StreamState) is no such state, is cut short, or has changed since it was written.
    #[error("the stream's state is damaged: it is cut short or has changed since it was written")]
    StateDamaged,
    /// A [stream's state](crate::StreamState) was written by a newer version of this crate.
    #[non_exhaustive]
    #[error("the stream's state has version {version} of the format, and this build reads only 1")]
    StateVersion {
        /// The version of its format.
        version: u16,
    },
    /// A [stream's state](crate::StreamState) has more bytes than there is room for.
    #[non_exhaustive]
    #[error(
        "the stream's state needs a capacity of at least {needs} bytes, and {capacity} were chosen"
    )]
    StateTooLarge {
        /// The smallest capacity that is enough, in bytes.
        needs: usize,
        /// The capacity that you chose, in bytes.
        capacity: usize,
    },
}

/// A size in the largest unit that divides it, such as `32 KiB`.
fn with_unit(bytes: &usize) -> String {
    match bytes.trailing_zeros() {
        30.. => format!("{} GiB", bytes >> 30),
        20.. => format!("{} MiB", bytes >> 20),
        10.. => format!("{} KiB", bytes >> 10),
        _ => format!("{bytes} bytes"),
    }
}

impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        let kind = match error {
            Error::Capacity { .. } | Error::TooLong { .. } | Error::StateTooLarge { .. } => {
                io::ErrorKind::InvalidInput
            }
            Error::NoRuntime | Error::NoIoDriver | Error::NoTimer | Error::RuntimeGone => {
                io::ErrorKind::Other
            }
            Error::PipeInUse { .. } => io::ErrorKind::AddrInUse,
            // Unwrapped, to keep the system's error number.
            Error::Os(source) => return source,
            Error::ShutDown | Error::GuestGone => io::ErrorKind::BrokenPipe,
            Error::CutOff => io::ErrorKind::UnexpectedEof,
            Error::NotAtRest => io::ErrorKind::ResourceBusy,
            Error::InPipe | Error::StateVersion { .. } => io::ErrorKind::Unsupported,
            Error::StateDamaged => io::ErrorKind::InvalidData,
        };
        io::Error::new(kind, error)
    }
}
