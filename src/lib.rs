//! The agent channel of a libkrun microVM as an ordinary tokio stream.
//!
//! A host program starts a microVM with the crate [`msb_krun`]. An agent inside the VM talks to it over a virtio-console
//! port. [`AgentStream`] is the host's end of that port: [`AsyncRead`](tokio::io::AsyncRead) +
//! [`AsyncWrite`](tokio::io::AsyncWrite). Frame it with tokio-util's codecs, or hand it to hyper, tonic, tarpc or tower like
//! any other stream. Bytes move by `memcpy` through rings in the host's memory, not by system calls through a socket.
//!
//! ```no_run
//! # #[cfg(feature = "msb_krun")]
//! # #[tokio::main] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use std::time::Duration;
//! use std::{env, process, thread};
//!
//! use bytes::Bytes;
//! use futures::{SinkExt, StreamExt};
//! use msb_krun::VmBuilder;
//! use tokio_krun::AgentStream;
//! use tokio_util::codec::{Framed, LengthDelimitedCodec};
//!
//! let krunfw = env::var("KRUNFW")?; // such as /usr/lib64/libkrunfw.so.5
//! let root = env::var("GUEST_ROOT")?; // a folder with the agent in it, as `agent`
//!
//! let (stream, port) = AgentStream::pair()?;
//! let vm = VmBuilder::new()
//!     .kernel(|k| k.krunfw_path(krunfw).init_path("/agent"))
//!     .fs(|fs| fs.root(root))
//!     .on_exit(port.exit_hook(Duration::from_secs(10))) // before `attach`
//!     .console(|console| port.attach(console, "agent"))
//!     .build()?;
//! thread::spawn(move || {
//!     // Returns only if the VM could not start: krun ends the process with its VM.
//!     let error = vm.enter().unwrap_err();
//!     eprintln!("the VM did not start: {error}");
//!     process::exit(1);
//! });
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
//! The two directions are named from the guest's side, like virtio's queues. krun's TX thread copies what the guest transmits
//! into the `tx_ring`, and a read copies it out. A write copies into the `rx_ring`, and krun's RX thread copies from there into
//! the guest's buffers. [`Chunks`] reads and writes without the host's copy.
//!
//! Both rings are bounded in bytes, and neither side waits while the other copies. A side that finds nothing to do asks for a
//! wake and sleeps. Only then does the other side pay for a wake. Nothing polls, unless you ask for it with
//! [`Options::busy_poll`].
//!
//! Three waits have a time limit. You set that of the [exit hook](AgentPort::exit_hook), and you may set
//! [`Options::stall_timeout`]. The third is fixed: an empty descriptor breaks virtio's rules, and krun gets its answer to one
//! after 100 ms.
//!
//! On Windows krun opens a named pipe, and a task carries the bytes between it and the same rings. A hang-up there also waits
//! until the guest has written nothing for half a second.
//!
//! The documentation of krun's end of the port lists what krun's threads demand and how it is met: `AgentConsoleBackend` on
//! Linux and macOS, `AgentConsolePipeBridge` on Windows. In the repository, `docs/architecture.md` follows a byte through the
//! files, and `docs/migration.md` helps a program that has rings and a backend of its own.
//!
//! # Ends
//!
//! A reader gets everything that was written before an end, as far as krun has handed it over, and then the end.
//!
//! - You end writing: [`shutdown`]. The guest does not notice, and your reads go on.
//! - You hang up: [`hang_up`](AgentStream::hang_up), or drop or [close](AgentStream::close) the stream. The guest reads end of file, and can never write
//!   again.
//! - The guest powers off, or the VM is dropped: reads return what is left and then end of file, and writes fail with
//!   `BrokenPipe`. The port's [exit hook](AgentPort::exit_hook) gives you time to read before krun ends the process.
//! - The guest closes its port: you cannot detect that, as krun does not report it.
//!
//! The [whole table](AgentStream#ends) includes the halves and what is different on Windows.
//!
//! # One VM per process
//!
//! krun ends the process with its VM, so run one VM in each process. A VM may have several ports, each with a stream of its own.
//!
//! A service with many VMs starts a child process for each. The child carries its VM's stream over a socket to the service:
//! [`Carry`] joins an [`AgentStream`] to any socket, and passes on the end of each side. In the repository,
//! `docs/one-vm-a-process.md` shows how, and `examples/child.rs` is such a service.
//!
//! # In the guest
//!
//! The agent's end is in this crate too: module `agent`, with the feature `agent`. It is for Linux, needs no VMM, and builds
//! statically for musl. [`agent::VirtioPort`] opens the port under the name that you gave to [`AgentPort::attach`], as soon as
//! it appears. It is `AsyncRead` + `AsyncWrite` like the host's stream, so both sides can share the code of their protocol.
//!
//! ```
//! # #[cfg(target_os = "linux")]
//! # mod guest {
//! use futures::{SinkExt, StreamExt};
//! use tokio_krun::agent::{self, VirtioPort};
//! use tokio_util::codec::{Framed, LengthDelimitedCodec};
//!
//! async fn agent() -> std::io::Result<()> {
//!     agent::mount_filesystems()?; // for an agent that is the guest's init
//!     let port = VirtioPort::open("agent").await?;
//!     let mut frames = Framed::new(port, LengthDelimitedCodec::new());
//!     while let Some(request) = frames.next().await.transpose()? {
//!         frames.send(request.freeze()).await?; // an echo
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
//! | lines, or JSON by lines | [`Framed`] with `LinesCodec`, or `AsyncBufReadExt` on the stream itself |
//! | HTTP/1, HTTP/2 | hyper-util's `TokioIo`, then hyper's `handshake` or `serve_connection` |
//! | gRPC | `TokioIo` in a tonic `connect_with_connector`; for a server on either side, the feature `tonic014`: `serve_with_incoming` with its `Incoming` |
//! | TLS, websockets | tokio-rustls's `TlsConnector` or `TlsAcceptor`; tokio-tungstenite's `client_async` or `accept_async` |
//! | several streams at once | [`compat`], then a yamux `Connection` |
//! | tarpc, ttrpc | `tarpc::serde_transport::new` with frames; `ttrpc::asynchronous::transport::Socket::new` |
//!
//! A port is one connection, so a client library's pool must not try to open another. Each of these has an example or a test in
//! the repository (`examples/`, `tests/protocols/`).
//!
//! ## Which protocols end by themselves
//!
//! The host cannot detect that the agent closed its port, and the guest does not see a [`shutdown`]. So your side ends only when
//! the agent says so in the protocol's own bytes. The agent does notice when you drop the stream, and that is for good.
//!
//! | on the host | ends by itself? | what to do |
//! | --- | --- | --- |
//! | frames, lines | no | agree on a last message |
//! | HTTP/1 body with a length or in chunks | yes | |
//! | HTTP/1 body that lasts until the connection closes | no | let the agent send a length or chunks; the other way it ends, as hyper's server drops the stream |
//! | HTTP/1 connection | after `connection: close`, also in the agent's request, and with HTTP/1.0 unless it is kept alive | otherwise drop hyper's `SendRequest`, or the server's connection |
//! | HTTP/2, gRPC | yes: dropping hyper's or tonic's client says goodbye; a server says it in its graceful shutdown | |
//! | TLS | yes, each direction on its own, if the agent calls `shutdown` on its TLS stream, which sends `close_notify` | call `shutdown` too: the agent's read fails if you drop yours without |
//! | websocket server | yes, if the agent closes the websocket | |
//! | websocket client | no: after the closing handshake it waits for the server to close the connection | stop at `Message::Close`, not at the end of the `Stream` |
//! | yamux | yes, if the agent calls `poll_close` on its `Connection`; each stream by its own `close` | |
//! | tarpc, ttrpc: a client's call | tarpc's at its deadline, ttrpc's only with a timeout | |
//! | tarpc, ttrpc: a server | no | drop tarpc's, call ttrpc's `shutdown` |
//!
//! An agent that is killed says nothing, so each of these then waits until the guest powers off. Give each call a time limit.
//!
//! [`Framed`]: https://docs.rs/tokio-util/0.7/tokio_util/codec/struct.Framed.html
//! [`compat`]: https://docs.rs/tokio-util/0.7/tokio_util/compat/index.html
//!
//! # Backpressure
//!
//! Each direction holds [`Options::capacity`] bytes. While you do not read, the guest's writes wait in the guest: its agent
//! blocks or sees no room, and the host's memory does not grow. While the guest does not read, your [`write`] waits. So a
//! protocol in which both sides write before they read can stall, as over any socket. Read and write in different tasks, with
//! [`into_split`](AgentStream::into_split) or `StreamExt::split`. [`stats`](AgentStream::stats) shows which direction is full.
//!
//! As with a socket, a little room does not wake a waiting writer. It is woken once half of the capacity is free, or once
//! everything was read. For example, a stream with a capacity of 32 KiB holds 30,000 bytes, so the guest's write of 3,000 more
//! waits. You read 1,000 bytes: now the write would fit, but it goes on waiting, until 16 KiB are free or the stream is empty.
//!
//! If you keep reading, you do not notice. But suppose that you read one frame and then wait elsewhere for something that the
//! guest does only after its next write. Then both sides can wait forever. So read until you have what you need. Or choose a
//! capacity that holds all that the guest may send meanwhile: at least two frames.
//!
//! Unlike with a socket, dropping the writing half of `into_split` does not give the guest an end of file. Its agent may then
//! wait forever for the next request, and your reading half for the answer. Let the task that writes last
//! [hang up](OwnedWriteHalf::hang_up), or stop both tasks.
//!
//! [`write`]: https://docs.rs/tokio/1/tokio/io/trait.AsyncWriteExt.html#method.write
//!
//! # Testing without a VM
//!
//! With the feature `test-util`, [`test_util::Guest`] plays krun and the guest in your process. It calls the port as krun
//! does, so your test sees the real stream and not an imitation. It needs no threads, so tokio's paused clock works too:
//!
//! ```
//! use tokio::io::{AsyncReadExt, AsyncWriteExt};
//! use tokio_krun::{AgentStream, test_util::Guest};
//!
//! /// The code under test: it takes any stream.
//! async fn uptime(mut agent: AgentStream) -> std::io::Result<u64> {
//!     agent.write_all(b"uptime\n").await?;
//!     agent.read_u64().await
//! }
//!
//! # /*
//! #[tokio::test]
//! # */
//! # #[tokio::main(flavor = "current_thread")]
//! async fn asks_for_uptime() {
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
//! # asks_for_uptime();
//! ```
//!
//! A guest that powers off loses what its device still holds, here as in a VM. If your test needs the agent's last words,
//! wait for `Guest::drained` first.
//!
//! [`test_util::Guest`]: https://docs.rs/tokio-krun/latest/tokio_krun/test_util/struct.Guest.html
//!
//! # Troubleshooting
//!
//! - **The stream ends at once, or the process ends without a word.** The guest did not boot. Look in three places:
//!   1. `Vm::enter`'s error says what krun could not start with, such as a libkrunfw that it does not find.
//!   2. The crate `log` has krun's messages. Install a logger, such as `tracing_subscriber::fmt().init()` or `env_logger`. A
//!      KVM that cannot run the guest's kernel shows as `KVM_EXIT_INTERNAL_ERROR`, some 20 seconds after the start.
//!   3. The guest's console, which `console.output(path)` writes to a file, has its kernel's panic: error -8 for an init
//!      of another architecture, -2 for one that is not in the root.
//!
//!   `examples/microvm.rs` does all three.
//! - **Nothing arrives, either way.** Wait for [`guest_opened`](AgentStream::guest_opened). If it never returns, the agent has
//!   not opened the port. In the guest, `/sys/class/virtio-ports/*/name` must list the name that you gave to
//!   [`AgentPort::attach`], once, and `/dev` the `vportNpM` of that entry. `attach` has the limits of names. If
//!   `guest_opened` fails, the VM ended first.
//! - **The guest opened its port, but nothing that it writes arrives.** Look at `stats().tx`. If it has `queued` bytes, nobody
//!   on the host reads them. If it has no bytes at all, they are still in the guest, for instance in a `stdout` that is not
//!   flushed.
//! - **The agent hangs in `write`.** Either the host does not read (`stats().tx.full` counts), or the host has hung up. After a
//!   hang-up, Linux lets nobody write to the port, and a blocking write never returns. Use [`agent::VirtioPort`]: at a hang-up
//!   its reads return end of file and its writes fail with `BrokenPipe`. In another language, open the port with
//!   `O_NONBLOCK` and use `poll`, where a hang-up is `POLLHUP`.
//! - **The last bytes before a power-off are missing.** What krun had not handed over is lost with the VM. Let the agent wait
//!   for an answer to its last words, and give the VM the port's [exit hook](AgentPort::exit_hook).
//! - **The process ends before you read end of file.** krun ends it with the VM. Use the exit hook.
//! - **The guest has powered off, but the process does not end.** The stream is full, and you keep it without reading. krun joins
//!   its TX thread, which waits for room, before it runs any exit hook. So the hook's limit does not help: it begins only when the
//!   hook runs. Read on, drop or close the stream, or set [`Options::stall_timeout`], which bounds the wait.
//! - **The guest has powered off, and the process ends only at the exit hook's limit.** The stream was read to its end, but not
//!   dropped. With the feature `tracing`, events say which stream the hook waits for.
//! - **The VM does not pause its devices, or does not stop.** krun waits for its TX thread here too. Read, drop or close the stream, or
//!   [`quiesce`](PortHandle::quiesce) the port. Before a checkpoint, pause the vCPUs first.
//! - **A restored VM's agent reads or sends from the middle of a frame.** krun saves no byte that is between guest and host. Save
//!   them with [`PortHandle::checkpoint`], and save what your codec holds.
//! - **Reads fail with `UnexpectedEof`.** The guest's bytes found no room and were discarded from there on: either the
//!   [`stall_timeout`](Options::stall_timeout) passed, or the port was [quiesced](PortHandle::quiesce) while the vCPUs ran.
//! - **A frame is wrong after the agent was restarted.** The agent stopped in the middle of a frame, and your codec completed
//!   that frame with bytes of the restarted agent. See [`guest_opened`](AgentStream::guest_opened).
//!
//! # Features
//!
//! - `msb_krun` (default): attaching to a VM. Without it the stream and the in-process guest build without the VMM.
//! - `agent`: the module `agent`, the guest's end of the port for the agent inside a Linux VM.
//! - `blk`: krun's own feature of this name, which it needs to capture a VM's devices. It changes nothing in this crate.
//! - `serde`: [`StreamState`] is `Serialize` and `Deserialize`.
//! - `test-util`: the module `test_util`, an in-process guest to test a host program or an agent without a VM. It includes the
//!   module `agent`, without what needs Linux.
//! - `tonic014`: the module `tonic014`, either end as the connection of a tonic 0.14 server. A client needs no feature.
//! - `tracing`: events of a stream's life (created, attached, opened, hung up, gone) at level `debug`, and a warning if the
//!   exit hook waited in vain. They have the stream's [label](Options::label) and never any payload. Some come from krun's
//!   threads, so your subscriber must not hold them up. If it panics, only the event is lost.
//!
//! # Platforms
//!
//! Linux. macOS is type-checked only. Windows is tested under Wine with krun's own end of the pipe, but without a VM and not on
//! Windows itself.
//!
//! # Security
//!
//! The guest is not trusted. Whatever it sends, the memory that it costs is bounded ([`Options::capacity`]), it makes no
//! call of this crate panic, and no byte of an earlier message ever shows up in a later one. Descriptors are close-on-exec.
//! On Windows the pipe admits only this process.

#![warn(missing_docs, unreachable_pub)]
#![cfg_attr(docsrs, feature(doc_cfg))]

#[cfg(any(
    test,
    feature = "test-util",
    all(feature = "agent", target_os = "linux")
))]
#[cfg_attr(
    docsrs,
    doc(cfg(any(feature = "test-util", all(feature = "agent", target_os = "linux"))))
)]
pub mod agent;
mod carry;
mod checkpoint;
mod chunks;
mod error;
mod foreign;
mod host;
#[cfg(all(test, tokio_krun_loom))]
mod models;
mod options;
mod permit;
mod port;
mod shared;
mod split;
mod split_owned;
mod state;
mod stats;
mod stream;
mod sync;
mod sys;
#[cfg(any(test, feature = "test-util"))]
#[cfg_attr(docsrs, doc(cfg(feature = "test-util")))]
pub mod test_util;
#[cfg(feature = "tonic014")]
#[cfg_attr(docsrs, doc(cfg(feature = "tonic014")))]
pub mod tonic014;
mod trace;

/// Runs the program in `docs/checkpoint.md`.
#[cfg(doctest)]
#[doc = include_str!("../docs/checkpoint.md")]
struct Checkpoints;

/// Compiles the examples in `docs/migration.md`.
#[cfg(doctest)]
#[doc = include_str!("../docs/migration.md")]
struct Migration;

/// Compiles the example in `docs/one-vm-a-process.md`.
#[cfg(all(doctest, unix))]
#[doc = include_str!("../docs/one-vm-a-process.md")]
struct OneVmAProcess;

#[cfg(all(doctest, target_os = "linux", feature = "msb_krun", feature = "agent"))]
#[doc = include_str!("../README.md")]
struct Readme;

pub use carry::{Carried, Carry, CarryError, CarryParts, Ended, carry};
pub use checkpoint::Checkpoint;
pub use chunks::{Chunks, ReadChunks, WriteChunks};
pub use error::Error;
pub use options::Options;
pub use permit::Permit;
pub use port::{AgentPort, PortHandle};
pub use split::{ReadHalf, WriteHalf};
pub use split_owned::{OwnedReadHalf, OwnedWriteHalf, ReuniteError};
pub use state::StreamState;
pub use stats::{RingStats, Stats};
pub use stream::AgentStream;
#[cfg(unix)]
pub use sys::AgentConsoleBackend;
#[cfg(windows)]
pub use sys::AgentConsolePipeBridge;
