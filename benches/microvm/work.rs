//! The jobs of a port, and the host's part of them.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::pattern::{FROM_GUEST, FROM_HOST, Pattern};

pub(crate) const MIB: u64 = 1024 * 1024;
/// Most bytes of one read, and bytes of one write.
const BUFFER: usize = 64 * 1024;
/// Bytes after which the sent pattern repeats, as in `tests/microvm/agent/src/bench.rs`.
const CHUNK: usize = 32 * 1024;
/// Bytes of a round trip's message.
const MESSAGE: usize = 64;

/// How much work to do.
#[derive(Clone)]
pub(crate) struct Plan {
    pub(crate) rounds: usize,
    mib: u64,
    round_trips: u64,
}

impl Plan {
    pub(crate) const FULL: Self = Self {
        rounds: 5,
        mib: 16,
        round_trips: 500,
    };
    pub(crate) const QUICK: Self = Self {
        rounds: 1,
        mib: 8,
        round_trips: 100,
    };
    /// Runs before anything is measured.
    pub(crate) const WARM_UP: Self = Self {
        rounds: 1,
        mib: 1,
        round_trips: 10,
    };

    pub(crate) fn describe(&self) -> String {
        format!(
            "{} rounds of {} MiB each way and {} round trips of {MESSAGE} bytes",
            self.rounds, self.mib, self.round_trips
        )
    }
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Job {
    FromGuest,
    ToGuest,
    RoundTrips,
    /// Counts the measuring itself.
    Nothing,
}

impl Job {
    pub(crate) const ALL: [Self; 3] = [Self::FromGuest, Self::ToGuest, Self::RoundTrips];

    /// The unit that counts are given for, and how many units a round has.
    pub(crate) fn unit(self, plan: &Plan) -> (&'static str, f64) {
        match self {
            Self::FromGuest => ("from the guest, per MiB", plan.mib as f64),
            Self::ToGuest => ("to the guest, per MiB", plan.mib as f64),
            Self::RoundTrips => ("per round trip", plan.round_trips as f64),
            Self::Nothing => ("nothing", 1.0),
        }
    }

    pub(crate) async fn run(self, plan: &Plan, port: &mut impl Port) -> io::Result<()> {
        match self {
            Self::FromGuest => from_guest(port, plan.mib * MIB).await,
            Self::ToGuest => to_guest(port, plan.mib * MIB).await,
            Self::RoundTrips => round_trips(port, plan.round_trips).await,
            Self::Nothing => Ok(()),
        }
    }
}

pub(crate) trait Port: AsyncRead + AsyncWrite + Unpin {}
impl<P: AsyncRead + AsyncWrite + Unpin> Port for P {}

/// How many interrupts the guest has taken so far.
pub(crate) async fn interrupts(port: &mut impl Port) -> io::Result<u64> {
    command(port, b'i', 0).await?;
    port.read_u64_le().await
}

async fn command(port: &mut impl Port, command: u8, count: u64) -> io::Result<()> {
    let mut bytes = [command; 9];
    bytes[1..].copy_from_slice(&count.to_le_bytes());
    port.write_all(&bytes).await
}

async fn from_guest(port: &mut impl Port, length: u64) -> io::Result<()> {
    // Long enough for the longest read, wherever in the pattern it begins.
    let expected = repeated(FROM_GUEST, CHUNK + BUFFER);
    let mut buffer = vec![0; BUFFER];
    command(port, b'w', length).await?;
    let mut place = 0;
    while place < length {
        let read = port.read(&mut buffer).await?;
        let begin = (place % CHUNK as u64) as usize;
        assert_ne!(read, 0, "the guest hung up");
        assert!(
            buffer[..read] == expected[begin..][..read],
            "wrong bytes from the guest, from byte {place} on"
        );
        place += read as u64;
    }
    assert_eq!(place, length);
    Ok(())
}

async fn to_guest(port: &mut impl Port, length: u64) -> io::Result<()> {
    let piece = repeated(FROM_HOST, BUFFER);
    command(port, b'r', length).await?;
    for _ in 0..length / BUFFER as u64 {
        port.write_all(&piece).await?;
    }
    assert_eq!(port.read_u8().await?, 1, "the guest found wrong bytes");
    Ok(())
}

async fn round_trips(port: &mut impl Port, count: u64) -> io::Result<()> {
    command(port, b'e', count).await?;
    for number in 0..count {
        let sent = [number as u8; MESSAGE];
        let mut received = [0; MESSAGE];
        port.write_all(&sent).await?;
        port.read_exact(&mut received).await?;
        assert_eq!(received, sent);
    }
    Ok(())
}

fn repeated(seed: u64, length: usize) -> Vec<u8> {
    let mut chunk = vec![0; CHUNK];
    Pattern::new(seed).fill(&mut chunk);
    chunk.iter().copied().cycle().take(length).collect()
}
