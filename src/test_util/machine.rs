//! The guest's machine: its ports, and how it ends.

use std::io;
use std::panic::{self, AssertUnwindSafe};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread;

use tokio::runtime::Handle;
use tokio::sync::oneshot;

use super::PANICKED;
use super::inline::Inline;
use super::port::Port;
use super::state::PortState;
use super::threads::Threads;
use super::virtqueue::Virtqueues;
use crate::port::AgentPort;

pub(super) type ExitHook = Box<dyn Fn(i32) + Send>;

pub(super) struct Machine {
    devices: Vec<Device>,
    on_exit: Mutex<Vec<ExitHook>>,
}

impl Machine {
    pub(super) fn new(devices: Vec<Device>, on_exit: Vec<ExitHook>) -> Self {
        Self {
            devices,
            on_exit: Mutex::new(on_exit),
        }
    }

    pub(super) fn devices(&self) -> &[Device] {
        &self.devices
    }

    pub(super) fn device(&self, name: &str) -> Option<&Device> {
        self.devices.iter().find(|device| device.name == name)
    }

    /// As krun does, port by port (`Console::quiesce` and `Console::reset`).
    pub(super) async fn stop(&self) {
        for device in &self.devices {
            device.stop().await;
        }
    }

    pub(super) fn start(&self) -> io::Result<()> {
        self.devices.iter().try_for_each(Device::start)
    }

    /// In krun's order: its console is the first observer of the exit and stops the workers, and the observers that were
    /// added follow.
    pub(super) async fn power_off(&self) {
        for device in &self.devices {
            device.virtqueues.begin_power_off();
        }
        let running = Running(&self.devices);
        self.stop().await;
        for device in &self.devices {
            device.virtqueues.power_off();
        }
        let hooks =
            std::mem::take(&mut *self.on_exit.lock().unwrap_or_else(PoisonError::into_inner));
        let panicked = run_hooks(hooks).await;
        // Where krun ends the process.
        drop(running);
        assert!(
            !panicked,
            "an exit hook of the guest panicked: see its message above"
        );
    }
}

/// Dropping it ends the ports at once, as if the VM's process were killed, whatever still runs.
struct Running<'a>(&'a [Device]);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        for device in self.0 {
            device.virtqueues.power_off();
            device.end();
        }
    }
}

/// Runs the hooks elsewhere, as they block. Returns whether one panicked, which krun does not mind.
async fn run_hooks(hooks: Vec<ExitHook>) -> bool {
    if hooks.is_empty() {
        return false;
    }
    let run = move || {
        let run = |hook: ExitHook| panic::catch_unwind(AssertUnwindSafe(|| hook(0))).is_err();
        hooks
            .into_iter()
            .fold(false, |panicked, hook| run(hook) | panicked)
    };
    if let Ok(runtime) = Handle::try_current() {
        // tokio's paused clock waits for it.
        return runtime.spawn_blocking(run).await.unwrap_or(true);
    }
    let (end, ended) = oneshot::channel();
    thread::spawn(move || end.send(run()));
    ended.await.unwrap_or(true)
}

/// A port, with krun's part of it.
pub(super) struct Device {
    pub(super) name: String,
    pub(super) virtqueues: Arc<Virtqueues>,
    krun: Krun,
}

enum Krun {
    Inline(Arc<Inline>),
    Threads(Threads),
}

impl Device {
    pub(super) fn new(
        name: String,
        port: AgentPort,
        has_threads: bool,
        state: Option<&PortState>,
    ) -> Self {
        let virtqueues = Arc::new(match state {
            Some(state) => Virtqueues::restore(&state.queues),
            None => Virtqueues::default(),
        });
        let has_workers = state.is_some_and(|state| state.has_workers);
        let krun = match has_threads {
            true => Krun::Threads(Threads::new(port, &virtqueues, has_workers)),
            false => Krun::Inline(Inline::new(port, &virtqueues, has_workers)),
        };
        Self {
            name,
            virtqueues,
            krun,
        }
    }

    /// `None` unless it is at rest.
    pub(super) fn capture(&self) -> Option<PortState> {
        let has_workers = match &self.krun {
            Krun::Inline(krun) => krun.has_stopped_workers(),
            Krun::Threads(krun) => krun.has_stopped_workers(),
        }?;
        Some(PortState {
            name: self.name.clone(),
            has_workers,
            queues: self.virtqueues.capture()?,
        })
    }

    /// `machine` has this device.
    pub(super) fn open(&self, machine: &Arc<Machine>) -> io::Result<Port> {
        self.virtqueues.open()?;
        let port = Port::new(&self.virtqueues, machine);
        match &self.krun {
            Krun::Inline(krun) => krun.open()?,
            Krun::Threads(krun) => krun.open()?,
        }
        Ok(port)
    }

    async fn stop(&self) {
        match &self.krun {
            Krun::Inline(krun) => krun.stop().await,
            Krun::Threads(krun) => krun.stop().await,
        }
    }

    fn start(&self) -> io::Result<()> {
        match &self.krun {
            Krun::Inline(krun) => krun.start(),
            Krun::Threads(krun) => krun.start(),
        }
    }

    fn end(&self) {
        match &self.krun {
            Krun::Inline(krun) => krun.end(),
            Krun::Threads(krun) => krun.end(),
        }
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        let have_panicked = match &self.krun {
            Krun::Inline(krun) => {
                krun.ask_to_stop();
                krun.have_panicked()
            }
            Krun::Threads(krun) => {
                krun.ask_to_stop();
                krun.have_panicked()
            }
        };
        // A test must not pass if a worker has found a fault in the port.
        assert!(thread::panicking() || !have_panicked, "{PANICKED}");
    }
}

tokio::task_local! {
    /// The guest that the task runs in. It may have gone.
    static GUEST: Weak<Machine>;
}

/// Runs `agent` in the guest, see [`open_in_process`].
pub(super) fn scope<F: Future>(
    machine: &Arc<Machine>,
    agent: F,
) -> impl Future<Output = F::Output> + use<F> {
    GUEST.scope(Arc::downgrade(machine), agent)
}

/// Opens the port called `name` of the guest in whose [`scope`] the task runs, and waits for it as in a VM. `None` outside
/// such a scope.
pub(crate) async fn open_in_process(name: &str) -> Option<io::Result<Port>> {
    let machine = GUEST.try_with(Weak::clone).ok()?;
    let opened = match machine.upgrade() {
        None => Err(io::ErrorKind::NotConnected.into()),
        Some(machine) => match machine.device(name) {
            Some(device) => device.open(&machine),
            None => {
                drop(machine);
                std::future::pending().await
            }
        },
    };
    Some(opened)
}
