//! Checkpoints: what was between host and guest is there again, in another stream and with another guest.

mod common;

use std::io;

use common::{SMALL, is_would_block, pattern, watchdog};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_krun::agent::VirtioPort;
use tokio_krun::test_util::Guest;
use tokio_krun::{AgentPort, AgentStream, Error, Options, PortHandle, StreamState};

/// What a queue of 32 descriptors can hold, so that nothing is cut off.
const ENOUGH: usize = 1024 * 1024;

/// On Windows, a guest with threads has a pipe, which cannot be captured.
const KINDS: &[bool] = if cfg!(windows) {
    &[false]
} else {
    &[false, true]
};

/// One direction of a long transfer.
struct Transfer {
    bytes: Vec<u8>,
    sent: usize,
    received: usize,
}

impl Transfer {
    fn new(length: usize) -> Self {
        Self {
            bytes: pattern(length),
            sent: 0,
            received: 0,
        }
    }

    fn send(&mut self, most: usize, write: impl FnOnce(&[u8]) -> io::Result<usize>) {
        let rest = &self.bytes[self.sent..];
        self.sent += or_zero(write(&rest[..most.min(rest.len())]));
    }

    fn receive(&mut self, most: usize, read: impl FnOnce(&mut [u8]) -> io::Result<usize>) {
        let mut buffer = vec![0; most];
        let read = or_zero(read(&mut buffer));
        assert!(
            buffer[..read] == self.bytes[self.received..][..read],
            "wrong bytes after {}",
            self.received
        );
        self.received += read;
    }

    fn is_over(&self) -> bool {
        self.received == self.bytes.len()
    }
}

/// Nothing moved now.
fn or_zero(moved: io::Result<usize>) -> usize {
    match moved {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
        moved => moved.unwrap(),
    }
}

/// A VM's life, from a boot or a restore to a capture.
struct Life {
    stream: AgentStream,
    handle: PortHandle,
    guest: Guest,
    agent: VirtioPort,
    has_threads: bool,
}

type States = (tokio_krun::test_util::GuestState, StreamState);

impl Life {
    fn boot(capacity: usize, has_threads: bool) -> Self {
        let (stream, port) = Options::new().capacity(capacity).create().unwrap();
        let handle = port.handle();
        let guest = Guest::builder()
            .port("agent", port)
            .threads(has_threads)
            .boot();
        let agent = guest.open().unwrap();
        Self {
            stream,
            handle,
            guest,
            agent,
            has_threads,
        }
    }

    async fn capture(&self) -> States {
        self.guest.pause();
        let checkpoint = self.handle.checkpoint();
        self.guest.stop_workers().await;
        let states = (self.guest.capture().unwrap(), checkpoint.capture().unwrap());
        checkpoint.resume().unwrap();
        states
    }

    fn go_on(&self) {
        self.guest.start_workers().unwrap();
        self.guest.resume();
    }

    fn restore((guest_state, state): &States, has_threads: bool) -> Self {
        let (stream, port) = Options::new()
            .capacity(state.capacity())
            .restore(state)
            .unwrap();
        let handle = port.handle();
        let guest = Guest::builder()
            .port("agent", port)
            .threads(has_threads)
            .restore(guest_state)
            .boot();
        let agent = guest.open().unwrap();
        let life = Self {
            stream,
            handle,
            guest,
            agent,
            has_threads,
        };
        life.go_on();
        life
    }

    fn step(&self, random: &mut fastrand::Rng, to_host: &mut Transfer, to_guest: &mut Transfer) {
        let length = [1, 100, 5000, 32 * 1024, 300_000][random.usize(0..5)];
        match random.u32(0..4) {
            0 => to_host.send(length, |bytes| self.agent.try_write(bytes)),
            1 => to_host.receive(length, |buffer| self.stream.try_read(buffer)),
            2 => to_guest.send(length, |bytes| self.stream.try_write(bytes)),
            _ => to_guest.receive(length, |buffer| self.agent.try_read(buffer)),
        }
    }

    /// To the end of both directions.
    async fn finish(mut self, to_host: &mut Transfer, to_guest: &mut Transfer) {
        let mut left = vec![0; to_host.bytes.len() - to_host.received];
        let mut left_to_guest = vec![0; to_guest.bytes.len() - to_guest.received];
        let (mut host_reads, mut host_writes) = self.stream.split();
        let (mut agent_reads, mut agent_writes) = tokio::io::split(&mut self.agent);
        tokio::try_join!(
            host_reads.read_exact(&mut left),
            agent_reads.read_exact(&mut left_to_guest),
            host_writes.write_all(&to_guest.bytes[to_guest.sent..]),
            agent_writes.write_all(&to_host.bytes[to_host.sent..]),
        )
        .unwrap();
        assert!(left == to_host.bytes[to_host.received..]);
        assert!(left_to_guest == to_guest.bytes[to_guest.received..]);
        assert_eq!(self.stream.stats().tx.bytes, to_host.bytes.len() as u64);
        self.stream.drained().await.unwrap();
        assert_eq!(self.stream.stats().rx.bytes, to_guest.bytes.len() as u64);
    }
}

/// Each life is captured after some steps of both sides, and another goes on from there.
async fn lives(has_threads: bool, seed: u64) {
    let mut random = fastrand::Rng::with_seed(seed);
    let (mut to_host, mut to_guest) = (Transfer::new(3 << 20), Transfer::new(3 << 20));
    let mut life = Life::boot(ENOUGH, has_threads);
    for _ in 0..8 {
        for _ in 0..random.usize(0..60) {
            life.step(&mut random, &mut to_host, &mut to_guest);
        }
        // A ring that is more than full after the last checkpoint might not take all at the next.
        while life.stream.stats().tx.queued > ENOUGH as u64 {
            to_host.receive(300_000, |buffer| life.stream.try_read(buffer));
        }
        let states = life.capture().await;
        let stats = states.1.stats();
        assert_eq!(stats.tx.bytes, to_host.received as u64);
        assert_eq!(stats.rx.bytes + stats.rx.queued, to_guest.sent as u64);
        life = match random.bool() {
            true => Life::restore(&states, life.has_threads),
            false => {
                life.go_on();
                life
            }
        };
        if to_host.is_over() && to_guest.is_over() {
            break;
        }
    }
    life.finish(&mut to_host, &mut to_guest).await;
}

#[tokio::test]
async fn nothing_is_lost_or_doubled_over_many_lives() {
    watchdog(async {
        for &has_threads in KINDS {
            for seed in 0..5 {
                lives(has_threads, seed).await;
            }
        }
    })
    .await;
}

#[tokio::test]
async fn each_of_two_forks_is_whole_and_so_is_the_original() {
    watchdog(async {
        for &has_threads in KINDS {
            let mut random = fastrand::Rng::with_seed(7);
            let (mut to_host, mut to_guest) = (Transfer::new(2 << 20), Transfer::new(2 << 20));
            let life = Life::boot(ENOUGH, has_threads);
            for _ in 0..40 {
                life.step(&mut random, &mut to_host, &mut to_guest);
            }
            let states = life.capture().await;
            let mut file = Vec::new();
            states.1.write_to(&mut file).unwrap();
            assert_eq!(StreamState::read_from(&file[..]).unwrap(), states.1);
            life.go_on();
            let forks = [0, 1].map(|_| Life::restore(&states, has_threads));
            for life in forks.into_iter().chain([life]) {
                life.finish(&mut to_host, &mut to_guest).await;
            }
        }
    })
    .await;
}

/// The host does not read before, during or after the checkpoint.
#[tokio::test]
async fn full_ring_that_nobody_reads_is_captured_with_what_the_guest_had_queued() {
    watchdog(async {
        for &has_threads in KINDS {
            let life = Life::boot(ENOUGH, has_threads);
            let mut to_host = Transfer::new(4 << 20);
            while life.stream.stats().tx.queued < ENOUGH as u64 {
                to_host.send(32 * 1024, |bytes| life.agent.try_write(bytes));
                tokio::task::yield_now().await;
            }
            while to_host.sent < ENOUGH * 3 / 2 {
                to_host.send(32 * 1024, |bytes| life.agent.try_write(bytes));
            }
            let states = life.capture().await;
            drop(life);
            assert!(states.1.stats().tx.queued >= ENOUGH as u64);
            let life = Life::restore(&states, has_threads);
            life.finish(&mut to_host, &mut Transfer::new(100)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn capture_fails_while_workers_run_and_changes_nothing() {
    watchdog(async {
        for &has_threads in KINDS {
            let mut life = Life::boot(SMALL, has_threads);
            life.agent.write_all(b"hello").await.unwrap();
            life.guest.drained().await;
            life.guest.pause();
            let checkpoint = life.handle.checkpoint();
            assert!(matches!(checkpoint.capture(), Err(Error::NotAtRest)));
            drop(checkpoint);
            assert!(life.guest.capture().is_err());

            let (stream, error) = life.stream.into_state().unwrap_err();
            assert!(matches!(error, Error::NotAtRest));
            life.stream = stream;
            life.guest.resume();
            let mut received = [0; 5];
            life.stream.read_exact(&mut received).await.unwrap();
            assert_eq!(&received, b"hello");

            life.guest.pause();
            life.guest.stop_workers().await;
            life.handle.checkpoint().capture().unwrap();
        }
    })
    .await;
}

#[cfg(windows)]
#[tokio::test]
async fn stream_whose_pipe_krun_has_opened_cannot_be_captured() {
    watchdog(async {
        let life = Life::boot(SMALL, true);
        life.stream.guest_opened().await.unwrap();
        let captured = life.handle.checkpoint().capture();
        assert!(matches!(captured, Err(Error::InPipe)));
    })
    .await;
}

/// A thread that had not called, and so was not seen, calls after the capture.
#[cfg(unix)]
#[test]
fn checkpoint_tells_of_worker_that_calls_after_capture() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (_stream, port) = Options::new().create_on(runtime.handle()).unwrap();
    let handle = port.handle();
    let backend = port.into_backend();
    let checkpoint = handle.checkpoint();
    checkpoint.capture().unwrap();
    checkpoint.resume().unwrap();

    let checkpoint = handle.checkpoint();
    checkpoint.capture().unwrap();
    std::thread::scope(|scope| {
        let krun = scope.spawn(|| backend.write(b"too late").unwrap());
        // As krun does. Without it, the scope may end before the thread has.
        krun.join().unwrap();
    });
    assert!(matches!(checkpoint.resume(), Err(Error::NotAtRest)));
    // The thread has ended.
    let state = handle.checkpoint().capture().unwrap();
    assert_eq!(state.stats().tx.queued, 8);
}

#[tokio::test]
async fn capture_fails_once_bytes_were_cut_off_or_the_guest_has_gone() {
    let (mut stream, backend) = common::pair();
    let handle = {
        let (_, port) = AgentStream::pair().unwrap();
        port.handle()
    };
    // Both ends of this one are gone.
    assert!(matches!(
        handle.checkpoint().capture(),
        Err(Error::GuestGone)
    ));
    drop(backend);
    let (stream_back, error) = stream.into_state().unwrap_err();
    assert!(matches!(error, Error::GuestGone));
    stream = stream_back;
    assert_eq!(stream.read(&mut [0]).await.unwrap(), 0);

    let (stream, port) = Options::new().capacity(SMALL).create().unwrap();
    let handle = port.handle();
    let backend = common::backend(port);
    let checkpoint = handle.checkpoint();
    assert_eq!(backend.write(&[7; 3 * SMALL]).unwrap(), 3 * SMALL);
    common::leave(&backend);
    assert!(matches!(checkpoint.capture(), Err(Error::CutOff)));
    drop(stream);
}

#[tokio::test]
async fn dropped_checkpoint_lets_the_guest_wait_for_room_again() {
    let (stream, port) = Options::new().capacity(SMALL).create().unwrap();
    let handle = port.handle();
    let backend = common::backend(port);
    for end in [drop, |checkpoint| {
        let _ = tokio_krun::Checkpoint::resume(checkpoint);
    }] {
        let checkpoint = handle.checkpoint();
        backend.write(&[7; SMALL]).unwrap();
        end(checkpoint);
        assert!(is_would_block(&backend.write(&[7; SMALL])));
        stream.try_read(&mut [0; SMALL]).unwrap();
    }
}

/// A stream whose guest has not opened its port, with what the host has written.
async fn unopened(capacity: usize, length: usize) -> (AgentStream, AgentPort, StreamState) {
    let (mut stream, port) = Options::new().capacity(capacity).create().unwrap();
    stream.write_all(&pattern(length)).await.unwrap();
    let state = port.handle().checkpoint().capture().unwrap();
    (stream, port, state)
}

#[tokio::test]
async fn capacity_may_change_but_must_be_enough() {
    let (_stream, _port, state) = unopened(4 * SMALL, 2 * SMALL).await;
    let restore = |capacity| Options::new().capacity(capacity).restore(&state);
    for capacity in [2 * SMALL, 4 * SMALL, 100 * SMALL] {
        let (stream, port) = restore(capacity).unwrap();
        assert_eq!(stream.capacity(), capacity);
        let mut received = vec![0; 3 * SMALL];
        let read = common::backend(port).read(&mut received).unwrap();
        assert!(received[..read] == pattern(2 * SMALL));
    }
    match restore(2 * SMALL - 1) {
        Err(Error::StateTooLarge {
            needs, capacity, ..
        }) => assert_eq!((needs, capacity), (2 * SMALL, 2 * SMALL - 1)),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn what_the_host_has_ended_is_ended() {
    let restore = |state: &StreamState| Options::new().restore(state).unwrap();
    let mut buf = [0; 8];

    let (stream, port, _) = unopened(SMALL, 3).await;
    let handle = port.handle();
    stream.hang_up();
    let (stream, port) = restore(&handle.checkpoint().capture().unwrap());
    let backend = common::backend(port);
    assert_eq!(backend.read(&mut buf).unwrap(), 3);
    #[cfg(unix)]
    {
        assert!(is_would_block(&backend.read(&mut buf)));
        backend.read_wake_fd(); // krun waits
    }
    assert_eq!(backend.read(&mut buf).unwrap(), 0);
    assert_eq!(
        stream.try_write(&[1]).unwrap_err().kind(),
        io::ErrorKind::BrokenPipe
    );

    // krun is told once more what it has heard already.
    common::leave(&backend);
    let (_stream, port) = restore(&stream.into_state().unwrap());
    assert_eq!(common::backend(port).read(&mut buf).unwrap(), 0);

    let (mut stream, _port, _) = unopened(SMALL, 3).await;
    stream.shutdown().await.unwrap();
    let (stream, port) = restore(&stream.into_state().unwrap());
    let backend = common::backend(port);
    assert_eq!(backend.read(&mut buf).unwrap(), 3);
    assert!(is_would_block(&backend.read(&mut buf)));
    assert_eq!(
        stream.try_write(&[1]).unwrap_err().kind(),
        io::ErrorKind::BrokenPipe
    );

    // The reading half is dropped, and then everything.
    let (stream, port, _) = unopened(SMALL, 3).await;
    let handle = port.handle();
    let (read, write) = stream.into_split();
    drop(read);
    let (stream, port) = restore(&handle.checkpoint().capture().unwrap());
    let backend = common::backend(port);
    assert_eq!(backend.write(&[7; 100]).unwrap(), 100);
    assert_eq!(stream.stats().tx.discarded, 100);
    stream.try_write(&[1]).unwrap();
    drop(write);
    let (stream, port) = restore(&handle.checkpoint().capture().unwrap());
    assert_eq!(stream.try_read(&mut buf).unwrap(), 0);
    assert_eq!(common::backend(port).read(&mut buf).unwrap(), 3);
}

/// Two ports, one of them not open, in krun's order.
#[tokio::test]
async fn several_ports_are_captured_together() {
    let ports = |streams: [AgentPort; 2]| {
        let [control, logs] = streams;
        Guest::builder().port("control", control).port("logs", logs)
    };
    let (mut control, control_port) = AgentStream::pair().unwrap();
    let (_logs, logs_port) = AgentStream::pair().unwrap();
    let handles = [control_port.handle(), logs_port.handle()];
    let guest = ports([control_port, logs_port]).boot();
    let mut agent = guest.open_port("control").unwrap();
    agent.write_all(b"to the host").await.unwrap();
    control.write_all(b"to the guest").await.unwrap();

    guest.pause();
    let checkpoints = handles.each_ref().map(PortHandle::checkpoint);
    guest.stop_workers().await;
    let guest_state = guest.capture().unwrap();
    let mut file = Vec::new();
    for checkpoint in checkpoints {
        checkpoint.capture().unwrap().write_to(&mut file).unwrap();
        checkpoint.resume().unwrap();
    }
    drop((control, guest, agent));

    let mut file = &file[..];
    let [(mut control, control_port), (logs, logs_port)] = [0, 1].map(|_| {
        let state = StreamState::read_from(&mut file).unwrap();
        Options::new().restore(&state).unwrap()
    });
    assert!(file.is_empty());
    assert!(control.has_guest_opened() && !logs.has_guest_opened());
    let guest = ports([control_port, logs_port])
        .restore(&guest_state)
        .boot();
    let mut agent = guest.open_port("control").unwrap();
    guest.start_workers().unwrap();
    guest.resume();
    let (mut to_host, mut to_guest) = ([0; 11], [0; 12]);
    control.read_exact(&mut to_host).await.unwrap();
    agent.read_exact(&mut to_guest).await.unwrap();
    assert_eq!((&to_host, &to_guest), (b"to the host", b"to the guest"));

    // The other port is opened now.
    guest
        .open_port("logs")
        .unwrap()
        .write_all(b"log")
        .await
        .unwrap();
    assert!(logs.has_guest_opened());
}

#[tokio::test]
#[should_panic(expected = "the guest's ports are [\"logs\"], and those of its state [\"agent\"]")]
async fn guest_refuses_state_of_other_ports() {
    let life = Life::boot(SMALL, false);
    let (guest_state, state) = life.capture().await;
    let (_stream, port) = Options::new().restore(&state).unwrap();
    Guest::builder()
        .port("logs", port)
        .restore(&guest_state)
        .boot();
}

#[tokio::test]
async fn agents_port_is_given_back_only_once() {
    let life = Life::boot(SMALL, false);
    let states = life.capture().await;
    let restored = Life::restore(&states, false);
    let again = restored.guest.open().unwrap_err();
    assert_eq!(again.kind(), io::ErrorKind::ResourceBusy);
}

/// A second attempt, which replaces the first.
#[cfg(unix)]
#[tokio::test]
async fn port_is_quiesced_while_any_checkpoint_lives() {
    let (_stream, port) = Options::new().capacity(32 * 1024).create().unwrap();
    let handle = port.handle();
    let backend = port.into_backend();
    backend.write(&[0; 32 * 1024]).unwrap();
    let mut checkpoint = handle.checkpoint();
    assert!(matches!(checkpoint.capture(), Err(Error::NotAtRest)));
    checkpoint = handle.checkpoint();
    assert_eq!(backend.write(&[0; 1024]).unwrap(), 1024);
    handle.resume();
    assert_eq!(backend.write(&[0; 1024]).unwrap(), 1024);
    drop(checkpoint);
    let error = backend.write(&[0; 1024]).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
}

/// By value, the end of the checkpoint says so as well.
#[cfg(unix)]
#[tokio::test]
async fn resume_fails_if_worker_has_called_since_stream_became_state() {
    let (stream, port) = AgentStream::pair().unwrap();
    let handle = port.handle();
    let backend = port.into_backend();
    let checkpoint = handle.checkpoint();
    stream.into_state().map_err(|(_, error)| error).unwrap();
    assert_eq!(backend.write(b"late").unwrap(), 4);
    assert!(matches!(checkpoint.resume(), Err(Error::NotAtRest)));
}
