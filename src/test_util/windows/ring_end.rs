//! The guest's end of the rings themselves.

use std::io;
use std::sync::Arc;
use std::time::Instant;

use crate::port::AgentPort;
use crate::shared::ConsoleSharedState;
use crate::sys::{AgentConsolePipeBridge, until};
use crate::test_util::park::block_on;

/// The guest's end without krun and its pipe, for tests that play the guest byte by byte. The stream can read at once what
/// you write here, and the other way round.
///
/// It has the methods of krun's end on Linux and macOS. Dropping it ends the guest's side.
///
/// # Examples
///
/// ```
/// # use tokio::io::AsyncReadExt;
/// use tokio_krun::{AgentStream, test_util::RingEnd};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> std::io::Result<()> {
/// let (mut stream, port) = AgentStream::pair()?;
/// let end = RingEnd::new(port);
/// end.write(b"last words")?;
/// drop(end);
///
/// let mut received = String::new();
/// stream.read_to_string(&mut received).await?;
/// assert_eq!(received, "last words");
/// # Ok(()) }
/// ```
#[derive(Debug)]
#[must_use = "dropping it ends the stream"]
pub struct RingEnd {
    shared: Arc<ConsoleSharedState>,
    /// Waits for a krun that never comes.
    _bridge: AgentConsolePipeBridge,
}

impl RingEnd {
    /// Takes krun's place at `port`.
    ///
    /// # Examples
    ///
    /// ```
    /// # use tokio_krun::{AgentStream, test_util::RingEnd};
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> std::io::Result<()> {
    /// let (stream, port) = AgentStream::pair()?;
    /// let end = RingEnd::new(port);
    /// assert!(!stream.has_guest_opened()); // not before the first call
    /// end.write(b"hello")?;
    /// assert!(stream.has_guest_opened());
    /// # Ok(()) }
    /// ```
    pub fn new(port: AgentPort) -> Self {
        let bridge = port.into_bridge();
        Self {
            shared: bridge.shared(),
            _bridge: bridge,
        }
    }

    pub(in crate::test_util) fn shared(&self) -> Arc<ConsoleSharedState> {
        Arc::clone(&self.shared)
    }

    /// Copies bytes for the guest into `buf`, as many as there are. `Ok(0)` is the end.
    ///
    /// # Errors
    ///
    /// [`WouldBlock`](io::ErrorKind::WouldBlock) if there are none now, or if `buf` is empty.
    ///
    /// # Examples
    ///
    /// ```
    /// # use std::io::ErrorKind;
    /// # use tokio::io::AsyncWriteExt;
    /// # use tokio_krun::{AgentStream, test_util::RingEnd};
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> std::io::Result<()> {
    /// # let (mut stream, port) = AgentStream::pair()?;
    /// # let end = RingEnd::new(port);
    /// let mut buf = [0; 64];
    /// stream.write_all(b"request").await?;
    /// assert_eq!(end.read(&mut buf)?, 7);
    /// assert_eq!(end.read(&mut buf).unwrap_err().kind(), ErrorKind::WouldBlock);
    ///
    /// stream.hang_up();
    /// assert_eq!(end.read(&mut buf)?, 0);
    /// # Ok(()) }
    /// ```
    pub fn read(&self, buf: &mut [u8]) -> io::Result<usize> {
        let shared = &self.shared;
        shared.mark_guest_opened();
        if buf.is_empty() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let read = shared.rx_data.look_or_arm(|| shared.guest_read(buf));
        read.ok_or_else(|| io::ErrorKind::WouldBlock.into())
    }

    /// Copies the guest's bytes out of `buf`: all of them, or a ringful if they are more than that.
    ///
    /// # Errors
    ///
    /// [`WouldBlock`](io::ErrorKind::WouldBlock) if there is no room for them.
    ///
    /// # Examples
    ///
    /// ```
    /// # use std::io::ErrorKind;
    /// # use tokio::io::AsyncReadExt;
    /// # use tokio_krun::{Options, test_util::RingEnd};
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> std::io::Result<()> {
    /// let (mut stream, port) = Options::new().capacity(32 * 1024).create()?;
    /// let end = RingEnd::new(port);
    /// assert_eq!(end.write(&[1; 30_000])?, 30_000);
    /// assert_eq!(end.write(&[2; 3_000]).unwrap_err().kind(), ErrorKind::WouldBlock);
    ///
    /// stream.read_exact(&mut [0; 30_000]).await?;
    /// assert_eq!(end.write(&[2; 3_000])?, 3_000);
    /// # Ok(()) }
    /// ```
    pub fn write(&self, buf: &[u8]) -> io::Result<usize> {
        let shared = &self.shared;
        shared.mark_guest_opened();
        if buf.is_empty() {
            return Ok(0);
        }
        let written = shared.guest_write(buf);
        written.ok_or_else(|| io::ErrorKind::WouldBlock.into())
    }

    /// Blocks until [`write`](Self::write) is worth another call.
    ///
    /// # Examples
    ///
    /// ```
    /// # use tokio::io::AsyncReadExt;
    /// # use tokio_krun::{Options, test_util::RingEnd};
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> std::io::Result<()> {
    /// # let (mut stream, port) = Options::new().capacity(32 * 1024).create()?;
    /// # let end = RingEnd::new(port);
    /// let guest = std::thread::spawn(move || {
    ///     for _ in 0..100 {
    ///         while end.write(&[0; 4096]).is_err() {
    ///             end.wait_until_writable();
    ///         }
    ///     }
    /// });
    /// stream.read_exact(&mut vec![0; 100 * 4096]).await?;
    /// guest.join().unwrap();
    /// # Ok(()) }
    /// ```
    pub fn wait_until_writable(&self) {
        let shared = &self.shared;
        let may_write = || shared.guest_may_write().then_some(());
        loop {
            let limit = shared.stall_timeout();
            let deadline = limit.and_then(|limit| Instant::now().checked_add(limit));
            let before = shared.host_progress();
            let has_room = block_on(until(&shared.tx_room, may_write), deadline).is_some();
            if has_room || shared.guest_ends_if_stalled(before) {
                return;
            }
        }
    }
}
