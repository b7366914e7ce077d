//! What `VirtioPort` promises and only a real port can show.

use std::fs;
use std::future::poll_fn;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, PoisonError};

use futures::future::poll_immediate;
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio_krun::agent::VirtioPort;

use crate::Log;
use crate::port::AGENT;
use crate::remote::CONTROL;
use crate::scenario::{CHUNK, greet_and_echo};

const PORTS: &str = "/sys/class/virtio-ports";

/// Opens the port at a time when it has no device file, gives it one, and has the kernel say that there is a
/// device; then as `echo`.
pub async fn appear() -> io::Result<()> {
    // Its name is known once this ends.
    drop(VirtioPort::open(AGENT).await?);
    let device = device(AGENT)?;
    let (file, away) = (Path::new("/dev").join(&device), Path::new("/dev/away"));
    fs::rename(&file, away)?;

    let mut opening = pin!(VirtioPort::open(AGENT));
    if let Some(opened) = poll_immediate(&mut opening).await {
        return Err(unexpected(format!("without a device file: {opened:?}")));
    }
    // No look follows without an event, and of that it hears when the runtime sleeps, in the last line.
    fs::rename(away, &file)?;
    fs::write(Path::new(PORTS).join(&device).join("uevent"), "add")?;
    greet_and_echo(opening.await?).await
}

/// The name of the port's device file, and of its folder in sysfs.
fn device(name: &str) -> io::Result<PathBuf> {
    for entry in fs::read_dir(PORTS)? {
        let entry = entry?;
        if fs::read_to_string(entry.path().join("name"))?.trim_end() == name {
            return Ok(entry.file_name().into());
        }
    }
    Err(ErrorKind::NotFound.into())
}

/// What the ring of the test's port holds, and krun's default queue, in chunks.
const FULL: usize = 2 + 32;
const ROUNDS: usize = 5;

/// Fills the port. Then, so many times, a task writes one more chunk, which must wait for room, while another tries
/// to write one, over and over, until the first has written or a try has found room. Over the port "control" it says
/// `w` when a write is about to wait, `t` if a try has taken the room instead, and `d` when all is done: the host's
/// answer to each of the first two is that it reads a chunk.
pub async fn tries() -> io::Result<()> {
    // A task of its own comes after the one that writes, if both can go on: what has no task comes first.
    tokio::spawn(try_in_rounds()).await?
}

async fn try_in_rounds() -> io::Result<()> {
    let mut control = VirtioPort::open(CONTROL).await?;
    let mut port = VirtioPort::open(AGENT).await?;
    port.write_all(&vec![7; FULL * CHUNK]).await?;
    let port = Arc::new(Mutex::new(port));
    let (mut refused, mut taken) = (0, 0);
    for _ in 0..ROUNDS {
        let writing = tokio::spawn(write_a_chunk(Arc::clone(&port)));
        tokio::task::yield_now().await;
        if writing.is_finished() {
            return Err(unexpected("there was room"));
        }
        control.write_all(b"w").await?;
        while !writing.is_finished() {
            match locked(&port, |port| port.try_write(&[8; CHUNK])) {
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
    Log::new().say(format_args!("{refused} tries found no room, {taken} did"));
    if refused == 0 {
        return Err(unexpected("no try found that there was no room"));
    }
    control.write_all(b"d").await
}

async fn write_a_chunk(port: Arc<Mutex<VirtioPort>>) -> io::Result<usize> {
    poll_fn(|cx| locked(&port, |port| Pin::new(port).poll_write(cx, &[7; CHUNK]))).await
}

fn locked<T>(port: &Mutex<VirtioPort>, work: impl FnOnce(&mut VirtioPort) -> T) -> T {
    work(&mut port.lock().unwrap_or_else(PoisonError::into_inner))
}

fn unexpected(what: impl Into<String>) -> io::Error {
    io::Error::other(what.into())
}
