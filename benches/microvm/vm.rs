//! The VM with its two ports, and the thread that drives them.

use std::env;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::Instant;

use msb_krun::{ConsoleBuilder, ConsolePortBackend, ConsolePortOptions, VmBuilder};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use tokio::net::UnixStream;
use tokio_krun::AgentStream;

use super::counts::{self, Counts};
use super::work::{self, Job, Plan};

/// Where libkrunfw, the guest's kernel, is.
const KERNEL: &str = "KRUNFW";
/// The folder that is the guest's root, with the tests' agent as `/init`.
const ROOT: &str = "GUEST_ROOT";
/// krun's descriptors for a port that asks for no other number.
const KRUNS: u16 = 32;

/// What keeps a VM from being booted here, if anything does.
pub(crate) fn missing() -> Option<String> {
    [KERNEL, ROOT]
        .into_iter()
        .find(|name| env::var_os(name).is_none())
        .map(|name| format!("{name} is not set"))
}

pub(crate) struct Vm {
    start: Instant,
    ask: Sender<Ask>,
    done: Receiver<u64>,
}

enum Ask {
    Interrupts { port: usize },
    Work { port: usize, job: Job, plan: Plan },
}

impl Vm {
    /// Boots a VM with two ports of so many descriptors each way.
    pub(crate) fn boot(descriptors: u16) -> Self {
        counts::begin();
        let (ask, asked) = channel();
        let (say, done) = channel();
        thread::Builder::new()
            .name("host".into())
            .spawn(move || host(descriptors, &asked, &say))
            .expect("a thread");
        Self {
            start: Instant::now(),
            ask,
            done,
        }
    }

    /// What a job takes on this port: 0 is the stream's, 1 the descriptor's.
    pub(crate) fn measure(&mut self, port: usize, job: Job, plan: &Plan) -> Counts {
        let interrupts = self.do_(Ask::Interrupts { port });
        let before = Counts::now(self.start);
        self.do_(Ask::Work {
            port,
            job,
            plan: plan.clone(),
        });
        let mut taken = Counts::now(self.start) - before;
        taken.interrupts = (self.do_(Ask::Interrupts { port }) - interrupts) as f64;
        taken
    }

    fn do_(&self, ask: Ask) -> u64 {
        self.ask.send(ask).expect("the host's thread has panicked");
        self.done.recv().expect("the host's thread has panicked")
    }
}

/// The host program: one thread, with a runtime for both ports.
fn host(descriptors: u16, asked: &Receiver<Ask>, say: &Sender<u64>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()
        .expect("a runtime");
    let (mut stream, mut socket) = runtime.block_on(async { enter(descriptors) });
    for ask in asked {
        let answer = runtime.block_on(async {
            match ask {
                Ask::Interrupts { port: 0 } => work::interrupts(&mut stream).await,
                Ask::Interrupts { .. } => work::interrupts(&mut socket).await,
                Ask::Work {
                    port: 0, job, plan, ..
                } => job.run(&plan, &mut stream).await.map(|()| 0),
                Ask::Work { job, plan, .. } => job.run(&plan, &mut socket).await.map(|()| 0),
            }
        });
        let answer = answer.expect("the guest is there");
        if say.send(answer).is_err() {
            return;
        }
    }
}

fn enter(descriptors: u16) -> (AgentStream, UnixStream) {
    let (stream, port) = AgentStream::pair().expect("a stream");
    let (ours, kruns) = StdUnixStream::pair().expect("a pair of sockets");
    ours.set_nonblocking(true).expect("a socket");
    let socket = UnixStream::from_std(ours).expect("a socket");
    let options = ConsolePortOptions::new().queue_size(descriptors);
    let vm = VmBuilder::new()
        .machine(|machine| machine.vcpus(1).memory_mib(256))
        .kernel(|kernel| {
            let path = env::var_os(KERNEL).expect("checked by `missing`");
            kernel.krunfw_path(path).init_path("/init")
        })
        .fs(|fs| fs.root(env::var_os(ROOT).expect("checked by `missing`")))
        .exec(|exec| exec.path("/init").args(["bench"]))
        .console(|console| {
            let console = console.disable_implicit();
            let console = port.attach_with_options(console, "stream", options);
            attach_socket(console, kruns, descriptors)
        })
        .build()
        .expect("the VM can be built");
    thread::spawn(move || {
        let error = vm.enter().expect_err("it does not return");
        panic!("the VM cannot be entered: {error}");
    });
    (stream, socket)
}

/// krun's own port of a descriptor where that can be: it has no option for the number of its
/// descriptors, so with another number it is a backend that makes the same calls.
fn attach_socket(
    console: ConsoleBuilder,
    socket: StdUnixStream,
    descriptors: u16,
) -> ConsoleBuilder {
    if descriptors == KRUNS {
        // krun duplicates it when the VM is built, and makes it non-blocking.
        let fd = socket.as_raw_fd();
        std::mem::forget(socket);
        return console.port("fd", fd, fd);
    }
    socket.set_nonblocking(true).expect("a socket");
    let options = ConsolePortOptions::new().queue_size(descriptors);
    console.custom_with_options("fd", Box::new(Socket(socket)), options)
}

/// What `PortInputFd` and `PortOutputFd` of `msb_krun_devices` 0.1.42 do.
struct Socket(StdUnixStream);

impl ConsolePortBackend for Socket {
    fn read(&self, buf: &mut [u8]) -> io::Result<usize> {
        Ok(rustix::io::read(&self.0, buf)?)
    }

    fn write(&self, buf: &[u8]) -> io::Result<usize> {
        Ok(rustix::io::write(&self.0, buf)?)
    }

    fn read_wake_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }

    fn wait_until_writable(&self) {
        let mut fds = [PollFd::new(&self.0, PollFlags::OUT)];
        while poll(&mut fds, None) == Err(Errno::INTR) {}
    }
}
