//! The stream against a real guest. `tests/microvm/run` builds the guest, gets a kernel and runs
//! this; without them (plain `cargo test`) every test is reported as ignored, and says why.
//!
//! krun ends the process when the VM ends, with status 0 even if the guest has died. So each test
//! runs in a child process, and passes only if that ended well *and* left word that the test had
//! come to its end and the agent had not failed.

mod ends;
#[path = "agent/src/pattern.rs"]
mod pattern;
mod protocols;
mod scenarios;
mod soak;
mod virtio_port;
mod vm;

use std::env;
use std::fs;
use std::io::{self, Read};
use std::process::{self, Command, ExitCode, Stdio};
use std::thread;

use libtest_mimic::{Arguments, Failed, Trial};

const CHILD: &str = "TOKIO_KRUN_MICROVM_TEST";
const VERDICT: &str = "TOKIO_KRUN_MICROVM_VERDICT";
const PASSED: &str = "passed";

pub(crate) fn main() -> ExitCode {
    if let Ok(name) = env::var(CHILD) {
        play(&name);
    }
    let arguments = Arguments::from_args();
    let missing = vm::missing();
    if let (Some(missing), false) = (&missing, arguments.list) {
        eprintln!(
            "\n*** NOT RUN: the tests against a real microVM ({missing}).\n\
             *** `tests/microvm/run` runs them, on any x86-64 Linux machine.\n"
        );
    }
    let trials = tests()
        .map(|(name, _)| {
            Trial::test(*name, move || test(name)).with_ignored_flag(missing.is_some())
        })
        .collect();
    libtest_mimic::run(&arguments, trials).exit_code()
}

fn tests() -> impl Iterator<Item = &'static (&'static str, scenarios::Scenario)> {
    [
        scenarios::ALL,
        ends::ALL,
        virtio_port::ALL,
        protocols::ALL,
        soak::ALL,
    ]
    .into_iter()
    .flatten()
}

/// Runs one test. One is there for what its process reports, a failure of the agent.
fn test(name: &str) -> Result<(), Failed> {
    let result = in_child(name);
    if name != scenarios::AGENT_FAILS {
        return result;
    }
    match result.as_ref().map_err(Failed::message) {
        Err(Some("the agent failed: as it was asked to")) => Ok(()),
        Ok(()) => Err("the agent failed, and its test passed".into()),
        Err(_) => result,
    }
}

/// Runs one test in a process that its VM may end.
fn in_child(name: &str) -> Result<(), Failed> {
    let verdict = env::temp_dir().join(format!("tokio-krun-{name}-{}", process::id()));
    let mut child = Command::new(env::current_exe()?)
        .env(CHILD, name)
        .env(VERDICT, &verdict)
        .stdin(Stdio::piped())
        .spawn()?;
    // Closed by the system if this process is killed, at a time limit: see `end_with_parent`.
    let _stdin = child.stdin.take();
    let status = child.wait()?;
    let word = fs::read_to_string(&verdict).unwrap_or_default();
    let _ = fs::remove_file(&verdict);
    if !status.success() {
        return Err(format!("the test's process ended with {status}").into());
    }
    match &*word {
        PASSED => Ok(()),
        "" => Err("the VM ended the process before the test had come to its end".into()),
        failure => Err(format!("the agent {failure}").into()),
    }
}

/// Ends this process when its parent has gone, whatever becomes of the test.
fn end_with_parent() {
    thread::spawn(|| {
        let _ = io::stdin().read(&mut [0]);
        process::exit(101);
    });
}

/// Plays one test to its end, and ends the process.
fn play(name: &str) -> ! {
    let (_, scenario) = tests()
        .find(|(known, _)| *known == name)
        .expect("the parent names a test of ours");
    end_with_parent();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(scenario());
    let word = vm::agent_failure().unwrap_or_else(|| PASSED.to_owned());
    let verdict = env::var_os(VERDICT).expect("the parent names the file");
    fs::write(verdict, word).expect("the verdict can be written");
    process::exit(0);
}
