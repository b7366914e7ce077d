//! The process of one VM. It carries the agent's stream over the socket that is its standard output. It ends with its VM,
//! with that socket, and with its standard input: a pipe whose other end only the supervisor has, so also if that is killed.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::PathBuf;
use std::process;
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::net::{UnixStream, unix::pipe};
use tokio::time::sleep;
use tokio_krun::test_util::Guest;
use tokio_krun::{AgentPort, AgentStream, carry};
use tokio_util::sync::CancellationToken;

use crate::{Result, agent, nats, protocol::Ask};

/// How long the guest may take to end when its supervisor has gone. With NATS, the callers are told within 1.5 s.
const GRACE: Duration = Duration::from_secs(2);

/// What a VM's process is told.
#[derive(Clone, Debug, clap::Args)]
pub struct Settings {
    /// Names the VM
    #[arg(long)]
    pub name: String,
    /// Names this run of it
    #[arg(long)]
    pub run: String,
    /// Boots a real microVM
    #[arg(long)]
    pub microvm: bool,
    /// Offers the agent as a NATS service at this address
    #[arg(long)]
    pub nats: Option<String>,
    /// How long the agent may send nothing while it owes an answer
    #[arg(long)]
    pub stall_ms: u64,
    /// For tests: each request that an in-process agent begins to carry out is a line in this file
    #[arg(long)]
    pub journal: Option<PathBuf>,
}

/// Runs the VM until it ends.
///
/// # Errors
///
/// If it cannot be started, or its stream or socket fails.
pub async fn run(settings: Settings) -> Result {
    let supervisor = pipe::Receiver::from_owned_fd(io::stdin().as_fd().try_clone_to_owned()?)?;
    let alone = CancellationToken::new();
    tokio::spawn(end_with(supervisor, alone.clone()));
    let socket = StdUnixStream::from(io::stdout().as_fd().try_clone_to_owned()?);
    let socket = UnixStream::from_std(socket)?;

    let (stream, port) = AgentStream::pair()?;
    let guest = if settings.microvm {
        boot_microvm(port, &settings)?;
        None
    } else {
        Some(tokio::spawn(run_guest(
            Guest::boot(port),
            settings.journal.clone(),
        )))
    };
    match &settings.nats {
        None => drop(carry(stream, socket).await?),
        Some(server) => nats::serve(stream, socket, server, &settings, alone).await?,
    }
    match guest {
        Some(guest) => Ok(guest.await??),
        // krun ends this process, once the exit hook has seen that the stream is closed.
        None => std::future::pending().await,
    }
}

/// Ends this process soon after the supervisor has gone. An agent that works ends by itself before: it is hung up.
async fn end_with(mut supervisor: pipe::Receiver, alone: CancellationToken) {
    let _ = supervisor.read_u8().await; // Nothing is ever written: this is its end of file.
    alone.cancel();
    sleep(GRACE).await;
    process::exit(1);
}

async fn run_guest(guest: Guest, journal: Option<PathBuf>) -> io::Result<()> {
    let mut journal = journal
        .map(|path| OpenOptions::new().append(true).create(true).open(path))
        .transpose()?;
    let begin = |ask: &Ask| match &mut journal {
        // One write each, so that the processes' lines do not mix.
        Some(file) => file.write_all(format!("{}\n", ask.key).as_bytes()),
        None => Ok(()),
    };
    let served = agent::serve(guest.open()?, begin).await;
    guest.drained().await;
    guest.power_off().await;
    served
}

#[cfg(feature = "microvm")]
fn boot_microvm(port: AgentPort, settings: &Settings) -> Result {
    use msb_krun::VmBuilder;

    let kernel = std::env::var_os("KRUNFW").ok_or("KRUNFW is not set: the path of libkrunfw")?;
    let root = std::env::var_os("GUEST_ROOT")
        .ok_or("GUEST_ROOT is not set: the guest's root, with /init in it")?;
    let console = std::env::temp_dir().join(format!("{}-console.log", settings.name));
    let vm = VmBuilder::new()
        .machine(|machine| machine.vcpus(1).memory_mib(128))
        .kernel(|k| k.krunfw_path(kernel).init_path("/init"))
        .fs(|fs| fs.root(root))
        .exec(|exec| exec.path("/init"))
        .on_exit(port.exit_hook(GRACE))
        .console(|c| port.attach(c.output(&console), "agent"))
        .build()?;
    std::thread::spawn(move || {
        // Returns only if the VM does not start.
        let Err(error) = vm.enter();
        eprintln!("the VM did not start: {error}");
        process::exit(1);
    });
    Ok(())
}

#[cfg(not(feature = "microvm"))]
fn boot_microvm(_: AgentPort, _: &Settings) -> Result {
    Err("built without real microVMs: enable the feature `microvm`".into())
}
