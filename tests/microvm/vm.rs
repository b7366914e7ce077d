//! Boots a microVM that runs the agent, and reports how it ends.

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

/// The variable with the path of libkrunfw, the guest's kernel.
const KERNEL: &str = "KRUNFW";
/// The variable with the path of the guest's root folder. The agent is `/init` in it.
const ROOT: &str = "GUEST_ROOT";
/// How long krun waits for most tests to drop their streams, once the VM has ended.
pub(crate) const EXIT_HOOK_LIMIT: Duration = Duration::from_secs(60);

/// The reason why no VM can boot here, or `None`.
pub(crate) fn missing() -> Option<String> {
    [KERNEL, ROOT]
        .into_iter()
        .find(|name| env::var_os(name).is_none())
        .map(|name| format!("{name} is not set"))
}

pub(crate) struct Vm {
    pub(crate) exit: ExitHandle,
    pub(crate) control: VmControl,
    /// krun's calls to the first port.
    pub(crate) calls: Arc<Calls>,
    ended: mpsc::UnboundedReceiver<i32>,
}

/// The line `failed: REASON` from the agent's log, or `None` if the scenario succeeded.
///
/// The agent (`agent/src/main.rs`) powers off either way. This line is the only sign of a failure.
pub(crate) fn agent_failure() -> Option<String> {
    let root = env::var_os(ROOT).expect("`missing` has checked this");
    let log = fs::read_to_string(Path::new(&root).join("tmp/agent.log"))
        .expect("cannot read the agent's log");
    log.lines()
        .find(|line| line.starts_with("failed: "))
        .map(str::to_owned)
}

/// Counts what krun's threads do with a port.
#[derive(Default)]
pub(crate) struct Calls {
    /// Bytes that krun passed on from the guest.
    pub(crate) written: AtomicU64,
    pub(crate) writes: AtomicU64,
    /// Bytes that krun took for the guest.
    pub(crate) read: AtomicU64,
    /// Signalled when bytes move.
    moved: Notify,
    /// Signalled when krun starts to wait for room.
    pub(crate) tx_waits: Notify,
    /// Makes krun's TX thread sleep before each write.
    pub(crate) slow: AtomicBool,
    /// The ID of krun's TX thread; 0 before its first write.
    pub(crate) tx_thread: AtomicU32,
}

impl Vm {
    /// Boots a VM whose agent runs `scenario` over `port`. The port's name is "agent".
    pub(crate) fn boot(scenario: &str, port: AgentPort) -> Self {
        Self::boot_with(scenario, [("agent", port)])
    }

    /// Boots a VM whose agent runs `scenario` over several named ports.
    pub(crate) fn boot_with<const N: usize>(
        scenario: &str,
        ports: [(&'static str, AgentPort); N],
    ) -> Self {
        Self::boot_with_exit_hook(scenario, ports, Some(EXIT_HOOK_LIMIT))
    }

    /// Does the same as `boot_with`, but chooses the limit of the ports' exit hook. With `None` there
    /// is no hook.
    pub(crate) fn boot_with_exit_hook<const N: usize>(
        scenario: &str,
        ports: [(&'static str, AgentPort); N],
        hook_limit: Option<Duration>,
    ) -> Self {
        let (exited, ended) = mpsc::unbounded_channel();
        let calls: [Arc<Calls>; N] = array::from_fn(|_| Arc::default());
        let mut builder = VmBuilder::new();
        if let Some(limit) = hook_limit {
            let ports = ports.iter().map(|(_, port)| port);
            builder = builder.on_exit(AgentPort::exit_hook_for(ports, limit));
        }
        let vm = builder
            .machine(|machine| machine.vcpus(1).memory_mib(256))
            .kernel(|kernel| {
                let path = env::var_os(KERNEL).expect("`missing` has checked this");
                kernel.krunfw_path(path).init_path("/init")
            })
            .fs(|fs| fs.root(env::var_os(ROOT).expect("`missing` has checked this")))
            .exec(|exec| exec.path("/init").args([scenario]))
            .on_exit(move |code| {
                // Holds krun here while the test ends the process itself.
                let _ = exited.send(code);
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
            .expect("cannot build the VM");
        let exit = vm.exit_handle();
        let control = vm.control_handle();
        thread::spawn(move || {
            let error = vm.enter().expect_err("`enter` returned without an error");
            panic!("cannot enter the VM: {error}");
        });
        let calls = calls.into_iter().next().expect("a VM needs a port");
        Self {
            exit,
            control,
            calls,
            ended,
        }
    }

    /// Waits until krun has stopped the port and run the exit observers. Next, krun would end the
    /// process.
    pub(crate) async fn ended(&mut self) {
        let code = self.ended.recv().await.expect("the VM's thread panicked");
        assert_eq!(code, 0, "the VM's exit code");
    }
}

impl Calls {
    /// Waits until krun has passed on `count` bytes in all. Panics if there are more.
    pub(crate) async fn assert_written(&self, count: u64) {
        while self.written.load(Ordering::SeqCst) < count {
            self.moved.notified().await;
        }
        assert_eq!(self.written.load(Ordering::SeqCst), count);
    }

    /// Waits until krun has taken `count` bytes in all.
    pub(crate) async fn wait_read(&self, count: u64) {
        while self.read.load(Ordering::SeqCst) < count {
            self.moved.notified().await;
        }
    }
}

/// A port's backend that counts krun's calls.
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
