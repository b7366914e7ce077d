//! The work that the two sides do.

mod echo;
mod many;

#[allow(unused_imports)] // each program uses a part of it
pub(crate) use echo::{framed_echo, round_trips};
pub(crate) use many::many;

use std::future::Future;
use std::thread;

use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio_krun::{Chunks, OwnedReadHalf, OwnedWriteHalf, Stats};
use tokio_util::codec::{FramedRead, FramedWrite, LengthDelimitedCodec};

use super::meter::{Flow, Meter, Span};
use super::place::{Cores, Flavor};
use super::transport::Krun;
use super::vmm::{Channel, Input, Output, Transport};

/// Bytes that a Linux guest lets krun fill at a time.
const RX_DESCRIPTOR: usize = 4096;
/// Most bytes that a Linux guest sends at a time.
const TX_DESCRIPTOR: usize = 32 * 1024;
/// Bytes of the host's read buffer.
const READ: usize = 64 * 1024;

/// Work for any transport. Sizes are in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Work {
    /// The guest sends descriptors of this size.
    GuestToHost(usize),
    /// The host writes this much at a time.
    HostToGuest(usize),
    /// The guest sends descriptors of 32 KiB while the host writes 64 KiB at a time.
    Both,
    /// The guest sends frames with this payload.
    FramesIn(usize),
    /// The host sends frames with this payload.
    FramesOut(usize),
}

impl Work {
    pub(crate) const ALL: [Self; 12] = [
        Self::GuestToHost(4096),
        Self::GuestToHost(TX_DESCRIPTOR),
        Self::HostToGuest(4096),
        Self::HostToGuest(16 * 1024),
        Self::HostToGuest(64 * 1024),
        Self::Both,
        Self::FramesIn(64),
        Self::FramesIn(1024),
        Self::FramesIn(64 * 1024),
        Self::FramesOut(64),
        Self::FramesOut(1024),
        Self::FramesOut(64 * 1024),
    ];

    /// The smallest piece that a side reads or writes at a time.
    pub(crate) fn size(self) -> usize {
        match self {
            Self::GuestToHost(size)
            | Self::HostToGuest(size)
            | Self::FramesIn(size)
            | Self::FramesOut(size) => size,
            Self::Both => TX_DESCRIPTOR,
        }
    }

    /// How much a bare copy writes and reads at a time for the same work.
    pub(crate) fn copies(self) -> Option<(usize, usize)> {
        match self {
            Self::GuestToHost(size) => Some((size, READ)),
            Self::HostToGuest(size) => Some((size, RX_DESCRIPTOR)),
            Self::Both | Self::FramesIn(_) | Self::FramesOut(_) => None,
        }
    }

    pub(crate) fn name(self) -> String {
        match self {
            Self::GuestToHost(size) => format!("g→h {}", Size(size)),
            Self::HostToGuest(size) => format!("h→g {}", Size(size)),
            Self::Both => "both ways".into(),
            Self::FramesIn(size) => format!("frames g→h {}", Size(size)),
            Self::FramesOut(size) => format!("frames h→g {}", Size(size)),
        }
    }
}

pub(crate) struct Size(pub(crate) usize);

impl std::fmt::Display for Size {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            bytes @ ..1024 => write!(f, "{bytes}"),
            bytes @ ..0x10_0000 => write!(f, "{}K", bytes >> 10),
            bytes => write!(f, "{}M", bytes >> 20),
        }
    }
}

/// Where and how a piece of work runs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Setting {
    pub(crate) cores: Cores,
    pub(crate) flavor: Flavor,
    /// `None` for the transport's default.
    pub(crate) capacity: Option<usize>,
    pub(crate) span: Span,
}

impl Setting {
    /// Runs `work` as a task of a new runtime, so a worker runs it if the runtime has workers.
    fn run<F>(self, work: impl FnOnce() -> F) -> F::Output
    where
        F: Future<Output: Send> + Send + 'static,
    {
        let runtime = self.flavor.build(self.cores);
        runtime
            .block_on(async { tokio::spawn(work()).await })
            .expect("the host's task panicked")
    }
}

/// What `throughput` measures.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Measured {
    pub(crate) flow: Flow,
    /// Wakes of a sleeping side for each MiB, from this crate's `Stats`. Counts the warm-up too.
    pub(crate) wakes: Option<f64>,
}

/// Does `work` over a new channel of `T`.
pub(crate) fn throughput<T: Transport>(work: Work, setting: Setting) -> Measured {
    let Setting { cores, span, .. } = setting;
    setting.run(move || async move {
        let meter = Meter::new(span);
        let Channel {
            read,
            write,
            mut input,
            output,
            stats,
        } = T::new(setting.capacity);
        let flow = match work {
            Work::GuestToHost(size) => {
                let vmm = on_vmm(cores, transmit(output, vec![7; size], size, &meter));
                let flow = read_all(read, &meter).await;
                drop((write, input));
                vmm.join().expect("the VMM's thread panicked");
                flow
            }
            Work::HostToGuest(size) => {
                let vmm = on_vmm(cores, receive(input, &meter));
                write_all(write, size, &meter).await;
                drop((read, output));
                vmm.join().expect("the VMM's thread panicked")
            }
            Work::Both => {
                let other = Meter::new(span);
                let transmits = on_vmm(
                    cores,
                    transmit(output, vec![7; TX_DESCRIPTOR], TX_DESCRIPTOR, &meter),
                );
                let receives = on_vmm(cores, receive(input, &other));
                let writes = tokio::spawn(async move { write_all(write, 64 * 1024, &other).await });
                let flow = read_all(read, &meter).await;
                writes.await.expect("the writing task panicked");
                transmits.join().expect("the VMM's thread panicked");
                flow.with_other_way(receives.join().expect("the VMM's thread panicked"))
            }
            Work::FramesIn(size) => {
                let mut frame = (size as u32).to_be_bytes().to_vec();
                frame.resize(4 + size, 7);
                let vmm = on_vmm(cores, transmit(output, frame, size, &meter));
                let mut frames = FramedRead::with_capacity(read, LengthDelimitedCodec::new(), READ);
                let mut receiving = meter.receiver();
                while let Some(frame) = frames.next().await {
                    if !receiving.more_after(frame.expect("not a frame").len()) {
                        break;
                    }
                }
                drop((write, input));
                vmm.join().expect("the VMM's thread panicked");
                receiving.flow()
            }
            Work::FramesOut(size) => {
                let mut sending = meter.sender();
                let vmm = on_vmm(cores, {
                    let mut receiving = meter.receiver();
                    let mut frame = vec![0; RX_DESCRIPTOR];
                    // Counts headers too, as the sender does. The rate is corrected below.
                    move || {
                        while receiving.more_after(input.fill(&mut frame)) {}
                        receiving.flow()
                    }
                });
                let mut frames = FramedWrite::new(write, LengthDelimitedCodec::new());
                let payload = Bytes::from(vec![7; size]);
                loop {
                    let more = sending.more_after(size + 4);
                    frames.feed(payload.clone()).await.expect("the VMM hung up");
                    if !more {
                        break;
                    }
                }
                SinkExt::<Bytes>::flush(&mut frames)
                    .await
                    .expect("the VMM hung up");
                let mut flow = vmm.join().expect("the VMM's thread panicked");
                drop((read, output));
                flow.rate *= size as f64 / (size + 4) as f64;
                flow
            }
        };
        let wakes = stats.map(|port| wakes_per_mib(port.stats()));
        Measured { flow, wakes }
    })
}

fn wakes_per_mib(stats: Stats) -> f64 {
    let rings = [stats.tx, stats.rx];
    let wakes = rings.map(|ring| ring.data_wakes + ring.room_wakes);
    let bytes = rings.map(|ring| ring.bytes);
    wakes.iter().sum::<u64>() as f64 / bytes.iter().sum::<u64>() as f64 * f64::from(1 << 20)
}

fn on_vmm<R: Send + 'static>(
    cores: Cores,
    work: impl FnOnce() -> R + Send + 'static,
) -> thread::JoinHandle<R> {
    thread::spawn(move || {
        cores.place_vmm();
        work()
    })
}

/// Plays krun's TX thread: sends `message` again and again, and counts `counted` bytes of each.
fn transmit(
    mut output: impl Output,
    message: Vec<u8>,
    counted: usize,
    meter: &Meter,
) -> impl FnOnce() + Send + 'static {
    let mut sending = meter.sender();
    move || loop {
        let more = sending.more_after(counted);
        for descriptor in message.chunks(TX_DESCRIPTOR) {
            assert!(output.empty(descriptor), "the host hung up");
        }
        if !more {
            return;
        }
    }
}

/// Plays krun's RX thread.
fn receive(mut input: impl Input, meter: &Meter) -> impl FnOnce() -> Flow + Send + 'static {
    let mut receiving = meter.receiver();
    move || {
        let mut descriptor = vec![0; RX_DESCRIPTOR];
        while receiving.more_after(input.fill(&mut descriptor)) {}
        receiving.flow()
    }
}

async fn read_all(mut read: impl AsyncRead + Unpin, meter: &Meter) -> Flow {
    let mut receiving = meter.receiver();
    let mut buffer = vec![0; READ];
    while receiving.more_after(read.read(&mut buffer).await.expect("the VMM hung up")) {}
    receiving.flow()
}

async fn write_all(mut write: impl AsyncWrite + Unpin, size: usize, meter: &Meter) {
    let mut sending = meter.sender();
    let buffer = vec![7; size];
    loop {
        let more = sending.more_after(size);
        write.write_all(&buffer).await.expect("the VMM hung up");
        if !more {
            return;
        }
    }
}

/// Reads from the guest without the host's copy, in descriptors of `size`.
pub(crate) fn chunks_in(size: usize, setting: Setting) -> Flow {
    setting.run(move || async move {
        let meter = Meter::new(setting.span);
        let channel = Krun::new(setting.capacity);
        let vmm = on_vmm(
            setting.cores,
            transmit(channel.output, vec![7; size], size, &meter),
        );
        let mut chunks = Chunks::<OwnedReadHalf>::new(channel.read);
        let mut receiving = meter.receiver();
        while let Some(chunk) = chunks.next().await {
            if !receiving.more_after(chunk.expect("the VMM hung up").len()) {
                break;
            }
        }
        vmm.join().expect("the VMM's thread panicked");
        receiving.flow()
    })
}

/// Writes to the guest without the host's copy, in items of `size`.
pub(crate) fn chunks_out(size: usize, setting: Setting) -> Flow {
    setting.run(move || async move {
        let meter = Meter::new(setting.span);
        let channel = Krun::new(setting.capacity);
        let vmm = on_vmm(setting.cores, receive(channel.input, &meter));
        let mut chunks = Chunks::<OwnedWriteHalf>::new(channel.write);
        let mut sending = meter.sender();
        let item = Bytes::from(vec![7; size]);
        loop {
            let more = sending.more_after(size);
            chunks.send(item.clone()).await.expect("the VMM hung up");
            if !more {
                break;
            }
        }
        vmm.join().expect("the VMM's thread panicked")
    })
}
