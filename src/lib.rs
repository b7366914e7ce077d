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
//! let (stream, port) = AgentStream::new()?;
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
//! # How it works
//!
//! The two directions are named from the guest's side, as virtio's queues are. krun's TX thread
//! copies what the guest transmits into the `tx_ring`, once; a read copies it out. A write copies
//! into the `rx_ring`, and krun's RX thread copies that into the guest's buffers. [`Chunks`] reads
//! and writes without the host's copy. Both rings are bounded in bytes, and neither side waits for
//! the other while that is at its bytes. A side that finds nothing to do arms a wake and sleeps; the
//! other pays for a wake only then. There is no timer and no polling.
//!
//! On Windows krun opens a named pipe instead, and a task carries the bytes between it and the same
//! rings.
//!
//! How the channel ends, from either side, is a table in [`AgentStream`]'s documentation. What
//! krun's threads demand, and how it is met, is listed in the documentation of krun's end of the
//! port: `AgentConsoleBackend` on Linux and macOS, `AgentConsolePipeBridge` on Windows.
//!
//! # Features
//!
//! - `msb_krun` (default): attaching to a VM. Without it the stream and the in-process guest build
//!   without the VMM.
//! - `test-util`: the module `guest`, a guest in this process, to test a host
//!   program without a VM.
//! - `tonic`: [`AgentStream`] as a connection of a tonic 0.14 server (`Connected`); a client needs no
//!   feature.
//! - `tracing`: events of a stream's life (created, opened, hung up, gone) at level `debug`, never
//!   any payload.
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

mod chunks;
mod error;
#[cfg(feature = "test-util")]
#[cfg_attr(docsrs, doc(cfg(feature = "test-util")))]
pub mod guest;
mod host;
mod methods;
mod options;
mod port;
mod shared;
mod split;
mod stats;
mod stream;
mod sync;
mod sys;
#[cfg(feature = "tonic")]
mod tonic;
mod trace;

pub use chunks::{Chunks, ReadChunks, WriteChunks};
pub use error::Error;
pub use options::Options;
pub use port::{AgentPort, PortHandle};
pub use split::{OwnedReadHalf, OwnedWriteHalf, ReadHalf, ReuniteError, WriteHalf};
pub use stats::{RingStats, Stats};
pub use stream::AgentStream;
pub use sys::exports::*;
