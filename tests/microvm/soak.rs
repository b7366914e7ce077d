//! Mixed traffic for as long as you like: four ports in four styles, some with stalls. Meanwhile the
//! VM is paused and resumed again and again.

use std::env;
use std::time::Duration;

use futures::{SinkExt, StreamExt};
use msb_krun::VmControl;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio_krun::{AgentStream, Chunks, Options, OwnedReadHalf, OwnedWriteHalf};

use super::pattern::{FROM_GUEST, FROM_HOST, Pattern};
use super::scenarios::{MIB, Scenario};
use super::vm::Vm;

pub(crate) const ALL: &[(&str, Scenario)] = &[("soak", || Box::pin(soak()))];

/// The variable that sets how many MiB each port carries each way, instead of `USUAL_AMOUNT`.
const AMOUNT: &str = "MICROVM_SOAK_MIB";
const USUAL_AMOUNT: usize = 4;

/// How the host uses a port.
#[derive(Clone, Copy)]
enum Style {
    /// Large pieces without a pause.
    Bulk,
    /// Pieces of any size, with a pause now and then, through a small ring.
    Moody,
    /// Whole chunks, without a copy.
    Chunked,
    /// A few bytes at a time, and 1/32 of the amount.
    Dribble,
}

const STYLES: [Style; 4] = [Style::Bulk, Style::Moody, Style::Chunked, Style::Dribble];

async fn soak() {
    let amount = env::var(AMOUNT).ok().and_then(|amount| amount.parse().ok());
    let amount = amount.unwrap_or(USUAL_AMOUNT) * MIB;
    let ends = STYLES.map(|style| {
        let options = match style {
            Style::Moody => Options::new().capacity(64 * 1024),
            Style::Bulk | Style::Chunked | Style::Dribble => Options::new(),
        };
        options.create().unwrap()
    });
    let [(s0, p0), (s1, p1), (s2, p2), (s3, p3)] = ends;
    let mut vm = Vm::boot_with(
        "ports",
        [
            ("agent", p0),
            ("agent1", p1),
            ("agent2", p2),
            ("agent3", p3),
        ],
    );

    let (stop, stopped) = oneshot::channel();
    let pauses = tokio::spawn(pause_now_and_then(vm.control.clone(), stopped));
    let tasks: Vec<_> = (0..)
        .zip([s0, s1, s2, s3])
        .zip(STYLES)
        .map(|((number, stream), style)| tokio::spawn(exchange(stream, number, style, amount)))
        .collect();
    let mut streams = Vec::new();
    for task in tasks {
        streams.push(task.await.unwrap());
    }
    // A pause while the VM ends would never return, so the pauses stop first. The agent does not
    // end before it has this byte.
    stop.send(()).unwrap();
    println!("paused and resumed {} times", pauses.await.unwrap());
    for stream in &mut streams {
        stream.write_u8(0).await.unwrap();
    }
    for stream in &mut streams {
        assert_eq!(stream.read(&mut [0; 8]).await.unwrap(), 0);
    }
    drop(streams);
    vm.ended().await;
}

async fn pause_now_and_then(control: VmControl, mut stopped: oneshot::Receiver<()>) -> u64 {
    let mut dice = Dice(0x9a25);
    let mut pauses = 0;
    loop {
        let until = Duration::from_millis(300 + dice.below(1500));
        if tokio::time::timeout(until, &mut stopped).await.is_ok() {
            return pauses;
        }
        let generation = control.pause().unwrap();
        tokio::time::sleep(Duration::from_millis(dice.below(200))).await;
        control.resume(generation).unwrap();
        pauses += 1;
    }
}

/// Runs the host's side of the agent's `traffic`, except for the last byte.
async fn exchange(
    mut stream: AgentStream,
    number: u64,
    style: Style,
    amount: usize,
) -> AgentStream {
    let length = match style {
        Style::Dribble => amount / 32,
        Style::Bulk | Style::Moody | Style::Chunked => amount,
    };
    stream.write_u64_le(length as u64).await.unwrap();
    stream.write_u64_le(length as u64).await.unwrap();
    let (mut reading, writing) = stream.into_split();
    let sender: JoinHandle<_> = tokio::spawn(send(writing, number, style, length));
    receive(&mut reading, number, style, length).await;
    let (writing, checksum) = sender.await.unwrap();
    assert_eq!(reading.read_u64_le().await.unwrap(), length as u64);
    assert_eq!(reading.read_u32_le().await.unwrap(), checksum);
    assert_eq!(
        reading.read_u32_le().await.unwrap(),
        1,
        "the guest received wrong bytes"
    );
    println!("port {number}: {length} bytes each way, all correct");
    reading.reunite(writing).unwrap()
}

async fn send(
    mut writing: OwnedWriteHalf,
    number: u64,
    style: Style,
    length: usize,
) -> (OwnedWriteHalf, u32) {
    let mut pattern = Pattern::new(FROM_HOST + number);
    let mut checksum = crc32fast::Hasher::new();
    let mut dice = Dice(0x5e4d + number);
    let mut left = length;
    while left > 0 {
        let mut piece = vec![0; style.piece(&mut dice).min(left)];
        pattern.fill(&mut piece);
        checksum.update(&piece);
        left -= piece.len();
        match style {
            Style::Chunked => Chunks::new(&mut writing).send(piece.into()).await.unwrap(),
            Style::Bulk | Style::Moody | Style::Dribble => {
                writing.write_all(&piece).await.unwrap();
            }
        }
        style.pause(&mut dice).await;
    }
    (writing, checksum.finalize())
}

async fn receive(reading: &mut OwnedReadHalf, number: u64, style: Style, length: usize) {
    let mut pattern = Pattern::new(FROM_GUEST + number);
    let mut dice = Dice(0x4ead + number);
    // A chunk that reaches past `length` would hold part of the guest's trailer, so the last MiB
    // is read without chunks.
    let mut left = length;
    while left > 0 {
        let piece = style.piece(&mut dice).min(left);
        let read = match style {
            Style::Chunked if left > MIB => {
                let chunk = Chunks::new(&mut *reading).next().await.unwrap().unwrap();
                pattern.check(&chunk).expect("wrong byte from the guest");
                chunk.len()
            }
            _ => {
                let mut buffer = vec![0; piece];
                let read = reading.read(&mut buffer).await.unwrap();
                pattern
                    .check(&buffer[..read])
                    .expect("wrong byte from the guest");
                read
            }
        };
        assert_ne!(read, 0, "the guest ended {left} bytes early");
        left -= read;
        style.pause(&mut dice).await;
    }
}

impl Style {
    fn piece(self, dice: &mut Dice) -> usize {
        match self {
            Self::Bulk => 60_000,
            Self::Moody | Self::Chunked => 1 + dice.below(70_000) as usize,
            Self::Dribble => 1 + dice.below(64) as usize,
        }
    }

    async fn pause(self, dice: &mut Dice) {
        if matches!(self, Self::Moody) && dice.below(50) == 0 {
            tokio::time::sleep(Duration::from_millis(dice.below(100))).await;
        }
    }
}

/// Pseudo-random numbers, the same in each run.
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) % limit
    }
}
