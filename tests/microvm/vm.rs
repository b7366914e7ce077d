//! Booting a microVM with the agent in it, and seeing how it ends.

use std::array;
use std::env;
use std::fs;
use std::io;
use std::os::fd::RawFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use msb_krun::{ConsolePortBackend, ExitHandle, VmBuilder, VmControl};
use tokio::sync::{Notify, mpsc};
use tokio_krun::{AgentConsoleBackend, AgentPort};

/// Where libkrunfw, the guest's kernel, is.
const KERNEL: &str = "KRUNFW";
/// The folder that is the guest's root, with the agent as `/init`.
const ROOT: &str = "GUEST_ROOT";

/// What keeps a VM from being booted here, if anything does.
pub(crate) fn missing() -> Option<String> {
    [KERNEL, ROOT]
        .into_iter()
        .find(|name| env::var_os(name).is_none())
        .map(|name| format!("{name} is not set"))
}

pub(crate) struct Vm {
    pub(crate) exit: ExitHandle,
    pub(crate) control: VmControl,
    /// Those of the first port.
    pub(crate) calls: Arc<Calls>,
    ended: mpsc::UnboundedReceiver<i32>,
}

/// The agent powers off also when its scenario has failed, with nothing but a word of it in its log
/// (`agent/src/main.rs`): `failed: ` and why.
pub(crate) fn agent_failure() -> Option<String> {
    let root = env::var_os(ROOT).expect("checked by `missing`");
    let log = fs::read_to_string(Path::new(&root).join("tmp/agent.log")).expect("the agent's log");
    log.lines()
        .find(|line| line.starts_with("failed: "))
        .map(str::to_owned)
}

/// What krun's threads have done to a port.
#[derive(Default)]
pub(crate) struct Calls {
    /// Bytes that krun handed over.
    pub(crate) written: AtomicU64,
    pub(crate) writes: AtomicU64,
    /// Bytes that krun took for the guest.
    pub(crate) read: AtomicU64,
    /// Bytes have moved.
    moved: Notify,
    /// A wait for room has begun.
    pub(crate) tx_waits: Notify,
    /// krun's TX thread dawdles before each write.
    pub(crate) slow: AtomicBool,
    /// The number of krun's TX thread, once it has written.
    pub(crate) tx_thread: AtomicU32,
}

impl Vm {
    /// Boots a VM whose agent plays `scenario` over `port`, which it knows as "agent".
    pub(crate) fn boot(scenario: &str, port: AgentPort) -> Self {
        Self::boot_with(scenario, [("agent", port)])
    }

    /// Boots a VM whose agent plays `scenario` over `ports`, each with its name.
    pub(crate) fn boot_with<const N: usize>(
        scenario: &str,
        ports: [(&'static str, AgentPort); N],
    ) -> Self {
        let (say, ended) = mpsc::unbounded_channel();
        let calls: [Arc<Calls>; N] = array::from_fn(|_| Arc::default());
        let last_words =
            AgentPort::exit_hook_for(ports.iter().map(|(_, port)| port), Duration::from_secs(60));
        let vm = VmBuilder::new()
            .machine(|machine| machine.vcpus(1).memory_mib(256))
            .kernel(|kernel| {
                let path = env::var_os(KERNEL).expect("checked by `missing`");
                kernel.krunfw_path(path).init_path("/init")
            })
            .fs(|fs| fs.root(env::var_os(ROOT).expect("checked by `missing`")))
            .exec(|exec| exec.path("/init").args([scenario]))
            .on_exit(last_words)
            .on_exit(move |code| {
                // The test now ends the process itself.
                let _ = say.send(code);
                thread::sleep(Duration::from_secs(60));
            })
            .console(|console| {
                let ports = ports.into_iter().zip(&calls);
                ports.fold(
                    console.disable_implicit(),
                    |console, ((name, port), calls)| {
                        let backend = Counted {
                            backend: port.into_backend(),
                            calls: Arc::clone(calls),
                        };
                        console.custom(name, Box::new(backend))
                    },
                )
            })
            .build()
            .expect("the VM can be built");
        let exit = vm.exit_handle();
        let control = vm.control_handle();
        thread::spawn(move || {
            let error = vm.enter().expect_err("it does not return");
            panic!("the VM cannot be entered: {error}");
        });
        let calls = calls.into_iter().next().expect("there is a port");
        Self {
            exit,
            control,
            calls,
            ended,
        }
    }

    /// Waits until krun has stopped the port and run the exit observers, and would end the
    /// process.
    pub(crate) async fn ended(&mut self) {
        let code = self
            .ended
            .recv()
            .await
            .expect("the VM's thread has panicked");
        assert_eq!(code, 0, "the VM's exit code");
    }
}

impl Calls {
    /// Waits until krun has handed over `count` bytes in all, and asserts that it is no more.
    pub(crate) async fn written(&self, count: u64) {
        while self.written.load(Ordering::SeqCst) < count {
            self.moved.notified().await;
        }
        assert_eq!(self.written.load(Ordering::SeqCst), count);
    }

    /// Waits until krun has taken `count` bytes in all.
    pub(crate) async fn read(&self, count: u64) {
        while self.read.load(Ordering::SeqCst) < count {
            self.moved.notified().await;
        }
    }
}

/// The port's backend, with each call counted.
struct Counted {
    backend: AgentConsoleBackend,
    calls: Arc<Calls>,
}

impl ConsolePortBackend for Counted {
    fn read(&self, buf: &mut [u8]) -> io::Result<usize> {
        let read = self.backend.read(buf)?;
        self.calls.read.fetch_add(read as u64, Ordering::SeqCst);
        self.calls.moved.notify_one();
        Ok(read)
    }

    fn write(&self, buf: &[u8]) -> io::Result<usize> {
        let this = rustix::thread::gettid()
            .as_raw_nonzero()
            .get()
            .unsigned_abs();
        self.calls.tx_thread.store(this, Ordering::Relaxed);
        if self.calls.slow.load(Ordering::Relaxed) {
            thread::sleep(Duration::from_millis(100));
        }
        self.calls.writes.fetch_add(1, Ordering::Relaxed);
        let written = self.backend.write(buf)?;
        self.calls
            .written
            .fetch_add(written as u64, Ordering::SeqCst);
        self.calls.moved.notify_one();
        Ok(written)
    }

    fn read_wake_fd(&self) -> RawFd {
        self.backend.read_wake_fd()
    }

    fn wait_until_writable(&self) {
        self.calls.tx_waits.notify_one();
        self.backend.wait_until_writable();
    }
}
