//! What one call costs: the host's calls and krun's, on one thread, with the allocations of each.
//!
//! `cargo bench --bench stream`. For comparisons see `compare.rs`, for exact counts `counts.rs`.

use bytes::Bytes;
use divan::counter::BytesCount;
use divan::{AllocProfiler, Bencher};
use futures::{FutureExt, SinkExt, StreamExt};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::runtime::{Builder, Runtime};
use tokio_krun::{AgentConsoleBackend, AgentStream, Chunks};
use tokio_util::codec::{Framed, LengthDelimitedCodec};

#[global_allocator]
static ALLOCATOR: AllocProfiler = AllocProfiler::system();

/// In bytes.
const SIZES: [usize; 4] = [64, 1024, 4096, 64 * 1024];

fn main() {
    divan::main();
}

fn pair() -> (Runtime, AgentStream, AgentConsoleBackend) {
    let runtime = Builder::new_current_thread()
        .enable_io()
        .build()
        .expect("a runtime");
    let (stream, port) = {
        let _entered = runtime.enter();
        AgentStream::pair().expect("a stream")
    };
    (runtime, stream, port.into_backend())
}

/// One descriptor of the guest's, and its way to the host's buffer.
#[divan::bench(args = SIZES)]
fn guest_to_host(bencher: Bencher<'_, '_>, size: usize) {
    let (_runtime, stream, backend) = pair();
    let (source, mut target) = (vec![7; size], vec![0; size]);
    bencher.counter(BytesCount::new(size)).bench_local(|| {
        backend.write(&source).expect("there is room");
        assert_eq!(stream.try_read(&mut target).expect("bytes"), size);
    });
}

/// One write of the host's, and its way to the guest's descriptor.
#[divan::bench(args = SIZES)]
fn host_to_guest(bencher: Bencher<'_, '_>, size: usize) {
    let (_runtime, stream, backend) = pair();
    let (source, mut target) = (vec![7; size], vec![0; size]);
    bencher.counter(BytesCount::new(size)).bench_local(|| {
        assert_eq!(stream.try_write(&source).expect("there is room"), size);
        assert_eq!(backend.read(&mut target).expect("bytes"), size);
    });
}

/// There and back again through the traits, as a task polls them.
#[divan::bench(args = SIZES)]
fn echo(bencher: Bencher<'_, '_>, size: usize) {
    let (runtime, mut stream, backend) = pair();
    let _entered = runtime.enter();
    let (mut source, mut target) = (vec![7; size], vec![0; size]);
    bencher.counter(BytesCount::new(2 * size)).bench_local(|| {
        let written = stream.write_all(&source).now_or_never();
        written.expect("there is room").expect("the guest is there");
        assert_eq!(backend.read(&mut target).expect("bytes"), size);
        backend.write(&target).expect("there is room");
        let read = stream.read_exact(&mut source).now_or_never();
        read.expect("bytes").expect("the guest is there");
    });
}

/// The same in frames.
#[divan::bench(args = SIZES)]
fn framed_echo(bencher: Bencher<'_, '_>, size: usize) {
    let (runtime, stream, backend) = pair();
    let _entered = runtime.enter();
    let mut frames = Framed::new(stream, LengthDelimitedCodec::new());
    let (payload, mut target) = (Bytes::from(vec![7; size]), vec![0; 4 + size]);
    bencher.counter(BytesCount::new(2 * size)).bench_local(|| {
        let sent = frames.send(payload.clone()).now_or_never();
        sent.expect("there is room").expect("the guest is there");
        assert_eq!(backend.read(&mut target).expect("bytes"), 4 + size);
        backend.write(&target).expect("there is room");
        let frame = frames.next().now_or_never().flatten();
        assert_eq!(frame.expect("bytes").expect("a frame").len(), size);
    });
}

/// The same without the host's copies.
#[divan::bench(args = SIZES)]
fn chunks_echo(bencher: Bencher<'_, '_>, size: usize) {
    let (runtime, stream, backend) = pair();
    let _entered = runtime.enter();
    let mut chunks = Chunks::new(stream);
    let (item, mut target) = (Bytes::from(vec![7; size]), vec![0; size]);
    bencher.counter(BytesCount::new(2 * size)).bench_local(|| {
        let sent = chunks.send(item.clone()).now_or_never();
        sent.expect("there is room").expect("the guest is there");
        assert_eq!(backend.read(&mut target).expect("bytes"), size);
        backend.write(&target).expect("there is room");
        let chunk = chunks.next().now_or_never().flatten();
        assert_eq!(chunk.expect("bytes").expect("a chunk").len(), size);
    });
}

/// What it takes to make a stream, and to end it.
#[divan::bench]
fn create_and_drop(bencher: Bencher<'_, '_>) {
    let (runtime, _stream, _backend) = pair();
    let _entered = runtime.enter();
    bencher.bench_local(|| AgentStream::pair().expect("a stream"));
}
