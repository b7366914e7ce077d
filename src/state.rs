//! What a checkpoint saves of a stream, and how it is written down.

mod crc;
#[cfg(feature = "serde")]
mod serde;

use std::fmt;
use std::io::{self, Read, Write};

use crate::error::Error;
use crate::options::Options;
use crate::shared::{Captured, RingState};
use crate::stats::{RingStats, Stats};
use crc::Crc;

const MAGIC: [u8; 8] = *b"tokiokrn";
const VERSION: u16 = 1;

// The flags.
const GUEST_OPENED: u16 = 1;
const SHUT_DOWN: u16 = 1 << 1;
const HUNG_UP: u16 = 1 << 2;
const READING_ENDED: u16 = 1 << 3;
const CLOSED: u16 = 1 << 4;
const ALL_FLAGS: u16 = GUEST_OPENED | SHUT_DOWN | HUNG_UP | READING_ENDED | CLOSED;

/// No stream gets there, so that no position ever overflows.
const MAX_POSITION: u64 = u64::MAX / 4;

/// What is between host and guest at one moment, to go on with in another process: see [`Options::restore`].
///
/// It has the bytes that the host has not read and those that the guest has not taken, the position of each direction,
/// whether the guest has opened its port, and which ends were said. It has nothing of the VM, which krun saves, and nothing
/// that your program has read already.
///
/// Get it from [`Checkpoint::capture`](crate::Checkpoint::capture). It is plain data: clone it, keep it, restore it as often
/// as you like. `Debug` shows no payload.
///
/// # Format
///
/// [`write_to`](Self::write_to) writes the same bytes on every system and in every build of this version. All numbers are
/// little-endian:
///
/// | bytes | content |
/// | --- | --- |
/// | 8 | `tokiokrn` |
/// | 2 | version of the format: 1 |
/// | 2 | flags: 1 the guest has opened its port; 2 the host has shut down its writing; 4 hung up; 8 ended its reading; 16 closed the stream |
/// | 8 | the stream's capacity |
/// | 8, 8 | from the guest: how many bytes the host has read; how many follow here, at most twice the capacity |
/// | 8, 8 | to the guest: how many bytes the guest has taken; how many follow here, at most the capacity |
/// | … | the guest's bytes, then those for the guest |
/// | 4 | CRC-32 (that of zip and PNG) of everything before |
///
/// With the feature `serde`, it is serialized as these bytes.
///
/// # Examples
///
/// ```
/// # use tokio::io::AsyncWriteExt;
/// # use tokio_krun::AgentStream;
/// use tokio_krun::StreamState;
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> std::io::Result<()> {
/// # let (mut stream, port) = AgentStream::pair()?;
/// # let handle = port.handle();
/// stream.write_all(b"request").await?; // the guest has not taken it yet
/// let state = handle.checkpoint().capture()?;
///
/// let mut file = Vec::new();
/// state.write_to(&mut file)?;
/// assert_eq!(StreamState::read_from(&file[..])?, state);
/// # Ok(()) }
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct StreamState(pub(crate) Captured);

impl StreamState {
    /// Returns the captured stream's [capacity](Options::capacity). It is enough to [restore](Options::restore) it,
    /// unless a test has made a stream with less than [`Options::MIN_CAPACITY`].
    ///
    /// # Examples
    ///
    /// ```
    /// # use tokio_krun::{AgentStream, Options};
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> std::io::Result<()> {
    /// # let (stream, port) = AgentStream::pair()?;
    /// # let state = port.handle().checkpoint().capture()?;
    /// let options = Options::new().capacity(state.capacity());
    /// let (stream, port) = options.restore(&state)?;
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.0.capacity
    }

    /// Returns the counters that a restored stream begins with.
    ///
    /// They tell you up to which byte the state goes: the host has read `tx.bytes`, and has written `rx.bytes` and
    /// `rx.queued`. Compare that with what your program has counted.
    ///
    /// # Examples
    ///
    /// ```
    /// # use tokio::io::AsyncWriteExt;
    /// # use tokio_krun::AgentStream;
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> std::io::Result<()> {
    /// # let (mut stream, port) = AgentStream::pair()?;
    /// # let handle = port.handle();
    /// stream.write_all(b"request").await?;
    /// let rx = handle.checkpoint().capture()?.stats().rx;
    /// assert_eq!(rx.bytes + rx.queued, 7);
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn stats(&self) -> Stats {
        let ring = |ring: &RingState| RingStats {
            queued: ring.unread.len() as u64,
            high_water: ring.unread.len() as u64,
            bytes: ring.read,
            ..RingStats::default()
        };
        Stats {
            tx: ring(&self.0.tx),
            rx: ring(&self.0.rx),
        }
    }

    /// Writes the state down, in the [format](Self#format) above.
    ///
    /// It writes three large pieces at most, so no buffering is needed. It does not flush.
    ///
    /// # Errors
    ///
    /// Those of `target`.
    ///
    /// # Examples
    ///
    /// ```
    /// # use tokio_krun::AgentStream;
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> std::io::Result<()> {
    /// # let (stream, port) = AgentStream::pair()?;
    /// # let state = port.handle().checkpoint().capture()?;
    /// # let mut file = std::io::sink();
    /// state.write_to(&mut file)?;
    /// # Ok(()) }
    /// ```
    pub fn write_to(&self, mut target: impl Write) -> io::Result<()> {
        let mut crc = Crc::new();
        for piece in [&self.header()[..], &self.0.tx.unread, &self.0.rx.unread] {
            crc.update(piece);
            target.write_all(piece)?;
        }
        target.write_all(&crc.value().to_le_bytes())
    }

    fn header(&self) -> Vec<u8> {
        let state = &self.0;
        let flag = |is_set, flag| if is_set { flag } else { 0 };
        let flags = flag(state.guest_opened, GUEST_OPENED)
            | flag(state.shut_down, SHUT_DOWN)
            | flag(state.hung_up, HUNG_UP)
            | flag(state.reading_ended, READING_ENDED)
            | flag(state.closed, CLOSED);
        let mut header = MAGIC.to_vec();
        header.extend_from_slice(&VERSION.to_le_bytes());
        header.extend_from_slice(&flags.to_le_bytes());
        header.extend_from_slice(&(state.capacity as u64).to_le_bytes());
        for ring in [&state.tx, &state.rx] {
            header.extend_from_slice(&ring.read.to_le_bytes());
            header.extend_from_slice(&(ring.unread.len() as u64).to_le_bytes());
        }
        header
    }

    /// Reads a state that [`write_to`](Self::write_to) has written, and not a byte more. So one file may hold several.
    ///
    /// The bytes are not trusted: the state's own capacity bounds it, that is at most
    /// [`MAX_CAPACITY`](Options::MAX_CAPACITY), and memory is allocated only as the bytes come. Bound it further with
    /// [`Read::take`].
    ///
    /// # Errors
    ///
    /// - [`InvalidData`](io::ErrorKind::InvalidData) with [`Error::StateDamaged`] if it is none, is cut short, or has changed.
    /// - [`Unsupported`](io::ErrorKind::Unsupported) with [`Error::StateVersion`] if a newer version of this crate wrote it.
    /// - Those of `source`.
    ///
    /// # Examples
    ///
    /// ```
    /// # use tokio_krun::AgentStream;
    /// use std::io::ErrorKind;
    ///
    /// use tokio_krun::StreamState;
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> std::io::Result<()> {
    /// # let (stream, port) = AgentStream::pair()?;
    /// # let state = port.handle().checkpoint().capture()?;
    /// let mut file = Vec::new();
    /// state.write_to(&mut file)?;
    /// let half = &file[..file.len() / 2];
    /// assert_eq!(StreamState::read_from(half).unwrap_err().kind(), ErrorKind::InvalidData);
    /// # Ok(()) }
    /// ```
    pub fn read_from(source: impl Read) -> io::Result<Self> {
        let mut source = Source {
            source,
            crc: Crc::new(),
        };
        if source.array()? != MAGIC {
            return Err(Error::StateDamaged.into());
        }
        let version = u16::from_le_bytes(source.array()?);
        if version != VERSION {
            return Err(Error::StateVersion { version }.into());
        }
        let flags = u16::from_le_bytes(source.array()?);
        let capacity = source.number(Options::MAX_CAPACITY as u64)?;
        let tx = source.position_and_length(2 * capacity)?;
        let rx = source.position_and_length(capacity)?;
        let state = Captured {
            // No truncation: it is at most the limit of a `usize`.
            capacity: capacity as usize,
            guest_opened: flags & GUEST_OPENED != 0,
            shut_down: flags & SHUT_DOWN != 0,
            hung_up: flags & HUNG_UP != 0,
            reading_ended: flags & READING_ENDED != 0,
            closed: flags & CLOSED != 0,
            tx: source.ring(tx)?,
            rx: source.ring(rx)?,
        };
        let crc = source.crc.value();
        let is_whole = u32::from_le_bytes(source.array()?) == crc;
        // What hangs up also shuts down, and what closes also does that and reads no more.
        let is_possible = flags & !ALL_FLAGS == 0
            && capacity > 0
            && (state.shut_down || !(state.hung_up || state.closed))
            && (state.reading_ended || !state.closed);
        match is_whole && is_possible {
            true => Ok(Self(state)),
            false => Err(Error::StateDamaged.into()),
        }
    }
}

impl fmt::Debug for StreamState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StreamState")
            .field("capacity", &self.0.capacity)
            .field("guest_opened", &self.0.guest_opened)
            .field("shut_down", &self.0.shut_down)
            .field("hung_up", &self.0.hung_up)
            .field("reading_ended", &self.0.reading_ended)
            .field("closed", &self.0.closed)
            .field("tx_read", &self.0.tx.read)
            .field("tx_unread", &self.0.tx.unread.len())
            .field("rx_read", &self.0.rx.read)
            .field("rx_unread", &self.0.rx.unread.len())
            .finish()
    }
}

/// Reads what is not trusted.
struct Source<R> {
    source: R,
    /// Of everything so far.
    crc: Crc,
}

impl<R: Read> Source<R> {
    fn array<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut array = [0; N];
        match self.source.read_exact(&mut array) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                return Err(Error::StateDamaged.into());
            }
            Err(error) => return Err(error),
        }
        self.crc.update(&array);
        Ok(array)
    }

    fn number(&mut self, most: u64) -> io::Result<u64> {
        let number = u64::from_le_bytes(self.array()?);
        match number <= most {
            true => Ok(number),
            false => Err(Error::StateDamaged.into()),
        }
    }

    fn position_and_length(&mut self, most: u64) -> io::Result<(u64, u64)> {
        Ok((self.number(MAX_POSITION)?, self.number(most)?))
    }

    fn ring(&mut self, (read, length): (u64, u64)) -> io::Result<RingState> {
        let mut unread = Vec::new();
        // It grows with what was read, whatever the length says.
        self.source.by_ref().take(length).read_to_end(&mut unread)?;
        if unread.len() as u64 != length {
            return Err(Error::StateDamaged.into());
        }
        self.crc.update(&unread);
        Ok(RingState { read, unread })
    }
}
