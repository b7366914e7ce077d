//! Tests promises of `VirtioPort` that only a real port can show.

use std::fs;
use std::future::poll_fn;
use std::io::{self, ErrorKind, IoSlice};
use std::path::{Path, PathBuf};
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use futures::future::poll_immediate;
use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt, Interest};
use tokio_krun::agent::VirtioPort;
use tokio_util::codec::{Framed, LengthDelimitedCodec};

use crate::Log;
use crate::port::AGENT;
use crate::remote::CONTROL;
use crate::scenario::{CHUNK, greet_and_echo};

const PORTS: &str = "/sys/class/virtio-ports";

/// Opens each port whose name the host sends in a frame, and sends the name back over that port. Keeps the ports
/// open until the host hangs up.
pub async fn names() -> io::Result<()> {
    let mut names = Framed::new(VirtioPort::open(AGENT).await?, LengthDelimitedCodec::new());
    let mut ports = Vec::new();
    while let Some(name) = names.next().await.transpose()? {
        let name = str::from_utf8(&name).map_err(io::Error::other)?;
        let mut port = VirtioPort::open(name).await?;
        port.write_all(name.as_bytes()).await?;
        ports.push(port);
    }
    Ok(())
}

/// Starts to open the port while it has no device file. Then restores the file and makes the kernel
/// announce the device. From there on, this is `echo`.
pub async fn appear() -> io::Result<()> {
    // Once this returns, sysfs has the port's name.
    drop(VirtioPort::open(AGENT).await?);
    let device = device(AGENT)?;
    let (file, away) = (Path::new("/dev").join(&device), Path::new("/dev/away"));
    fs::rename(&file, away)?;

    let mut opening = pin!(VirtioPort::open(AGENT));
    if let Some(opened) = poll_immediate(&mut opening).await {
        return Err(unexpected(format!(
            "opened without a device file: {opened:?}"
        )));
    }
    // `open` looks again only after an event, which it sees when the runtime sleeps in the last line.
    fs::rename(away, &file)?;
    fs::write(Path::new(PORTS).join(&device).join("uevent"), "add")?;
    greet_and_echo(opening.await?).await
}

/// The name that the port's device file and its folder in sysfs share.
fn device(name: &str) -> io::Result<PathBuf> {
    for entry in fs::read_dir(PORTS)? {
        let entry = entry?;
        if fs::read_to_string(entry.path().join("name"))?.trim_end() == name {
            return Ok(entry.file_name().into());
        }
    }
    Err(ErrorKind::NotFound.into())
}

/// Writes several buffers at once. Then leaves unread what the host has sent, and checks that its hang-up shows all the same.
///
/// Reports over the port "control": `r` when the host's bytes are there, `d` when all is done.
pub async fn hang_up() -> io::Result<()> {
    // If this hangs, the log says where.
    let mut log = Log::new();
    let mut control = VirtioPort::open(CONTROL).await?;
    let mut port = VirtioPort::open(AGENT).await?;
    expect(port.write(b"").await? == 0, "an empty write has written")?;
    let buffers = [b"".as_slice(), b"in", b" one ", b"write"].map(IoSlice::new);
    let written = port.write_vectored(&buffers).await?;
    expect(written == 12, format!("wrote {written} bytes"))?;

    let ready = port.ready(Interest::READABLE | Interest::WRITABLE).await?;
    expect(
        !ready.is_read_closed() && !ready.is_write_closed(),
        "closed too early",
    )?;
    log.say("waits for the host's bytes");
    port.readable().await?;
    control.write_all(b"r").await?;
    log.say("waits for the hang-up");
    // It is ready for the bytes that are there, so a wait for the hang-up alone would not wait.
    while !port.ready(Interest::READABLE).await?.is_read_closed() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    log.say("the host has hung up");
    let ready = port.ready(Interest::READABLE | Interest::WRITABLE).await?;
    expect(
        ready.is_readable() && ready.is_write_closed(),
        format!("{ready:?}"),
    )?;
    let (mut read, mut write) = port.into_split();
    for bytes in [b"".as_slice(), b"too late"] {
        for written in [write.write(bytes).await, write.try_write(bytes)] {
            let broken = written
                .as_ref()
                .is_err_and(|error| error.kind() == ErrorKind::BrokenPipe);
            expect(
                broken,
                format!("a write after the hang-up returned {written:?}"),
            )?;
        }
    }
    let mut left = Vec::new();
    read.read_to_end(&mut left).await?;
    expect(left == b"last", format!("{left:?} were left"))?;
    control.write_all(b"d").await
}

/// How many chunks the port holds: 2 in the ring of the test, 32 in krun's default queue.
const FULL: usize = 2 + 32;
const ROUNDS: usize = 5;

/// Fills the port, then runs `ROUNDS` rounds. In each, one task writes one more chunk, which must wait
/// for room. Another task tries to write a chunk over and over, until the first task has written or a
/// try finds room.
///
/// Reports over the port "control": `w` when a write is about to wait, `t` when a try has taken the
/// room instead, `d` when all is done. The host answers `w` and `t` by reading a chunk.
pub async fn tries() -> io::Result<()> {
    // As a spawned task, this runs after the task that writes if both can go on. As `block_on`'s own
    // future, it would run first.
    tokio::spawn(run_rounds()).await?
}

async fn run_rounds() -> io::Result<()> {
    let mut control = VirtioPort::open(CONTROL).await?;
    let mut port = VirtioPort::open(AGENT).await?;
    port.write_all(&vec![7; FULL * CHUNK]).await?;
    let port = Arc::new(Mutex::new(port));
    let (mut refused, mut taken) = (0, 0);
    for _ in 0..ROUNDS {
        let writing = tokio::spawn(write_chunk(Arc::clone(&port)));
        tokio::task::yield_now().await;
        if writing.is_finished() {
            return Err(unexpected("the write found room in a full port"));
        }
        control.write_all(b"w").await?;
        while !writing.is_finished() {
            match with_lock(&port, |port| port.try_write(&[8; CHUNK])) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => refused += 1,
                Err(error) => return Err(error),
                Ok(_) => {
                    taken += 1;
                    control.write_all(b"t").await?;
                    break;
                }
            }
            tokio::task::yield_now().await;
        }
        writing.await??;
    }
    Log::new().say(format_args!(
        "{refused} tries found no room, {taken} found room"
    ));
    if refused == 0 {
        return Err(unexpected("every try found room"));
    }
    control.write_all(b"d").await
}

async fn write_chunk(port: Arc<Mutex<VirtioPort>>) -> io::Result<usize> {
    poll_fn(|cx| with_lock(&port, |port| Pin::new(port).poll_write(cx, &[7; CHUNK]))).await
}

fn with_lock<T>(port: &Mutex<VirtioPort>, work: impl FnOnce(&mut VirtioPort) -> T) -> T {
    work(&mut port.lock().unwrap_or_else(PoisonError::into_inner))
}

fn expect(holds: bool, otherwise: impl Into<String>) -> io::Result<()> {
    match holds {
        true => Ok(()),
        false => Err(unexpected(otherwise)),
    }
}

fn unexpected(what: impl Into<String>) -> io::Error {
    io::Error::other(what.into())
}
