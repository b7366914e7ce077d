//! Two ports of one real microVM side by side: an `AgentStream`, and krun's port of a descriptor with
//! tokio's `UnixStream` at its other end.
//!
//! ```sh
//! tests/microvm/run --bench microvm            # full: minutes, if the machine has no KVM of use
//! tests/microvm/run --bench microvm --quick
//! ```
//!
//! In an emulated VM times say nothing, so what is compared is counted: system calls, sleeps,
//! interrupts; and CPU time, in pairs. Both ports do the same work in turns within one boot, with
//! every byte checked, once with krun's 32 descriptors and once with 1,024. The status is not 0 if
//! the stream takes more system calls than the other in any work.

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

/// The variable that tells a child how many descriptors its ports have.
const DESCRIPTORS: &str = "TOKIO_KRUN_BENCH_DESCRIPTORS";
/// krun ends the process with status 0 whatever became of the guest, so a child says more than that.
const FEWER: i32 = 10;
const NOT_FEWER: i32 = 11;

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    // `cargo bench` adds "--bench", which says nothing to us.
    let quick = arguments.iter().any(|argument| argument == "--quick");
    if let Some(missing) = vm::missing() {
        eprintln!(
            "\n*** NOT RUN: the bench in a real microVM ({missing}).\n\
             *** `tests/microvm/run --bench microvm` runs it, on any x86-64 Linux machine.\n"
        );
        return ExitCode::SUCCESS;
    }
    let plan = if quick { Plan::QUICK } else { Plan::FULL };
    if let Ok(descriptors) = env::var(DESCRIPTORS) {
        let descriptors = descriptors.parse().expect("the parent sets it");
        process::exit(if compare(descriptors, &plan) {
            FEWER
        } else {
            NOT_FEWER
        });
    }
    let program = env::current_exe().expect("this program has a path");
    let mut worked = true;
    for descriptors in [32, 1024] {
        let status = Command::new(&program)
            .args(&arguments)
            .env(DESCRIPTORS, descriptors.to_string())
            .status()
            .expect("this program can be started");
        match status.code() {
            Some(FEWER) => {}
            // One round beside other work may come out either way.
            Some(NOT_FEWER) if quick => {
                println!("\nnot fewer system calls in each work, in one round")
            }
            Some(NOT_FEWER) => worked = false,
            _ => {
                println!("\nthe VM of {descriptors} descriptors ended early: {status}");
                worked = false;
            }
        }
    }
    if worked {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// Whether the stream took fewer system calls in each work.
fn compare(descriptors: u16, plan: &Plan) -> bool {
    let mut vm = Vm::boot(descriptors);
    // Both ports once, to the end of what is there only at first.
    let first = Plan::FIRST;
    for port in 0..2 {
        for job in Job::ALL {
            vm.measure(port, job, &first);
        }
    }
    let mut report = Report::new(descriptors, plan);
    for round in 0..plan.rounds {
        for job in Job::ALL {
            // Each is first in every other round.
            let mut pair = [None, None];
            for turn in 0..2 {
                let port = (round + turn) % 2;
                let nothing = vm.measure(port, Job::Nothing, plan);
                pair[port] = Some(vm.measure(port, job, plan) - nothing);
            }
            report.add(job, pair.map(|taken| taken.expect("both had their turn")));
        }
    }
    report.print();
    report.stream_takes_fewer_calls()
}
