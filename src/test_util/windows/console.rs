//! The port as krun's workers hold it.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use super::client::PipeClient;
use super::taken::Taken;
use crate::port::AgentPort;
use crate::sys::GuestEnd;

/// Dropping it closes krun's end of the pipe, and ends the guest.
pub(in crate::test_util) struct Console {
    pipe_name: String,
    /// krun opens it when the VM starts. Here it is opened when the workers first start, so that the host sees the guest
    /// open its port at that time, as on other platforms.
    pipe: OnceLock<PipeClient>,
    written: AtomicU64,
    taken: Arc<Taken>,
    end: GuestEnd,
}

impl Console {
    pub(in crate::test_util) fn new(port: AgentPort) -> Self {
        let bridge = port.into_bridge();
        Self {
            taken: bridge.taken(),
            end: bridge.end_handle(),
            pipe_name: bridge.into_pipe_name(),
            pipe: OnceLock::new(),
            written: AtomicU64::new(0),
        }
    }

    /// Called by one thread at a time.
    pub(in crate::test_util) fn open(&self) -> io::Result<()> {
        if self.pipe.get().is_none() {
            let _ = self.pipe.set(PipeClient::open(&self.pipe_name)?);
        }
        Ok(())
    }

    /// The bridge knows of no threads.
    pub(in crate::test_util) fn leave(&self) {}

    pub(super) fn read(&self, target: &mut [u8]) -> io::Result<usize> {
        self.pipe().read(target)
    }

    pub(super) fn wait_until_readable(&self, stop: &AtomicBool) {
        self.pipe().wait_until_readable(stop);
    }

    pub(in crate::test_util) fn wake_reader(&self) {
        self.pipe().wake_reader();
    }

    pub(super) fn write(&self, source: &[u8]) -> io::Result<()> {
        self.pipe().write(source)?;
        self.written
            .fetch_add(source.len() as u64, Ordering::Relaxed);
        Ok(())
    }

    /// Waits until the bridge has taken everything that was written to the pipe.
    pub(super) fn wait_until_taken(&self) {
        self.taken.wait_for(self.written.load(Ordering::Relaxed));
    }

    fn pipe(&self) -> &PipeClient {
        self.pipe.get().expect("the workers start after it is open")
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        drop(self.pipe.take());
        self.end.end()();
    }
}
