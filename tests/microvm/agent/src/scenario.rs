//! The guest's side of each scenario, by name.
//!
//! Integers are little-endian, except the length of a frame. Checksums are CRC-32 (IEEE). Payload
//! comes from `pattern.rs`: the guest sends with the seed `FROM_GUEST`, the host with `FROM_HOST`. A
//! scenario with several ports adds the port's number to both seeds.

use std::io;
use std::time::{Duration, Instant};

use crc32fast::Hasher;
use futures::{SinkExt, StreamExt};
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio_krun::agent::VirtioPort;
use tokio_util::codec::{Framed, LengthDelimitedCodec};

use crate::Log;
use crate::bench::bench;
use crate::pattern::{FROM_GUEST, FROM_HOST, Pattern};
use crate::port::{AGENT, Port, end_of_file};
use crate::protocols;
use crate::remote::remote;
use crate::virtio_port;

/// The most that Linux takes in one `write` to a port.
pub const CHUNK: usize = 32 * 1024;
const LONGEST_FRAME: usize = 1024 * 1024;
const STALL_BYTES: u64 = 8 * 1024 * 1024;

/// Runs `work` on a single-threaded runtime.
pub fn block_on<T>(work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(work)
}

pub fn run_scenario(name: &str, log: &mut Log) -> io::Result<()> {
    match name {
        "echo" => block_on(echo()),
        "frames" => block_on(frames()),
        "traffic" => block_on(traffic(AGENT, 0, log)),
        "ports" => block_on(ports(&["agent", "agent1", "agent2", "agent3"])),
        "two-ports" => block_on(ports(&["agent", "agent1"])),
        "late-open" => block_on(late_open()),
        "last-words" => last_words(),
        "flood" => flood(),
        "stall" => stall(log),
        "remote" => remote(log),
        "bench" => bench(),
        "cbor" => block_on(protocols::cbor()),
        "grpc" => block_on(protocols::grpc()),
        "mux" => block_on(protocols::mux()),
        "names" => block_on(virtio_port::names()),
        "appear" => block_on(virtio_port::appear()),
        "hang-up" => block_on(virtio_port::hang_up()),
        "tries" => block_on(virtio_port::tries()),
        "writer" => block_on(protocols::writer(log)),
        "fail" => Err(io::Error::other("as requested")),
        _ => Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "no such scenario",
        )),
    }
}

/// Sends a greeting, then echoes until the host hangs up.
async fn echo() -> io::Result<()> {
    greet_and_echo(VirtioPort::open(AGENT).await?).await
}

pub async fn greet_and_echo(mut port: VirtioPort) -> io::Result<()> {
    port.write_all(b"hello from the guest\n").await?;
    echo_until_hang_up(port).await
}

/// Lets the host's bytes queue up before it opens the port. Then echoes without a greeting, until the
/// host hangs up.
async fn late_open() -> io::Result<()> {
    tokio::time::sleep(Duration::from_secs(2)).await;
    echo_until_hang_up(VirtioPort::open(AGENT).await?).await
}

async fn echo_until_hang_up(mut port: VirtioPort) -> io::Result<()> {
    let mut buf = vec![0; CHUNK];
    loop {
        match port.read(&mut buf).await? {
            0 => return Ok(()),
            n => port.write_all(&buf[..n]).await?,
        }
    }
}

/// Echoes frames: a big-endian u32 length, then that many bytes. Ends after it has echoed the frame
/// `bye`. Does not read while it writes.
async fn frames() -> io::Result<()> {
    let codec = LengthDelimitedCodec::builder()
        .max_frame_length(LONGEST_FRAME)
        .new_codec();
    let mut frames = Framed::new(VirtioPort::open(AGENT).await?, codec);
    loop {
        let frame = frames.next().await.ok_or_else(end_of_file)??;
        let is_last = &frame[..] == b"bye";
        frames.send(frame.freeze()).await?;
        if is_last {
            return Ok(());
        }
    }
}

/// Moves bytes both ways at the same time:
///
/// 1. Reads {u64 bytes from the host, u64 bytes to the host}.
/// 2. Receives and sends that many bytes at the same time.
/// 3. Sends {u64 bytes received, u32 their checksum, u32 1 if each was right, else 0}.
/// 4. Waits for one more byte, by which the host confirms that it has read all this.
async fn traffic(name: &str, number: u64, log: &mut Log) -> io::Result<()> {
    let mut port = VirtioPort::open(name).await?;
    let (mut to_receive, mut to_send) = (port.read_u64_le().await?, port.read_u64_le().await?);
    let mut received = Received::new(number);
    let mut sending = Sending::new(number);
    let mut buf = vec![0; CHUNK];
    while to_receive > 0 || to_send > 0 {
        port.ready(match (to_receive > 0, to_send > 0) {
            (true, true) => Interest::READABLE | Interest::WRITABLE,
            (true, false) => Interest::READABLE,
            _ => Interest::WRITABLE,
        })
        .await?;
        if to_receive > 0 {
            let most = at_most(buf.len(), to_receive);
            match none_if_would_block(port.try_read(&mut buf[..most]))? {
                Some(0) => return Err(end_of_file()),
                Some(n) => {
                    received.take(&buf[..n], log);
                    to_receive -= n as u64;
                }
                None => {}
            }
        }
        if to_send > 0
            && let Some(n) = none_if_would_block(port.try_write(sending.next(to_send)))?
        {
            sending.advance(n);
            to_send -= n as u64;
        }
    }
    let mut trailer = Vec::with_capacity(16);
    trailer.extend(received.count.to_le_bytes());
    trailer.extend(received.crc.finalize().to_le_bytes());
    trailer.extend(u32::from(received.right).to_le_bytes());
    port.write_all(&trailer).await?;
    port.read_exact(&mut [0]).await.map(drop)
}

fn none_if_would_block(moved: io::Result<usize>) -> io::Result<Option<usize>> {
    match moved {
        Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(None),
        moved => moved.map(Some),
    }
}

/// Runs `traffic` over all these ports at the same time.
async fn ports(names: &[&str]) -> io::Result<()> {
    let ports = (0..)
        .zip(names)
        .map(|(number, name)| async move { traffic(name, number, &mut Log::new()).await });
    futures::future::try_join_all(ports).await.map(drop)
}

/// Reads a u64 and writes that many bytes with blocking writes. Ends the VM as soon as the last write
/// returns.
fn last_words() -> io::Result<()> {
    let port = Port::open_blocking(AGENT)?;
    let mut left = read_u64(&port)?;
    let mut sending = Sending::new(0);
    while left > 0 {
        let n = port.write(sending.next(left))?;
        sending.advance(n);
        left -= n as u64;
    }
    Ok(())
}

/// Writes forever with blocking writes.
fn flood() -> io::Result<()> {
    let port = Port::open_blocking(AGENT)?;
    let mut sending = Sending::new(0);
    loop {
        let n = port.write(sending.next(u64::MAX))?;
        sending.advance(n);
    }
}

/// Measures how long blocking writes take:
///
/// 1. Waits for a byte.
/// 2. Sends 8 MiB with blocking writes.
/// 3. Sends {u64 bytes sent, u32 their checksum, u32 milliseconds of the longest write}.
/// 4. Waits for one more byte.
fn stall(log: &mut Log) -> io::Result<()> {
    let port = Port::open_blocking(AGENT)?;
    port.read_exact(&mut [0])?;
    let mut sending = Sending::new(0);
    let mut longest = Duration::ZERO;
    let mut left = STALL_BYTES;
    while left > 0 {
        let chunk = sending.next(left);
        let started = Instant::now();
        let n = port.write(chunk)?;
        longest = longest.max(started.elapsed());
        sending.advance(n);
        left -= n as u64;
    }
    let longest = u32::try_from(longest.as_millis()).unwrap_or(u32::MAX);
    log.say(format_args!("longest write {longest} ms"));
    let mut trailer = Vec::with_capacity(16);
    trailer.extend(STALL_BYTES.to_le_bytes());
    trailer.extend(sending.crc.finalize().to_le_bytes());
    trailer.extend(longest.to_le_bytes());
    port.write_all(&trailer)?;
    port.read_exact(&mut [0])
}

pub fn read_u64(port: &Port) -> io::Result<u64> {
    let mut bytes = [0; 8];
    port.read_exact(&mut bytes)?;
    Ok(u64::from_le_bytes(bytes))
}

/// The smaller of `length` and `limit`.
pub fn at_most(length: usize, limit: u64) -> usize {
    usize::try_from(limit).map_or(length, |limit| length.min(limit))
}

/// Generates the bytes that the guest sends, a chunk at a time.
pub struct Sending {
    pattern: Pattern,
    chunk: Vec<u8>,
    /// How many bytes of `chunk` have been sent.
    sent: usize,
    /// The checksum of all bytes sent.
    crc: Hasher,
}

impl Sending {
    pub fn new(number: u64) -> Self {
        Self {
            pattern: Pattern::new(FROM_GUEST + number),
            chunk: vec![0; CHUNK],
            sent: CHUNK,
            crc: Hasher::new(),
        }
    }

    /// Returns the bytes to send next: at least one, at most `limit`.
    pub fn next(&mut self, limit: u64) -> &[u8] {
        if self.sent == self.chunk.len() {
            self.pattern.fill(&mut self.chunk);
            self.sent = 0;
        }
        let rest = &self.chunk[self.sent..];
        &rest[..at_most(rest.len(), limit)]
    }

    /// Counts the first `n` of those bytes as sent.
    pub fn advance(&mut self, n: usize) {
        self.crc.update(&self.chunk[self.sent..self.sent + n]);
        self.sent += n;
    }
}

/// Checks the bytes that the guest receives.
pub struct Received {
    pattern: Pattern,
    count: u64,
    crc: Hasher,
    pub right: bool,
}

impl Received {
    pub fn new(number: u64) -> Self {
        Self {
            pattern: Pattern::new(FROM_HOST + number),
            count: 0,
            crc: Hasher::new(),
            right: true,
        }
    }

    pub fn take(&mut self, bytes: &[u8], log: &mut Log) {
        self.crc.update(bytes);
        if let Err(place) = self.pattern.check(bytes) {
            if self.right {
                let place = self.count + place as u64;
                log.say(format_args!("byte {place} from the host is wrong"));
            }
            self.right = false;
        }
        self.count += bytes.len() as u64;
    }
}
