//! PID 1 of the microVMs that tokio-krun's tests boot. It runs the guest's side of one scenario over
//! the virtio-console port "agent", then ends the VM. Some scenarios use more ports.
//!
//! The first argument names the scenario; `scenario.rs` lists them. The host passes the name to
//! `ExecBuilder::args`, and the kernel hands the words after `--` on its command line to its init.

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

/// The agent's log, which repeats what it prints on the console. The guest's root is a folder on the
/// host, so `tests/microvm/run` reads the log there. If the file exists, the guest has booted. If its
/// last line is `POWER_OFF`, the agent ended the VM itself.
const LOG: &str = "/tmp/agent.log";
const POWER_OFF: &str = "power off";

fn main() {
    if process::id() != 1 {
        eprintln!("agent: run me only as the init of a microVM; here I would restart your machine");
        process::exit(1);
    }
    let mut log = Log::new();
    let name = std::env::args().nth(1).unwrap_or_default();
    log.say(format_args!("scenario {name:?}"));
    if let Err(e) = mount_all().and_then(|()| scenario::run_scenario(&name, &mut log)) {
        log.say(format_args!("failed: {e}"));
    }
    log.say(POWER_OFF);
    let e = end_the_vm();
    log.say(format_args!("cannot end the VM: {e}"));
}

fn mount_all() -> io::Result<()> {
    for (kind, target) in [("devtmpfs", "/dev"), ("proc", "/proc"), ("sysfs", "/sys")] {
        match mount(kind, target, kind, MountFlags::empty(), None) {
            // The kernel has already mounted devtmpfs on /dev.
            Ok(()) | Err(Errno::BUSY) => {}
            Err(e) => return Err(io::Error::new(e.kind(), format!("mount {target}: {e}"))),
        }
    }
    Ok(())
}

/// Ends the VM. Returns only if that fails, with the error.
fn end_the_vm() -> Errno {
    // krun ends the VM when the keyboard controller resets it, and tells Linux to restart that way
    // (`reboot=k`). A power-off works too, but only in a kernel with krun's patches.
    match reboot(RebootCommand::Restart) {
        Ok(()) => Errno::IO,
        Err(e) => e,
    }
}

/// Logs to the guest's console and to `LOG`.
pub struct Log {
    file: Option<File>,
}

impl Log {
    fn new() -> Self {
        let file = OpenOptions::new().create(true).append(true).open(LOG).ok();
        Self { file }
    }

    /// Logs a line. Ignores errors, as there is nowhere to report them.
    pub fn say(&mut self, line: impl Display) {
        eprintln!("agent: {line}");
        if let Some(file) = &mut self.file {
            let _ = writeln!(file, "{line}");
        }
        // Without this, the console would lose its last lines when the VM ends.
        let _ = rustix::termios::tcdrain(io::stderr());
    }
}
