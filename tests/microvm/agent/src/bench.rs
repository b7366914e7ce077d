//! The guest's side of `benches/microvm`: does the work that the host asks for on each port.

use std::fs;
use std::io;
use std::thread;

use crate::pattern::{FROM_GUEST, FROM_HOST, Pattern};
use crate::port::{Port, end_of_file};
use crate::scenario::{CHUNK, at_most, read_u64};

const PORTS: [&str; 2] = ["stream", "fd"];
/// The length of the message in a round trip.
const MESSAGE: usize = 64;

/// On each of the ports "stream" and "fd", reads {u8 command, u64 count}, does the work and answers.
/// Repeats this until the host hangs up.
///
/// | command | work | answer |
/// | --- | --- | --- |
/// | `w` | sends `count` bytes, the same 32 KiB over and over | none |
/// | `r` | receives `count` bytes, the same 32 KiB over and over | u8 1 if each was right, else 0 |
/// | `e` | echoes `count` messages of 64 bytes | none |
/// | `i` | none | u64 interrupts of virtio devices so far |
pub fn bench() -> io::Result<()> {
    let threads = PORTS.map(|name| thread::spawn(move || serve(&Port::open(name)?)));
    for thread in threads {
        thread.join().expect("a panic aborts the agent")?;
    }
    Ok(())
}

fn serve(port: &Port) -> io::Result<()> {
    let mut sent = vec![0; CHUNK];
    Pattern::new(FROM_GUEST).fill(&mut sent);
    let mut expected = vec![0; CHUNK];
    Pattern::new(FROM_HOST).fill(&mut expected);
    let mut buf = vec![0; CHUNK];
    let mut command = [0];
    while port.read(&mut command)? != 0 {
        let count = read_u64(port)?;
        match command[0] {
            b'w' => send(port, &sent, count)?,
            b'r' => {
                let right = receive(port, &expected, &mut buf, count)?;
                port.write_all(&[right.into()])?;
            }
            b'e' => {
                for _ in 0..count {
                    port.read_exact(&mut buf[..MESSAGE])?;
                    port.write_all(&buf[..MESSAGE])?;
                }
            }
            b'i' => port.write_all(&interrupts()?.to_le_bytes())?,
            _ => {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidInput,
                    "unknown command",
                ));
            }
        }
    }
    Ok(())
}

fn send(port: &Port, chunk: &[u8], count: u64) -> io::Result<()> {
    let mut left = count;
    let mut rest = chunk;
    while left > 0 {
        let sent = port.write(&rest[..at_most(rest.len(), left)])?;
        left -= sent as u64;
        rest = &rest[sent..];
        if rest.is_empty() {
            rest = chunk;
        }
    }
    Ok(())
}

fn receive(port: &Port, expected: &[u8], buf: &mut [u8], count: u64) -> io::Result<bool> {
    let mut left = count;
    let mut rest = expected;
    let mut right = true;
    while left > 0 {
        // Stops at the end of the expected chunk.
        let most = at_most(rest.len(), left);
        let received = port.read(&mut buf[..most])?;
        if received == 0 {
            return Err(end_of_file());
        }
        right &= buf[..received] == rest[..received];
        left -= received as u64;
        rest = &rest[received..];
        if rest.is_empty() {
            rest = expected;
        }
    }
    Ok(right)
}

fn interrupts() -> io::Result<u64> {
    let table = fs::read_to_string("/proc/interrupts")?;
    let virtio = table.lines().filter(|line| line.contains("virtio"));
    // A line starts with its interrupt's name. The next column is the count of the only CPU.
    let counts = virtio.filter_map(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok());
    Ok(counts.sum())
}
