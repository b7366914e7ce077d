//! The machine's limits: bare copies and bare wakes, which no transport can beat.

use std::os::fd::AsFd;
use std::thread;
use std::time::Duration;

use rtrb::{Consumer, CopyToUninit, Producer, RingBuffer};
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use tokio::io::unix::AsyncFd;

use super::meter::{Clock, Flow, Span, Trips};
use super::place::{Cores, Flavor};

/// Copies bytes into a bare ring of `capacity` bytes and out again.
///
/// Bytes go in in pieces of `write` and out in pieces of at most `read`, at the place and of the sizes
/// that a transport's bytes have. They go round the ring, so the copies touch all of its memory. On one
/// core, one thread fills the ring and then empties it. Otherwise, two threads spin.
pub(crate) fn two_copies(
    write: usize,
    read: usize,
    capacity: usize,
    cores: Cores,
    slice: Duration,
) -> Flow {
    let (mut producer, mut consumer) = RingBuffer::new(capacity);
    let (source, mut target) = (vec![7; write], vec![0; read]);
    match cores {
        Cores::One => thread::spawn(move || {
            cores.place_host();
            let mut clock = Clock::new(slice);
            loop {
                while copy_in(&mut producer, &source) {}
                let mut bytes = 0;
                while let copied @ 1.. = copy_out(&mut consumer, &mut target) {
                    bytes += copied;
                }
                if let Some(flow) = clock.add(bytes) {
                    return flow;
                }
            }
        })
        .join(),
        Cores::Unpinned | Cores::Two => {
            let fill = thread::spawn(move || {
                cores.place_vmm();
                while !producer.is_abandoned() {
                    if !copy_in(&mut producer, &source) {
                        std::hint::spin_loop();
                    }
                }
            });
            let drain = thread::spawn(move || {
                cores.place_host();
                let mut clock = Clock::new(slice);
                loop {
                    let copied = copy_out(&mut consumer, &mut target);
                    if copied == 0 {
                        std::hint::spin_loop();
                    } else if let Some(flow) = clock.add(copied) {
                        return flow;
                    }
                }
            });
            let flow = drain.join();
            fill.join().expect("a thread panicked");
            flow
        }
    }
    .expect("a thread panicked")
}

/// Copies all of `source` into the ring, or returns `false` if it does not fit.
#[expect(unsafe_code, reason = "rtrb writes without zeroing only this way")]
fn copy_in(producer: &mut Producer<u8>, source: &[u8]) -> bool {
    let Ok(mut chunk) = producer.write_chunk_uninit(source.len()) else {
        return false;
    };
    let (first, second) = chunk.as_mut_slices();
    let (head, tail) = source.split_at(first.len());
    head.copy_to_uninit(first);
    tail.copy_to_uninit(second);
    // SAFETY: the two slices together are as long as `source`, and both were written to the end.
    unsafe { chunk.commit_all() };
    true
}

/// Copies out as much as the ring holds and `target` takes. Returns how much.
fn copy_out(consumer: &mut Consumer<u8>, target: &mut [u8]) -> usize {
    let count = consumer.slots().min(target.len());
    let Ok(chunk) = consumer.read_chunk(count) else {
        return 0;
    };
    let (first, second) = chunk.as_slices();
    let (head, tail) = target[..count].split_at_mut(first.len());
    head.copy_from_slice(first);
    tail.copy_from_slice(second);
    chunk.commit_all();
    count
}

/// Times round trips between a tokio task and a thread that wake each other.
///
/// The task waits for an eventfd in `AsyncFd`. The thread waits for another in `poll(2)`, as krun's
/// does.
pub(crate) fn eventfds(cores: Cores, flavor: Flavor, slice: Duration) -> Vec<Duration> {
    let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
    let runtime = flavor.build(cores);
    let work = async move {
        let to_vmm = eventfd(0, flags).expect("cannot create an eventfd");
        let to_host = eventfd(0, flags).expect("cannot create an eventfd");
        #[allow(deprecated, reason = "programs call it today")]
        let from_vmm = AsyncFd::new(to_host.try_clone().expect("cannot duplicate the eventfd"))
            .expect("cannot register the eventfd");
        let vmm_end = to_vmm.try_clone().expect("cannot duplicate the eventfd");
        let vmm = thread::spawn(move || {
            cores.place_vmm();
            let mut token = [0; 8];
            loop {
                poll(&mut [PollFd::new(&vmm_end, PollFlags::IN)], None).expect("cannot wait");
                rustix::io::read(&vmm_end, &mut token).expect("cannot read the eventfd");
                if u64::from_ne_bytes(token) > 1 {
                    return;
                }
                signal(&to_host, 1);
            }
        });
        let mut trips = Trips::new(Span::Time(slice));
        while let Some(sent) = trips.next() {
            signal(&to_vmm, 1);
            from_vmm
                .readable()
                .await
                .expect("cannot wait")
                .clear_ready();
            trips.add(sent);
        }
        signal(&to_vmm, 2);
        vmm.join().expect("a thread panicked");
        trips.times()
    };
    runtime
        .block_on(async { tokio::spawn(work).await })
        .expect("a thread panicked")
}

fn signal(eventfd: impl AsFd, count: u64) {
    rustix::io::write(eventfd, &count.to_ne_bytes()).expect("cannot write the eventfd");
}

/// Times round trips between two threads that park, so each direction takes one futex.
pub(crate) fn futexes(cores: Cores, slice: Duration) -> Vec<Duration> {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    let turns = Arc::new(AtomicU64::new(0));
    let host = thread::spawn(move || {
        cores.place_host();
        let host = thread::current();
        let vmm = thread::spawn({
            let turns = Arc::clone(&turns);
            move || {
                cores.place_vmm();
                loop {
                    match turns.load(Ordering::Acquire) {
                        u64::MAX => return,
                        turn if turn % 2 == 1 => {
                            turns.store(turn + 1, Ordering::Release);
                            host.unpark();
                        }
                        _ => thread::park(),
                    }
                }
            }
        });
        let mut trips = Trips::new(Span::Time(slice));
        let mut turn = 0;
        while let Some(sent) = trips.next() {
            turns.store(turn + 1, Ordering::Release);
            vmm.thread().unpark();
            turn += 2;
            while turns.load(Ordering::Acquire) != turn {
                thread::park();
            }
            trips.add(sent);
        }
        turns.store(u64::MAX, Ordering::Release);
        vmm.thread().unpark();
        vmm.join().expect("a thread panicked");
        trips.times()
    });
    host.join().expect("a thread panicked")
}
