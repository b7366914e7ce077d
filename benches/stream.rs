//! What one call costs, with its allocations. One thread makes the host's calls and krun's.
//!
//! `cargo bench --bench stream`
//!
//! `compare.rs` compares transports, and `counts.rs` gives exact counts.

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

/// Payloads in bytes.
const SIZES: [usize; 4] = [64, 1024, 4096, 64 * 1024];

fn main() {
    divan::main();
}

fn pair() -> (Runtime, AgentStream, AgentConsoleBackend) {
    let runtime = Builder::new_current_thread()
        .enable_io()
        .build()
        .expect("cannot build the runtime");
    let (stream, port) = {
        let _entered = runtime.enter();
        AgentStream::pair().expect("cannot create a stream")
    };
    (runtime, stream, port.into_backend())
}

/// The guest sends one descriptor, and the host reads it.
#[divan::bench(args = SIZES)]
fn guest_to_host(bencher: Bencher<'_, '_>, size: usize) {
    let (_runtime, stream, backend) = pair();
    let (source, mut target) = (vec![7; size], vec![0; size]);
    bencher.counter(BytesCount::new(size)).bench_local(|| {
        backend.write(&source).expect("no room");
        assert_eq!(stream.try_read(&mut target).expect("no bytes"), size);
    });
}

/// The host writes once, and krun reads it for the guest.
#[divan::bench(args = SIZES)]
fn host_to_guest(bencher: Bencher<'_, '_>, size: usize) {
    let (_runtime, stream, backend) = pair();
    let (source, mut target) = (vec![7; size], vec![0; size]);
    bencher.counter(BytesCount::new(size)).bench_local(|| {
        assert_eq!(stream.try_write(&source).expect("no room"), size);
        assert_eq!(backend.read(&mut target).expect("no bytes"), size);
    });
}

/// To the guest and back, through `AsyncWrite` and `AsyncRead` as a task polls them.
#[divan::bench(args = SIZES)]
fn echo(bencher: Bencher<'_, '_>, size: usize) {
    let (runtime, mut stream, backend) = pair();
    let _entered = runtime.enter();
    let (mut source, mut target) = (vec![7; size], vec![0; size]);
    bencher.counter(BytesCount::new(2 * size)).bench_local(|| {
        let written = stream.write_all(&source).now_or_never();
        written.expect("no room").expect("the guest is gone");
        assert_eq!(backend.read(&mut target).expect("no bytes"), size);
        backend.write(&target).expect("no room");
        let read = stream.read_exact(&mut source).now_or_never();
        read.expect("no bytes").expect("the guest is gone");
    });
}

/// `echo` with frames.
#[divan::bench(args = SIZES)]
fn framed_echo(bencher: Bencher<'_, '_>, size: usize) {
    let (runtime, stream, backend) = pair();
    let _entered = runtime.enter();
    let mut frames = Framed::new(stream, LengthDelimitedCodec::new());
    let (payload, mut target) = (Bytes::from(vec![7; size]), vec![0; 4 + size]);
    bencher.counter(BytesCount::new(2 * size)).bench_local(|| {
        let sent = frames.send(payload.clone()).now_or_never();
        sent.expect("no room").expect("the guest is gone");
        assert_eq!(backend.read(&mut target).expect("no bytes"), 4 + size);
        backend.write(&target).expect("no room");
        let frame = frames.next().now_or_never().flatten();
        assert_eq!(frame.expect("no bytes").expect("not a frame").len(), size);
    });
}

/// `echo` with `Chunks`, without the host's copies.
#[divan::bench(args = SIZES)]
fn chunks_echo(bencher: Bencher<'_, '_>, size: usize) {
    let (runtime, stream, backend) = pair();
    let _entered = runtime.enter();
    let mut chunks = Chunks::new(stream);
    let (item, mut target) = (Bytes::from(vec![7; size]), vec![0; size]);
    bencher.counter(BytesCount::new(2 * size)).bench_local(|| {
        let sent = chunks.send(item.clone()).now_or_never();
        sent.expect("no room").expect("the guest is gone");
        assert_eq!(backend.read(&mut target).expect("no bytes"), size);
        backend.write(&target).expect("no room");
        let chunk = chunks.next().now_or_never().flatten();
        assert_eq!(
            chunk.expect("no bytes").expect("the stream failed").len(),
            size
        );
    });
}

/// Creates a stream and drops it.
#[divan::bench]
fn create_and_drop(bencher: Bencher<'_, '_>) {
    let (runtime, _stream, _backend) = pair();
    let _entered = runtime.enter();
    bencher.bench_local(|| AgentStream::pair().expect("cannot create a stream"));
}
