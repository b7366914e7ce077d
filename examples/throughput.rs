//! How fast the stream is on this machine, with the in-process guest.
//!
//! `cargo run --release --example throughput [MiB]`
//!
//! Each round carries that many MiB each way, and then makes round trips. The figures are those of the fastest rounds: other
//! programs can only slow a round down.
//!
//! The programs in `benches/` compare the stream with other transports.

use std::error::Error;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_krun::agent::VirtioPort;
use tokio_krun::test_util::Guest;
use tokio_krun::{AgentStream, Stats};

const MIB: usize = 1024 * 1024;
const PIECE: usize = 32 * 1024;
const ROUNDS: u64 = 40;
const ROUND_TRIPS: u32 = 2_000;
const ROUND: &str = "round trips of 64 bytes";

/// One part of a round: how long it took for each MiB or round trip, and how often it woke each side.
struct Part {
    each: Duration,
    host_wakes: f64,
    guest_wakes: f64,
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let amount = match &arguments[..] {
        [] => Some(128),
        [mib] => mib.parse().ok().filter(|mib| (1..=1_000_000).contains(mib)),
        _ => None,
    };
    let Some(amount) = amount else {
        eprintln!("usage: throughput [MiB], from 1 to 1000000 in each round and direction");
        std::process::exit(2);
    };
    let (mut stream, port) = AgentStream::pair()?;
    // With krun's threads, as in a VM.
    let guest = Guest::builder().port("agent", port).threads(true).boot();
    let mut agent = guest.open()?;

    let names = ["from the guest", "to the guest", ROUND];
    let mut parts = [const { Vec::new() }; 3];
    // Shows nothing unless standard error is a terminal.
    let style = ProgressStyle::with_template("{prefix}: {msg:24} [{bar:30}]")?;
    let bar = ProgressBar::new(ROUNDS * 3).with_style(style.progress_chars("=> "));
    for round in 1..=ROUNDS {
        bar.set_prefix(format!("round {round:2} of {ROUNDS}"));
        for (part, name) in names.into_iter().enumerate() {
            bar.set_message(name);
            let (before, start) = (stream.stats(), Instant::now());
            let count = match part {
                0 => carry(amount, &mut agent, &mut stream).await?,
                1 => carry(amount, &mut stream, &mut agent).await?,
                _ => {
                    agent = round_trips(&mut stream, agent).await?;
                    ROUND_TRIPS
                }
            };
            let each = start.elapsed() / count;
            let (host_wakes, guest_wakes) = wakes(before, stream.stats());
            parts[part].push(Part {
                each,
                host_wakes: host_wakes as f64 / f64::from(count),
                guest_wakes: guest_wakes as f64 / f64::from(count),
            });
            bar.inc(1);
        }
    }
    bar.finish_and_clear();

    println!(
        "{:24} {:>13}   wakes of the host  of the guest",
        "in-process guest", ""
    );
    for (name, parts) in names.into_iter().zip(parts) {
        let fastest = parts.iter().min_by_key(|part| part.each);
        let fastest = fastest.ok_or("there were no rounds")?;
        let (host, guest) = (fastest.host_wakes, fastest.guest_wakes);
        let each = fastest.each.as_secs_f64();
        let (speed, per) = match name {
            ROUND => (format!("{:.1} µs each", each * 1e6), "each"),
            _ => (format!("{:.0} MiB/s", 1.0 / each), "per MiB"),
        };
        println!("{name:24} {speed:>13}   {host:9.2} {per:7}  {guest:4.2} {per}");
    }
    println!("Only a side that sleeps is woken, as it had nothing to read or no room to write.");
    if cfg!(debug_assertions) {
        println!("This is a debug build: `--release` is faster.");
    }
    Ok(())
}

/// How often each side was woken in between: the host, then the guest.
fn wakes(before: Stats, after: Stats) -> (u64, u64) {
    let host = |stats: Stats| stats.tx.data_wakes + stats.rx.room_wakes;
    let guest = |stats: Stats| stats.rx.data_wakes + stats.tx.room_wakes;
    (host(after) - host(before), guest(after) - guest(before))
}

/// Returns the number of MiB.
async fn carry(
    amount: u32,
    source: &mut (impl AsyncWriteExt + Unpin),
    target: &mut (impl AsyncReadExt + Unpin),
) -> std::io::Result<u32> {
    let send = async {
        let piece = vec![7; PIECE];
        for _ in 0..amount as usize * (MIB / PIECE) {
            source.write_all(&piece).await?;
        }
        source.flush().await
    };
    let receive = async {
        let mut buffer = vec![0; MIB];
        for _ in 0..amount {
            target.read_exact(&mut buffer).await?;
        }
        Ok(())
    };
    tokio::try_join!(send, receive)?;
    Ok(amount)
}

async fn round_trips(
    stream: &mut AgentStream,
    mut agent: VirtioPort,
) -> std::io::Result<VirtioPort> {
    let echo = tokio::spawn(async move {
        let mut message = [0; 64];
        for _ in 0..ROUND_TRIPS {
            agent.read_exact(&mut message).await?;
            agent.write_all(&message).await?;
        }
        Ok(agent)
    });
    let mut message = [0; 64];
    for _ in 0..ROUND_TRIPS {
        stream.write_all(&message).await?;
        stream.read_exact(&mut message).await?;
    }
    echo.await?
}
