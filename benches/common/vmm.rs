//! The VMM's side of a port. The benches drive it as krun's two threads do.

use std::io;

use tokio_krun::PortHandle;

/// Plays krun's `PortInput`: bytes for the guest.
pub(crate) trait Input: Send + 'static {
    /// Does not wait: fails with `WouldBlock` if there is nothing. `Ok(0)` at end of file.
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize>;
    fn wait_until_readable(&mut self);

    /// Fills a descriptor as `process_rx` of `msb_krun_devices` 0.1.42 does, and returns how far.
    ///
    /// It takes the bytes that are there, and waits only if there are none. Zero at end of file.
    fn fill(&mut self, descriptor: &mut [u8]) -> usize {
        let mut filled = 0;
        loop {
            match self.read(&mut descriptor[filled..]) {
                Ok(0) => return filled,
                Ok(read) => filled += read,
                Err(error) if error.kind() != io::ErrorKind::WouldBlock => return filled,
                Err(_) if filled > 0 => return filled,
                Err(_) => self.wait_until_readable(),
            }
            if filled == descriptor.len() {
                return filled;
            }
        }
    }
}

/// Plays krun's `PortOutput`: the guest's bytes.
pub(crate) trait Output: Send + 'static {
    /// Does not wait: fails with `WouldBlock` if there is no room.
    fn write(&mut self, buf: &[u8]) -> io::Result<usize>;
    fn wait_until_writable(&mut self);

    /// Empties a descriptor as `process_tx` does, waiting for room. `false` once the host has hung up.
    fn empty(&mut self, mut descriptor: &[u8]) -> bool {
        while !descriptor.is_empty() {
            match self.write(descriptor) {
                Ok(0) => return false,
                Ok(written) => descriptor = &descriptor[written..],
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.wait_until_writable()
                }
                Err(_) => return false,
            }
        }
        true
    }
}

/// Carries bytes between the host's tasks and the VMM's threads.
pub(crate) trait Transport: 'static {
    const NAME: &'static str;
    type Read: tokio::io::AsyncRead + Unpin + Send + 'static;
    type Write: tokio::io::AsyncWrite + Unpin + Send + 'static;
    type Input: Input;
    type Output: Output;

    /// Makes a channel that holds `capacity` bytes in each direction, or the transport's default for
    /// `None`. Call it in a runtime.
    fn new(capacity: Option<usize>) -> Channel<Self>;
}

/// Both ends of a new channel.
pub(crate) struct Channel<T: Transport + ?Sized> {
    pub(crate) read: T::Read,
    pub(crate) write: T::Write,
    pub(crate) input: T::Input,
    pub(crate) output: T::Output,
    /// Tells what this crate's rings have done. `None` for the other transports.
    pub(crate) stats: Option<PortHandle>,
}
