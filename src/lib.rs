//! The agent channel of a libkrun microVM as an ordinary tokio stream.
//!
//! A host program starts a microVM with the crate [`msb_krun`]. Inside runs an agent, and the two
//! talk over a virtio-console port. krun can hand that port to the host in-process instead of over
//! a file descriptor, so that bytes move by `memcpy` through rings rather than by system calls
//! through a socket. This crate is what lies between krun's threads and async code:
//! [`AgentStream`], which is [`AsyncRead`](tokio::io::AsyncRead) +
//! [`AsyncWrite`](tokio::io::AsyncWrite), to be framed with tokio-util's codecs and used with
//! hyper, tonic, tarpc or tower like any other stream.
//!
//! ```no_run
//! # #[cfg(feature = "msb_krun")]
//! # #[tokio::main] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use std::time::Duration;
//!
//! use bytes::Bytes;
//! use futures::{SinkExt, StreamExt};
//! use msb_krun::VmBuilder;
//! use tokio_krun::AgentStream;
//! use tokio_util::codec::{Framed, LengthDelimitedCodec};
//!
//! let (stream, port) = AgentStream::pair()?;
//! let vm = VmBuilder::new()
//!     .fs(|fs| fs.root("/path/to/rootfs"))
//!     .exec(|exec| exec.path("/agent"))
//!     .on_exit(port.exit_hook(Duration::from_secs(10)))
//!     .console(|console| port.attach(console, "agent"))
//!     .build()?;
//! std::thread::spawn(move || vm.enter()); // never returns: krun ends the process
//!
//! let mut frames = Framed::new(stream, LengthDelimitedCodec::new());
//! frames.send(Bytes::from_static(b"request")).await?;
//! let reply = frames.next().await;
//! # Ok(()) }
//! # #[cfg(not(feature = "msb_krun"))] fn main() {}
//! ```
//!
//! [`msb_krun`]: https://docs.rs/msb_krun/0.1
//!
//! # How it works
//!
//! The two directions are named from the guest's side, as virtio's queues are. krun's TX thread
//! copies what the guest transmits into the `tx_ring`, once; a read copies it out. A write copies
//! into the `rx_ring`, and krun's RX thread copies that into the guest's buffers. [`Chunks`] reads
//! and writes without the host's copy. Both rings are bounded in bytes, and neither side waits for
//! the other while that is at its bytes. A side that finds nothing to do arms a wake and sleeps; the
//! other pays for a wake only then. There is no polling, but where [`Options::busy_poll`] asks for it. Two
//! waits have a limit: that of the [exit hook](AgentPort::exit_hook) is its caller's; and the empty
//! descriptor of a guest that breaks virtio's rules is answered after 100 ms, as krun would otherwise
//! spin.
//!
//! On Windows krun opens a named pipe instead, and a task carries the bytes between it and the same
//! rings.
//!
//! What krun's threads demand, and how it is met, is listed in the documentation of krun's end of the
//! port: `AgentConsoleBackend` on Linux and macOS, `AgentConsolePipeBridge` on Windows. How a program
//! with rings and a backend of its own comes to this crate is told, line by line, in the repository's
//! `docs/migration.md`.
//!
//! # Ends
//!
//! An end comes after what was written before it, as far as krun has handed that over.
//!
//! - The host says no more: [`shutdown`], which the guest is not told. Reads go on.
//! - The host hangs up: [`hang_up`](AgentStream::hang_up), or dropping the stream. The guest reads the end
//!   of the file, and from then on can write nothing more, for good.
//! - The guest powers off, or the VM is dropped: reads give what is left and then the end of the file,
//!   writes fail with `BrokenPipe`. The port's [exit hook](AgentPort::exit_hook) gives the host the time to
//!   read them before krun ends the process.
//! - The guest closes its port: not seen. krun does not tell.
//!
//! The whole table, with the halves and what is different on Windows, is in [`AgentStream`]'s
//! [documentation](AgentStream#ends).
//!
//! # In the guest
//!
//! The agent's end is in this crate too: module `agent`, with the feature `guest`, on Linux and without the
//! VMM, so that it builds static for musl. [`agent::VirtioPort`] opens the port by the name that
//! [`AgentPort::attach`] was given, once it appears, and is `AsyncRead` + `AsyncWrite` as the host's
//! stream is: both sides can share their protocol's code.
//!
//! ```
//! # #[cfg(target_os = "linux")]
//! # mod guest {
//! use futures::{SinkExt, StreamExt};
//! use tokio_krun::agent::VirtioPort;
//! use tokio_util::codec::{Framed, LengthDelimitedCodec};
//!
//! async fn agent() -> std::io::Result<()> {
//!     let port = VirtioPort::open("agent").await?;
//!     let mut frames = Framed::new(port, LengthDelimitedCodec::new());
//!     while let Some(request) = frames.next().await.transpose()? {
//!         frames.send(request.freeze()).await?; // answers with the same
//!     }
//!     Ok(()) // the host has hung up
//! }
//! # }
//! ```
//!
//! [`shutdown`]: https://docs.rs/tokio/1/tokio/io/trait.AsyncWriteExt.html#method.shutdown
//! [`agent::VirtioPort`]: https://docs.rs/tokio-krun/latest/tokio_krun/agent/struct.VirtioPort.html
//! [`AgentPort::attach`]: struct.AgentPort.html#method.attach
//!
//! # Composing
//!
//! | to speak | wrap the stream in |
//! | --- | --- |
//! | frames of bytes, or of messages with serde | [`Framed`] with `LengthDelimitedCodec` |
//! | lines, JSON by lines | [`Framed`] with `LinesCodec`, or `AsyncBufReadExt` on the stream itself |
//! | HTTP/1, HTTP/2 | hyper-util's `TokioIo`, then hyper's `handshake` or `serve_connection` |
//! | gRPC | `TokioIo` in a tonic `connect_with_connector`; for a server on either side, the feature `tonic`: `serve_with_incoming` with its `Incoming` |
//! | several streams at once | [`compat`], then a yamux `Connection` |
//! | tarpc, ttrpc | `tarpc::serde_transport::new` with frames; `ttrpc::asynchronous::transport::Socket::new` |
//!
//! There is one port, and it is one connection: a client library's pool must not try to open another. Each of these has an
//! example or a test in the repository (`examples/`, `tests/protocols/`).
//!
//! [`Framed`]: https://docs.rs/tokio-util/0.7/tokio_util/codec/struct.Framed.html
//! [`compat`]: https://docs.rs/tokio-util/0.7/tokio_util/compat/index.html
//!
//! # Backpressure
//!
//! Each direction holds [`Options::capacity`] bytes. When the host does not read, the guest's writes wait, in the
//! guest: its agent blocks or sees no room, and the host's memory does not grow. When the guest does not
//! read, [`write`] waits on the host. A protocol in which both sides write before they
//! read can so come to a stop, as over any socket: read and write in different tasks, with
//! [`into_split`](AgentStream::into_split) or `StreamExt::split`. [`stats`](AgentStream::stats) tells which
//! direction is full.
//!
//! Unlike a socket's, the halves of `into_split` do not end each other by way of the peer: the guest is not told that
//! the writing half has gone, so its agent may wait for ever for what no one will send, and the reading half for its
//! answer. Whoever writes last ends it with [`hang_up`](OwnedWriteHalf::hang_up), or both tasks are stopped.
//!
//! [`write`]: https://docs.rs/tokio/1/tokio/io/trait.AsyncWriteExt.html#method.write
//!
//! # Testing without a VM
//!
//! With the feature `test-util`, [`test_util::Guest`] runs krun's calls in this process, on two threads as krun does, so that what a
//! test of a host program sees is the stream itself and no imitation of it:
//!
//! ```
//! use tokio::io::{AsyncReadExt, AsyncWriteExt};
//! use tokio_krun::{AgentStream, test_util::Guest};
//!
//! /// What is to be tested: any code that takes a stream.
//! async fn uptime(mut agent: AgentStream) -> std::io::Result<u64> {
//!     agent.write_all(b"uptime\n").await?;
//!     agent.read_u64().await
//! }
//!
//! # /*
//! #[tokio::test]
//! # */
//! # #[tokio::main(flavor = "current_thread")]
//! async fn uptime_is_asked_for() {
//!     let (stream, port) = AgentStream::pair().unwrap();
//!     let guest = Guest::boot(port);
//!     let mut agent = guest.open().unwrap();
//!     let host = tokio::spawn(uptime(stream));
//!     let mut request = [0; 7];
//!     agent.read_exact(&mut request).await.unwrap();
//!     assert_eq!(&request, b"uptime\n");
//!     agent.write_u64(42).await.unwrap();
//!     assert_eq!(host.await.unwrap().unwrap(), 42);
//!     guest.power_off().await;
//! }
//! # uptime_is_asked_for();
//! ```
//!
//! A guest that powers off takes along what its device still has, here as in a VM: a test in which the agent's last words
//! count waits for `Guest::drained` first.
//!
//! [`test_util::Guest`]: https://docs.rs/tokio-krun/latest/tokio_krun/test_util/struct.Guest.html
//!
//! # Troubleshooting
//!
//! - **Nothing arrives, either way.** Wait for [`guest_opened`](AgentStream::guest_opened). If it never resolves, the
//!   agent has not opened the port: in the guest, `/sys/class/virtio-ports/*/name` must list the name given to
//!   [`AgentPort::attach`], and `/dev` the `vportNpM` of that entry. An agent in Rust opens it by its name, with
//!   [`agent::VirtioPort`]; a program that opens the wrong one, or none, waits for ever. If it fails, the VM has
//!   ended before.
//! - **The guest opened, and what it writes does not come.** `stats().tx` tells: `queued` bytes are in the ring and nobody
//!   reads; no bytes at all are still in the guest (a `stdout` that is not flushed, for one).
//! - **The agent hangs in `write`.** The host does not read (`stats().tx.full` counts), or has hung up: then Linux lets
//!   nobody write to the port any more, and a blocking write never returns. The way for an agent is
//!   [`agent::VirtioPort`], which opens by name, and ends at a hang-up: its reads with the end of the file, its
//!   writes with `BrokenPipe`. (In another language: `O_NONBLOCK` and `poll`, where a hang-up is `POLLHUP`.)
//! - **The last bytes before a power-off are missing.** What krun had not handed over is lost with the VM: let the agent wait for an
//!   answer to its last words, and give the VM the port's [exit hook](AgentPort::exit_hook).
//! - **The process ends before the end of the file is read.** krun ends it as the VM ends: the exit hook again.
//! - **The VM does not pause, or does not stop.** krun waits for its TX thread, and that for room: read, drop the stream, or
//!   [`quiesce`](PortHandle::quiesce) it.
//!
//! # Features
//!
//! - `msb_krun` (default): attaching to a VM. Without it the stream and the in-process guest build
//!   without the VMM.
//! - `guest`: the module `agent`, the guest's end of the port for the agent inside a Linux VM.
//! - `test-util`: the module `guest`, a guest in this process, to test a host
//!   program without a VM.
//! - `tonic`: the module `tonic`, either end as the connection of a tonic 0.14 server; a client needs
//!   no feature.
//! - `tracing`: events of a stream's life (created, opened, hung up, gone) at level `debug`, never
//!   any payload. Some come from krun's threads, which a subscriber must not hold up, and where a panic of its own
//!   ends the port.
//!
//! # Platforms
//!
//! Linux. macOS is type-checked only. Windows is tested under Wine, with krun's own end of the pipe, but
//! without a VM and not on Windows itself.
//!
//! # Security
//!
//! The guest is not trusted. Whatever it sends, its cost in memory is bounded
//! ([`Options::capacity`]), no call of it panics, and no byte of an earlier message is ever shown
//! in a later one. Descriptors are close-on-exec. On Windows the pipe lets in this process
//! alone.

#![warn(missing_docs, unreachable_pub)]
#![cfg_attr(docsrs, feature(doc_cfg))]

#[cfg(all(feature = "agent", target_os = "linux", not(tokio_krun_loom)))]
#[cfg_attr(docsrs, doc(cfg(all(feature = "agent", target_os = "linux"))))]
pub mod agent;
mod chunks;
mod error;
mod host;
mod methods;
#[cfg(all(test, tokio_krun_loom))]
mod models;
mod options;
mod port;
mod shared;
mod split;
mod stats;
mod stream;
mod sync;
mod sys;
#[cfg(feature = "test-util")]
#[cfg_attr(docsrs, doc(cfg(feature = "test-util")))]
pub mod test_util;
#[cfg(feature = "tonic014")]
#[cfg_attr(docsrs, doc(cfg(feature = "tonic014")))]
pub mod tonic014;
mod trace;

/// Its examples compile.
#[cfg(doctest)]
#[doc = include_str!("../docs/migration.md")]
struct Migration;

#[cfg(all(doctest, target_os = "linux", feature = "msb_krun", feature = "agent"))]
#[doc = include_str!("../README.md")]
struct Readme;

pub use chunks::{Chunks, ReadChunks, WriteChunks};
pub use error::Error;
pub use options::Options;
pub use port::{AgentPort, PortHandle};
pub use split::{OwnedReadHalf, OwnedWriteHalf, ReadHalf, ReuniteError, WriteHalf};
pub use stats::{RingStats, Stats};
pub use stream::AgentStream;
pub use sys::exports::*;
