//! `closed`, and a `PortHandle` that outlives both ends of its stream.

mod common;

use std::io::ErrorKind;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use common::{Backend, SMALL, backend, counted, is_would_block, many, pair, watchdog};
use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::io::{AsyncReadExt, Interest};
use tokio::runtime::Builder;
use tokio_krun::{AgentStream, Options, PortHandle};
use tokio_test::{assert_pending, assert_ready, assert_ready_ok, task};

fn pair_with_handle() -> (AgentStream, PortHandle, Backend) {
    let (stream, port) = Options::new().capacity(SMALL).create().unwrap();
    let handle = port.handle();
    (stream, handle, backend(port))
}

/// Leaves bytes unread, drops `backend`, and checks that each of `waits` resolves then and not before.
fn assert_resolve_once_guest_goes(backend: Backend, waits: Vec<BoxFuture<'_, ()>>) {
    let mut waits: Vec<_> = waits.into_iter().map(tokio_test::task::spawn).collect();
    for wait in &mut waits {
        assert_pending!(wait.poll());
    }
    backend.write(b"unread").unwrap();
    for wait in &mut waits {
        assert!(!wait.is_woken());
        assert_pending!(wait.poll());
    }
    drop(backend);
    for wait in &mut waits {
        assert!(wait.is_woken());
        assert_ready!(wait.poll());
    }
}

#[tokio::test]
async fn closed_resolves_with_bytes_unread() {
    let (stream, handle, backend) = pair_with_handle();
    let waits = vec![stream.closed().boxed(), handle.closed().boxed()];
    assert_resolve_once_guest_goes(backend, waits);
    // Waiting has read nothing.
    let mut buffer = [0; 8];
    assert_eq!(stream.try_read(&mut buffer).unwrap(), 6);
    assert_eq!(&buffer[..6], b"unread");
}

#[tokio::test]
async fn closed_resolves_on_each_half() {
    let (mut stream, backend) = pair();
    let (read, write) = stream.split();
    let waits = vec![read.closed().boxed(), write.closed().boxed()];
    assert_resolve_once_guest_goes(backend, waits);

    let (stream, backend) = pair();
    let (read, write) = stream.into_split();
    let waits = vec![read.closed().boxed(), write.closed().boxed()];
    assert_resolve_once_guest_goes(backend, waits);
}

/// Each owned half outlives the other.
#[tokio::test]
async fn closed_resolves_on_half_without_other_half() {
    let (stream, backend) = pair();
    let (read, write) = stream.into_split();
    drop(write);
    assert_resolve_once_guest_goes(backend, vec![read.closed().boxed()]);

    let (stream, backend) = pair();
    let (read, write) = stream.into_split();
    drop(read);
    assert_resolve_once_guest_goes(backend, vec![write.closed().boxed()]);
}

#[tokio::test]
async fn every_task_waiting_in_closed_is_woken() {
    watchdog(async {
        let (stream, handle, backend) = pair_with_handle();
        let stream = Arc::new(stream);
        let mut tasks = Vec::new();
        for _ in 0..many(64) {
            let stream = Arc::clone(&stream);
            tasks.push(tokio::spawn(async move { stream.closed().await }));
            let handle = handle.clone();
            tasks.push(tokio::spawn(async move { handle.closed().await }));
        }
        tokio::task::yield_now().await;
        assert!(tasks.iter().all(|task| !task.is_finished()));
        drop(backend);
        for task in tasks {
            task.await.unwrap();
        }
    })
    .await;
}

#[tokio::test]
async fn closed_resolves_if_guest_goes_meanwhile() {
    watchdog(async {
        for _ in 0..many(300) {
            let (stream, handle, backend) = pair_with_handle();
            let krun = thread::spawn(move || {
                backend.write(b"unread").unwrap();
                drop(backend);
            });
            tokio::join!(stream.closed(), handle.closed());
            assert_eq!(stream.try_read(&mut [0; 8]).unwrap(), 6);
            krun.join().unwrap();
        }
    })
    .await;
}

#[tokio::test]
async fn dropped_closed_does_not_disturb_others() {
    let (stream, handle, backend) = pair_with_handle();
    let mut kept = [stream.closed().boxed(), handle.closed().boxed()].map(tokio_test::task::spawn);
    for _ in 0..3 {
        let mut dropped = tokio_test::task::spawn(stream.closed());
        assert_pending!(dropped.poll());
        let mut dropped = tokio_test::task::spawn(handle.closed());
        assert_pending!(dropped.poll());
        for wait in &mut kept {
            assert_pending!(wait.poll());
        }
    }
    // Dropping a wait that was already woken does not keep the others from being woken either.
    let mut woken = tokio_test::task::spawn(stream.closed());
    assert_pending!(woken.poll());
    drop(backend);
    assert!(woken.is_woken());
    drop(woken);
    for wait in &mut kept {
        assert!(wait.is_woken());
        assert_ready!(wait.poll());
    }
}

#[tokio::test]
async fn closed_is_ready_at_once_if_guest_has_gone() {
    let (stream, handle, backend) = pair_with_handle();
    backend.write(b"unread").unwrap();
    drop(backend);
    for _ in 0..3 {
        assert_ready!(tokio_test::task::spawn(stream.closed()).poll());
        assert_ready!(tokio_test::task::spawn(handle.closed()).poll());
        assert_ready!(tokio_test::task::spawn(handle.clone().closed()).poll());
    }

    let (stream, port) = AgentStream::pair().unwrap();
    let handle = port.handle();
    assert_pending!(tokio_test::task::spawn(stream.closed()).poll());
    drop(port);
    assert_ready!(tokio_test::task::spawn(stream.closed()).poll());
    assert_ready!(tokio_test::task::spawn(handle.closed()).poll());
}

/// A wait for the guest's end is no wait for its bytes, so its writes need not wake anyone.
#[tokio::test]
async fn pending_closed_costs_guest_no_wakes() {
    let (stream, handle, backend) = pair_with_handle();
    let mut waits = [stream.closed().boxed(), handle.closed().boxed()].map(tokio_test::task::spawn);
    for _ in 0..100 {
        for wait in &mut waits {
            assert_pending!(wait.poll());
        }
        backend.write(b"x").unwrap();
    }
    assert_eq!(stream.stats().tx.data_wakes, 0);
    assert!(waits.iter().all(|wait| !wait.is_woken()));
}

/// The bytes of a guest that is still there may have been discarded, which ends only reading.
#[tokio::test]
async fn closed_waits_for_guest_whose_bytes_were_discarded() {
    let (stream, handle, backend) = pair_with_handle();
    handle.quiesce();
    backend.write(&vec![1; 2 * SMALL + 1]).unwrap();
    stream.try_read(&mut vec![0; 2 * SMALL]).unwrap();
    stream.try_read(&mut [0; 8]).unwrap_err();
    let waits = vec![stream.closed().boxed(), handle.closed().boxed()];
    assert_resolve_once_guest_goes(backend, waits);
}

#[tokio::test]
async fn closed_resolves_when_vm_ends() {
    watchdog(async {
        // The guest powers off.
        let (stream, port) = AgentStream::pair().unwrap();
        let handle = port.handle();
        let guest = common::boot(port);
        let agent = guest.open().unwrap();
        assert_pending!(tokio_test::task::spawn(stream.closed()).poll());
        guest.power_off().await;
        tokio::join!(stream.closed(), handle.closed());
        drop(agent);

        // The VM is dropped. Closing the port in the guest is not enough.
        let (stream, port) = AgentStream::pair().unwrap();
        let handle = port.handle();
        let guest = common::boot(port);
        drop(guest.open().unwrap());
        assert_pending!(tokio_test::task::spawn(stream.closed()).poll());
        assert_pending!(tokio_test::task::spawn(handle.closed()).poll());
        drop(guest);
        tokio::join!(stream.closed(), handle.closed());

        // krun runs the exit hook, before it drops the port.
        let (stream, port) = AgentStream::pair().unwrap();
        let handle = port.handle();
        port.exit_hook(Duration::ZERO)(0);
        tokio::join!(stream.closed(), handle.closed());
        drop(port);
    })
    .await;
}

#[tokio::test]
async fn handle_closed_does_not_need_stream() {
    let (stream, handle, backend) = pair_with_handle();
    let mut closed = tokio_test::task::spawn(handle.closed());
    assert_pending!(closed.poll());
    drop(stream);
    assert!(!closed.is_woken(), "the guest is still there");
    assert_pending!(closed.poll());
    drop(backend);
    assert!(closed.is_woken());
    assert_ready!(closed.poll());
    // Nothing is left but the handle.
    assert_ready!(tokio_test::task::spawn(handle.closed()).poll());
    assert_ready!(tokio_test::task::spawn(handle.clone().closed()).poll());

    let (stream, handle, backend) = pair_with_handle();
    drop(backend);
    drop(stream);
    assert_ready!(tokio_test::task::spawn(handle.closed()).poll());
}

/// `closed` needs no driver and no timer, so any executor can wait for it.
#[test]
fn closed_resolves_on_another_runtime() {
    let _deadline = common::deadline();
    let home = Builder::new_current_thread().enable_all().build().unwrap();
    let (stream, handle, backend) = home.block_on(async { pair_with_handle() });
    let away = Builder::new_multi_thread()
        .worker_threads(1)
        .build()
        .unwrap();
    let waiting = Arc::new(AtomicU64::new(0));
    let of_handle = away.spawn({
        let (handle, waiting) = (handle.clone(), Arc::clone(&waiting));
        async move { counted(&waiting, handle.closed()).await }
    });
    let of_stream = away.spawn({
        let waiting = Arc::clone(&waiting);
        async move { counted(&waiting, stream.closed()).await }
    });
    // Without any runtime.
    let of_thread = thread::spawn({
        let waiting = Arc::clone(&waiting);
        move || futures::executor::block_on(counted(&waiting, handle.closed()))
    });
    while waiting.load(Ordering::Relaxed) < 3 {
        thread::yield_now();
    }
    assert!(!of_handle.is_finished() && !of_stream.is_finished() && !of_thread.is_finished());
    drop(backend);
    futures::executor::block_on(of_handle).unwrap();
    futures::executor::block_on(of_stream).unwrap();
    of_thread.join().unwrap();
}

#[tokio::test]
async fn stats_stay_when_both_ends_are_gone() {
    // The stream goes first.
    let (stream, handle, backend) = pair_with_handle();
    assert_eq!(backend.write(&[1; 1000]).unwrap(), 1000);
    assert_eq!(stream.try_read(&mut [0; 400]).unwrap(), 400);
    assert_eq!(stream.try_write(&[2; 300]).unwrap(), 300);
    drop(stream);
    assert_eq!(backend.read(&mut [0; 500]).unwrap(), 300);
    assert_eq!(backend.write(&[3; 50]).unwrap(), 50);
    let last = handle.stats();
    assert_eq!((last.tx.bytes, last.tx.discarded), (400, 650));
    assert_eq!((last.tx.high_water, last.rx.bytes), (1000, 300));
    let other = handle.clone();
    drop(backend);
    assert_eq!(handle.stats(), last);
    assert_eq!(other.stats(), last);
    assert_eq!(thread::spawn(move || other.stats()).join().unwrap(), last);

    // The guest goes first. Dropping the stream then discards what it has not read, which counts too.
    let (stream, handle, backend) = pair_with_handle();
    assert_eq!(backend.write(&[1; 1000]).unwrap(), 1000);
    assert_eq!(stream.try_write(&[2; 300]).unwrap(), 300);
    assert_eq!(backend.read(&mut [0; 100]).unwrap(), 100);
    drop(backend);
    assert_eq!(stream.try_read(&mut [0; 400]).unwrap(), 400);
    drop(stream);
    let last = handle.stats();
    assert_eq!((last.tx.bytes, last.tx.discarded), (400, 600));
    assert_eq!((last.rx.bytes, last.rx.discarded), (100, 200));
    assert_eq!((last.tx.queued, last.rx.queued), (0, 0));
    assert_eq!(handle.stats(), last);
}

/// A thread asks for them just while both ends go, in either order.
#[tokio::test]
async fn stats_never_go_back_while_both_ends_go() {
    watchdog(async {
        for round in 0..many(300) {
            let (stream, handle, backend) = pair_with_handle();
            backend.write(&[1; 1000]).unwrap();
            let asking = thread::spawn(move || {
                let mut discarded = 0;
                while discarded < 1000 {
                    let now = handle.stats().tx.discarded;
                    assert!(now >= discarded);
                    discarded = now;
                }
                // The stream, which has not read the bytes, is gone or going. So is the guest.
                while handle.closed().now_or_never().is_none() {
                    thread::yield_now();
                }
                assert_eq!(handle.stats().tx.discarded, 1000);
                handle
            });
            if round % 2 == 0 {
                drop(stream);
                drop(backend);
            } else {
                drop(backend);
                drop(stream);
            }
            let handle = asking.join().unwrap();
            assert_eq!(handle.stats().tx.discarded, 1000);
        }
    })
    .await;
}

#[tokio::test]
async fn quiesce_and_resume_do_nothing_once_both_ends_are_gone() {
    let (stream, handle, backend) = pair_with_handle();
    assert_eq!(backend.write(&[1; 1000]).unwrap(), 1000);
    drop(stream);
    drop(backend);
    let last = handle.stats();
    assert_eq!(last.tx.discarded, 1000);
    handle.quiesce();
    handle.resume();
    handle.resume();
    assert_eq!(handle.stats(), last);
    assert_ready!(tokio_test::task::spawn(handle.closed()).poll());
}

#[tokio::test]
async fn close_ends_both_directions_for_every_task() {
    for by_handle in [false, true] {
        let (stream, handle, backend) = pair_with_handle();
        backend.write(b"unread").unwrap();
        stream.try_read(&mut [0; 1]).unwrap();
        assert_eq!(stream.capacity(), SMALL);
        stream.try_write(&[7; SMALL]).unwrap();
        {
            let mut drained = task::spawn(stream.drained());
            let mut writes = task::spawn(stream.writable());
            assert_pending!(drained.poll());
            assert_pending!(writes.poll());
            match by_handle {
                true => handle.close(),
                false => stream.close(),
            }
            assert_ready_ok!(writes.poll());
            assert_pending!(drained.poll());
        }
        assert_eq!(stream.stats().tx.discarded, 5);
        assert_eq!(stream.try_read(&mut [0; 8]).unwrap(), 0);
        let mut buf = bytes::BytesMut::new();
        assert_eq!(stream.read_available(&mut buf, 8).await.unwrap(), 0);
        let ready = stream
            .ready(Interest::READABLE | Interest::WRITABLE)
            .await
            .unwrap();
        assert!(ready.is_read_closed() && ready.is_write_closed());
        let error = stream.try_write(b"late").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::BrokenPipe);

        // What was written before is delivered, and then the end. What the guest writes is discarded.
        assert_eq!(backend.write(b"late").unwrap(), 4);
        let mut received = vec![0; SMALL];
        assert_eq!(backend.read(&mut received).unwrap(), SMALL);
        assert_eq!(received, [7; SMALL]);
        stream.drained().await.unwrap();
        assert!(is_would_block(&backend.read(&mut received)) || cfg!(windows));
        #[cfg(unix)]
        backend.read_wake_fd();
        assert_eq!(backend.read(&mut received).unwrap(), 0);
        assert_eq!(stream.stats().tx.discarded, 9);
        // Again, in each way.
        handle.close();
        stream.close();
        drop(stream);
        handle.close();
        drop(backend);
        handle.close();
    }
}

#[tokio::test]
async fn close_wakes_reader_that_waits() {
    watchdog(async {
        let (stream, handle, _backend) = pair_with_handle();
        let (mut read, write) = stream.into_split();
        let reader = tokio::spawn(async move { read.read(&mut [0; 8]).await });
        tokio::task::yield_now().await;
        write.close();
        assert_eq!(reader.await.unwrap().unwrap(), 0);
        handle.close();
    })
    .await;
}

#[tokio::test]
async fn close_hangs_up_only_if_dropping_does() {
    let options = Options::new().capacity(SMALL).hang_up_on_drop(false);
    let (stream, port) = options.create().unwrap();
    let backend = common::backend(port);
    stream.close();
    assert!(is_would_block(&backend.read(&mut [0; 8])));
    assert_eq!(backend.write(b"goes on").unwrap(), 7);
    assert_eq!(stream.stats().tx.discarded, 7);
    drop(stream);
    assert!(is_would_block(&backend.read(&mut [0; 8])));
}

/// The stream is in an `Arc` that other tasks keep.
#[tokio::test]
async fn close_releases_exit_hook() {
    watchdog(async {
        let (stream, port) = AgentStream::pair().unwrap();
        let stream = Arc::new(stream);
        let hook = port.exit_hook(Duration::MAX);
        let exit = tokio::task::spawn_blocking(move || hook(0));
        let kept = Arc::clone(&stream);
        let mut buf = bytes::BytesMut::new();
        assert_eq!(stream.read_available(&mut buf, 64).await.unwrap(), 0);
        stream.close();
        exit.await.unwrap();
        drop((stream, kept, port));
    })
    .await;
}
