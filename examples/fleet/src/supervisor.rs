//! Starts a process for each VM, restarts what dies, and shuts down in order.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::net::UnixStream;
use tokio::process::{Child, ChildStderr, Command};
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::link::{Agent, Ended, Failure, Jobs, Reply, drive};
use crate::protocol::{Answer, Ask, Request, text};
use crate::{Result, nats};

/// How long a VM may take to end after it was told to stop.
const GRACE: Duration = Duration::from_secs(10);

/// How long a process may take to end when its connection has.
const EXIT: Duration = Duration::from_secs(5);

/// How long it may take to end when its connection has failed.
const EXIT_FAILED: Duration = Duration::from_secs(1);

/// A VM that dies again within this time waits longer before it is restarted.
const STEADY: Duration = Duration::from_secs(10);

#[derive(Clone, Debug)]
pub struct Settings {
    pub vms: usize,
    /// The program that runs a VM as `fleet vm`: usually this one.
    pub program: PathBuf,
    /// Names the machine. A VM's name is this and its number.
    pub host: String,
    pub microvm: bool,
    pub nats: Option<String>,
    /// How long an agent may send nothing while it owes an answer.
    pub stall: Duration,
    pub journal: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Starting,
    Serving,
    Waiting,
    Stopped,
}

/// A row of the table.
#[derive(Clone, Debug)]
pub struct Status {
    pub name: String,
    pub state: State,
    pub pid: Option<u32>,
    /// Since the VM's first start. With NATS, those of the last second before a death are missing.
    pub requests: u64,
    pub mib: Option<f64>,
    pub restarts: u32,
    /// Why it last ended.
    pub reason: String,
}

struct Vm {
    agent: Agent,
    status: watch::Receiver<Status>,
    task: AbortOnDropHandle<()>,
}

/// All VMs of this machine.
pub struct Fleet {
    vms: Vec<Vm>,
    stop: CancellationToken,
    with_nats: bool,
}

impl Fleet {
    /// Starts all VMs. Dropping the fleet kills them; use [`shut_down`](Self::shut_down).
    ///
    /// # Errors
    ///
    /// If the NATS server's address is none.
    pub async fn start(settings: Settings) -> Result<Self> {
        let settings = Arc::new(settings);
        let stop = CancellationToken::new();
        let nats = match &settings.nats {
            Some(server) => Some(nats::connect(server, &settings.host).await?),
            None => None,
        };
        let vm = |number| {
            let name = format!("{}-{number}", settings.host);
            let (agent, jobs) = Agent::new();
            let (sender, status) = watch::channel(Status {
                name,
                state: State::Starting,
                pid: None,
                requests: 0,
                mib: None,
                restarts: 0,
                reason: String::new(),
            });
            let keeper = Keeper {
                settings: settings.clone(),
                agent: agent.clone(),
                status: sender,
                stop: stop.clone(),
                nats: nats.clone(),
            };
            Vm {
                agent,
                status,
                task: AbortOnDropHandle::new(tokio::spawn(keeper.keep(jobs))),
            }
        };
        Ok(Self {
            vms: (0..settings.vms).map(vm).collect(),
            stop,
            with_nats: nats.is_some(),
        })
    }

    /// The table's rows.
    pub fn status(&self) -> Vec<Status> {
        self.vms
            .iter()
            .map(|vm| vm.status.borrow().clone())
            .collect()
    }

    /// Waits until every VM serves.
    pub async fn serving(&self) {
        for vm in &self.vms {
            // It fails only if the VM's task has ended: then nobody waits for more.
            let _ = vm
                .status
                .clone()
                .wait_for(|status| status.state == State::Serving)
                .await;
        }
    }

    /// Asks VM number `to`, or any, of a fleet without NATS.
    ///
    /// # Errors
    ///
    /// If the request fails. Never retries: [`Failure::perhaps_carried_out`] says whether you may.
    pub async fn ask(
        &self,
        to: Option<usize>,
        ask: Ask,
        deadline: Instant,
    ) -> Result<Reply, Failure> {
        let request = Request::Ask(ask);
        if self.with_nats {
            return Err(Failure::never_sent("this fleet is asked by NATS"));
        }
        if let Some(number) = to {
            let vm = self
                .vms
                .get(number)
                .ok_or_else(|| Failure::never_sent("there is no such VM"))?;
            return vm.agent.request(request, deadline).await;
        }
        // Any that serves and has room; else the one that the dice choose.
        let first = fastrand::usize(..self.vms.len().max(1));
        let (before, after) = self.vms.split_at(first.min(self.vms.len()));
        let serving = |vm: &&Vm| vm.status.borrow().state == State::Serving;
        if let Some(reply) = after
            .iter()
            .chain(before)
            .filter(serving)
            .find_map(|vm| vm.agent.try_request(request, deadline))
        {
            return Ok(reply);
        }
        let vm = after
            .first()
            .ok_or_else(|| Failure::never_sent("there is no VM"))?;
        vm.agent.request(request, deadline).await
    }

    /// Shuts down in order: each VM carries out what it has in its queue, says its last words and powers off.
    ///
    /// Returns the table's last rows. A VM that has not ended after ten seconds is killed.
    pub async fn shut_down(self) -> Vec<Status> {
        self.stop.cancel();
        join_all(self.vms.into_iter().map(|vm| async move {
            let _ = vm.task.await;
            vm.status.borrow().clone()
        }))
        .await
    }
}

/// Keeps one VM running.
struct Keeper {
    settings: Arc<Settings>,
    agent: Agent,
    status: watch::Sender<Status>,
    stop: CancellationToken,
    nats: Option<async_nats::Client>,
}

impl Keeper {
    async fn keep(self, mut jobs: Jobs) {
        let mut delay = Duration::from_millis(50);
        loop {
            let started = Instant::now();
            let run = format!("{:016x}", fastrand::u64(..));
            let reason = self
                .run_once(&run, &mut jobs)
                .await
                .unwrap_or_else(|error| error.to_string());
            if let Some(nats) = &self.nats {
                nats::announce_end(nats, &run).await;
            }
            let stopping = self.stop.is_cancelled();
            self.status.send_modify(|status| {
                status.state = if stopping {
                    State::Stopped
                } else {
                    State::Waiting
                };
                status.restarts += u32::from(!stopping);
                (status.pid, status.mib, status.reason) = (None, None, reason);
            });
            delay = if started.elapsed() < STEADY {
                (delay * 2).min(STEADY)
            } else {
                Duration::from_millis(100)
            };
            tokio::select! {
                () = self.stop.cancelled() => break,
                () = sleep(delay) => {}
            }
        }
        self.status
            .send_modify(|status| status.state = State::Stopped);
    }

    /// Runs the VM's process to its end, which it returns in words.
    async fn run_once(&self, run: &str, jobs: &mut Jobs) -> io::Result<String> {
        let (socket, theirs) = UnixStream::pair()?;
        let mut child = self.spawn(run, theirs.into_std()?.into())?;
        let stderr = child
            .stderr
            .take()
            .map(|stderr| tokio::spawn(last_line(stderr)));
        self.status
            .send_modify(|status| (status.state, status.pid) = (State::Starting, child.id()));

        // With NATS the process itself notices an agent that stalls, and has time to say so. It answers for the agent.
        // So here only a stopped process seems to stall, and never a busy agent.
        let stall = if self.settings.nats.is_some() {
            self.settings.stall * 2
        } else {
            self.settings.stall
        };
        // A full queue has no room for the request for the status.
        let heard = |answer: &Answer| {
            self.status.send_if_modified(|status| {
                status.requests += u64::from(matches!(answer, Answer::Done));
                std::mem::replace(&mut status.state, State::Serving) != State::Serving
            });
        };
        let ended = tokio::select! {
            ended = drive(socket, jobs, stall, heard) => ended,
            () = self.watch(child.id()) => Ended::Failed(format!("did not end within {GRACE:?}")),
        };
        // One that has lost its connection ends by itself, and its status says why.
        let status = match &ended {
            Ended::Closed(_) => timeout(EXIT, child.wait()).await.ok().transpose()?,
            // So does one that was killed before it had read a request: that resets the connection.
            Ended::Failed(_) => timeout(EXIT_FAILED, child.wait()).await.ok().transpose()?,
            Ended::Stalled => None,
        };
        if status.is_none() {
            let _ = child.kill().await; // It may just have ended.
        }
        let said = match stderr {
            Some(line) => line.await.unwrap_or_default(),
            None => String::new(),
        };
        Ok(match (ended, status) {
            (Ended::Closed(Some(words)), Some(status)) if status.success() => words,
            (Ended::Closed(Some(words)), Some(status)) => format!("{}: {words}", in_words(status)),
            (Ended::Closed(None) | Ended::Failed(_), Some(status)) => {
                in_words(status) + if said.is_empty() { "" } else { ": " } + &said
            }
            (Ended::Closed(_), None) => "closed its connection, but did not end: killed".into(),
            (Ended::Stalled, _) => {
                format!("stalled: owed an answer, sent nothing for {stall:?}: killed")
            }
            (Ended::Failed(words), None) => format!("{words}: killed"),
        })
    }

    fn spawn(&self, run: &str, socket: OwnedFd) -> io::Result<Child> {
        let settings = &self.settings;
        let mut command = Command::new(&settings.program);
        command.args(["vm", "--name", &self.status.borrow().name, "--run", run]);
        command.args(["--stall-ms", &settings.stall.as_millis().to_string()]);
        if settings.microvm {
            command.arg("--microvm");
        }
        if let Some(server) = &settings.nats {
            command.args(["--nats", server]);
        }
        if let Some(journal) = &settings.journal {
            command.arg("--journal").arg(journal);
        }
        // A group of its own: Ctrl-C at the terminal is for the supervisor, which shuts down in order.
        command
            .stdin(Stdio::piped())
            .stdout(socket)
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true);
        command.spawn()
    }

    /// Asks the agent every second what it has done, and to stop when the fleet does. Returns if it then takes too long.
    async fn watch(&self, pid: Option<u32>) {
        let earlier = self.status.borrow().requests;
        let mut ticks = interval(Duration::from_secs(1));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                () = self.stop.cancelled() => break,
            }
            // With a full queue it is at work. `drive` notices if it stalls.
            if let Some(reply) = self
                .agent
                .try_request(Request::Status, Instant::now() + GRACE)
            {
                tokio::select! {
                    () = self.note_status(reply, pid, earlier) => {}
                    () = self.stop.cancelled() => break,
                }
            }
        }
        let deadline = Instant::now() + GRACE;
        if let Ok(reply) = self.agent.request(Request::Status, deadline).await {
            self.note_status(reply, pid, earlier).await;
        }
        // With the last words, `drive` ends.
        if let Ok(mut reply) = self.agent.request(Request::Stop, deadline).await {
            let _ = reply.next().await;
        }
        tokio::time::sleep_until(deadline).await;
    }

    async fn note_status(&self, mut reply: Reply, pid: Option<u32>, earlier: u64) {
        if let Ok(Answer::Status { requests, .. }) = reply.next().await {
            let mib = pid.and_then(memory_mib);
            self.status.send_modify(|status| {
                (status.state, status.requests, status.mib) =
                    (State::Serving, earlier.saturating_add(requests), mib);
            });
        }
    }
}

/// The memory of a process in MiB, with its share of what several processes have in common. Only on Linux.
pub fn memory_mib(pid: u32) -> Option<f64> {
    let rollup = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:"))?;
    line.trim()
        .strip_suffix(" kB")?
        .parse::<f64>()
        .ok()
        .map(|kib| kib / 1024.0)
}

fn in_words(status: ExitStatus) -> String {
    match (status.signal(), status.code()) {
        (Some(signal), _) => format!("killed by signal {signal}"),
        (_, Some(0)) => "ended by itself".into(),
        (_, code) => format!("ended with status {}", code.unwrap_or(-1)),
    }
}

/// The last line that a process says, such as its panic, however much it says.
async fn last_line(stderr: ChildStderr) -> String {
    let mut stderr = BufReader::new(stderr);
    let (mut last, mut line) = (Vec::new(), Vec::new());
    while let Ok(1..) = (&mut stderr).take(1024).read_until(b'\n', &mut line).await {
        last = std::mem::take(&mut line);
    }
    text(last.trim_ascii())
}
