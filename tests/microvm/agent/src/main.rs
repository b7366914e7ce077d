//! PID 1 of the microVMs that tokio-krun's tests boot: plays the guest's side of one scenario over
//! the virtio-console port "agent" (some over further ports too), then ends the VM.
//!
//! The scenario is the first argument, which is what the host gave to `ExecBuilder::args`: the
//! kernel hands the words after `--` on its command line to its init. `scenario.rs` lists them.

mod bench;
mod grpc;
mod pattern;
mod port;
mod protocols;
mod remote;
mod scenario;
mod virtio_port;

use std::fmt::Display;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::process;

use rustix::io::Errno;
use rustix::mount::{MountFlags, mount};
use rustix::system::{RebootCommand, reboot};

/// Where the agent's words go besides the console. The guest's root is a folder of the host's, so
/// `tests/microvm/run` reads them there: that the file exists shows that the guest has booted, and
/// that its last line is `POWER_OFF` shows that the guest ended of its own will.
const LOG: &str = "/tmp/agent.log";
const POWER_OFF: &str = "power off";

fn main() {
    if process::id() != 1 {
        eprintln!("agent: I am the init of a microVM, and would switch this machine off");
        process::exit(1);
    }
    let mut log = Log::new();
    let name = std::env::args().nth(1).unwrap_or_default();
    log.say(format_args!("scenario {name:?}"));
    if let Err(e) = mount_all().and_then(|()| scenario::play(&name, &mut log)) {
        log.say(format_args!("failed: {e}"));
    }
    log.say(POWER_OFF);
    let e = end_the_vm();
    log.say(format_args!("cannot end the VM: {e}"));
}

fn mount_all() -> io::Result<()> {
    for (kind, target) in [("devtmpfs", "/dev"), ("proc", "/proc"), ("sysfs", "/sys")] {
        match mount(kind, target, kind, MountFlags::empty(), None) {
            // The kernel has mounted its devtmpfs on /dev itself.
            Ok(()) | Err(Errno::BUSY) => {}
            Err(e) => return Err(io::Error::new(e.kind(), format!("mount {target}: {e}"))),
        }
    }
    Ok(())
}

/// Does not return, unless with the error that kept the VM alive.
fn end_the_vm() -> Errno {
    // krun ends the VM at a reset by the keyboard controller, and has told Linux to restart that
    // way (`reboot=k`). Powering off works as well, but only in a kernel with krun's own patches.
    match reboot(RebootCommand::Restart) {
        Ok(()) => Errno::IO,
        Err(e) => e,
    }
}

/// The agent's words, on the guest's console and in `LOG`.
pub struct Log {
    file: Option<File>,
}

impl Log {
    fn new() -> Self {
        let file = OpenOptions::new().create(true).append(true).open(LOG).ok();
        Self { file }
    }

    /// Says a line. Nobody can be told that this failed, so nobody is.
    pub fn say(&mut self, words: impl Display) {
        eprintln!("agent: {words}");
        if let Some(file) = &mut self.file {
            let _ = writeln!(file, "{words}");
        }
        // The console is a terminal whose last lines would otherwise be lost when the VM ends.
        let _ = rustix::termios::tcdrain(io::stderr());
    }
}
