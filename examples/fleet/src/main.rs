//! A service with many VMs: `cargo run -p fleet`. See `README.md`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use clap::builder::RangedU64ValueParser;
use clap::{Args, Parser, Subcommand};
use fleet::nats::{Caller, Repeat, is_name};
use fleet::protocol::{Ask, LONGEST_ANSWER};
use fleet::supervisor::{Fleet, Settings};
use fleet::table::{Table, total};
use fleet::{Result, load, measure, vm};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, interval, sleep};

#[derive(Parser)]
#[command(about, args_conflicts_with_subcommands = true)]
struct Arguments {
    #[command(flatten)]
    run: Run,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Starts VMs, and shows them until Ctrl-C (the default)
    Run(Run),
    /// Asks a VM of a fleet that uses NATS, or any
    Ask(AskArguments),
    /// Sends a load to a fleet that uses NATS
    Load(LoadArguments),
    /// Prints what NATS knows of the service
    Stats {
        /// The NATS server
        #[arg(long, env = "NATS_URL", default_value = "127.0.0.1")]
        nats: String,
    },
    /// Measures 1 to 256 VMs, and draws the curves
    Measure(measure::Settings),
    #[command(hide = true)]
    Vm(vm::Settings),
}

#[derive(Args)]
struct Run {
    /// How many VMs
    #[arg(long, default_value_t = 4, value_parser = at_least_one())]
    vms: usize,
    /// Real microVMs. Needs the feature `microvm`, and KRUNFW and GUEST_ROOT as in `examples/microvm.rs`
    #[arg(long)]
    microvm: bool,
    /// Offers the VMs as a NATS service at this address
    #[arg(long)]
    nats: Option<String>,
    /// Names this machine
    #[arg(long, default_value = "vm", value_parser = name)]
    host: String,
    /// How long an agent may send nothing while it owes an answer
    #[arg(long, default_value_t = 5000, value_parser = clap::value_parser!(u64).range(1..))]
    stall_ms: u64,
    /// Ends after this many seconds
    #[arg(long)]
    seconds: Option<u64>,
    /// Sends this many requests, and then ends; without NATS. 0: one now and then, so that the table moves
    #[arg(long, default_value_t = 0)]
    requests: u64,
    #[arg(long, hide = true)]
    journal: Option<PathBuf>,
}

#[derive(Args)]
struct AskArguments {
    #[arg(long, env = "NATS_URL", default_value = "127.0.0.1")]
    nats: String,
    /// The VM's name
    #[arg(long)]
    vm: Option<String>,
    /// How many bytes to ask for
    #[arg(value_parser = clap::value_parser!(u32).range(..=i64::from(LONGEST_ANSWER)))]
    size: u32,
    #[arg(long, default_value_t = 5000)]
    limit_ms: u64,
    /// The request may be carried out twice
    #[arg(long)]
    may_repeat: bool,
}

#[derive(Args)]
struct LoadArguments {
    #[arg(long, env = "NATS_URL", default_value = "127.0.0.1")]
    nats: String,
    #[arg(long, default_value_t = 10_000)]
    requests: u64,
    #[arg(long, default_value_t = 64, value_parser = at_least_one())]
    at_once: usize,
    #[arg(long, default_value_t = 30_000)]
    limit_ms: u64,
    #[arg(long)]
    may_repeat: bool,
}

fn name(name: &str) -> Result<String, &'static str> {
    if is_name(name) {
        Ok(name.into())
    } else {
        Err("it becomes part of a NATS subject: no spaces, `.`, `*` or `>`")
    }
}

fn at_least_one() -> RangedU64ValueParser<usize> {
    RangedU64ValueParser::new().range(1..)
}

fn main() -> ExitCode {
    match start(Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn start(arguments: Arguments) -> Result {
    // A VM's process has one agent: one thread is enough, and the cheapest.
    let mut runtime = match &arguments.command {
        Some(Command::Vm(_)) => tokio::runtime::Builder::new_current_thread(),
        _ => tokio::runtime::Builder::new_multi_thread(),
    };
    runtime.enable_all().build()?.block_on(async {
        match arguments.command.unwrap_or(Command::Run(arguments.run)) {
            Command::Run(settings) => run(settings).await,
            Command::Ask(settings) => ask(settings).await,
            Command::Load(settings) => send_load(settings).await,
            Command::Stats { nats } => {
                for instance in Caller::connect(&nats).await?.statistics().await? {
                    println!("{instance}");
                }
                Ok(())
            }
            Command::Measure(settings) => measure::run(&settings).await,
            Command::Vm(settings) => vm::run(settings).await,
        }
    })
}

async fn run(settings: Run) -> Result {
    let with_nats = settings.nats.is_some();
    let fleet = Fleet::start(Settings {
        vms: settings.vms,
        program: std::env::current_exe()?,
        host: settings.host,
        microvm: settings.microvm,
        nats: settings.nats,
        stall: Duration::from_millis(settings.stall_ms),
        journal: settings.journal,
    });
    let fleet = Arc::new(fleet.await?);
    let done = Arc::new(AtomicU64::new(0));
    let here = load::Target::Here(fleet.clone());
    let load = load::Load {
        requests: if settings.requests == 0 {
            u64::MAX
        } else {
            settings.requests
        },
        at_once: if settings.requests == 0 {
            1
        } else {
            settings.vms * 2
        },
        limit: Duration::from_secs(30),
        size: None,
        first_key: 0,
    };
    let mut sending = tokio::spawn({
        let done = done.clone();
        async move {
            match (with_nats, settings.requests) {
                (true, _) => std::future::pending().await, // Callers send theirs by NATS.
                (false, 0) => trickle(here, load, &done).await,
                _ => load::run(&here, &load, &done).await,
            }
        }
    });

    let mut table = Table::default();
    let mut ticks = interval(Duration::from_millis(250));
    let (mut interrupt, mut terminate) = (
        signal(SignalKind::interrupt())?,
        signal(SignalKind::terminate())?,
    );
    let end = async {
        match settings.seconds {
            Some(seconds) => sleep(Duration::from_secs(seconds)).await,
            None => std::future::pending().await,
        }
    };
    tokio::pin!(end);
    let counts = loop {
        tokio::select! {
            _ = ticks.tick() => {
                let line = format!("{} answered here", done.load(Ordering::Relaxed));
                table.show(&fleet.status(), if with_nats { "" } else { &line })?;
            }
            counts = &mut sending => break Some(counts?),
            _ = interrupt.recv() => break None,
            _ = terminate.recv() => break None,
            () = &mut end => break None,
        }
    };
    if counts.is_none() {
        sending.abort();
        let _ = sending.await; // Then it has dropped its handle to the fleet.
    }
    let Some(fleet) = Arc::into_inner(fleet) else {
        return Err("the fleet is still in use".into());
    };
    let rows = fleet.shut_down().await;
    table.show(&rows, "shut down")?;
    println!("{}", total(&rows, "shut down"));
    if let Some(counts) = counts {
        println!("{counts}");
        if !counts.add_up() {
            return Err("the counts do not add up".into());
        }
    }
    Ok(())
}

/// A request now and then, until the task is aborted.
async fn trickle(here: load::Target, mut load: load::Load, done: &AtomicU64) -> load::Counts {
    load.requests = 1;
    loop {
        load::run(&here, &load, done).await;
        load.first_key += 1;
        sleep(Duration::from_millis(20)).await;
    }
}

async fn ask(settings: AskArguments) -> Result {
    let caller = Caller::connect(&settings.nats).await?;
    let deadline = Instant::now() + Duration::from_millis(settings.limit_ms);
    let ask = Ask {
        key: fastrand::u64(..),
        size: settings.size,
        work_ms: 0,
    };
    let answer = caller
        .ask(
            settings.vm.as_deref(),
            ask,
            deadline,
            repeat(settings.may_repeat),
        )
        .await?;
    println!("{} bytes", answer.len());
    Ok(())
}

async fn send_load(settings: LoadArguments) -> Result {
    let caller = Caller::connect(&settings.nats).await?;
    let load = load::Load {
        requests: settings.requests,
        at_once: settings.at_once,
        limit: Duration::from_millis(settings.limit_ms),
        size: None,
        first_key: 0,
    };
    let target = load::Target::Nats(caller, repeat(settings.may_repeat));
    let counts = load::run(&target, &load, &AtomicU64::new(0)).await;
    println!("{counts}");
    if counts.add_up() {
        Ok(())
    } else {
        Err("the counts do not add up".into())
    }
}

fn repeat(may: bool) -> Repeat {
    if may { Repeat::May } else { Repeat::Never }
}
