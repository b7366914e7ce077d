//! The feature `tracing` logs a stream's lifecycle, and never its payload.

mod common;

use std::io::{self, Write};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::Duration;

use common::{Backend, SMALL, backend, fill};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_krun::{AgentStream, Options, PortHandle};
use tracing::subscriber::{DefaultGuard, set_default};
use tracing_subscriber::fmt::MakeWriter;

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Write::write(&mut *self.0.lock().unwrap(), bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Log {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

#[tokio::test]
async fn events_report_lifecycle_without_payload() {
    let log = Log::default();
    // Global, because krun's threads log some of the events. Other tests set their own on their thread.
    tracing_subscriber::fmt()
        .with_max_level(tracing_subscriber::filter::LevelFilter::TRACE)
        .with_writer(log.clone())
        .init();
    let (mut stream, port) = AgentStream::pair().unwrap();
    let handle = port.handle();
    let guest = common::boot(port);
    let mut agent = guest.open().unwrap();
    stream.write_all(b"secret").await.unwrap();
    agent.read_exact(&mut [0; 6]).await.unwrap();
    agent.write_all(b"secret").await.unwrap();
    stream.read_exact(&mut [0; 6]).await.unwrap();
    handle.quiesce();
    handle.resume();
    drop(stream);
    drop(agent);
    guest.power_off().await;

    let text = || String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    // Where krun's end is a task, that task logs the last event, perhaps only now.
    while !text().contains("the guest has gone") {
        tokio::task::yield_now().await;
    }
    let log = text();
    let mut rest = &log[..];
    for event in [
        "created",
        "the guest has opened its port",
        "quiesced",
        "resumed",
        "the host hangs up",
        "the guest has gone",
    ] {
        let at = rest.find(event);
        assert!(
            at.is_some(),
            "{event:?} is missing or out of order in\n{log}"
        );
        rest = &rest[at.unwrap()..];
    }
    assert!(log.contains("tokio_krun"), "{log}");
    assert!(!log.contains("secret"), "{log}");
}

/// Runs the caller's code at each event that contains `event`.
#[derive(Clone)]
struct At {
    event: &'static str,
    code: Arc<dyn Fn() + Send + Sync>,
}

impl Write for At {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if String::from_utf8_lossy(bytes).contains(self.event) {
            (self.code)();
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for At {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

/// For this thread only, on which the test plays both the host and krun.
fn at(event: &'static str, code: impl Fn() + Send + Sync + 'static) -> DefaultGuard {
    let code = Arc::new(code);
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing_subscriber::filter::LevelFilter::TRACE)
        .with_writer(At { event, code })
        .finish();
    set_default(subscriber)
}

/// Every event but `created`, each after what it reports.
const EVENTS: [&str; 6] = [
    "the guest has opened its port",
    "quiesced",
    "resumed",
    "discarded",
    "the host hangs up",
    "the guest has gone",
];

/// Plays a stream's life, in which the subscriber runs.
fn life(stream: &AgentStream, handle: &PortHandle, backend: Backend) {
    let _ = backend.read(&mut [0; 8]); // the first call
    handle.quiesce();
    handle.resume();
    fill(&backend);
    backend.wait_until_writable(); // with a stall timeout of zero
    assert_eq!(backend.write(b"lost").unwrap(), 4);
    assert_eq!(stream.try_write(b"bye").unwrap(), 3);
    drop(backend);
}

fn stalling() -> (AgentStream, PortHandle, Backend) {
    let options = Options::new().capacity(SMALL).stall_timeout(Duration::ZERO);
    let (stream, port) = options.create().unwrap();
    let handle = port.handle();
    (stream, handle, backend(port))
}

#[tokio::test]
async fn subscriber_may_use_stream() {
    for event in EVENTS {
        let (stream, handle, backend) = stalling();
        let stream = Arc::new(stream);
        let runs = Arc::new(AtomicUsize::new(0));
        let guard = at(event, {
            let (stream, runs) = (Arc::clone(&stream), Arc::clone(&runs));
            move || {
                let _ = stream.try_write(b"x");
                let _ = stream.try_read(&mut [0; 8]);
                let _ = stream.stats();
                runs.fetch_add(1, Ordering::Relaxed);
            }
        });
        if event == "the host hangs up" {
            let (stream, _port) = AgentStream::pair().unwrap();
            stream.hang_up();
        } else {
            life(&stream, &handle, backend);
        }
        drop(guard);
        assert_eq!(runs.load(Ordering::Relaxed), 1, "{event}");
    }
}

#[tokio::test]
async fn subscriber_may_panic() {
    for event in EVENTS {
        let (mut stream, handle, backend) = stalling();
        let guard = at(event, || panic!("from the caller's subscriber"));
        life(&stream, &handle, backend);
        stream.hang_up();
        drop(guard);
        let mut received = Vec::new();
        let error = stream.read_to_end(&mut received).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        assert_eq!(received.len(), SMALL);
        assert_eq!(handle.stats().tx.discarded, 4);
    }
}

/// The stream passes on an end before it reports the end as an event.
#[tokio::test]
async fn subscriber_may_block() {
    let (mut stream, _, backend) = stalling();
    let (begin, begun) = mpsc::channel();
    let (release, released) = mpsc::channel();
    let released = Mutex::new(released);
    let krun = thread::spawn(move || {
        let _guard = at("the guest has gone", move || {
            begin.send(()).unwrap();
            released.lock().unwrap().recv().unwrap();
        });
        drop(backend);
    });
    begun.recv().unwrap();
    stream.closed().await;
    assert_eq!(stream.read(&mut [0; 8]).await.unwrap(), 0);
    release.send(()).unwrap();
    krun.join().unwrap();

    // Dropping the stream lets a waiting guest through before it reports the hang-up.
    let (stream, handle, backend) = stalling();
    fill(&backend);
    let (begin, begun) = mpsc::channel();
    let (release, released) = mpsc::channel();
    let released = Mutex::new(released);
    let host = thread::spawn(move || {
        let _guard = at("the host hangs up", move || {
            begin.send(()).unwrap();
            released.lock().unwrap().recv().unwrap();
        });
        drop(stream);
    });
    begun.recv().unwrap();
    assert_eq!(backend.write(b"more").unwrap(), 4);
    assert_eq!(handle.stats().tx.discarded, SMALL as u64 + 4);
    release.send(()).unwrap();
    host.join().unwrap();
}
