//! What no transport can beat: the same copies, and the same wakes, with nothing around them.

use std::os::fd::AsFd;
use std::thread;
use std::time::Duration;

use rtrb::{Consumer, CopyToUninit, Producer, RingBuffer};
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use tokio::io::unix::AsyncFd;

use super::meter::{Rate, Span, Trips};
use super::place::{Cores, Flavor};

/// Bytes a second through one byte ring of `capacity`, copied in by pieces of `write` and out by
/// pieces of `read`: by one thread that fills and empties the ring, or by two that spin.
pub(crate) fn two_copies(
    write: usize,
    read: usize,
    capacity: usize,
    cores: Cores,
    slice: Duration,
) -> f64 {
    let (mut producer, mut consumer) = RingBuffer::new(capacity);
    let (source, mut target) = (vec![7; write], vec![0; read]);
    match cores {
        Cores::One => thread::spawn(move || {
            cores.pin_host();
            let mut rate = Rate::new(slice);
            loop {
                while copy_in(&mut producer, &source) {}
                let mut bytes = 0;
                while let copied @ 1.. = copy_out(&mut consumer, &mut target) {
                    bytes += copied;
                }
                if let Some(rate) = rate.add(bytes) {
                    return rate;
                }
            }
        })
        .join(),
        Cores::Apart => {
            let copies_in = thread::spawn(move || {
                cores.pin_vmm();
                while !producer.is_abandoned() {
                    if !copy_in(&mut producer, &source) {
                        std::hint::spin_loop();
                    }
                }
            });
            let copies_out = thread::spawn(move || {
                cores.pin_host();
                let mut rate = Rate::new(slice);
                loop {
                    let copied = copy_out(&mut consumer, &mut target);
                    if copied == 0 {
                        std::hint::spin_loop();
                    } else if let Some(rate) = rate.add(copied) {
                        return rate;
                    }
                }
            });
            let rate = copies_out.join();
            copies_in.join().expect("no panic");
            rate
        }
    }
    .expect("no panic")
}

/// All of `source`, if there is room.
#[expect(unsafe_code, reason = "rtrb's way to write without zeroing first")]
fn copy_in(producer: &mut Producer<u8>, source: &[u8]) -> bool {
    let Ok(mut chunk) = producer.write_chunk_uninit(source.len()) else {
        return false;
    };
    let (first, second) = chunk.as_mut_slices();
    let (head, tail) = source.split_at(first.len());
    head.copy_to_uninit(first);
    tail.copy_to_uninit(second);
    // SAFETY: both slices, which are as long as `source` together, were written to the end.
    unsafe { chunk.commit_all() };
    true
}

/// As much as there is.
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

/// The time of each round trip between a tokio task that waits for an eventfd in `AsyncFd` and a
/// thread that waits for one in `poll(2)`, as krun's does.
pub(crate) fn eventfds(cores: Cores, flavor: Flavor, slice: Duration) -> Vec<Duration> {
    let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
    let runtime = flavor.build(cores);
    let work = async move {
        let to_vmm = eventfd(0, flags).expect("an eventfd");
        let to_host = eventfd(0, flags).expect("an eventfd");
        #[allow(deprecated, reason = "what programs call today")]
        let from_vmm =
            AsyncFd::new(to_host.try_clone().expect("a descriptor")).expect("a registration");
        let vmm_end = to_vmm.try_clone().expect("a descriptor");
        let vmm = thread::spawn(move || {
            cores.pin_vmm();
            let mut token = [0; 8];
            loop {
                poll(&mut [PollFd::new(&vmm_end, PollFlags::IN)], None).expect("a wait");
                rustix::io::read(&vmm_end, &mut token).expect("a token");
                if u64::from_ne_bytes(token) > 1 {
                    return;
                }
                signal(&to_host, 1);
            }
        });
        let mut trips = Trips::new(Span::Time(slice));
        while let Some(sent) = trips.next() {
            signal(&to_vmm, 1);
            from_vmm.readable().await.expect("a wait").clear_ready();
            trips.add(sent);
        }
        signal(&to_vmm, 2);
        vmm.join().expect("no panic");
        trips.times()
    };
    runtime
        .block_on(async { tokio::spawn(work).await })
        .expect("no panic")
}

fn signal(eventfd: impl AsFd, count: u64) {
    rustix::io::write(eventfd, &count.to_ne_bytes()).expect("a signal");
}

/// The time of each round trip between two threads that park: a futex each way.
pub(crate) fn futexes(cores: Cores, slice: Duration) -> Vec<Duration> {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    let turns = Arc::new(AtomicU64::new(0));
    let host = thread::spawn(move || {
        cores.pin_host();
        let host = thread::current();
        let vmm = thread::spawn({
            let turns = Arc::clone(&turns);
            move || {
                cores.pin_vmm();
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
        vmm.join().expect("no panic");
        trips.times()
    });
    host.join().expect("no panic")
}
