//! Captures a VM in the middle of its traffic, kills its process without warning, and goes on in another process.
//!
//! Each VM has a process of its own, a life. A life boots the VM or restores it, carries bytes over both
//! ports both ways, and may save itself. The test starts one life after another.
//!
//! The agent runs `traffic` (`agent/src/scenario.rs`) over each port. It knows nothing of checkpoints.
//! Both ends compare each byte with the one that belongs at its place in the whole stream, over all lives.

mod life;
mod root;
mod snapshot;

use std::env;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use super::scenarios::{MIB, Scenario};

pub(crate) const ALL: &[(&str, Scenario)] = &[
    ("streams_survive_checkpoints_and_sigkill", || {
        Box::pin(Life::or(chain))
    }),
    ("forks_of_one_checkpoint_are_whole", || {
        Box::pin(Life::or(fork))
    }),
];

/// The variable that sets at how many points the chain is captured, instead of `USUAL_POINTS`.
const POINTS: &str = "MICROVM_CHECKPOINTS";
const USUAL_POINTS: u64 = 4;
/// What each port carries each way, for each point: with 20 points, 64 MiB in all.
const AMOUNT: u64 = (64 * MIB as u64).div_ceil(20);

/// What a life prints once it has saved itself, or at its end.
const SAVED: &str = "saved";
const WHOLE: &str = "whole";

/// Captures the traffic at random points, again and again.
async fn chain() {
    let points = env::var(POINTS).ok().and_then(|points| points.parse().ok());
    let points = points.unwrap_or(USUAL_POINTS);
    let amount = points * AMOUNT;
    let folder = folder();
    let mut from = None;
    for point in 1..=points {
        // The last point leaves something to carry: the next life is to be more than a trailer.
        let stretch = 4 * amount / (points + 1);
        let until = stretch * point - fastrand::u64(..stretch / 2);
        let to = folder.path().join(point.to_string());
        let life = Life {
            from: from.clone(),
            to: Some(to.clone()),
            until,
            amount,
        };
        life.run_and_kill(&format!("life {point}"));
        if let Some(from) = from.replace(to) {
            fs::remove_dir_all(from).unwrap();
        }
    }
    Life::last(from.as_deref(), amount).run("the last life");
}

/// Restores one capture twice, at the same time.
async fn fork() {
    let folder = folder();
    let to = folder.path().join("0");
    let life = Life {
        from: None,
        to: Some(to.clone()),
        until: AMOUNT + fastrand::u64(..AMOUNT),
        amount: AMOUNT,
    };
    life.run_and_kill("the first life");
    thread::scope(|scope| {
        for fork in ["one fork", "another fork"] {
            scope.spawn(|| Life::last(Some(&to), AMOUNT).run(fork));
        }
    });
}

/// Where the lives save themselves.
///
/// Also leaves the line that `run_one` of `tests/microvm/run` expects of a guest that has booted. These
/// guests have no folder to leave it in.
fn folder() -> tempfile::TempDir {
    let log = guest_root().join("tmp/agent.log");
    fs::write(log, "scenario \"two-ports\", without a log\n").unwrap();
    tempfile::tempdir().unwrap()
}

fn guest_root() -> PathBuf {
    env::var_os("GUEST_ROOT")
        .expect("the parent checked it")
        .into()
}

/// A life, as the test sees it.
struct Life {
    /// The snapshot to begin with, or `None` to boot.
    from: Option<PathBuf>,
    /// Where to save the VM, or `None` to go on to the end.
    to: Option<PathBuf>,
    /// When to save it: once this many bytes have moved, both ways over both ports, in all lives together.
    until: u64,
    /// What each port carries each way in all lives together.
    amount: u64,
}

/// The variable that holds a life, for its process.
const LIFE: &str = "MICROVM_LIFE";

impl Life {
    fn last(from: Option<&Path>, amount: u64) -> Self {
        Self {
            from: from.map(Path::to_owned),
            to: None,
            until: u64::MAX,
            amount,
        }
    }

    /// Lives a life if this is the process of one. Else runs `test`.
    async fn or<T: Future<Output = ()>>(test: impl FnOnce() -> T) {
        match env::var(LIFE) {
            Ok(life) => Self::decode(&life).live().await,
            Err(_) => test().await,
        }
    }

    fn encode(&self) -> String {
        let path = |path: &Option<PathBuf>| {
            path.as_ref()
                .map_or(String::new(), |path| path.display().to_string())
        };
        let (from, to) = (path(&self.from), path(&self.to));
        format!("{from}:{to}:{}:{}", self.until, self.amount)
    }

    fn decode(life: &str) -> Self {
        let fields: Vec<&str> = life.split(':').collect();
        let &[from, to, until, amount] = &fields[..] else {
            panic!("a strange life: {life}");
        };
        let path = |path: &str| (!path.is_empty()).then(|| PathBuf::from(path));
        Self {
            from: path(from),
            to: path(to),
            until: until.parse().unwrap(),
            amount: amount.parse().unwrap(),
        }
    }

    /// Kills the process without warning soon after it has saved its VM, while its traffic goes on.
    fn run_and_kill(&self, name: &str) {
        let mut child = self.spawn();
        assert_eq!(last_line(&mut child, name, SAVED), SAVED);
        thread::sleep(Duration::from_millis(fastrand::u64(..200)));
        child.kill().unwrap();
        assert_eq!(child.wait().unwrap().signal(), Some(libc::SIGKILL));
    }

    fn run(&self, name: &str) {
        let mut child = self.spawn();
        let _stdin = child.stdin.take(); // `wait` would close it
        assert_eq!(last_line(&mut child, name, WHOLE), WHOLE);
        let status = child.wait().unwrap();
        assert!(status.success(), "{name} ended with {status}");
    }

    /// Starts this test again, in a process that lives this life.
    fn spawn(&self) -> Child {
        Command::new(env::current_exe().unwrap())
            .env(LIFE, self.encode())
            .stdin(Stdio::piped()) // it ends with this process: see `end_with_parent`
            .stdout(Stdio::piped())
            .spawn()
            .unwrap()
    }
}

/// Prints the child's lines up to the one called `end`, and returns the last.
fn last_line(child: &mut Child, name: &str, end: &str) -> String {
    let output = child.stdout.as_mut().expect("it is piped");
    let mut last = String::new();
    for line in BufReader::new(output).lines() {
        last = line.unwrap();
        println!("{name}: {last}");
        if last == end {
            break;
        }
    }
    last
}
