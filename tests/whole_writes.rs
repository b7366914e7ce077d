//! Writes that go in whole: room set aside, all or nothing, and items of several tasks that never mix.

mod common;

use std::io::{self, ErrorKind, IoSlice};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use common::{Backend, SMALL, many, pair, pattern, watchdog};
use futures::{FutureExt, SinkExt};
use tokio::io::AsyncWriteExt;
use tokio::task::yield_now;
use tokio_krun::{AgentStream, Chunks, Error, Options};
use tokio_test::{assert_pending, assert_ready, assert_ready_err, assert_ready_ok, task};

fn queued(stream: &AgentStream) -> u64 {
    stream.stats().rx.queued
}

/// Reads exactly `length` bytes in the guest.
fn take(backend: &Backend, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    let mut taken = 0;
    while taken < length {
        taken += backend.read(&mut bytes[taken..]).unwrap();
    }
    bytes
}

fn reason(error: &io::Error) -> &Error {
    error.get_ref().unwrap().downcast_ref().unwrap()
}

#[tokio::test]
async fn reserved_room_goes_to_nobody_else() {
    let (stream, backend) = pair();
    let permit = stream.reserve(SMALL - 100).await.unwrap();
    assert_eq!(stream.try_write(&[1; SMALL]).unwrap(), 100);
    assert_eq!(
        stream.try_write(&[1]).unwrap_err().kind(),
        ErrorKind::WouldBlock
    );
    assert_eq!(
        stream.try_write_all(&[1]).unwrap_err().kind(),
        ErrorKind::WouldBlock
    );
    assert!(stream.writable().now_or_never().is_none());

    permit.write_all(&[2; SMALL - 100]).unwrap();
    let received = take(&backend, SMALL);
    assert!(received[..100].iter().all(|byte| *byte == 1));
    assert!(received[100..].iter().all(|byte| *byte == 2));
}

#[tokio::test]
async fn unused_room_is_given_back() {
    let (stream, _backend) = pair();
    stream
        .reserve(SMALL)
        .await
        .unwrap()
        .write_all(&[1; 10])
        .unwrap();
    assert_eq!(stream.try_write(&[2; SMALL]).unwrap(), SMALL - 10);

    let (stream, _backend) = pair();
    drop(stream.reserve(SMALL).await.unwrap());
    assert_eq!(stream.try_write(&[2; SMALL]).unwrap(), SMALL);
}

#[tokio::test]
async fn permit_takes_all_kinds_of_bytes_and_not_one_too_many() {
    let (stream, backend) = pair();
    let permit = stream.reserve(6).await.unwrap();
    assert_eq!(permit.length(), 6);
    permit
        .write_all_vectored(&[
            IoSlice::new(b"abc"),
            IoSlice::new(b""),
            IoSlice::new(b"def"),
        ])
        .unwrap();
    let page = Bytes::from(pattern(SMALL / 2));
    stream
        .reserve(page.len())
        .await
        .unwrap()
        .write_all_bytes(page.clone())
        .unwrap();
    stream.reserve(0).await.unwrap().write_all(b"").unwrap();
    assert_eq!(take(&backend, 6), b"abcdef");
    assert_eq!(take(&backend, page.len()), page);

    for bytes in [2, SMALL + 1] {
        let permit = stream.try_reserve(1).unwrap();
        let error = permit.write_all(&vec![0; bytes]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        assert!(
            matches!(reason(&error), Error::TooLong { most: 1, .. }),
            "{error:?}"
        );
    }
    let permit = stream.try_reserve(1).unwrap();
    let error = permit
        .write_all_bytes(Bytes::from_static(b"ab"))
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    assert_eq!(queued(&stream), 0);
    assert_eq!(stream.try_write(&[0; SMALL]).unwrap(), SMALL);
}

#[tokio::test]
async fn more_than_the_ring_is_an_error_at_once() {
    let (stream, _backend) = pair();
    let too_long = vec![0; SMALL + 1];
    let errors = [
        stream.reserve(SMALL + 1).await.unwrap_err(),
        stream.reserve(usize::MAX).await.unwrap_err(),
        stream.try_reserve(SMALL + 1).unwrap_err(),
        stream.try_write_all(&too_long).unwrap_err(),
        stream.try_write_all_bytes(too_long.into()).unwrap_err().1,
    ];
    for error in errors {
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        assert!(
            matches!(reason(&error), Error::TooLong { most: SMALL, .. }),
            "{error:?}"
        );
    }
    assert_eq!(queued(&stream), 0);
}

#[tokio::test]
async fn reserve_waits_for_exactly_its_room() {
    watchdog(async {
        let (stream, backend) = pair();
        stream.try_write_all(&[1; SMALL]).unwrap();
        for length in [1, SMALL / 2, SMALL / 2 + 1, SMALL - 1, SMALL] {
            let mut reserve = task::spawn(stream.reserve(length));
            assert_pending!(reserve.poll());
            // Nothing is left for another write, whatever the guest reads.
            take(&backend, length - 1);
            assert_pending!(reserve.poll());
            assert_eq!(
                stream.try_write(&[2]).unwrap_err().kind(),
                ErrorKind::WouldBlock
            );
            take(&backend, 1);
            let permit = assert_ready_ok!(reserve.poll());
            permit.write_all(&vec![1; length]).unwrap();
            // The ring is full again.
            assert_eq!(queued(&stream), SMALL as u64);
        }
    })
    .await;
}

#[tokio::test]
async fn waiting_reserve_is_woken_by_the_guest() {
    watchdog(async {
        for length in [1, SMALL / 2 + 1, SMALL] {
            let (stream, backend) = pair();
            let stream = Arc::new(stream);
            stream.try_write_all(&[1; SMALL]).unwrap();
            let waits = tokio::spawn({
                let stream = Arc::clone(&stream);
                async move {
                    let permit = stream.reserve(length).await?;
                    permit.write_all(&vec![2; length])
                }
            });
            yield_now().await;
            assert_eq!(take(&backend, SMALL), [1; SMALL]);
            waits.await.unwrap().unwrap();
            assert_eq!(take(&backend, length), vec![2; length]);
        }
    })
    .await;
}

#[tokio::test]
async fn tasks_get_room_in_order() {
    watchdog(async {
        let (stream, backend) = pair();
        let stream = Arc::new(stream);
        stream.try_write_all(&[0; SMALL]).unwrap();
        let mut tasks = Vec::new();
        for id in 1..=20_u8 {
            let stream = Arc::clone(&stream);
            // Large and small in turn: a small one does not overtake.
            let length = if id % 2 == 1 { SMALL - 1 } else { 1 };
            tasks.push(tokio::spawn(async move {
                let permit = stream.reserve(length).await.unwrap();
                permit.write_all(&vec![id; length]).unwrap();
            }));
            yield_now().await;
        }
        assert_eq!(take(&backend, SMALL), [0; SMALL]);
        for id in 1..=20_u8 {
            let length = if id % 2 == 1 { SMALL - 1 } else { 1 };
            while (queued(&stream) as usize) < length {
                yield_now().await;
            }
            assert_eq!(take(&backend, length), vec![id; length]);
        }
        for task in tasks {
            task.await.unwrap();
        }
    })
    .await;
}

#[tokio::test]
async fn cancelled_reserve_sets_nothing_aside_and_lets_the_next_one_in() {
    let (stream, backend) = pair();
    stream.try_write_all(&[1; SMALL]).unwrap();
    let mut first = task::spawn(stream.reserve(SMALL));
    let mut second = task::spawn(stream.reserve(1));
    assert_pending!(first.poll());
    assert_pending!(second.poll());
    drop(first);
    take(&backend, SMALL);
    let permit = assert_ready_ok!(second.poll());
    assert_eq!(stream.try_write(&[2; SMALL]).unwrap(), SMALL - 1);
    permit.write_all(&[3]).unwrap();
}

#[tokio::test]
async fn room_that_is_given_back_wakes_waiting_writers() {
    watchdog(async {
        let (stream, _port) = Options::new().capacity(SMALL).create().unwrap();
        let (_read, mut write) = stream.into_split();
        {
            let write = &write;
            let permit = write.reserve(SMALL).await.unwrap();
            let mut waits = task::spawn(write.writable());
            let mut reserves = task::spawn(write.reserve(SMALL));
            assert_pending!(waits.poll());
            assert_pending!(reserves.poll());
            drop(permit);
            drop(assert_ready_ok!(reserves.poll()));
            drop(reserves);
            assert_ready_ok!(waits.poll());
            // Used in part.
            let permit = write.reserve(SMALL).await.unwrap();
            let mut reserves = task::spawn(write.reserve(10));
            assert_pending!(reserves.poll());
            permit.write_all(&[1; SMALL - 10]).unwrap();
            drop(assert_ready_ok!(reserves.poll()));
            assert_eq!(write.try_reserve(10).unwrap().length(), 10);
        }
        assert_eq!(write.write(&[1; SMALL]).await.unwrap(), 10);
    })
    .await;
}

#[tokio::test]
async fn whole_writes_fail_once_writing_has_ended() {
    type End = fn(&AgentStream, Backend) -> Option<Backend>;
    let ends: [(End, bool); 3] = [
        (|_, backend| (drop(backend), None).1, false),
        (|stream, backend| (stream.close(), Some(backend)).1, true),
        (|stream, backend| (stream.hang_up(), Some(backend)).1, true),
    ];
    for (end, by_host) in ends {
        let (stream, backend) = pair();
        let permit = stream.try_reserve(10).unwrap();
        stream.try_write_all(&[1; SMALL - 10]).unwrap();
        let mut reserve = task::spawn(stream.reserve(5));
        let mut next = task::spawn(stream.reserve(5));
        assert_pending!(reserve.poll());
        assert_pending!(next.poll());
        let _backend = end(&stream, backend);
        if !by_host {
            stream.closed().await;
        }
        let mut errors = vec![permit.write_all(b"too late").unwrap_err()];
        errors.push(assert_ready_err!(reserve.poll()));
        drop(reserve);
        errors.push(assert_ready_err!(next.poll()));
        errors.push(stream.reserve(1).await.unwrap_err());
        errors.push(stream.try_reserve(1).unwrap_err());
        errors.push(stream.try_write_all(b"too late").unwrap_err());
        let (bytes, error) = stream
            .try_write_all_bytes(Bytes::from_static(b"too late"))
            .unwrap_err();
        assert_eq!(bytes, "too late");
        errors.push(error);
        for error in errors {
            assert_eq!(error.kind(), ErrorKind::BrokenPipe);
            assert_eq!(
                matches!(reason(&error), Error::ShutDown),
                by_host,
                "{error:?}"
            );
        }
    }
}

#[tokio::test]
async fn all_or_nothing() {
    let (stream, backend) = pair();
    let frame = pattern(SMALL / 2 + 1);
    stream.try_write_all(&frame).unwrap();
    assert_eq!(
        stream.try_write_all(&frame).unwrap_err().kind(),
        ErrorKind::WouldBlock
    );
    let bytes = Bytes::from(frame.clone());
    let address = bytes.as_ptr();
    let (bytes, error) = stream.try_write_all_bytes(bytes).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::WouldBlock);
    assert_eq!((bytes.as_ptr(), bytes.len()), (address, frame.len()));
    assert_eq!(take(&backend, frame.len()), frame);
    assert_eq!(queued(&stream), 0);

    stream.try_write_all_bytes(bytes).unwrap();
    assert_eq!(take(&backend, frame.len()), frame);
    stream.try_write_all(b"").unwrap();
    stream.try_write_all_bytes(Bytes::new()).unwrap();
    assert_eq!(queued(&stream), 0);
}

/// Items of several tasks, from one byte to some ringfuls. Each begins with its writer and its length.
#[tokio::test]
async fn items_of_tasks_that_share_a_stream_never_mix() {
    watchdog(async {
        let (stream, backend) = pair();
        let stream = Arc::new(stream);
        let lengths = [
            5,
            6,
            100,
            3000,
            SMALL / 2,
            SMALL - 1,
            SMALL,
            SMALL + 1,
            3 * SMALL,
        ];
        let items = many(64);
        let mut tasks = Vec::new();
        for writer in 0..4_u8 {
            let mut chunks = Chunks::new(Arc::clone(&stream));
            tasks.push(tokio::spawn(async move {
                for number in 0..items {
                    let length = lengths[(number * 5 + usize::from(writer)) % lengths.len()];
                    let mut item = vec![writer; length];
                    item[1..5].copy_from_slice(&(length as u32).to_be_bytes());
                    chunks.send(item.into()).await.unwrap();
                }
            }));
        }
        // A fifth task, with permits.
        let permits = Arc::clone(&stream);
        tasks.push(tokio::spawn(async move {
            for number in 0..items {
                let length = 5 + number % 7;
                let mut item = vec![4; length];
                item[1..5].copy_from_slice(&(length as u32).to_be_bytes());
                permits
                    .reserve(length)
                    .await
                    .unwrap()
                    .write_all(&item)
                    .unwrap();
            }
        }));
        let mut counts = [0; 5];
        let mut received = Vec::new();
        while counts.iter().sum::<usize>() < 5 * items {
            let mut buffer = [0; 4096];
            match backend.read(&mut buffer) {
                Ok(read) => received.extend_from_slice(&buffer[..read]),
                Err(_) => yield_now().await,
            }
            while let Some(header) = received.first_chunk::<5>() {
                let writer = header[0];
                let length = u32::from_be_bytes(*header[1..].first_chunk().unwrap()) as usize;
                if received.len() < length {
                    break;
                }
                assert!(received[5..length].iter().all(|byte| *byte == writer));
                counts[usize::from(writer)] += 1;
                received.drain(..length);
            }
        }
        assert_eq!(counts, [items; 5]);
        assert!(received.is_empty());
        for task in tasks {
            task.await.unwrap();
        }
    })
    .await;
}

#[tokio::test]
async fn item_larger_than_the_ring_waits_for_permits_and_keeps_others_out() {
    let (stream, backend) = pair();
    let permit = stream.try_reserve(10).unwrap();
    let mut chunks = Chunks::new(&stream);
    let mut send = task::spawn(chunks.send(Bytes::from(vec![2; SMALL + 10])));
    assert_pending!(send.poll());
    assert_eq!(queued(&stream), 0);
    permit.write_all(&[1; 10]).unwrap();
    assert_pending!(send.poll());
    assert_eq!(take(&backend, 10), [1; 10]);
    assert_pending!(send.poll());
    assert_eq!(queued(&stream), SMALL as u64);
    take(&backend, SMALL - 5);
    // There is room, but it is not for others.
    assert_eq!(
        stream.try_write(&[3]).unwrap_err().kind(),
        ErrorKind::WouldBlock
    );
    assert_eq!(
        stream.try_reserve(1).unwrap_err().kind(),
        ErrorKind::WouldBlock
    );
    let mut reserve = task::spawn(stream.reserve(1));
    assert_pending!(reserve.poll());
    assert_ready_ok!(send.poll());
    assert_ready_ok!(reserve.poll()).write_all(&[3]).unwrap();
    assert_eq!(take(&backend, 15), [2; 15]);
    assert_eq!(take(&backend, 1), [3]);
}

/// Dropped in the middle, it leaves the part that is in the ring, and gives the rest of the room back.
#[tokio::test]
async fn dropped_adapter_leaves_room_to_others() {
    let (stream, _backend) = pair();
    let mut chunks = Chunks::new(&stream);
    assert!(
        chunks
            .send(Bytes::from(vec![2; 2 * SMALL]))
            .now_or_never()
            .is_none()
    );
    assert_eq!(queued(&stream), SMALL as u64);
    let mut reserve = task::spawn(stream.reserve(1));
    assert_pending!(reserve.poll());
    take(&_backend, SMALL);
    assert_pending!(reserve.poll());
    drop(chunks);
    assert_ready!(reserve.poll())
        .unwrap()
        .write_all(&[3])
        .unwrap();
    assert_eq!(take(&_backend, 1), [3]);
}

/// The one before them holds the turn and is not polled any more.
#[tokio::test]
async fn end_reaches_tasks_that_wait_for_their_turn() {
    let ends: [fn(&AgentStream, &mut Option<Backend>); 3] = [
        |stream, _| stream.close(),
        |stream, _| stream.hang_up(),
        |_, backend| drop(backend.take()),
    ];
    for end in ends {
        let (stream, backend) = pair();
        let mut backend = Some(backend);
        stream.try_write_all(&[1; SMALL]).unwrap();
        let mut first = Chunks::new(&stream);
        assert!(
            first
                .send(Bytes::from_static(b"first"))
                .now_or_never()
                .is_none()
        );
        let mut reserve = task::spawn(stream.reserve(1));
        let mut bytes = Bytes::from_static(b"late");
        let mut write = task::spawn(stream.write_bytes(&mut bytes));
        let mut chunks = Chunks::new(&stream);
        let mut send = task::spawn(chunks.send(Bytes::from_static(b"late")));
        assert_pending!(reserve.poll());
        assert_pending!(write.poll());
        assert_pending!(send.poll());
        end(&stream, &mut backend);
        if backend.is_none() {
            stream.closed().await;
        }
        assert!(reserve.is_woken());
        assert_ready_err!(reserve.poll());
        assert_ready_err!(write.poll());
        assert_ready_err!(send.poll());
        let error = stream.reserve(1).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::BrokenPipe);
        let error = Chunks::new(&stream).send(Bytes::from_static(b"late")).await;
        assert_eq!(error.unwrap_err().kind(), ErrorKind::BrokenPipe);
    }
}

/// Its `drop` finds no claim and no turn in its way.
#[tokio::test]
async fn dropped_item_may_use_the_stream() {
    struct Reserves(Arc<AgentStream>, Arc<AtomicUsize>);
    impl AsRef<[u8]> for Reserves {
        fn as_ref(&self) -> &[u8] {
            b"small, and so copied"
        }
    }
    impl Drop for Reserves {
        fn drop(&mut self) {
            let permit = self.0.reserve(SMALL - 100).now_or_never();
            assert!(permit.unwrap().is_ok());
            self.1.fetch_add(1, Ordering::Relaxed);
        }
    }
    let (stream, backend) = pair();
    let stream = Arc::new(stream);
    let drops = Arc::new(AtomicUsize::new(0));
    let item = || Bytes::from_owner(Reserves(Arc::clone(&stream), Arc::clone(&drops)));
    Chunks::new(&*stream).send(item()).await.unwrap();
    stream
        .reserve(50)
        .await
        .unwrap()
        .write_all_bytes(item())
        .unwrap();
    assert!(stream.try_write_all_bytes(item()).is_ok());
    assert_eq!(drops.load(Ordering::Relaxed), 3);
    take(&backend, 60);

    // After a wait.
    stream.try_write_all(&[0; SMALL]).unwrap();
    let mut chunks = Chunks::new(&*stream);
    let mut send = task::spawn(chunks.send(item()));
    assert_pending!(send.poll());
    take(&backend, SMALL);
    assert_ready_ok!(send.poll());
    let mut bytes = item();
    stream.try_write_all(&[0; SMALL - 20]).unwrap();
    let mut write = task::spawn(stream.write_bytes(&mut bytes));
    assert_pending!(write.poll());
    take(&backend, SMALL);
    assert_ready_ok!(write.poll());
    drop(write);
    drop(bytes);
    assert_eq!(drops.load(Ordering::Relaxed), 5);
}

#[tokio::test]
async fn permits_that_are_used_in_full_wake_nobody() {
    let (stream, _backend) = pair();
    let permits: Vec<_> = (0..64).map(|_| stream.try_reserve(16).unwrap()).collect();
    stream.try_write_all(&[0; SMALL - 64 * 16]).unwrap();
    let mut waits = task::spawn(stream.writable());
    assert_pending!(waits.poll());
    for permit in permits {
        permit.write_all(&[1; 16]).unwrap();
    }
    assert_eq!(stream.stats().rx.room_wakes, 0);
    assert_pending!(waits.poll());
}

#[tokio::test]
async fn tasks_share_reading_by_chunks() {
    use futures::StreamExt;
    watchdog(async {
        let (stream, backend) = pair();
        let stream = Arc::new(stream);
        let readers: Vec<_> = (0..3)
            .map(|_| {
                let chunks = Chunks::new(Arc::clone(&stream));
                tokio::spawn(chunks.map(|chunk| chunk.unwrap().len()).collect::<Vec<_>>())
            })
            .collect();
        let total = many(64) * SMALL;
        let mut written = 0;
        while written < total {
            match backend.write(&[1; 1000]) {
                Ok(more) => written += more,
                Err(_) => yield_now().await,
            }
        }
        drop(backend);
        let mut read = 0;
        for reader in readers {
            read += reader.await.unwrap().iter().sum::<usize>();
        }
        assert_eq!(read, written);
    })
    .await;
}

#[tokio::test]
async fn smallest_capacities_work() {
    watchdog(async {
        for capacity in [1, 2, 4, 7, 8, 9, 1000] {
            let options = Options::new().test_capacity(capacity);
            let (stream, port) = options.create().unwrap();
            assert_eq!(stream.capacity(), capacity);
            let backend = common::backend(port);
            let (mut read, mut write) = stream.into_split();
            let sent = pattern(many(4096));
            let expected = sent.clone();
            let writer = tokio::spawn(async move { write.write_all(&sent).await.unwrap() });
            let mut received = Vec::new();
            while received.len() < expected.len() {
                let mut buffer = [0; 13];
                match backend.read(&mut buffer) {
                    Ok(got) => received.extend_from_slice(&buffer[..got]),
                    Err(_) => yield_now().await,
                }
            }
            assert_eq!(received, expected);
            writer.await.unwrap();

            let echo = tokio::spawn(async move {
                use tokio::io::AsyncReadExt;
                let mut back = vec![0; many(4096)];
                read.read_exact(&mut back).await.unwrap();
                back
            });
            let mut rest = &expected[..];
            while !rest.is_empty() {
                match backend.write(rest) {
                    Ok(written) => rest = &rest[written..],
                    Err(_) => yield_now().await,
                }
            }
            assert_eq!(echo.await.unwrap(), expected);
        }
    })
    .await;
    let error = Options::new().test_capacity(0).create().unwrap_err();
    assert!(matches!(error, Error::Capacity { least: 1, .. }));
    let error = Options::new()
        .test_capacity(4)
        .capacity(4)
        .create()
        .unwrap_err();
    assert!(matches!(error, Error::Capacity { .. }));
}
