//! How fast the stream is on this machine, with the in-process guest. Use `--release` and a quiet
//! machine.
//!
//! `cargo run --release --example throughput [MiB]`
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
const ROUND_TRIPS: u64 = 20_000;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let argument = std::env::args().nth(1);
    let amount: Option<usize> = argument.map_or(Some(1024), |mib| mib.parse().ok());
    let Some(amount @ 1..) = amount else {
        eprintln!("usage: throughput [MiB], at least 1");
        std::process::exit(2);
    };
    let (mut stream, port) = AgentStream::pair()?;
    // With krun's threads, as in a VM.
    let guest = Guest::builder().port("agent", port).threads(true).boot();
    let mut agent = guest.open()?;

    let mut rows = Vec::new();
    let mut start = stream.stats();
    for (name, from_guest) in [("from the guest", true), ("to the guest", false)] {
        let took = if from_guest {
            carry(name, amount, &mut agent, &mut stream).await?
        } else {
            carry(name, amount, &mut stream, &mut agent).await?
        };
        let rate = format!("{:.0} MiB/s", amount as f64 / took.as_secs_f64());
        let wakes = wakes(start, stream.stats()) as f64 / amount as f64;
        rows.push((name, rate, format!("{wakes:.2} per MiB")));
        start = stream.stats();
    }
    let took = round_trips(&mut stream, agent).await?;
    let each = took.as_secs_f64() * 1e6 / ROUND_TRIPS as f64;
    let wakes = wakes(start, stream.stats()) as f64 / ROUND_TRIPS as f64;
    let name = "round trip of 64 bytes";
    rows.push((name, format!("{each:.1} µs"), format!("{wakes:.2} each")));

    println!("{:24}  {:>12}  {:>14}", "in-process guest", "", "wakes");
    for (name, rate, wakes) in rows {
        println!("{name:24}  {rate:>12}  {wakes:>14}");
    }
    Ok(())
}

/// How often the two sides woke each other.
fn wakes(before: Stats, after: Stats) -> u64 {
    let all = |stats: Stats| [stats.tx, stats.rx].map(|ring| ring.data_wakes + ring.room_wakes);
    all(after).iter().sum::<u64>() - all(before).iter().sum::<u64>()
}

async fn carry(
    name: &'static str,
    amount: usize,
    source: &mut (impl AsyncWriteExt + Unpin),
    target: &mut (impl AsyncReadExt + Unpin),
) -> std::io::Result<Duration> {
    let style = ProgressStyle::with_template("{msg:24} {bar:40} {pos}/{len} MiB");
    let bar = ProgressBar::new(amount as u64)
        .with_style(style.expect("the template is valid"))
        .with_message(name);
    let start = Instant::now();
    let send = async {
        let piece = vec![7; PIECE];
        for _ in 0..amount * MIB / PIECE {
            source.write_all(&piece).await?;
        }
        source.flush().await
    };
    let receive = async {
        let mut buffer = vec![0; MIB];
        for _ in 0..amount {
            target.read_exact(&mut buffer).await?;
            bar.inc(1);
        }
        Ok(())
    };
    tokio::try_join!(send, receive)?;
    bar.finish_and_clear();
    Ok(start.elapsed())
}

async fn round_trips(stream: &mut AgentStream, mut agent: VirtioPort) -> std::io::Result<Duration> {
    let echo = tokio::spawn(async move {
        let mut message = [0; 64];
        for _ in 0..ROUND_TRIPS {
            agent.read_exact(&mut message).await?;
            agent.write_all(&message).await?;
        }
        Ok::<_, std::io::Error>(agent)
    });
    let start = Instant::now();
    let mut message = [0; 64];
    for _ in 0..ROUND_TRIPS {
        stream.write_all(&message).await?;
        stream.read_exact(&mut message).await?;
    }
    let took = start.elapsed();
    echo.await??;
    Ok(took)
}
