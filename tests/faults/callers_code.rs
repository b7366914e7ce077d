//! The caller's code uses the same stream, blocks, or panics, in each place where it runs. `docs/architecture.md`
//! lists the places.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, Weak, mpsc};
use std::task::{Context, Wake, Waker};
use std::thread;

use bytes::buf::UninitSlice;
use bytes::{BufMut, Bytes};
use futures::FutureExt;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt, ReadBuf};
use tokio_krun::{AgentPort, AgentStream, Options};
use tokio_test::assert_pending;

use crate::common::{SMALL, backend, boot, fill, is_would_block, pair, pattern, watchdog};

/// More than half a chunk of a small ring, so it is queued without a copy.
const LARGE: usize = SMALL / 4;

/// Bytes that run `code` when they are dropped.
struct Owner<F: FnOnce()> {
    bytes: Vec<u8>,
    code: Option<F>,
}

impl<F: FnOnce()> AsRef<[u8]> for Owner<F> {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl<F: FnOnce()> Drop for Owner<F> {
    fn drop(&mut self) {
        if let Some(code) = self.code.take() {
            code();
        }
    }
}

fn bytes_with_drop(length: usize, code: impl FnOnce() + Send + 'static) -> Bytes {
    let bytes = vec![7; length];
    Bytes::from_owner(Owner {
        bytes,
        code: Some(code),
    })
}

/// Code that blocks until the test lets it go, and says when it has begun.
struct Blocker {
    begun: mpsc::Receiver<()>,
    release: mpsc::Sender<()>,
}

fn blocker() -> (Blocker, impl FnOnce() + Send + 'static) {
    let (begin, begun) = mpsc::channel();
    let (release, released) = mpsc::channel();
    let code = move || {
        begin.send(()).unwrap();
        released.recv().unwrap();
    };
    (Blocker { begun, release }, code)
}

/// Uses the stream in every way that takes a lock, and then drops what may be its last handle.
fn come_back(stream: Arc<AgentStream>, ran: mpsc::Sender<()>) -> impl FnOnce() + Send + 'static {
    move || {
        let _ = stream.try_write(b"again");
        let _ = stream.try_read(&mut [0; 8]);
        let _ = stream.stats();
        drop(stream);
        ran.send(()).unwrap();
    }
}

#[tokio::test]
async fn drop_on_kruns_thread_may_use_stream() {
    watchdog(async {
        let (stream, backend) = pair();
        let stream = Arc::new(stream);
        let (ran, has_run) = mpsc::channel();
        let mut bytes = bytes_with_drop(LARGE, come_back(Arc::clone(&stream), ran));
        assert_eq!(stream.write_bytes(&mut bytes).await.unwrap(), LARGE);
        // The bytes have the last handle now.
        drop(stream);
        let mut received = vec![0; SMALL];
        assert_eq!(backend.read(&mut received).unwrap(), LARGE);
        has_run.try_recv().unwrap();
        assert_eq!(backend.read(&mut received).unwrap(), 5);
        assert!(received.starts_with(b"again"));
    })
    .await;
}

/// The room was offered before: a waiting write goes on.
#[tokio::test]
async fn drop_on_kruns_thread_may_block() {
    watchdog(async {
        let (mut stream, backend) = pair();
        let (blocker, code) = blocker();
        let mut bytes = bytes_with_drop(SMALL, code);
        assert_eq!(stream.write_bytes(&mut bytes).await.unwrap(), SMALL);
        {
            let mut write = tokio_test::task::spawn(stream.write(b"waits"));
            assert_pending!(write.poll());
        }
        let krun = thread::spawn(move || {
            assert_eq!(backend.read(&mut vec![0; SMALL]).unwrap(), SMALL);
            backend
        });
        assert_eq!(stream.write(b"waits").await.unwrap(), 5);
        blocker.begun.recv().unwrap();
        blocker.release.send(()).unwrap();
        let backend = krun.join().unwrap();
        assert_eq!(backend.read(&mut [0; 8]).unwrap(), 5);
    })
    .await;
}

/// A small item is copied and dropped by the sender. krun's thread drops a large one, and its panic ends there.
#[tokio::test]
async fn drop_on_kruns_thread_may_panic() {
    watchdog(async {
        let (mut stream, backend) = pair();
        let mut buffer = vec![0; SMALL];
        for length in [3, LARGE, 3] {
            // krun finds nothing and waits.
            assert!(is_would_block(&backend.read(&mut buffer)));
            let wakes = stream.stats().rx.data_wakes;
            let mut bytes = bytes_with_drop(length, || panic!("from the caller's bytes"));
            let write = AssertUnwindSafe(stream.write_bytes(&mut bytes));
            assert_eq!(write.catch_unwind().await.is_err(), length < SMALL / 16);
            // krun is woken for them even if the sender has panicked.
            assert_eq!(stream.stats().rx.data_wakes, wakes + 1);
            assert_eq!(backend.read(&mut buffer).unwrap(), length);
            assert!(is_would_block(&backend.read(&mut buffer)));
            // The panic does not disturb the next bytes, in either direction.
            stream.write_all(b"next").await.unwrap();
            assert_eq!(backend.read(&mut buffer).unwrap(), 4);
            backend.write(b"y").unwrap();
            assert_eq!(stream.read_u8().await.unwrap(), b'y');
        }
    })
    .await;
}

#[tokio::test]
async fn drop_of_small_item_may_use_stream() {
    watchdog(async {
        let (stream, backend) = pair();
        let stream = Arc::new(stream);
        let (ran, has_run) = mpsc::channel();
        let mut bytes = bytes_with_drop(3, come_back(Arc::clone(&stream), ran));
        assert_eq!(stream.write_bytes(&mut bytes).await.unwrap(), 3);
        has_run.try_recv().unwrap();
        let mut received = [0; 16];
        assert_eq!(backend.read(&mut received).unwrap(), 8);
        assert!(received.starts_with(b"\x07\x07\x07again"));
    })
    .await;
}

/// Bytes of 64 KiB have the last handle of the stream, and krun's end goes.
#[tokio::test]
async fn drop_at_guests_end_may_use_stream() {
    watchdog(async {
        let (stream, port) = AgentStream::pair().unwrap();
        let backend = backend(port);
        let stream = Arc::new(stream);
        let (ran, has_run) = mpsc::channel();
        let mut bytes = bytes_with_drop(64 * 1024, come_back(Arc::clone(&stream), ran));
        assert_eq!(stream.write_bytes(&mut bytes).await.unwrap(), 64 * 1024);
        drop(stream);
        drop(backend);
        has_run.try_recv().unwrap();
    })
    .await;
}

/// Every end was said before: the host sees that the guest has gone.
#[tokio::test]
async fn drop_at_guests_end_may_block() {
    watchdog(async {
        let (mut stream, backend) = pair();
        backend.write(b"last words").unwrap();
        let (blocker, code) = blocker();
        let mut bytes = bytes_with_drop(LARGE, code);
        assert_eq!(stream.write_bytes(&mut bytes).await.unwrap(), LARGE);
        let krun = thread::spawn(move || drop(backend));
        blocker.begun.recv().unwrap();
        stream.closed().await;
        let mut received = String::new();
        stream.read_to_string(&mut received).await.unwrap();
        assert_eq!(received, "last words");
        assert!(stream.drained().await.is_err());
        let error = stream.write(b"x").await.unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::BrokenPipe);
        blocker.release.send(()).unwrap();
        krun.join().unwrap();
    })
    .await;
}

#[tokio::test]
async fn drop_at_guests_end_may_panic() {
    watchdog(async {
        let (mut stream, backend) = pair();
        for _ in 0..2 {
            let mut bytes = bytes_with_drop(LARGE, || panic!("from the caller's bytes"));
            assert_eq!(stream.write_bytes(&mut bytes).await.unwrap(), LARGE);
        }
        drop(backend);
        assert_eq!(stream.read(&mut [0; 8]).await.unwrap(), 0);
        assert_eq!(stream.stats().rx.discarded, 2 * LARGE as u64);
    })
    .await;
}

fn with_unread(code: impl FnOnce() + Send + 'static) -> (AgentStream, AgentPort) {
    let (stream, port) = Options::new().capacity(SMALL).create().unwrap();
    let mut bytes = bytes_with_drop(LARGE, code);
    let written = stream.write_bytes(&mut bytes).now_or_never();
    assert_eq!(written.unwrap().unwrap(), LARGE);
    (stream, port)
}

/// The bytes have the last handle of the stream, so the hook waits for nothing but their drop.
#[tokio::test]
async fn drop_in_exit_hook_may_use_stream() {
    watchdog(async {
        let (stream, port) = Options::new().capacity(SMALL).create().unwrap();
        let stream = Arc::new(stream);
        let (ran, has_run) = mpsc::channel();
        let mut bytes = bytes_with_drop(LARGE, come_back(Arc::clone(&stream), ran));
        assert_eq!(stream.write_bytes(&mut bytes).await.unwrap(), LARGE);
        drop(stream);
        let hook = port.exit_hook(std::time::Duration::MAX);
        tokio::task::spawn_blocking(move || hook(0)).await.unwrap();
        has_run.recv().unwrap();
    })
    .await;
}

/// The hook returns all the same, and has ended the other port of the VM, too.
#[tokio::test]
async fn drop_in_exit_hook_may_block() {
    watchdog(async {
        let (blocker, code) = blocker();
        let (stream, port) = with_unread(code);
        let (mut other, other_port) = AgentStream::pair().unwrap();
        let ports = [&port, &other_port];
        let hook = AgentPort::exit_hook_for(ports, std::time::Duration::ZERO);
        tokio::task::spawn_blocking(move || hook(0)).await.unwrap();
        assert_eq!(other.read(&mut [0; 8]).await.unwrap(), 0);
        blocker.begun.recv().unwrap();
        blocker.release.send(()).unwrap();
        drop(stream);
    })
    .await;
}

#[tokio::test]
async fn drop_in_exit_hook_may_panic() {
    watchdog(async {
        let (mut stream, port) = with_unread(|| panic!("from the caller's bytes"));
        let hook = port.exit_hook(std::time::Duration::ZERO);
        tokio::task::spawn_blocking(move || hook(0)).await.unwrap();
        assert_eq!(stream.read(&mut [0; 8]).await.unwrap(), 0);
    })
    .await;
}

/// A buffer that runs the caller's code in both of its methods that `try_read_buf` calls.
struct Buffer<C: Fn(), A: Fn()> {
    bytes: Vec<u8>,
    in_chunk_mut: C,
    in_advance_mut: A,
}

// SAFETY: the memory and its length are the vector's.
#[expect(unsafe_code, reason = "the trait is unsafe to implement")]
unsafe impl<C: Fn(), A: Fn()> BufMut for Buffer<C, A> {
    fn remaining_mut(&self) -> usize {
        self.bytes.remaining_mut()
    }

    fn chunk_mut(&mut self) -> &mut UninitSlice {
        (self.in_chunk_mut)();
        self.bytes.chunk_mut()
    }

    unsafe fn advance_mut(&mut self, count: usize) {
        (self.in_advance_mut)();
        // SAFETY: passed on.
        unsafe { self.bytes.advance_mut(count) };
    }
}

#[tokio::test]
async fn buffer_may_use_stream() {
    watchdog(async {
        let (stream, backend) = pair();
        backend.write(b"hello").unwrap();
        // It reads from the same stream: before, and after.
        let taken = Mutex::new([0; 2]);
        let read = |at: usize| {
            let buf = &mut taken.lock().unwrap()[at..=at];
            assert_eq!(stream.try_read(buf).unwrap(), 1);
        };
        let mut buffer = Buffer {
            bytes: Vec::with_capacity(3),
            in_chunk_mut: || read(0),
            in_advance_mut: || read(1),
        };
        assert_eq!(stream.try_read_buf(&mut buffer).unwrap(), 3);
        assert_eq!(buffer.bytes, b"ell");
        assert_eq!(*taken.lock().unwrap(), *b"ho");
    })
    .await;
}

/// krun's thread goes on meanwhile, and so does another reader.
#[tokio::test]
async fn buffer_may_block() {
    watchdog(async {
        let (stream, backend) = pair();
        let filled = fill(&backend);
        thread::scope(|scope| {
            let (begin, begun) = mpsc::channel();
            let (release, released) = mpsc::channel();
            let stream = &stream;
            scope.spawn(move || {
                let block = || {
                    begin.send(()).unwrap();
                    released.recv().unwrap();
                };
                let mut buffer = Buffer {
                    bytes: Vec::with_capacity(100),
                    in_chunk_mut: &block,
                    in_advance_mut: &block,
                };
                assert_eq!(stream.try_read_buf(&mut buffer).unwrap(), 100);
            });
            for rest in [filled, 900] {
                begun.recv().unwrap();
                assert_eq!(stream.try_read(&mut vec![0; SMALL]).unwrap(), rest);
                assert_eq!(backend.write(&[8; 1000]).unwrap(), 1000);
                release.send(()).unwrap();
            }
        });
    })
    .await;
}

/// Before the read, a panic loses nothing. After it, what was read is in the buffer's memory, as with a socket. Neither
/// disturbs krun's thread.
#[tokio::test]
async fn buffer_may_panic() {
    watchdog(async {
        let (mut stream, backend) = pair();
        let sent = pattern(SMALL);
        let (first, rest) = sent.split_at(5000);
        backend.write(first).unwrap();
        for (panics_before, lost) in [(true, 0), (false, 100)] {
            let mut buffer = Buffer {
                bytes: Vec::with_capacity(100),
                in_chunk_mut: || assert!(!panics_before, "from the caller's buffer"),
                in_advance_mut: || panic!("from the caller's buffer"),
            };
            let read = AssertUnwindSafe(|| stream.try_read_buf(&mut buffer));
            assert!(catch_unwind(read).is_err());
            assert_eq!(stream.stats().tx.bytes, lost);
        }
        // krun's thread fills the open chunk and then new ones.
        let krun = thread::spawn({
            let rest = rest.to_vec();
            move || {
                for part in rest.chunks(1000) {
                    assert_eq!(backend.write(part).unwrap(), part.len());
                }
                backend
            }
        });
        let backend = krun.join().unwrap();
        let mut received = vec![0; SMALL - 100];
        stream.read_exact(&mut received).await.unwrap();
        assert!(received == sent[100..]);
        let (read, mut write) = stream.into_split();
        drop(read);
        assert_eq!(backend.write(rest).unwrap(), rest.len());
        assert_eq!(write.stats().tx.discarded, rest.len() as u64);
        write.write_all(b"still here").await.unwrap();
        assert_eq!(backend.read(&mut [0; 100]).unwrap(), 10);
    })
    .await;
}

/// A waker that runs the caller's code.
struct Code<F: Fn() + Send + Sync>(F);

impl<F: Fn() + Send + Sync> Wake for Code<F> {
    fn wake(self: Arc<Self>) {
        (self.0)();
    }
}

fn waker(code: impl Fn() + Send + Sync + 'static) -> Waker {
    Arc::new(Code(code)).into()
}

#[tokio::test]
async fn waker_of_closed_may_use_stream() {
    let (stream, backend) = pair();
    let stream = Arc::new(stream);
    let woken = Arc::new(AtomicBool::new(false));
    let waker = waker({
        let (stream, woken) = (Arc::clone(&stream), Arc::clone(&woken));
        move || {
            // The end was said before.
            assert_eq!(stream.try_read(&mut [0; 8]).unwrap(), 0);
            assert!(!is_would_block(&stream.try_write(b"x")));
            woken.store(true, Ordering::Relaxed);
        }
    });
    let mut closed = Box::pin(stream.closed());
    assert_pending!(closed.as_mut().poll_unpin(&mut Context::from_waker(&waker)));
    drop(backend);
    assert!(woken.load(Ordering::Relaxed));
}

#[tokio::test]
async fn waker_of_closed_may_block() {
    watchdog(async {
        let (mut stream, backend) = pair();
        let (blocker, code) = blocker();
        let code = Mutex::new(Some(code));
        let waker = waker(move || {
            let code = code.lock().unwrap().take();
            code.into_iter().for_each(|code| code());
        });
        let handle = stream.stats();
        assert_eq!(handle.tx.bytes, 0);
        {
            let mut closed = Box::pin(stream.closed());
            assert_pending!(closed.as_mut().poll_unpin(&mut Context::from_waker(&waker)));
            let krun = thread::spawn(move || drop(backend));
            blocker.begun.recv().unwrap();
            // Another task sees the end meanwhile.
            assert_eq!(stream.try_read(&mut [0; 8]).unwrap(), 0);
            blocker.release.send(()).unwrap();
            krun.join().unwrap();
        }
        assert_eq!(stream.read(&mut [0; 8]).await.unwrap(), 0);
    })
    .await;
}

#[tokio::test]
async fn waker_of_closed_may_panic() {
    let (mut stream, backend) = pair();
    {
        let panics = waker(|| panic!("from the caller's waker"));
        let mut closed = Box::pin(stream.closed());
        assert_pending!(
            closed
                .as_mut()
                .poll_unpin(&mut Context::from_waker(&panics))
        );
        let mut others = [(); 100].map(|()| tokio_test::task::spawn(stream.closed()));
        others
            .iter_mut()
            .for_each(|other| assert_pending!(other.poll()));
        drop(backend);
        // The panic keeps nobody else from being woken.
        for other in &mut others {
            assert!(other.is_woken());
            assert!(other.poll().is_ready());
        }
    }
    assert_eq!(stream.read(&mut [0; 8]).await.unwrap(), 0);
}

/// A waker whose code polls with the waker itself, as a wake may come before there is anything to find.
fn polling_waker(code: impl Fn(&mut Context<'_>) + Send + Sync + 'static) -> Arc<OnceLock<Waker>> {
    Arc::new_cyclic(|itself: &Weak<OnceLock<Waker>>| {
        let itself = itself.clone();
        OnceLock::from(waker(move || {
            if let Some(itself) = itself.upgrade() {
                code(&mut Context::from_waker(itself.wait()));
            }
        }))
    })
}

/// On Windows the guest's thread runs it; elsewhere tokio does.
#[tokio::test]
async fn waker_of_read_may_use_stream() {
    watchdog(async {
        let (stream, backend) = pair();
        let stream = Arc::new(stream);
        let read = Arc::new(Mutex::new(Vec::new()));
        let waker = polling_waker({
            let (stream, read) = (Arc::clone(&stream), Arc::clone(&read));
            move |cx| {
                if stream.poll_read_ready(cx).is_ready() {
                    let mut buf = [0; 8];
                    let length = stream.try_read(&mut buf).unwrap();
                    read.lock().unwrap().extend_from_slice(&buf[..length]);
                }
            }
        });
        assert_pending!(stream.poll_read_ready(&mut Context::from_waker(waker.wait())));
        backend.write(b"hello").unwrap();
        while read.lock().unwrap().is_empty() {
            tokio::task::yield_now().await;
        }
        assert_eq!(*read.lock().unwrap(), b"hello");
    })
    .await;
}

/// The in-process guest's workers run it.
#[tokio::test]
async fn waker_of_guests_port_may_use_stream() {
    watchdog(async {
        let (mut stream, port) = AgentStream::pair().unwrap();
        let guest = boot(port);
        let agent = Arc::new(Mutex::new(guest.open().unwrap()));
        let (send, received) = mpsc::channel();
        let poll = move |cx: &mut Context<'_>| {
            let mut buf = [0; 8];
            let mut buf = ReadBuf::new(&mut buf);
            let mut agent = agent.lock().unwrap();
            let read = std::pin::Pin::new(&mut *agent).poll_read(cx, &mut buf);
            if read.is_ready() {
                send.send(buf.filled().to_vec()).unwrap();
            }
        };
        let waker = polling_waker(poll);
        // The first poll.
        waker.wait().wake_by_ref();
        stream.write_all(b"hello").await.unwrap();
        let received = tokio::task::spawn_blocking(move || received.recv());
        assert_eq!(received.await.unwrap().unwrap(), b"hello");
    })
    .await;
}

/// A formatter that uses what it prints.
struct Writer<F: Fn()>(F);

impl<F: Fn()> std::fmt::Write for Writer<F> {
    fn write_str(&mut self, _: &str) -> std::fmt::Result {
        (self.0)();
        Ok(())
    }
}

#[tokio::test]
async fn debug_writer_may_use_stream() {
    watchdog(async {
        let (stream, port) = AgentStream::pair().unwrap();
        let handle = port.handle();
        let hook = port.exit_hook(std::time::Duration::ZERO);
        std::fmt::Write::write_fmt(&mut Writer(|| hook(0)), format_args!("{port:?}")).unwrap();
        let guest = boot(port);
        let agent = guest.open().unwrap();
        let use_all = || {
            let _ = stream.try_write(b"x");
            let _ = stream.try_read(&mut [0; 8]);
            handle.quiesce();
            handle.resume();
            guest.pause();
            guest.resume();
        };
        let mut writer = Writer(use_all);
        std::fmt::Write::write_fmt(
            &mut writer,
            format_args!("{stream:?} {handle:?} {guest:?} {agent:?}"),
        )
        .unwrap();
    })
    .await;
}
