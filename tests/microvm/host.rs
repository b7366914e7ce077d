//! Tests the stream against a real guest. `tests/microvm/run` builds the guest, gets a kernel and
//! runs this program. Plain `cargo test` has neither guest nor kernel: it reports every test as
//! ignored and says why.
//!
//! When the VM ends, krun ends the process, with status 0 even if the guest died. So each test runs
//! in a child process. The test passes only if the child exits with status 0 *and* leaves a verdict:
//! the test reached its end and the agent did not fail.

mod carried;
#[cfg(feature = "blk")] // with it, krun can capture a VM's devices
mod checkpoint;
mod ends;
mod names;
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
        run_and_exit(&name);
    }
    let arguments = Arguments::from_args();
    let missing = vm::missing();
    if let (Some(missing), false) = (&missing, arguments.list) {
        eprintln!(
            "\n*** NOT RUN: the tests against a real microVM, because {missing}.\n\
             *** To run them, use `tests/microvm/run` on any x86-64 Linux machine.\n"
        );
    }
    let trials = tests()
        .map(|(name, _)| Trial::test(*name, move || run(name)).with_ignored_flag(missing.is_some()))
        .collect();
    libtest_mimic::run(&arguments, trials).exit_code()
}

fn tests() -> impl Iterator<Item = &'static (&'static str, scenarios::Scenario)> {
    [
        scenarios::ALL,
        ends::ALL,
        carried::ALL,
        names::ALL,
        virtio_port::ALL,
        protocols::ALL,
        soak::ALL,
        #[cfg(feature = "blk")]
        checkpoint::ALL,
    ]
    .into_iter()
    .flatten()
}

/// Runs one test. `AGENT_FAILS` passes only if its agent fails.
fn run(name: &str) -> Result<(), Failed> {
    let result = run_in_child(name);
    if name != scenarios::AGENT_FAILS {
        return result;
    }
    match result.as_ref().map_err(Failed::message) {
        Err(Some("the agent failed: as requested")) => Ok(()),
        Ok(()) => Err("the agent failed, but its test passed".into()),
        Err(_) => result,
    }
}

/// Runs one test in a child process, since krun may end the process.
fn run_in_child(name: &str) -> Result<(), Failed> {
    let verdict_file = env::temp_dir().join(format!("tokio-krun-{name}-{}", process::id()));
    let mut child = Command::new(env::current_exe()?)
        .env(CHILD, name)
        .env(VERDICT, &verdict_file)
        .stdin(Stdio::piped())
        .spawn()?;
    // The system closes it if a time limit kills this process: see `end_with_parent`.
    let _stdin = child.stdin.take();
    let status = child.wait()?;
    let verdict = fs::read_to_string(&verdict_file).unwrap_or_default();
    let _ = fs::remove_file(&verdict_file);
    if !status.success() {
        return Err(format!("the test's process ended with {status}").into());
    }
    match &*verdict {
        PASSED => Ok(()),
        "" => Err("the VM ended the process before the test reached its end".into()),
        failure => Err(format!("the agent {failure}").into()),
    }
}

/// Ends this process when its parent dies, even if the test hangs.
fn end_with_parent() {
    thread::spawn(|| {
        let _ = io::stdin().read(&mut [0]);
        process::exit(101);
    });
}

/// Runs one test to its end, then ends the process.
fn run_and_exit(name: &str) -> ! {
    let (_, scenario) = tests()
        .find(|(known, _)| *known == name)
        .expect("the parent passed an unknown test name");
    end_with_parent();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .expect("cannot build a runtime");
    runtime.block_on(scenario());
    let verdict = vm::agent_failure().unwrap_or_else(|| PASSED.to_owned());
    let verdict_file = env::var_os(VERDICT).expect("the parent named no verdict file");
    fs::write(verdict_file, verdict).expect("cannot write the verdict");
    process::exit(0);
}
