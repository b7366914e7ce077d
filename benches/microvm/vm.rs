//! The VM with its two ports, and the host's thread that drives them.

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

/// The environment variable with the path of libkrunfw, the guest's kernel.
const KERNEL: &str = "KRUNFW";
/// The environment variable with the guest's root folder, which holds the tests' agent as `/init`.
const ROOT: &str = "GUEST_ROOT";
/// krun's default number of descriptors for a port.
const DEFAULT_DESCRIPTORS: u16 = 32;

/// What is missing to boot a VM here, if anything.
pub(crate) fn missing() -> Option<String> {
    [KERNEL, ROOT]
        .into_iter()
        .find(|name| env::var_os(name).is_none())
        .map(|name| format!("{name} is not set"))
}

pub(crate) struct Vm {
    start: Instant,
    requests: Sender<Request>,
    answers: Receiver<u64>,
}

enum Request {
    Interrupts { port: usize },
    Work { port: usize, job: Job, plan: Plan },
}

impl Vm {
    /// Boots a VM with two ports. Each has `descriptors` each way.
    pub(crate) fn boot(descriptors: u16) -> Self {
        counts::begin();
        let (requests, requested) = channel();
        let (answered, answers) = channel();
        thread::Builder::new()
            .name("host".into())
            .spawn(move || host(descriptors, &requested, &answered))
            .expect("cannot start a thread");
        Self {
            start: Instant::now(),
            requests,
            answers,
        }
    }

    /// Measures what a job costs on a port: 0 is the stream, 1 the socket.
    pub(crate) fn measure(&mut self, port: usize, job: Job, plan: &Plan) -> Counts {
        let interrupts = self.request(Request::Interrupts { port });
        let before = Counts::now(self.start);
        self.request(Request::Work {
            port,
            job,
            plan: plan.clone(),
        });
        let mut counts = Counts::now(self.start) - before;
        counts.interrupts = (self.request(Request::Interrupts { port }) - interrupts) as f64;
        counts
    }

    fn request(&self, request: Request) -> u64 {
        self.requests
            .send(request)
            .expect("the host's thread panicked");
        self.answers.recv().expect("the host's thread panicked")
    }
}

/// The host's program: one thread, with one runtime for both ports.
fn host(descriptors: u16, requests: &Receiver<Request>, answers: &Sender<u64>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()
        .expect("cannot build the runtime");
    let (mut stream, mut socket) = runtime.block_on(async { boot(descriptors) });
    for request in requests {
        let answer = runtime.block_on(async {
            match request {
                Request::Interrupts { port: 0 } => work::interrupts(&mut stream).await,
                Request::Interrupts { .. } => work::interrupts(&mut socket).await,
                Request::Work {
                    port: 0, job, plan, ..
                } => job.run(&plan, &mut stream).await.map(|()| 0),
                Request::Work { job, plan, .. } => job.run(&plan, &mut socket).await.map(|()| 0),
            }
        });
        let answer = answer.expect("the guest is gone");
        if answers.send(answer).is_err() {
            return;
        }
    }
}

/// Starts the VM. Returns the host's ends of its ports.
fn boot(descriptors: u16) -> (AgentStream, UnixStream) {
    let (stream, port) = AgentStream::pair().expect("cannot create a stream");
    let (host, vmm) = StdUnixStream::pair().expect("cannot create sockets");
    host.set_nonblocking(true)
        .expect("cannot set the socket up");
    let socket = UnixStream::from_std(host).expect("cannot register the socket");
    let options = ConsolePortOptions::new().queue_size(descriptors);
    let vm = VmBuilder::new()
        .machine(|machine| machine.vcpus(1).memory_mib(256))
        .kernel(|kernel| {
            let path = env::var_os(KERNEL).expect("`missing` checked it");
            kernel.krunfw_path(path).init_path("/init")
        })
        .fs(|fs| fs.root(env::var_os(ROOT).expect("`missing` checked it")))
        .exec(|exec| exec.path("/init").args(["bench"]))
        .console(|console| {
            let console = console.disable_implicit();
            let console = port.attach_with_options(console, "stream", options);
            attach_socket(console, vmm, descriptors)
        })
        .build()
        .expect("cannot build the VM");
    thread::spawn(move || {
        let error = vm.enter().expect_err("it returns only an error");
        panic!("the VM did not start: {error}");
    });
    (stream, socket)
}

/// Attaches krun's own port over a file descriptor, if krun's default number of descriptors is asked
/// for. krun has no option for another number, so a backend that makes the same calls takes its place.
fn attach_socket(
    console: ConsoleBuilder,
    socket: StdUnixStream,
    descriptors: u16,
) -> ConsoleBuilder {
    if descriptors == DEFAULT_DESCRIPTORS {
        // krun duplicates the descriptor when it builds the VM, and makes it non-blocking.
        let fd = socket.as_raw_fd();
        std::mem::forget(socket);
        return console.port("fd", fd, fd);
    }
    socket
        .set_nonblocking(true)
        .expect("cannot set the socket up");
    let options = ConsolePortOptions::new().queue_size(descriptors);
    console.custom_with_options("fd", Box::new(Socket(socket)), options)
}

/// Does what `PortInputFd` and `PortOutputFd` of `msb_krun_devices` 0.1.42 do.
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
