//! The port for an agent without a runtime.

use std::io::{self, Read, Write};

use tokio::io::Interest;

use super::park::block_on;
use super::port::Port;

/// The agent's end of the port, for an agent that reads and writes with a thread of its own, and without a runtime.
///
/// It stands for the [`File`](std::fs::File) that such an agent opens in a VM. Like that, it is [`Read`] and [`Write`], also
/// by shared reference: so one thread can read while another writes. Get it from
/// [`Guest::open_blocking`](super::Guest::open_blocking). Dropping it closes the port in the guest.
///
/// In one thing it differs from a VM: once the host has hung up, a write fails with
/// [`BrokenPipe`](io::ErrorKind::BrokenPipe). In Linux it never returns.
///
/// Do not use it in a task: it blocks the thread that others need, perhaps the host's end. Nor use it with tokio's paused clock,
/// which does not wait for a thread: see [the module's documentation](super#time).
///
/// # Examples
///
/// ```
/// use std::io::{BufRead, BufReader, Write};
/// use std::thread;
///
/// use tokio::io::{AsyncReadExt, AsyncWriteExt};
/// use tokio_krun::AgentStream;
/// use tokio_krun::test_util::{BlockingPort, Guest};
///
/// /// The agent under test, which in the VM runs on a `File`.
/// fn shout(port: BlockingPort) -> std::io::Result<()> {
///     for line in BufReader::new(&port).lines() {
///         writeln!(&port, "{}", line?.to_uppercase())?;
///     }
///     Ok(())
/// }
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> std::io::Result<()> {
/// let (mut stream, port) = AgentStream::pair()?;
/// let guest = Guest::boot(port);
/// let port = guest.open_blocking()?;
/// let agent = thread::spawn(|| shout(port));
///
/// stream.write_all(b"hello\n").await?;
/// let mut answer = [0; 6];
/// stream.read_exact(&mut answer).await?;
/// assert_eq!(&answer, b"HELLO\n");
/// stream.hang_up();
/// agent.join().unwrap()?;
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct BlockingPort(Port);

impl BlockingPort {
    pub(super) fn new(port: Port) -> Self {
        Self(port)
    }

    /// Waits with this thread until `operation` does not say `WouldBlock`.
    fn wait<T>(
        &self,
        interest: Interest,
        mut operation: impl FnMut(&Port) -> io::Result<T>,
    ) -> io::Result<T> {
        loop {
            match operation(&self.0) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                done => return done,
            }
            block_on(self.0.ready(interest), None).expect("it has no deadline")?;
        }
    }
}

impl Read for &BlockingPort {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.wait(Interest::READABLE, |port| port.try_read(buf))
    }
}

impl Write for &BlockingPort {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.wait(Interest::WRITABLE, |port| port.try_write(buf))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Read for BlockingPort {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        (&*self).read(buf)
    }
}

impl Write for BlockingPort {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        (&*self).write(buf)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
