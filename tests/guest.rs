//! The in-process guest itself: no threads, tokio's paused clock, several ports, krun's exit.

mod common;

use std::future::poll_fn;
use std::io::{ErrorKind, Read, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::task::{Context, Wake, Waker};
use std::thread;
use std::time::Duration;

use futures::executor::block_on;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, Interest, ReadBuf};
use tokio::time::{Instant, timeout};
use tokio_krun::agent::VirtioPort;
use tokio_krun::test_util::Guest;
use tokio_krun::{AgentPort, AgentStream, Options};
use tokio_test::{assert_pending, assert_ready_ok, task};

use common::{SMALL, is_would_block, many, pattern, watchdog};

const HOUR: Duration = Duration::from_secs(3600);
/// What the virtqueue from the guest holds: 32 descriptors of at most 32 KiB.
const QUEUE: usize = 32 * 32 * 1024;

fn small() -> (AgentStream, Guest, VirtioPort) {
    let (stream, port) = Options::new().capacity(SMALL).create().unwrap();
    let guest = Guest::boot(port);
    let agent = guest.open().unwrap();
    (stream, guest, agent)
}

async fn echo(mut end: impl AsyncRead + AsyncWrite + Unpin) {
    let mut buffer = vec![0; 10_000];
    loop {
        match timeout(HOUR, end.read(&mut buffer)).await.unwrap().unwrap() {
            0 => return,
            read => {
                let answer = end.write_all(&buffer[..read]);
                timeout(HOUR, answer).await.unwrap().unwrap();
            }
        }
    }
}

async fn ask(end: impl AsyncRead + AsyncWrite + Unpin) {
    let (mut read, mut write) = tokio::io::split(end);
    for round in 0..many(100) {
        let size = [1, 100, 4096, 5000, 100_000][round % 5];
        let question = pattern(size);
        let mut answer = vec![0; size];
        let (written, answered) = tokio::join!(
            timeout(HOUR, write.write_all(&question)),
            timeout(HOUR, read.read_exact(&mut answer))
        );
        written.unwrap().unwrap();
        answered.unwrap().unwrap();
        assert!(question == answer, "round {round}");
    }
}

mod paused_clock {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn stands_still_while_host_asks() {
        watchdog(async {
            let began = Instant::now();
            let (stream, guest, agent) = small();
            let agent = tokio::spawn(echo(agent));
            ask(stream).await;
            agent.await.unwrap();
            assert_eq!(began.elapsed(), Duration::ZERO);
            drop(guest);
        })
        .await;
    }

    #[tokio::test(start_paused = true)]
    async fn stands_still_while_agent_asks() {
        watchdog(async {
            let began = Instant::now();
            let (stream, guest, agent) = small();
            let host = tokio::spawn(echo(stream));
            ask(agent).await;
            guest.power_off().await;
            host.await.unwrap();
            assert_eq!(began.elapsed(), Duration::ZERO);
        })
        .await;
    }

    #[tokio::test(start_paused = true)]
    async fn stands_still_while_only_tasks_run() {
        watchdog(async {
            let began = Instant::now();
            let (stream, guest, agent) = small();
            let agent = tokio::spawn(echo(agent));
            let host = tokio::spawn(ask(stream));
            // The test waits for longer than any of them.
            timeout(2 * HOUR, host).await.unwrap().unwrap();
            timeout(2 * HOUR, agent).await.unwrap().unwrap();
            assert_eq!(began.elapsed(), Duration::ZERO);
            drop(guest);
        })
        .await;
    }

    #[tokio::test(start_paused = true)]
    async fn stands_still_through_a_chain_of_guests() {
        watchdog(async {
            let began = Instant::now();
            let (first, _first_guest, mut first_agent) = small();
            let (mut second, _second_guest, second_agent) = small();
            let relay = async move {
                let copied = tokio::io::copy_bidirectional(&mut first_agent, &mut second);
                copied.await.unwrap();
            };
            tokio::spawn(relay);
            tokio::spawn(echo(second_agent));
            tokio::spawn(ask(first)).await.unwrap();
            assert_eq!(began.elapsed(), Duration::ZERO);
        })
        .await;
    }

    /// A task that waits when the guest boots is woken like the others.
    #[tokio::test(start_paused = true)]
    async fn stands_still_for_tasks_that_wait_before_boot() {
        watchdog(async {
            let began = Instant::now();
            let (stream, port) = AgentStream::pair().unwrap();
            let stream = Arc::new(stream);
            let reader = Arc::clone(&stream);
            let reading = tokio::spawn(async move {
                let readable = poll_fn(|cx| reader.poll_read_ready(cx));
                timeout(HOUR, readable).await.unwrap().unwrap();
            });
            let opened = async { timeout(HOUR, stream.guest_opened()).await.unwrap().unwrap() };
            let booted = async {
                tokio::task::yield_now().await;
                let guest = Guest::boot(port);
                let mut agent = guest.open().unwrap();
                agent.write_u8(1).await.unwrap();
                (guest, agent)
            };
            let ((), _guest) = tokio::join!(opened, booted);
            reading.await.unwrap();
            assert_eq!(began.elapsed(), Duration::ZERO);
        })
        .await;
    }

    #[tokio::test(start_paused = true)]
    async fn lets_timeouts_of_both_ends_elapse() {
        watchdog(async {
            let (mut stream, guest, mut agent) = small();
            timeout(HOUR, stream.read_u8()).await.unwrap_err();
            timeout(HOUR, agent.read_u8()).await.unwrap_err();
            let much = vec![7; 4 * QUEUE];
            timeout(HOUR, stream.write_all(&much)).await.unwrap_err();
            timeout(HOUR, agent.write_all(&much)).await.unwrap_err();
            timeout(HOUR, guest.drained()).await.unwrap_err();
            timeout(HOUR, guest.power_off()).await.unwrap_err();
        })
        .await;
    }

    #[tokio::test(start_paused = true)]
    async fn ends_stalled_stream_at_its_time() {
        watchdog(async {
            let options = Options::new().capacity(SMALL).stall_timeout(HOUR);
            let (mut stream, port) = options.create().unwrap();
            let guest = Guest::boot(port);
            let mut agent = guest.open().unwrap();
            let began = Instant::now();
            agent.write_all(&vec![7; SMALL]).await.unwrap();
            // Fits into the queue.
            agent.write_all(&vec![7; QUEUE]).await.unwrap();
            assert_eq!(began.elapsed(), Duration::ZERO);
            agent.write_all(&vec![7; QUEUE]).await.unwrap();
            assert!(began.elapsed() >= HOUR && began.elapsed() < HOUR + Duration::from_secs(1));
            guest.power_off().await;
            let mut received = Vec::new();
            let error = stream.read_to_end(&mut received).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::UnexpectedEof);
            assert_eq!(received.len(), SMALL);
        })
        .await;
    }

    #[tokio::test(start_paused = true)]
    async fn leaves_stream_that_is_read_in_time() {
        watchdog(async {
            let options = Options::new().capacity(SMALL).stall_timeout(HOUR);
            let (mut stream, port) = options.create().unwrap();
            let guest = Guest::boot(port);
            let mut agent = guest.open().unwrap();
            let writing = tokio::spawn(async move {
                agent.write_all(&vec![7; 4 * QUEUE]).await.unwrap();
                agent
            });
            for _ in 0..4 * QUEUE / SMALL {
                tokio::time::sleep(HOUR / 2).await;
                stream.read_exact(&mut vec![0; SMALL]).await.unwrap();
            }
            let _agent = writing.await.unwrap();
            drop(guest);
        })
        .await;
    }

    #[tokio::test(start_paused = true)]
    async fn waits_for_exit_hooks() {
        watchdog(async {
            let began = Instant::now();
            let (mut stream, port) = AgentStream::pair().unwrap();
            let guest = Guest::builder()
                .on_exit(port.exit_hook(Duration::from_secs(100)))
                .port("agent", port)
                .boot();
            let off = tokio::spawn(guest.power_off());
            let mut received = Vec::new();
            let read = timeout(HOUR, stream.read_to_end(&mut received)).await;
            assert_eq!(read.unwrap().unwrap(), 0);
            drop(stream);
            timeout(HOUR, off).await.unwrap().unwrap();
            assert_eq!(began.elapsed(), Duration::ZERO);
        })
        .await;
    }
}

#[cfg(all(target_os = "linux", not(miri)))]
#[tokio::test]
async fn guest_has_no_threads_unless_asked() {
    if !common::is_alone("guest_has_no_threads_unless_asked") {
        return;
    }
    let threads = || std::fs::read_dir("/proc/self/task").unwrap().count();
    let before = threads();
    let (mut stream, _guest, mut agent) = small();
    agent.write_u8(1).await.unwrap();
    stream.read_u8().await.unwrap();
    assert_eq!(threads(), before);

    let (mut stream, port) = AgentStream::pair().unwrap();
    let guest = common::boot(port);
    let mut agent = guest.open().unwrap();
    agent.write_u8(1).await.unwrap();
    stream.read_u8().await.unwrap();
    assert!(threads() >= before + 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn ends_on_several_threads_lose_no_wake() {
    watchdog(async {
        let mut tasks = Vec::new();
        for _ in 0..many(16) {
            let (stream, guest, agent) = small();
            tasks.push(tokio::spawn(async move {
                let agent = tokio::spawn(echo(agent));
                tokio::spawn(ask(stream)).await.unwrap();
                agent.await.unwrap();
                guest.power_off().await;
            }));
        }
        for task in tasks {
            task.await.unwrap();
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn both_directions_at_once_arrive_intact() {
    watchdog(async {
        let (stream, guest, agent) = small();
        let sent = Arc::new(pattern(many(16) << 20));
        let carry = |mut from: Box<dyn AsyncWrite + Send + Unpin>,
                     mut to: Box<dyn AsyncRead + Send + Unpin>| {
            let (sent, expected) = (Arc::clone(&sent), Arc::clone(&sent));
            tokio::spawn(async move { from.write_all(&sent).await.unwrap() });
            tokio::spawn(async move {
                let mut received = vec![0; expected.len()];
                to.read_exact(&mut received).await.unwrap();
                assert!(received == *expected);
            })
        };
        let (host_read, host_write) = stream.into_split();
        let (agent_read, agent_write) = agent.into_split();
        let to_host = carry(Box::new(agent_write), Box::new(host_read));
        let to_agent = carry(Box::new(host_write), Box::new(agent_read));
        to_host.await.unwrap();
        to_agent.await.unwrap();
        drop(guest);
    })
    .await;
}

/// What the agent's write has completed is in the stream, without a turn of any other thread or task.
#[tokio::test]
async fn bytes_are_there_when_write_returns() {
    let (stream, _guest, agent) = small();
    assert_eq!(agent.try_write(b"up").unwrap(), 2);
    let mut buffer = [0; 8];
    assert_eq!(stream.try_read(&mut buffer).unwrap(), 2);
    assert_eq!(stream.try_write(b"down").unwrap(), 4);
    assert_eq!(agent.try_read(&mut buffer).unwrap(), 4);
    assert_eq!(&buffer[..4], b"down");
    assert!(is_would_block(&agent.try_read(&mut buffer)));
}

/// krun's queues: 32 descriptors in each direction.
#[tokio::test]
async fn queues_hold_32_descriptors() {
    watchdog(async {
        let (mut stream, guest, mut agent) = small();
        // The first fills the ring; of the others, the last does not fit.
        let mut writes = 0;
        while agent.try_write(&vec![7; SMALL]).is_ok() {
            writes += 1;
        }
        assert_eq!(writes, 1 + 32);
        stream.read_exact(&mut vec![0; 33 * SMALL]).await.unwrap();
        guest.drained().await;

        // Each write of the host's takes a buffer of 4 KiB, until none is left. What comes then shares them.
        for _ in 0..40 {
            stream.write_all(&[1; 10]).await.unwrap();
        }
        let mut buffer = [0; 4096];
        let mut reads = Vec::new();
        while let Ok(read) = agent.try_read(&mut buffer) {
            reads.push(read);
        }
        assert_eq!(reads, [vec![10; 32], vec![80]].concat());
        agent.write_all(b"end").await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn ports_are_separate_and_have_names() {
    watchdog(async {
        let (mut control, control_port) = AgentStream::pair().unwrap();
        let (mut logs, logs_port) = Options::new().capacity(SMALL).create().unwrap();
        let guest = Guest::builder()
            .port("control", control_port)
            .port("logs", logs_port)
            .boot();
        let mut first = guest.open().unwrap();
        let error = guest.open_port("control").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ResourceBusy);
        let error = guest.open_port("agent").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound);
        let mut second = guest.open_port("logs").unwrap();
        assert!(control.has_guest_opened() && logs.has_guest_opened());

        // One that is full does not hold up the other.
        while second.try_write(&vec![7; SMALL]).is_ok() {}
        first.write_all(b"up").await.unwrap();
        control.read_exact(&mut [0; 2]).await.unwrap();
        control.write_all(b"down").await.unwrap();
        first.read_exact(&mut [0; 4]).await.unwrap();

        // A hang-up ends only its own port.
        logs.hang_up();
        let mut rest = Vec::new();
        logs.read_exact(&mut vec![0; SMALL]).await.unwrap();
        assert_eq!(second.read_to_end(&mut rest).await.unwrap(), 0);
        first.write_all(b"up").await.unwrap();
        control.read_exact(&mut [0; 2]).await.unwrap();
    })
    .await;
}

#[tokio::test]
#[should_panic(expected = r#"two ports have the name "agent""#)]
async fn guest_with_two_ports_of_one_name_does_not_boot() {
    let (_one, one_port) = AgentStream::pair().unwrap();
    let (_two, two_port) = AgentStream::pair().unwrap();
    Guest::builder()
        .port("agent", one_port)
        .port("agent", two_port)
        .boot();
}

/// In a VM, no agent could find such a port.
#[tokio::test]
async fn guest_with_ports_that_no_vm_names_does_not_boot() {
    let boots = |names: &[String]| {
        let mut builder = Guest::builder();
        for name in names {
            let (_stream, port) = AgentStream::pair().unwrap();
            builder = builder.port(name, port);
        }
        let booted = catch_unwind(AssertUnwindSafe(|| builder.boot()));
        booted
            .map(drop)
            .map_err(|panic| match panic.downcast::<String>() {
                Ok(message) => *message,
                Err(panic) => panic.downcast_ref::<&str>().unwrap().to_string(),
            })
    };
    let refuses = |names: &[String], why: &str| {
        let message = boots(names).unwrap_err();
        assert!(message.contains(why), "{message}");
    };
    let longest = "x".repeat(AgentPort::MAX_NAME_LEN);
    refuses(&[String::new()], "is empty");
    refuses(&["a\0b".into()], "contains a NUL");
    refuses(&[longest.clone() + "x"], "has 4089 bytes");
    boots(&[longest]).unwrap();
    let names: Vec<_> = (0..16).map(|number| number.to_string()).collect();
    refuses(&names, "has 16 ports");
    boots(&names[1..]).unwrap();
}

#[tokio::test]
async fn guest_without_ports_opens_none() {
    let guest = Guest::builder().boot();
    assert_eq!(guest.open().unwrap_err().kind(), ErrorKind::NotFound);
    let error = guest.open_blocking().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    guest.power_off().await;
}

/// krun's console is the first observer: it joins the workers of all ports, and only then the hooks run.
#[tokio::test]
async fn power_off_joins_workers_then_runs_hooks_then_ends_ports() {
    for has_threads in [false, true] {
        watchdog(async {
            let (mut control, control_port) = Options::new().capacity(SMALL).create().unwrap();
            let (mut logs, logs_port) = Options::new().capacity(SMALL).create().unwrap();
            let events = Arc::new(Mutex::new(Vec::new()));
            let (begun, mut has_begun) = tokio::sync::mpsc::unbounded_channel();
            let (proceed, may_proceed) = mpsc::channel::<()>();
            let may_proceed = Mutex::new(may_proceed);
            let hook = |name: &'static str| {
                let events = Arc::clone(&events);
                move |code| events.lock().unwrap().push((name, code))
            };
            let (first, third) = (hook("first"), hook("third"));
            let guest = Guest::builder()
                .on_exit(first)
                .port("control", control_port)
                .on_exit(move |_| {
                    begun.send(()).unwrap();
                    may_proceed.lock().unwrap().recv().unwrap();
                })
                .port("logs", logs_port)
                .on_exit(third)
                .threads(has_threads)
                .boot();
            let events = || events.lock().unwrap().clone();
            let _control_agent = guest.open_port("control").unwrap();
            let mut logs_agent = guest.open_port("logs").unwrap();

            // Nobody reads, so the TX worker of the second port waits for room.
            let much = vec![7; SMALL + 1];
            logs_agent.write_all(&much).await.unwrap();
            while logs.stats().tx.full == 0 {
                tokio::task::yield_now().await;
            }
            let mut off = task::spawn(Box::pin(guest.power_off()));
            for _ in 0..100 {
                assert_pending!(off.poll());
                tokio::task::yield_now().await;
            }
            assert_eq!(events(), []);

            logs.read_exact(&mut vec![0; SMALL + 1]).await.unwrap();
            let off = tokio::spawn(off.into_inner());
            has_begun.recv().await.unwrap();
            assert_eq!(events(), [("first", 0)]);
            // No port has ended, as long as a hook runs.
            assert!(is_would_block(&control.try_read(&mut [0; 8])));
            assert!(is_would_block(&logs.try_read(&mut [0; 8])));
            control.write_all(b"too late").await.unwrap();

            proceed.send(()).unwrap();
            off.await.unwrap();
            assert_eq!(events(), [("first", 0), ("third", 0)]);
            assert_eq!(control.read(&mut [0; 8]).await.unwrap(), 0);
            assert_eq!(logs.read(&mut [0; 8]).await.unwrap(), 0);
        })
        .await;
    }
}

#[tokio::test]
async fn hook_that_panics_fails_test_but_holds_up_nothing() {
    watchdog(async {
        let (mut stream, port) = AgentStream::pair().unwrap();
        let ran = Arc::new(AtomicBool::new(false));
        let hook_ran = Arc::clone(&ran);
        let guest = Guest::builder()
            .on_exit(|_| panic!("a hook that panics"))
            .on_exit(move |_| hook_ran.store(true, Ordering::Relaxed))
            .port("agent", port)
            .boot();
        let error = tokio::spawn(guest.power_off()).await.unwrap_err();
        assert!(error.is_panic());
        assert!(ran.load(Ordering::Relaxed));
        assert_eq!(stream.read(&mut [0; 8]).await.unwrap(), 0);
    })
    .await;
}

#[test]
fn hooks_run_without_a_runtime() {
    let _deadline = common::deadline();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (stream, port) = Options::new().create_on(runtime.handle()).unwrap();
    let (send, received) = mpsc::channel();
    let guest = Guest::builder()
        .port("agent", port)
        .on_exit(move |code| send.send(code).unwrap())
        .boot();
    block_on(guest.power_off());
    assert_eq!(received.recv(), Ok(0));
    drop(stream);
}

/// The two halves of what krun does for a checkpoint, each by itself.
#[tokio::test]
async fn vcpus_and_workers_rest_separately() {
    watchdog(async {
        let (mut stream, guest, agent) = small();
        // Without vCPUs, the agent stands still. krun goes on with what is in the queue.
        while agent.try_write(&vec![7; SMALL]).is_ok() {}
        stream.write_all(b"meanwhile").await.unwrap();
        guest.pause();
        assert!(is_would_block(&agent.try_read(&mut [0; 16])));
        let mut ready = task::spawn(agent.ready(Interest::READABLE | Interest::WRITABLE));
        assert_pending!(ready.poll());
        stream.read_exact(&mut vec![0; 33 * SMALL]).await.unwrap();
        assert!(is_would_block(&stream.try_read(&mut [0; 16])));
        assert!(is_would_block(&agent.try_write(b"more")));
        guest.drained().await;
        assert_pending!(ready.poll());
        guest.resume();
        assert!(ready.is_woken());
        let is_ready = assert_ready_ok!(ready.poll());
        assert!(is_ready.is_readable() && is_ready.is_writable());
        drop(ready);
        assert_eq!(agent.try_read(&mut [0; 16]).unwrap(), 9);

        // Without workers, the agent goes on until its queue is full. Nothing reaches the host.
        guest.stop_workers().await;
        let mut writes = 0;
        while agent.try_write(&[7; 100]).is_ok() {
            writes += 1;
        }
        assert_eq!(writes, 32);
        stream.write_all(b"meanwhile").await.unwrap();
        assert!(is_would_block(&agent.try_read(&mut [0; 16])));
        assert!(is_would_block(&stream.try_read(&mut [0; 16])));
        guest.start_workers().unwrap();
        assert_eq!(agent.try_read(&mut [0; 16]).unwrap(), 9);
        stream.read_exact(&mut [0; 3200]).await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn workers_stop_on_full_ring_once_it_is_read_or_quiesced() {
    for quiesces in [false, true] {
        watchdog(async {
            let (mut stream, port) = Options::new().capacity(SMALL).create().unwrap();
            let handle = port.handle();
            let guest = Guest::boot(port);
            let agent = guest.open().unwrap();
            let sent = pattern(5 * SMALL);
            for descriptor in sent.chunks(SMALL) {
                assert_eq!(agent.try_write(descriptor).unwrap(), SMALL);
            }
            let mut received = vec![0; sent.len()];
            {
                let mut stopping = task::spawn(guest.stop_workers());
                assert_pending!(stopping.poll());
                if quiesces {
                    handle.quiesce();
                } else {
                    stream.read_exact(&mut received[..SMALL]).await.unwrap();
                }
                assert!(stopping.is_woken());
                assert!(stopping.poll().is_ready());
            }
            // One descriptor was under way. The others stay in the queue.
            let left = guest.drained();
            assert_pending!(task::spawn(left).poll());
            handle.resume();
            guest.start_workers().unwrap();
            let done = if quiesces { 0 } else { SMALL };
            stream.read_exact(&mut received[done..]).await.unwrap();
            assert!(received == sent);
            guest.drained().await;
        })
        .await;
    }
}

#[tokio::test]
async fn stopping_workers_may_be_given_up_and_tried_again() {
    watchdog(async {
        let (mut stream, guest, agent) = small();
        while agent.try_write(&vec![7; SMALL]).is_ok() {}
        {
            let mut stopping = task::spawn(guest.stop_workers());
            assert_pending!(stopping.poll());
        }
        stream.read_exact(&mut vec![0; 2 * SMALL]).await.unwrap();
        assert!(is_would_block(&stream.try_read(&mut [0; 8])));
        guest.stop_workers().await;
        guest.start_workers().unwrap();
        stream.read_exact(&mut vec![0; 31 * SMALL]).await.unwrap();
    })
    .await;
}

/// A host that floods its guest must not keep other tasks of the agent's runtime waiting. In a turn, tokio's budget allows
/// 128 operations.
#[tokio::test]
async fn flooded_agent_gives_way_to_other_tasks() {
    watchdog(async {
        let (mut stream, port) = AgentStream::pair().unwrap();
        let guest = Guest::boot(port);
        let mut agent = guest.open().unwrap();
        stream
            .write_all(&vec![7; Options::DEFAULT_CAPACITY])
            .await
            .unwrap();
        let reads = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&reads);
        let reading = tokio::spawn(async move {
            let mut buffer = [0; 1024];
            for _ in 0..Options::DEFAULT_CAPACITY / 1024 {
                agent.read_exact(&mut buffer).await.unwrap();
                counted.fetch_add(1, Ordering::Relaxed);
            }
            for _ in 0..1000 {
                agent.writable().await.unwrap();
                counted.fetch_add(1, Ordering::Relaxed);
            }
        });
        let (mut before, mut most) = (0, 0);
        while !reading.is_finished() {
            tokio::task::yield_now().await;
            let now = reads.load(Ordering::Relaxed);
            most = most.max(now - before);
            before = now;
        }
        reading.await.unwrap();
        assert!((1..=128).contains(&most), "{most} operations in one turn");
    })
    .await;
}

/// Runs a poll when woken, on the thread that wakes.
struct PollingWaker<F>(F);

impl<F: Fn(&mut Context<'_>) + Send + Sync + 'static> Wake for PollingWaker<F> {
    fn wake(self: Arc<Self>) {
        let waker = Waker::from(Arc::clone(&self));
        (self.0)(&mut Context::from_waker(&waker));
    }
}

fn polling(poll: impl Fn(&mut Context<'_>) + Send + Sync + 'static) -> Waker {
    Arc::new(PollingWaker(poll)).into()
}

#[tokio::test]
async fn agents_waker_may_read_and_write_at_once() {
    watchdog(async {
        let (mut stream, _guest, agent) = small();
        let agent = Arc::new(agent);
        let echoed = Arc::new(Mutex::new(Vec::new()));
        let waker = polling({
            let (agent, echoed) = (Arc::clone(&agent), Arc::clone(&echoed));
            move |cx| {
                while agent.poll_read_ready(cx).is_ready() {
                    let mut buffer = [0; 100];
                    let Ok(read @ 1..) = agent.try_read(&mut buffer) else {
                        return;
                    };
                    echoed.lock().unwrap().extend_from_slice(&buffer[..read]);
                    agent.try_write(&buffer[..read]).unwrap();
                }
            }
        });
        assert_pending!(agent.poll_read_ready(&mut Context::from_waker(&waker)));
        let sent = pattern(20_000);
        for piece in sent.chunks(500) {
            stream.write_all(piece).await.unwrap();
        }
        // It uses up the budget of the task in which it runs, and then goes on in its next turn.
        while echoed.lock().unwrap().len() < sent.len() {
            tokio::task::yield_now().await;
        }
        assert!(*echoed.lock().unwrap() == sent);
        let mut received = vec![0; sent.len()];
        stream.read_exact(&mut received).await.unwrap();
        assert!(received == sent);
    })
    .await;
}

#[tokio::test]
async fn agents_waker_may_fill_its_queue_again() {
    watchdog(async {
        let (mut stream, _guest, agent) = small();
        let agent = Arc::new(agent);
        let written = Arc::new(AtomicUsize::new(0));
        let fill = {
            let (agent, written) = (Arc::clone(&agent), Arc::clone(&written));
            move |cx: &mut Context<'_>| {
                while agent.poll_write_ready(cx).is_ready() {
                    match agent.try_write(&[7; 10_000]) {
                        Ok(more) => written.fetch_add(more, Ordering::Relaxed),
                        Err(_) => return,
                    };
                }
            }
        };
        let waker = polling(fill);
        waker.wake_by_ref();
        let mut read = 0;
        let mut buffer = vec![0; SMALL];
        while read < 10 * QUEUE {
            read += stream.read(&mut buffer).await.unwrap();
        }
        assert!(written.load(Ordering::Relaxed) >= read);
    })
    .await;
}

#[tokio::test]
async fn hosts_waker_may_read_at_once() {
    watchdog(async {
        let (stream, _guest, mut agent) = small();
        let stream = Arc::new(stream);
        let received = Arc::new(Mutex::new(Vec::new()));
        let waker = polling({
            let (stream, received) = (Arc::clone(&stream), Arc::clone(&received));
            move |cx| {
                while stream.poll_read_ready(cx).is_ready() {
                    let mut buffer = [0; 100];
                    let Ok(read @ 1..) = stream.try_read(&mut buffer) else {
                        return;
                    };
                    received.lock().unwrap().extend_from_slice(&buffer[..read]);
                }
            }
        });
        assert_pending!(stream.poll_read_ready(&mut Context::from_waker(&waker)));
        let sent = pattern(5 * SMALL);
        agent.write_all(&sent).await.unwrap();
        // It uses up the budget of the task in which it runs, and then goes on in its next turn.
        while received.lock().unwrap().len() < sent.len() {
            tokio::task::yield_now().await;
        }
        assert!(*received.lock().unwrap() == sent);
    })
    .await;
}

/// Bytes that run code when they are dropped: here in the host's own write, which lets the guest read them.
struct Owner(Vec<u8>, Option<Box<dyn FnOnce() + Send>>);

impl AsRef<[u8]> for Owner {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        if let Some(code) = self.1.take() {
            code();
        }
    }
}

#[tokio::test]
async fn drop_of_sent_bytes_may_use_and_drop_stream() {
    watchdog(async {
        let (stream, guest, mut agent) = small();
        agent.write_all(&vec![7; 2 * SMALL]).await.unwrap();
        let stream = Arc::new(stream);
        let last = Arc::clone(&stream);
        let code = move || {
            assert_eq!(last.try_write(b"again").unwrap(), 5);
            assert_eq!(last.try_read(&mut [0; 8]).unwrap(), 8);
            drop(last);
        };
        let owner = Owner(vec![1; SMALL], Some(Box::new(code)));
        let mut bytes = bytes::Bytes::from_owner(owner);
        {
            let mut write = Box::pin(async move { stream.write_bytes(&mut bytes).await });
            assert_eq!((&mut write).await.unwrap(), SMALL);
        }
        let mut received = Vec::new();
        agent.read_to_end(&mut received).await.unwrap();
        assert_eq!(received, [vec![1; SMALL], b"again".to_vec()].concat());
        let error = agent.write_all(b"too late").await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::BrokenPipe);
        guest.power_off().await;
    })
    .await;
}

#[tokio::test]
async fn drop_of_sent_bytes_may_panic() {
    watchdog(async {
        let (mut stream, guest, mut agent) = small();
        let code = || panic!("from the caller's bytes");
        let owner = Owner(vec![1; SMALL], Some(Box::new(code)));
        let mut bytes = bytes::Bytes::from_owner(owner);
        assert_eq!(stream.write_bytes(&mut bytes).await.unwrap(), SMALL);
        stream.write_all(b"next").await.unwrap();
        let mut received = vec![0; SMALL + 4];
        agent.read_exact(&mut received).await.unwrap();
        assert!(received.ends_with(b"next"));
        guest.power_off().await;
    })
    .await;
}

#[tokio::test]
async fn waker_that_panics_harms_nobody_else() {
    watchdog(async {
        let (mut stream, guest, mut agent) = small();
        let waker = polling(|_| panic!("a waker that panics"));
        let mut cx = Context::from_waker(&waker);
        let mut buffer = [0; 8];
        let mut buffer = ReadBuf::new(&mut buffer);
        let read = Pin::new(&mut agent).poll_read(&mut cx, &mut buffer);
        assert_pending!(read);
        stream.write_all(b"down").await.unwrap();
        agent.read_exact(&mut [0; 4]).await.unwrap();
        agent.write_all(b"up").await.unwrap();
        stream.read_exact(&mut [0; 2]).await.unwrap();
        guest.power_off().await;
    })
    .await;
}

#[tokio::test]
async fn last_poll_in_each_direction_is_woken() {
    let (mut stream, _guest, agent) = small();
    let mut first = task::spawn(poll_fn(|cx| agent.poll_read_ready(cx)));
    let mut second = task::spawn(poll_fn(|cx| agent.poll_read_ready(cx)));
    let mut any = [task::spawn(agent.readable()), task::spawn(agent.readable())];
    assert_pending!(first.poll());
    assert_pending!(second.poll());
    any.iter_mut().for_each(|any| assert_pending!(any.poll()));
    stream.write_all(b"down").await.unwrap();
    assert!(!first.is_woken() && second.is_woken());
    assert_ready_ok!(second.poll());
    for any in &mut any {
        assert!(any.is_woken());
        assert_ready_ok!(any.poll());
    }
}

#[tokio::test]
async fn empty_writes_answer_alike() {
    watchdog(async {
        let (mut stream, port) = AgentStream::pair().unwrap();
        let (_other, blocking_port) = AgentStream::pair().unwrap();
        let guest = Guest::builder()
            .port("agent", port)
            .port("blocking", blocking_port)
            .boot();
        let mut agent = guest.open().unwrap();
        let mut blocking = guest.open_port_blocking("blocking").unwrap();
        assert_eq!(stream.write(&[]).await.unwrap(), 0);
        assert_eq!(agent.write(&[]).await.unwrap(), 0);
        assert_eq!(agent.try_write(&[]).unwrap(), 0);
        assert_eq!(blocking.write(&[]).unwrap(), 0);
        assert_eq!(stream.stats().tx.bytes, 0);

        stream.hang_up();
        drop(_other);
        let broken = |written: std::io::Result<usize>| {
            assert_eq!(written.unwrap_err().kind(), ErrorKind::BrokenPipe);
        };
        broken(stream.write(&[]).await);
        broken(agent.write(&[]).await);
        broken(agent.try_write(&[]));
        broken(blocking.write(&[]));
    })
    .await;
}

/// The hang-up shows before what is left is read. What does not fit into the guest's buffers comes first, as in a VM.
#[tokio::test]
async fn hang_up_shows_once_its_bytes_are_in_the_guest() {
    watchdog(async {
        let (mut stream, _guest, mut agent) = small();
        let sent = pattern(33 * 4096);
        let mut write = task::spawn(stream.write_all(&sent));
        let _ = write.poll();
        drop(write);
        stream.hang_up();
        let ready = agent.ready(Interest::READABLE).await.unwrap();
        assert!(ready.is_readable() && !ready.is_read_closed());
        // The last bytes take the first place that is free, and krun finds the end with the second.
        agent.read_exact(&mut [0; 2 * 4096]).await.unwrap();
        let ready = agent.ready(Interest::READABLE).await.unwrap();
        assert!(ready.is_readable() && ready.is_read_closed());
        assert!(
            agent
                .ready(Interest::WRITABLE)
                .await
                .unwrap()
                .is_write_closed()
        );
        let mut rest = Vec::new();
        agent.read_to_end(&mut rest).await.unwrap();
        assert!(rest == sent[2 * 4096..]);
    })
    .await;
}

/// An agent with a thread of its own and without a runtime.
#[tokio::test]
async fn synchronous_agent_waits_with_its_thread() {
    watchdog(async {
        let (stream, port) = Options::new().capacity(SMALL).create().unwrap();
        let guest = Guest::boot(port);
        let agent = guest.open_blocking().unwrap();
        let echo = thread::spawn(move || {
            let mut buffer = [0; 10_000];
            loop {
                match (&agent).read(&mut buffer).unwrap() {
                    0 => return agent,
                    read => (&agent).write_all(&buffer[..read]).unwrap(),
                }
            }
        });
        ask(stream).await;
        let mut agent = tokio::task::spawn_blocking(|| echo.join().unwrap())
            .await
            .unwrap();
        let error = agent.write(b"too late").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::BrokenPipe);
        assert_eq!(agent.read(&mut []).unwrap(), 0);
        drop(guest);
    })
    .await;
}

#[tokio::test]
async fn synchronous_write_that_waits_ends_with_hang_up() {
    watchdog(async {
        let (stream, port) = Options::new().capacity(SMALL).create().unwrap();
        let guest = Guest::boot(port);
        let agent = guest.open_blocking().unwrap();
        let writing = common::asleep(move || {
            let much = vec![7; 2 * QUEUE];
            // Two threads share the port. One writes, the other waits to read.
            thread::scope(|scope| {
                let reading = scope.spawn(|| (&agent).read(&mut [0; 8]).unwrap());
                let written = (&agent).write_all(&much);
                (written, reading.join().unwrap())
            })
        });
        stream.hang_up();
        let joined = tokio::task::spawn_blocking(|| writing.join().unwrap());
        let (written, read) = joined.await.unwrap();
        assert_eq!(written.unwrap_err().kind(), ErrorKind::BrokenPipe);
        assert_eq!(read, 0);
        drop(guest);
    })
    .await;
}

#[test]
fn agent_needs_no_runtime() {
    let _deadline = common::deadline();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (stream, port) = Options::new().create_on(runtime.handle()).unwrap();
    let guest = Guest::boot(port);
    let host = runtime.spawn(echo(stream));
    block_on(async {
        let agent = guest.open().unwrap();
        let (mut read, mut write) = agent.into_split();
        for _ in 0..many(1000) {
            write.write_all(b"hello").await.unwrap();
            let mut answer = [0; 5];
            read.readable().await.unwrap();
            read.read_exact(&mut answer).await.unwrap();
        }
    });
    block_on(guest.power_off());
    runtime.block_on(host).unwrap();
}

/// A guest that was booted outside a runtime has a thread for this.
#[test]
fn stalled_stream_ends_without_a_runtime() {
    let _deadline = common::deadline();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let options = Options::new()
        .capacity(SMALL)
        .stall_timeout(Duration::from_millis(1));
    let (mut stream, port) = options.create_on(runtime.handle()).unwrap();
    let guest = Guest::boot(port);
    let mut agent = guest.open_blocking().unwrap();
    agent.write_all(&vec![7; 2 * QUEUE]).unwrap();
    block_on(guest.power_off());
    let mut received = Vec::new();
    let error = runtime.block_on(stream.read_to_end(&mut received));
    assert_eq!(error.unwrap_err().kind(), ErrorKind::UnexpectedEof);
    assert_eq!(received.len(), SMALL);
}

/// A thread also waits if the runtime in which the guest was booted has no timer, or goes before or while it waits.
#[test]
fn stalled_stream_ends_without_a_timer() {
    let _deadline = common::deadline();
    let host = tokio::runtime::Runtime::new().unwrap();
    let options = Options::new()
        .capacity(SMALL)
        .stall_timeout(Duration::from_millis(1));
    let ends = |boot: &dyn Fn(AgentPort) -> VirtioPort| {
        let (mut stream, port) = options.create_on(host.handle()).unwrap();
        let mut agent = boot(port);
        block_on(agent.write_all(&vec![7; 2 * QUEUE])).unwrap();
        let mut received = Vec::new();
        let error = host.block_on(stream.read_to_end(&mut received));
        assert_eq!(error.unwrap_err().kind(), ErrorKind::UnexpectedEof);
    };
    let runtime = || {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        builder.worker_threads(1).build().unwrap()
    };
    let no_timer = runtime();
    ends(&|port| {
        let _entered = no_timer.enter();
        Guest::boot(port).open().unwrap()
    });
    ends(&|port| {
        let gone = runtime();
        let _entered = gone.enter();
        Guest::boot(port).open().unwrap()
    });
    ends(&|port| {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        let goes = builder.enable_time().build().unwrap();
        let agent = goes.block_on(async {
            let agent = Guest::boot(port).open().unwrap();
            while agent.try_write(&vec![7; SMALL]).is_ok() {}
            agent
        });
        drop(goes);
        agent
    });
}

async fn agent_that_opens(name: &str) -> std::io::Result<VirtioPort> {
    tokio::task::yield_now().await;
    VirtioPort::open(name).await
}

#[tokio::test(start_paused = true)]
async fn agent_opens_its_port_by_name() {
    watchdog(async {
        let (mut stream, port) = AgentStream::pair().unwrap();
        let (mut logs, logs_port) = AgentStream::pair().unwrap();
        let guest = Guest::builder()
            .port("agent", port)
            .port("logs", logs_port)
            .boot();
        // In a task of its own, and before the test goes on with the guest.
        let opening = tokio::spawn(
            guest.run(async { tokio::join!(agent_that_opens("logs"), agent_that_opens("agent")) }),
        );
        let (logs_agent, agent) = opening.await.unwrap();
        logs_agent.unwrap().write_all(b"logs").await.unwrap();
        agent.unwrap().write_all(b"agent").await.unwrap();
        let mut received = [0; 5];
        stream.read_exact(&mut received).await.unwrap();
        assert_eq!(&received, b"agent");
        logs.read_exact(&mut received[..4]).await.unwrap();
        assert_eq!(&received[..4], b"logs");

        // It waits for a port that is not there, and cannot open one twice.
        let missing = guest.run(agent_that_opens("agents"));
        timeout(HOUR, missing).await.unwrap_err();
        let kept = guest.run(agent_that_opens("agent")).await.unwrap();
        let error = guest.run(agent_that_opens("agent")).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ResourceBusy);
        drop(kept);

        // A guest that has gone, with an agent that has not noticed.
        let late = guest.run(agent_that_opens("agent"));
        drop(guest);
        assert_eq!(late.await.unwrap_err().kind(), ErrorKind::NotConnected);
        assert_eq!(stream.read(&mut [0; 8]).await.unwrap(), 0);
    })
    .await;
}

#[tokio::test]
async fn each_agent_finds_its_own_guest() {
    watchdog(async {
        let guests: Vec<_> = (0..3)
            .map(|_| {
                let (stream, port) = AgentStream::pair().unwrap();
                (stream, Guest::boot(port))
            })
            .collect();
        let mut agents = Vec::new();
        for (number, (_, guest)) in (0..).zip(&guests) {
            agents.push(tokio::spawn(guest.run(async move {
                let mut port = agent_that_opens("agent").await.unwrap();
                port.write_u8(number).await.unwrap();
            })));
        }
        for (number, (mut stream, _guest)) in (0..).zip(guests) {
            assert_eq!(stream.read_u8().await.unwrap(), number);
        }
        for agent in agents {
            agent.await.unwrap();
        }
    })
    .await;
}

#[tokio::test]
async fn port_keeps_guest_running() {
    watchdog(async {
        let (mut stream, guest, mut agent) = small();
        drop(guest);
        agent.write_all(b"up").await.unwrap();
        stream.read_exact(&mut [0; 2]).await.unwrap();
        stream.write_all(b"down").await.unwrap();
        agent.read_exact(&mut [0; 4]).await.unwrap();
        drop(agent);
        assert_eq!(stream.read(&mut [0; 8]).await.unwrap(), 0);
    })
    .await;
}

/// Ends while the other side is at it on another thread.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn guest_may_go_while_both_ends_work() {
    watchdog(async {
        for round in 0..many(100) {
            let (stream, guest, agent) = small();
            let (mut read, mut write) = stream.into_split();
            let (mut agent_read, mut agent_write) = agent.into_split();
            let tasks = [
                tokio::spawn(async move {
                    let mut all = Vec::new();
                    read.read_to_end(&mut all).await.unwrap();
                }),
                tokio::spawn(async move { while write.write_all(&[1; 5000]).await.is_ok() {} }),
                tokio::spawn(async move {
                    let mut all = Vec::new();
                    agent_read.read_to_end(&mut all).await.unwrap();
                }),
                tokio::spawn(
                    async move { while agent_write.write_all(&[1; 5000]).await.is_ok() {} },
                ),
            ];
            for _ in 0..round {
                tokio::task::yield_now().await;
            }
            guest.power_off().await;
            for task in tasks {
                task.await.unwrap();
            }
        }
    })
    .await;
}

#[test]
fn debug_is_one_line() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let _entered = runtime.enter();
    let (_stream, port) = AgentStream::pair().unwrap();
    let builder = Guest::builder().port("agent", port).on_exit(|_| ());
    let shown = "GuestBuilder { ports: [\"agent\"], on_exit: 1, threads: false, state: None }";
    assert_eq!(format!("{builder:?}"), shown);
    let guest = builder.boot();
    assert_eq!(format!("{guest:?}"), "Guest { .. }");
    let port = guest.open_blocking().unwrap();
    assert_eq!(format!("{port:?}"), "BlockingPort(Port { .. })");
}

/// Like a VM's last moments: nothing opens a port any more.
#[tokio::test]
async fn no_port_opens_once_power_off_has_begun() {
    for has_threads in [false, true] {
        watchdog(async {
            let (mut stream, port) = AgentStream::pair().unwrap();
            let (mut full, full_port) = Options::new().capacity(SMALL).create().unwrap();
            let (begun, mut has_begun) = tokio::sync::mpsc::unbounded_channel();
            let (proceed, may_proceed) = mpsc::channel::<()>();
            let may_proceed = Mutex::new(may_proceed);
            let guest = Guest::builder()
                .port("agent", port)
                .port("full", full_port)
                .on_exit(move |_| {
                    begun.send(()).unwrap();
                    may_proceed.lock().unwrap().recv().unwrap();
                })
                .threads(has_threads)
                .boot();
            let mut full_agent = guest.open_port("full").unwrap();
            full_agent.write_all(&vec![7; 2 * SMALL]).await.unwrap();
            while full.stats().tx.full == 0 {
                tokio::task::yield_now().await;
            }
            let mut late = (0..3)
                .map(|_| guest.run(VirtioPort::open("agent")))
                .collect::<Vec<_>>();
            let mut open = async || {
                let opened = late.pop().unwrap().await;
                assert_eq!(opened.unwrap_err().kind(), ErrorKind::NotConnected);
            };

            // While a worker waits for room.
            let mut off = task::spawn(Box::pin(guest.power_off()));
            assert_pending!(off.poll());
            open().await;
            full.read_exact(&mut vec![0; 2 * SMALL]).await.unwrap();
            let off = tokio::spawn(off.into_inner());
            // While a hook runs.
            has_begun.recv().await.unwrap();
            open().await;
            proceed.send(()).unwrap();
            off.await.unwrap();
            // Afterwards, while a port keeps the guest's memory.
            open().await;
            assert!(!stream.has_guest_opened());
            assert_eq!(stream.read(&mut [0; 8]).await.unwrap(), 0);
            drop(full_agent);
        })
        .await;
    }
}

#[tokio::test]
async fn power_off_that_is_given_up_ends_ports_at_once() {
    for has_threads in [false, true] {
        watchdog(async {
            let (mut stream, port) = Options::new().capacity(SMALL).create().unwrap();
            let ran = Arc::new(AtomicBool::new(false));
            let hook_ran = Arc::clone(&ran);
            let guest = Guest::builder()
                .port("agent", port)
                .on_exit(move |_| hook_ran.store(true, Ordering::Relaxed))
                .threads(has_threads)
                .boot();
            let mut agent = guest.open().unwrap();
            agent.write_all(&vec![7; 2 * SMALL]).await.unwrap();
            while stream.stats().tx.full == 0 {
                tokio::task::yield_now().await;
            }
            {
                let mut off = task::spawn(guest.power_off());
                assert_pending!(off.poll());
            }
            // The agent still has its port, and finds that it has ended.
            assert_eq!(agent.read(&mut [0; 8]).await.unwrap(), 0);
            let error = agent.write(b"too late").await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::BrokenPipe);
            let mut received = Vec::new();
            stream.read_to_end(&mut received).await.unwrap();
            assert!(received.len() >= SMALL);
            assert!(!ran.load(Ordering::Relaxed));
        })
        .await;
    }
}

/// However many callers stop the workers, and even if one gives up: each waits, and the workers can be started again.
#[tokio::test]
async fn every_caller_waits_until_workers_have_stopped() {
    for has_threads in [false, true] {
        watchdog(async {
            let (mut stream, port) = Options::new().capacity(SMALL).create().unwrap();
            let guest = Guest::builder()
                .port("agent", port)
                .threads(has_threads)
                .boot();
            let mut agent = guest.open().unwrap();
            agent.write_all(&vec![7; 2 * SMALL]).await.unwrap();
            while stream.stats().tx.full == 0 {
                tokio::task::yield_now().await;
            }
            assert_pending!(task::spawn(guest.stop_workers()).poll());
            let mut first = task::spawn(guest.stop_workers());
            let mut second = task::spawn(guest.stop_workers());
            assert_pending!(first.poll());
            assert_pending!(second.poll());
            stream.read_exact(&mut vec![0; 2 * SMALL]).await.unwrap();
            first.await;
            second.await;

            agent.write_all(b"meanwhile").await.unwrap();
            assert!(is_would_block(&stream.try_read(&mut [0; 16])));
            guest.start_workers().unwrap();
            stream.read_exact(&mut [0; 9]).await.unwrap();
            guest.power_off().await;
        })
        .await;
    }
}

#[tokio::test]
async fn waker_that_panics_keeps_no_task_from_being_woken() {
    watchdog(async {
        let (stream, guest, agent) = small();
        let panics = polling(|_| panic!("a waker that panics"));
        // More than tokio wakes in one go.
        let mut tasks: Vec<_> = (0..40).map(|_| task::spawn(agent.readable())).collect();
        let mut first = Box::pin(agent.readable());
        assert_pending!(first.as_mut().poll(&mut Context::from_waker(&panics)));
        tasks
            .iter_mut()
            .for_each(|task| assert_pending!(task.poll()));
        let mut last = Box::pin(agent.readable());
        assert_pending!(last.as_mut().poll(&mut Context::from_waker(&panics)));
        assert_eq!(stream.try_write(b"down").unwrap(), 4);
        assert!(tasks.iter().all(|task| task.is_woken()));

        // Nor does it count as a fault of a worker.
        while agent.try_write(&vec![7; SMALL]).is_ok() {}
        let mut drained = Box::pin(guest.drained());
        assert_pending!(drained.as_mut().poll(&mut Context::from_waker(&panics)));
        while stream.try_read(&mut vec![0; SMALL]).is_ok() {}
        guest.drained().await;
        drop(drained);
        guest.power_off().await;
    })
    .await;
}
