//! Compares two ports of one real microVM: an `AgentStream`, and krun's port over a file descriptor with
//! tokio's `UnixStream` at the host's end.
//!
//! ```sh
//! tests/microvm/run --bench microvm            # full; takes minutes without a working KVM
//! tests/microvm/run --bench microvm --quick
//! ```
//!
//! On an emulated machine, times mean little. So this bench counts system calls, sleeps and
//! interrupts. It compares CPU time only within pairs.
//!
//! Both ports do the same jobs in turns within one boot, and every byte is checked. One VM has krun's
//! default of 32 descriptors each way, a second has 1,024. The exit status is not 0 if the stream
//! takes more system calls than the socket in any job.

mod counts;
#[allow(dead_code, reason = "the tests and the agent use all of it")]
#[path = "../../tests/microvm/agent/src/pattern.rs"]
mod pattern;
mod report;
mod vm;
mod work;

use std::env;
use std::process::{self, Command, ExitCode};

use report::Report;
use vm::Vm;
use work::{Job, Plan};

/// The environment variable that holds the number of descriptors for a child's ports.
const DESCRIPTORS: &str = "TOKIO_KRUN_BENCH_DESCRIPTORS";
/// krun ends the process with status 0, even if the guest failed. So a child that measured everything
/// ends with one of these.
const NO_MORE_CALLS: i32 = 10;
const MORE_CALLS: i32 = 11;

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    // `cargo bench` adds "--bench", which is ignored here.
    let quick = arguments.iter().any(|argument| argument == "--quick");
    if let Some(missing) = vm::missing() {
        eprintln!(
            "\n*** NOT RUN: the bench in a real microVM ({missing}).\n\
             *** To run it on any x86-64 Linux machine: tests/microvm/run --bench microvm\n"
        );
        return ExitCode::SUCCESS;
    }
    let plan = if quick { Plan::QUICK } else { Plan::FULL };
    if let Ok(descriptors) = env::var(DESCRIPTORS) {
        let descriptors = descriptors.parse().expect("the parent sets a number");
        process::exit(if compare(descriptors, &plan) {
            NO_MORE_CALLS
        } else {
            MORE_CALLS
        });
    }
    let program = env::current_exe().expect("cannot find this program");
    let mut passed = true;
    for descriptors in [32, 1024] {
        let status = Command::new(&program)
            .args(&arguments)
            .env(DESCRIPTORS, descriptors.to_string())
            .status()
            .expect("cannot start this program");
        match status.code() {
            Some(NO_MORE_CALLS) => {}
            // A single round beside other work proves nothing.
            Some(MORE_CALLS) if quick => {
                println!("\nin this one round, the stream took more system calls in some job")
            }
            Some(MORE_CALLS) => passed = false,
            _ => {
                println!("\nthe VM with {descriptors} descriptors ended early: {status}");
                passed = false;
            }
        }
    }
    if passed {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// Whether the stream took no more system calls than the socket in every job.
fn compare(descriptors: u16, plan: &Plan) -> bool {
    let mut vm = Vm::boot(descriptors);
    // Each port runs once unmeasured, so that one-time costs are over.
    let warm_up = Plan::WARM_UP;
    for port in 0..2 {
        for job in Job::ALL {
            vm.measure(port, job, &warm_up);
        }
    }
    let mut report = Report::new(descriptors, plan);
    for round in 0..plan.rounds {
        for job in Job::ALL {
            // The ports take turns at being first.
            let mut pair = [None, None];
            for turn in 0..2 {
                let port = (round + turn) % 2;
                let nothing = vm.measure(port, Job::Nothing, plan);
                pair[port] = Some(vm.measure(port, job, plan) - nothing);
            }
            report.add(job, pair.map(|counts| counts.expect("both ports ran")));
        }
    }
    report.print();
    report.stream_takes_no_more_calls()
}
