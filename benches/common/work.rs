//! What the two sides do.

use std::future::Future;
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::task::JoinSet;
use tokio_krun::{Chunks, OwnedReadHalf, OwnedWriteHalf};
use tokio_util::codec::{Framed, FramedRead, FramedWrite, LengthDelimitedCodec};

use super::meter::{Meter, Span, Trips};
use super::place::{Cores, Flavor};
use super::transport::Krun;
use super::vmm::{Channel, Input, Output, Transport};

/// What a Linux guest offers krun to fill at a time.
const RX_DESCRIPTOR: usize = 4096;
/// The most it sends at a time.
const TX_DESCRIPTOR: usize = 32 * 1024;
/// The host's buffer.
const READ: usize = 64 * 1024;

/// Work that every transport can do. Sizes are in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Work {
    /// The guest sends descriptors of this size.
    GuestToHost(usize),
    /// The host writes so much at a time.
    HostToGuest(usize),
    /// 32 KiB descriptors one way and 64 KiB writes the other.
    Both,
    /// The guest sends frames with this payload.
    FramesIn(usize),
    /// The host sends them.
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
    /// The transport's own default for `None`.
    pub(crate) capacity: Option<usize>,
    pub(crate) span: Span,
}

impl Setting {
    /// Runs `work` as a task of the runtime, on a worker's thread if it has workers.
    fn run<F>(self, work: impl FnOnce() -> F) -> F::Output
    where
        F: Future<Output: Send> + Send + 'static,
    {
        let runtime = self.flavor.build(self.cores);
        runtime
            .block_on(async { tokio::spawn(work()).await })
            .expect("no panic")
    }
}

/// Bytes a second of `work` over a new channel of `T`.
pub(crate) fn throughput<T: Transport>(work: Work, setting: Setting) -> f64 {
    let Setting { cores, span, .. } = setting;
    setting.run(move || async move {
        let meter = Meter::new(span);
        let Channel {
            read,
            write,
            mut input,
            output,
        } = T::new(setting.capacity);
        match work {
            Work::GuestToHost(size) => {
                let vmm = on_vmm(cores, transmit(output, vec![7; size], size, &meter));
                let rate = read_all(read, &meter).await;
                drop((write, input));
                vmm.join().expect("no panic");
                rate
            }
            Work::HostToGuest(size) => {
                let vmm = on_vmm(cores, receive(input, &meter));
                write_all(write, size, &meter).await;
                drop((read, output));
                vmm.join().expect("no panic")
            }
            Work::Both => {
                let other = Meter::new(span);
                let transmits = on_vmm(
                    cores,
                    transmit(output, vec![7; TX_DESCRIPTOR], TX_DESCRIPTOR, &meter),
                );
                let receives = on_vmm(cores, receive(input, &other));
                let writes = tokio::spawn(async move { write_all(write, 64 * 1024, &other).await });
                let rate = read_all(read, &meter).await;
                writes.await.expect("no panic");
                transmits.join().expect("no panic");
                rate + receives.join().expect("no panic")
            }
            Work::FramesIn(size) => {
                let mut frame = (size as u32).to_be_bytes().to_vec();
                frame.resize(4 + size, 7);
                let vmm = on_vmm(cores, transmit(output, frame, size, &meter));
                let mut frames = FramedRead::with_capacity(read, LengthDelimitedCodec::new(), READ);
                let mut receiving = meter.receiver();
                while let Some(frame) = frames.next().await {
                    if !receiving.goes_on_after(frame.expect("a frame").len()) {
                        break;
                    }
                }
                drop((write, input));
                vmm.join().expect("no panic");
                receiving.rate()
            }
            Work::FramesOut(size) => {
                let mut sending = meter.sender();
                let vmm = on_vmm(cores, {
                    let mut receiving = meter.receiver();
                    let mut frame = vec![0; RX_DESCRIPTOR];
                    // The frames' headers are not payload: they are counted where they are sent too.
                    move || {
                        while receiving.goes_on_after(input.fill(&mut frame)) {}
                        receiving.rate()
                    }
                });
                let mut frames = FramedWrite::new(write, LengthDelimitedCodec::new());
                let payload = Bytes::from(vec![7; size]);
                loop {
                    let goes_on = sending.goes_on_after(size + 4);
                    frames
                        .feed(payload.clone())
                        .await
                        .expect("the VMM is there");
                    if !goes_on {
                        break;
                    }
                }
                SinkExt::<Bytes>::flush(&mut frames)
                    .await
                    .expect("the VMM is there");
                let rate = vmm.join().expect("no panic");
                drop((read, output));
                rate * size as f64 / (size + 4) as f64
            }
        }
    })
}

fn on_vmm<R: Send + 'static>(
    cores: Cores,
    work: impl FnOnce() -> R + Send + 'static,
) -> thread::JoinHandle<R> {
    thread::spawn(move || {
        cores.pin_vmm();
        work()
    })
}

/// krun's TX thread: sends `message`, of which `counts` bytes are counted, again and again.
fn transmit(
    mut output: impl Output,
    message: Vec<u8>,
    counts: usize,
    meter: &Meter,
) -> impl FnOnce() + Send + 'static {
    let mut sending = meter.sender();
    move || loop {
        let goes_on = sending.goes_on_after(counts);
        for descriptor in message.chunks(TX_DESCRIPTOR) {
            assert!(output.empty(descriptor), "the host is there");
        }
        if !goes_on {
            return;
        }
    }
}

/// krun's RX thread.
fn receive(mut input: impl Input, meter: &Meter) -> impl FnOnce() -> f64 + Send + 'static {
    let mut receiving = meter.receiver();
    move || {
        let mut descriptor = vec![0; RX_DESCRIPTOR];
        while receiving.goes_on_after(input.fill(&mut descriptor)) {}
        receiving.rate()
    }
}

async fn read_all(mut read: impl AsyncRead + Unpin, meter: &Meter) -> f64 {
    let mut receiving = meter.receiver();
    let mut buffer = vec![0; READ];
    while receiving.goes_on_after(read.read(&mut buffer).await.expect("the VMM is there")) {}
    receiving.rate()
}

async fn write_all(mut write: impl AsyncWrite + Unpin, size: usize, meter: &Meter) {
    let mut sending = meter.sender();
    let buffer = vec![7; size];
    loop {
        let goes_on = sending.goes_on_after(size);
        write.write_all(&buffer).await.expect("the VMM is there");
        if !goes_on {
            return;
        }
    }
}

/// Bytes a second from the guest without the host's copy, in descriptors of `size`.
pub(crate) fn chunks_in(size: usize, setting: Setting) -> f64 {
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
            if !receiving.goes_on_after(chunk.expect("the VMM is there").len()) {
                break;
            }
        }
        vmm.join().expect("no panic");
        receiving.rate()
    })
}

/// Bytes a second to the guest without the host's copy, in items of `size`.
pub(crate) fn chunks_out(size: usize, setting: Setting) -> f64 {
    setting.run(move || async move {
        let meter = Meter::new(setting.span);
        let channel = Krun::new(setting.capacity);
        let vmm = on_vmm(setting.cores, receive(channel.input, &meter));
        let mut chunks = Chunks::<OwnedWriteHalf>::new(channel.write);
        let mut sending = meter.sender();
        let item = Bytes::from(vec![7; size]);
        loop {
            let goes_on = sending.goes_on_after(size);
            chunks.send(item.clone()).await.expect("the VMM is there");
            if !goes_on {
                break;
            }
        }
        vmm.join().expect("no panic")
    })
}

/// The time of each round trip of 64 bytes over a new channel of `T`.
pub(crate) fn round_trips<T: Transport>(setting: Setting) -> Vec<Duration> {
    setting.run(move || async move {
        let Channel {
            mut read,
            mut write,
            mut input,
            mut output,
        } = T::new(setting.capacity);
        let vmm = on_vmm(setting.cores, move || {
            let mut descriptor = vec![0; RX_DESCRIPTOR];
            loop {
                let filled = input.fill(&mut descriptor);
                if filled == 0 || !output.empty(&descriptor[..filled]) {
                    return;
                }
            }
        });
        let mut message = [7; Trips::MESSAGE];
        let mut trips = Trips::new(setting.span);
        while let Some(sent) = trips.next() {
            write.write_all(&message).await.expect("the VMM is there");
            read.read_exact(&mut message)
                .await
                .expect("the VMM is there");
            trips.add(sent);
        }
        drop((read, write));
        vmm.join().expect("no panic");
        trips.times()
    })
}

/// Bytes a second over `streams` channels of `T` together. One VMM thread gives each in its turn
/// 128 KiB, as far as it has room; a task each reads.
pub(crate) fn many<T: Transport>(streams: usize, bytes: usize, setting: Setting) -> f64 {
    const TURN: usize = 4;
    setting.run(move || async move {
        let mut tasks = JoinSet::new();
        let mut outputs = Vec::new();
        let mut others = Vec::new();
        // As much for each, and enough to warm up.
        let each = bytes.div_ceil(streams * TURN * TX_DESCRIPTOR) * TURN * TX_DESCRIPTOR;
        let warm = TURN * TX_DESCRIPTOR;
        let (warmed, mut warming) = tokio::sync::mpsc::unbounded_channel();
        for _ in 0..streams {
            let Channel {
                mut read,
                write,
                input,
                output,
            } = T::new(setting.capacity);
            outputs.push(output);
            others.push((write, input));
            let warmed = warmed.clone();
            tasks.spawn(async move {
                let mut buffer = vec![0; READ];
                let mut received = 0;
                while received < warm {
                    received += read.read(&mut buffer).await.expect("the VMM is there");
                }
                warmed.send(()).expect("the bench is there");
                while received < warm + each {
                    received += read.read(&mut buffer).await.expect("the VMM is there");
                }
            });
        }
        let (go, gone) = std::sync::mpsc::channel();
        let vmm = on_vmm(setting.cores, move || {
            let mut pass = |descriptors: usize| {
                let descriptor = vec![7; TX_DESCRIPTOR];
                for turn in (0..descriptors).step_by(TURN) {
                    for output in &mut outputs {
                        for _ in turn..descriptors.min(turn + TURN) {
                            assert!(output.empty(&descriptor), "the host is there");
                        }
                    }
                }
            };
            pass(TURN);
            gone.recv().expect("the bench is there");
            pass(each / TX_DESCRIPTOR);
            outputs
        });
        for _ in 0..streams {
            warming.recv().await.expect("a stream");
        }
        let began = Instant::now();
        go.send(()).expect("the VMM is there");
        while let Some(task) = tasks.join_next().await {
            task.expect("no panic");
        }
        let rate = (each * streams) as f64 / began.elapsed().as_secs_f64();
        drop(vmm.join().expect("no panic"));
        rate
    })
}

/// A request and its answer over frames, for counting what one costs.
pub(crate) async fn framed_echo<T: Transport>(
    channel: Channel<T>,
    cores: Cores,
    size: usize,
    count: usize,
) where
    T::Read: AsyncRead,
    T::Write: AsyncWrite,
{
    let Channel {
        read,
        write,
        mut input,
        mut output,
    } = channel;
    let vmm = on_vmm(cores, move || {
        let mut descriptor = vec![0; RX_DESCRIPTOR];
        loop {
            let filled = input.fill(&mut descriptor);
            if filled == 0 || !output.empty(&descriptor[..filled]) {
                return;
            }
        }
    });
    let mut frames = Framed::new(tokio::io::join(read, write), LengthDelimitedCodec::new());
    let payload = Bytes::from(vec![7; size]);
    for _ in 0..count {
        frames
            .send(payload.clone())
            .await
            .expect("the VMM is there");
        frames.next().await.expect("an answer").expect("a frame");
    }
    drop(frames);
    vmm.join().expect("no panic");
}
