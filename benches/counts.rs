//! Counts what the same work costs over different transports: system calls, allocations and
//! instructions. Unlike times, counts have no noise.
//!
//! For each count, this program runs itself as a child twice: with some work, and with three times as
//! much. It reports the difference, so startup and teardown do not count. `strace` counts system
//! calls. `valgrind` counts instructions of the program, without the kernel's. The report says which
//! tool is not installed.

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use common::meter::Span;
use common::place::{Cores, Flavor, raise_descriptor_limit};
use common::transport::{Duplex, HandWritten, Krun, Piper, UnixSocket};
use common::vmm::Transport;
use common::work::{self, Setting, Size, Work};

struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);
static LIVE_BYTES: AtomicI64 = AtomicI64::new(0);

#[expect(unsafe_code, reason = "`GlobalAlloc` is an unsafe trait")]
// SAFETY: passes each call to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        LIVE_BYTES.fetch_add(layout.size() as i64, Ordering::Relaxed);
        // SAFETY: the caller promises what `System` requires.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        LIVE_BYTES.fetch_sub(layout.size() as i64, Ordering::Relaxed);
        // SAFETY: `alloc` got `pointer` from `System`, with this layout.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[derive(Clone, Copy)]
enum Job {
    Bytes(Work),
    ChunksIn(usize),
    ChunksOut(usize),
    RoundTrip,
    Streams(usize),
}

impl Job {
    fn all() -> impl Iterator<Item = Self> {
        Work::ALL.into_iter().map(Self::Bytes).chain([
            Self::ChunksIn(4096),
            Self::ChunksIn(32 * 1024),
            Self::ChunksOut(64),
            Self::ChunksOut(16 * 1024),
            Self::ChunksOut(64 * 1024),
            Self::RoundTrip,
            Self::Streams(1),
            Self::Streams(1024),
        ])
    }

    fn name(self) -> String {
        match self {
            Self::Bytes(work) => work.name(),
            Self::ChunksIn(size) => format!("chunks g→h {}", Size(size)),
            Self::ChunksOut(size) => format!("chunks h→g {}", Size(size)),
            Self::RoundTrip => "round trip".into(),
            Self::Streams(streams) => format!("{streams} at once, g→h 32K"),
        }
    }

    /// The unit of work that a count is for, and its bytes.
    fn unit(self) -> (&'static str, u64) {
        match self {
            Self::Bytes(Work::FramesIn(size) | Work::FramesOut(size)) if size <= 1024 => {
                ("1,000 messages", 1000 * size as u64)
            }
            Self::ChunksOut(64) => ("1,000 messages", 64_000),
            Self::RoundTrip => ("round trip", 64),
            Self::Bytes(Work::Both) => ("2 MiB", 1 << 20),
            _ => ("MiB", 1 << 20),
        }
    }

    /// Bytes to carry.
    fn amount(self) -> u64 {
        match self {
            Self::RoundTrip => 64 * 1000,
            // 128 KiB for each of 1,024 streams.
            Self::Streams(_) => 128 << 20,
            _ => 32 << 20,
        }
    }

    fn run<T: Transport>(self, setting: Setting) {
        match self {
            Self::Bytes(work) => drop(work::throughput::<T>(work, setting)),
            Self::ChunksIn(size) => drop(work::chunks_in(size, setting)),
            Self::ChunksOut(size) => drop(work::chunks_out(size, setting)),
            Self::RoundTrip => drop(work::round_trips::<T>(setting)),
            Self::Streams(streams) => {
                let Span::Bytes(bytes) = setting.span else {
                    unreachable!("a count is for a number of bytes");
                };
                work::many::<T>(streams, bytes as usize, setting);
            }
        }
    }
}

type RunJob = fn(Job, Setting);

const TRANSPORTS: [(&str, RunJob); 5] = [
    (Krun::NAME, Job::run::<Krun>),
    (UnixSocket::NAME, Job::run::<UnixSocket>),
    (HandWritten::NAME, Job::run::<HandWritten>),
    (Duplex::NAME, Job::run::<Duplex>),
    (Piper::NAME, Job::run::<Piper>),
];

/// The work of one child process, which gets it as arguments.
#[derive(Clone, Copy)]
struct Child {
    job: usize,
    transport: usize,
    cores: Cores,
    amount: u64,
}

impl Child {
    const FLAG: &'static str = "--child";

    fn arguments(self) -> [String; 5] {
        [
            Self::FLAG.into(),
            self.job.to_string(),
            self.transport.to_string(),
            u8::from(self.cores == Cores::Two).to_string(),
            self.amount.to_string(),
        ]
    }

    fn run(arguments: &[String]) {
        let number = |index: usize| -> u64 { arguments[index].parse().expect("not a number") };
        let job = Job::all().nth(number(0) as usize).expect("no such job");
        let setting = Setting {
            cores: [Cores::One, Cores::Two][number(2) as usize],
            flavor: Flavor::CurrentThread,
            // Each transport's default.
            capacity: None,
            span: Span::Bytes(number(3)),
        };
        TRANSPORTS[number(1) as usize].1(job, setting);
        println!("{}", ALLOCATIONS.load(Ordering::Relaxed));
    }
}

/// The cost of one run, by name.
type Counts = BTreeMap<String, f64>;

/// Returns `None` if the tool is not installed.
type Counter = fn(Child) -> Option<Counts>;

fn allocations(child: Child) -> Option<Counts> {
    let output = run(&[], child)?.0;
    Some(Counts::from([(
        "allocations".into(),
        output.trim().parse().expect("not a number"),
    )]))
}

fn instructions(child: Child) -> Option<Counts> {
    let tool = [
        "valgrind",
        "--tool=callgrind",
        "--callgrind-out-file=/dev/null",
    ];
    let report = run(&tool, child)?.1;
    let (_, count) = report
        .rsplit_once("Collected : ")
        .expect("valgrind printed no count");
    let count = count
        .split_whitespace()
        .next()
        .expect("valgrind printed no count");
    Some(Counts::from([(
        "instructions".into(),
        count.parse().expect("not a number"),
    )]))
}

/// Counts all system calls, and each kind by its name.
fn system_calls(child: Child) -> Option<Counts> {
    let report = run(&["strace", "-f", "-c", "-U", "calls,name"], child)?.1;
    let mut counts = Counts::new();
    for line in report.lines() {
        if let Some((calls, name)) = line.trim().split_once(' ')
            && let Ok(calls) = calls.parse()
        {
            let name = name.trim();
            let name = if name == "total" {
                "system calls"
            } else {
                name
            };
            counts.insert(name.into(), calls);
        }
    }
    Some(counts)
}

/// Runs a child under a tool, if any. Returns what it wrote to stdout and stderr.
fn run(under: &[&str], child: Child) -> Option<(String, String)> {
    let this = std::env::current_exe().expect("cannot find this program");
    let mut command = match under.split_first() {
        None => Command::new(this),
        Some((tool, arguments)) => {
            let mut command = Command::new(tool);
            command.args(arguments).arg(this);
            command
        }
    };
    match command
        .args(child.arguments())
        .stdin(Stdio::null())
        .output()
    {
        Ok(output) => {
            let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
            let (out, err) = (text(&output.stdout), text(&output.stderr));
            assert!(output.status.success(), "a child failed: {err}");
            Some((out, err))
        }
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        Err(error) => panic!("{command:?}: {error}"),
    }
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [flag, child @ ..] = arguments.as_slice()
        && flag == Child::FLAG
    {
        raise_descriptor_limit();
        return Child::run(child);
    }
    // Only shows that each counter works: little work, this crate alone, one core.
    let is_quick = arguments.iter().any(|argument| argument == "--quick");
    let filters: Vec<&String> = arguments
        .iter()
        .filter(|argument| !argument.starts_with("--"))
        .collect();

    let counters: [(&str, Counter); 3] = [
        ("system calls (strace)", system_calls),
        ("allocations", allocations),
        ("instructions (valgrind)", instructions),
    ];
    for (what, counter) in counters {
        println!("\n# {what}, in-process guest");
        for cores in if is_quick {
            &Cores::PINNED[..1]
        } else {
            &Cores::PINNED
        } {
            for (index, job) in Job::all().enumerate() {
                let name = format!("{cores} {}", job.name());
                if filters
                    .iter()
                    .all(|filter| what.contains(*filter) || name.contains(*filter))
                {
                    row(&name, counter, *cores, (index, job), is_quick);
                }
            }
        }
    }
    raise_descriptor_limit();
    idle_streams();
}

fn row(name: &str, counter: Counter, cores: Cores, (index, job): (usize, Job), is_quick: bool) {
    let (unit, size) = job.unit();
    let transports = match job {
        Job::ChunksIn(_) | Job::ChunksOut(_) => 1,
        _ if is_quick => 1,
        _ => TRANSPORTS.len(),
    };
    let amount = match job {
        // With less, each stream would carry less than one turn.
        Job::Streams(2..) => job.amount(),
        _ if is_quick => job.amount() / 16,
        _ => job.amount(),
    };
    print!("{name:<28} per {unit}:");
    for (transport, (name, _)) in TRANSPORTS.iter().enumerate().take(transports) {
        let child = |amount| Child {
            job: index,
            transport,
            cores,
            amount,
        };
        let (Some(less), Some(more)) = (counter(child(amount)), counter(child(3 * amount))) else {
            println!(" NOT COUNTED, the tool is not installed");
            return;
        };
        let units = (2 * amount) as f64 / size as f64;
        let mut costs: Vec<(&str, f64)> = more
            .iter()
            .map(|(what, more)| (what.as_str(), more - less.get(what).unwrap_or(&0.0)))
            .map(|(what, difference)| (what, difference / units))
            .collect();
        costs.sort_by(|a, b| b.1.total_cmp(&a.1));
        let (_, all) = costs[0];
        print!(" | {name} {all:.2}");
        let parts: Vec<String> = costs[1..]
            .iter()
            .filter(|(_, cost)| *cost >= 0.05)
            .map(|(what, cost)| format!("{what} {cost:.2}"))
            .collect();
        if transport == 0 && !parts.is_empty() {
            print!(" ({})", parts.join(", "));
        }
    }
    println!();
}

/// Counts the memory and descriptors of streams that have carried nothing yet.
fn idle_streams() {
    const STREAMS: usize = 200;
    let runtime = Flavor::CurrentThread.build(Cores::One);
    let _entered = runtime.enter();
    let descriptors = || {
        std::fs::read_dir("/proc/self/fd")
            .expect("cannot list the descriptors")
            .count()
    };
    let mut streams = Vec::with_capacity(STREAMS);
    // The first stream may allocate what all share.
    streams.push(tokio_krun::AgentStream::pair().expect("cannot create a stream"));
    let before = (LIVE_BYTES.load(Ordering::Relaxed), descriptors());
    for _ in 1..STREAMS {
        streams.push(tokio_krun::AgentStream::pair().expect("cannot create a stream"));
    }
    let bytes = LIVE_BYTES.load(Ordering::Relaxed) - before.0;
    let descriptors = descriptors() - before.1;
    println!(
        "\n# An idle stream before its first byte: {} bytes, {} descriptors",
        bytes as usize / (STREAMS - 1),
        descriptors as f64 / (STREAMS - 1) as f64
    );
}
