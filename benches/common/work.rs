//! The work that the two sides do.

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

/// Bytes per second of `work` over a new channel of `T`.
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
                vmm.join().expect("the VMM's thread panicked");
                rate
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
                let rate = read_all(read, &meter).await;
                writes.await.expect("the writing task panicked");
                transmits.join().expect("the VMM's thread panicked");
                rate + receives.join().expect("the VMM's thread panicked")
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
                receiving.rate()
            }
            Work::FramesOut(size) => {
                let mut sending = meter.sender();
                let vmm = on_vmm(cores, {
                    let mut receiving = meter.receiver();
                    let mut frame = vec![0; RX_DESCRIPTOR];
                    // Counts headers too, as the sender does. The rate is corrected below.
                    move || {
                        while receiving.more_after(input.fill(&mut frame)) {}
                        receiving.rate()
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
                let rate = vmm.join().expect("the VMM's thread panicked");
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
fn receive(mut input: impl Input, meter: &Meter) -> impl FnOnce() -> f64 + Send + 'static {
    let mut receiving = meter.receiver();
    move || {
        let mut descriptor = vec![0; RX_DESCRIPTOR];
        while receiving.more_after(input.fill(&mut descriptor)) {}
        receiving.rate()
    }
}

async fn read_all(mut read: impl AsyncRead + Unpin, meter: &Meter) -> f64 {
    let mut receiving = meter.receiver();
    let mut buffer = vec![0; READ];
    while receiving.more_after(read.read(&mut buffer).await.expect("the VMM hung up")) {}
    receiving.rate()
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

/// Bytes per second from the guest without the host's copy, in descriptors of `size`.
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
            if !receiving.more_after(chunk.expect("the VMM hung up").len()) {
                break;
            }
        }
        vmm.join().expect("the VMM's thread panicked");
        receiving.rate()
    })
}

/// Bytes per second to the guest without the host's copy, in items of `size`.
pub(crate) fn chunks_out(size: usize, setting: Setting) -> f64 {
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

/// Times round trips of 64 bytes over a new channel of `T`.
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
            write.write_all(&message).await.expect("the VMM hung up");
            read.read_exact(&mut message)
                .await
                .expect("the VMM hung up");
            trips.add(sent);
        }
        drop((read, write));
        vmm.join().expect("the VMM's thread panicked");
        trips.times()
    })
}

/// Bytes per second over `streams` channels of `T` together.
///
/// One VMM thread serves the channels in turn. It writes 128 KiB to each, waiting for room. One task
/// reads each channel.
pub(crate) fn many<T: Transport>(streams: usize, bytes: usize, setting: Setting) -> f64 {
    /// Descriptors that a channel gets in its turn.
    const TURN: usize = 4;
    setting.run(move || async move {
        let mut tasks = JoinSet::new();
        let mut outputs = Vec::new();
        let mut others = Vec::new();
        // Each channel carries the same amount, in whole turns, after one turn to warm up.
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
                    received += read.read(&mut buffer).await.expect("the VMM hung up");
                }
                warmed.send(()).expect("the bench is gone");
                while received < warm + each {
                    received += read.read(&mut buffer).await.expect("the VMM hung up");
                }
            });
        }
        let (start, started) = std::sync::mpsc::channel();
        let vmm = on_vmm(setting.cores, move || {
            let mut pass = |descriptors: usize| {
                let descriptor = vec![7; TX_DESCRIPTOR];
                for turn in (0..descriptors).step_by(TURN) {
                    for output in &mut outputs {
                        for _ in turn..descriptors.min(turn + TURN) {
                            assert!(output.empty(&descriptor), "the host hung up");
                        }
                    }
                }
            };
            pass(TURN);
            started.recv().expect("the bench is gone");
            pass(each / TX_DESCRIPTOR);
            outputs
        });
        for _ in 0..streams {
            warming.recv().await.expect("the reading tasks are gone");
        }
        let began = Instant::now();
        start.send(()).expect("the VMM is gone");
        while let Some(task) = tasks.join_next().await {
            task.expect("a reading task panicked");
        }
        let rate = (each * streams) as f64 / began.elapsed().as_secs_f64();
        drop(vmm.join().expect("the VMM's thread panicked"));
        rate
    })
}

/// Sends `count` requests over frames and reads their answers, to count the cost of each.
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
        frames.send(payload.clone()).await.expect("the VMM hung up");
        frames
            .next()
            .await
            .expect("the VMM hung up")
            .expect("not a frame");
    }
    drop(frames);
    vmm.join().expect("the VMM's thread panicked");
}
