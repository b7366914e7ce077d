//! The feature `tracing` logs a stream's lifecycle, and never its payload.

mod common;

use std::io::{self, Write};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, mpsc};
use std::thread;
use std::time::Duration;

use common::{Backend, SMALL, backend, fill};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt};
use tokio_krun::{AgentPort, AgentStream, Options, PortHandle};
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

impl Log {
    /// Global, because krun's threads log some of the events. Some tests set another on their own thread.
    fn global() -> Self {
        static GLOBAL: OnceLock<Log> = OnceLock::new();
        let log = GLOBAL.get_or_init(|| {
            let log = Self::default();
            tracing_subscriber::fmt()
                .with_max_level(tracing_subscriber::filter::LevelFilter::TRACE)
                .with_ansi(false)
                .with_writer(log.clone())
                .init();
            log
        });
        log.clone()
    }

    /// The lines about the streams with this label.
    fn about(&self, label: &str) -> String {
        let log = String::from_utf8(self.0.lock().unwrap().clone()).unwrap();
        let label = format!(" label={label:?}");
        log.lines()
            .filter(|line| line.contains(&label))
            .map(|line| format!("{line}\n"))
            .collect()
    }

    /// The same, once `event` is among them. Other threads and tasks may log it only after what it reports.
    async fn with(&self, event: &str, label: &str) -> String {
        loop {
            let log = self.about(label);
            if log.contains(event) {
                return log;
            }
            tokio::task::yield_now().await;
        }
    }
}

#[tokio::test]
async fn events_report_lifecycle_with_label_and_without_payload() {
    let log = Log::global();
    let (mut stream, port) = Options::new().label("vm-17").create().unwrap();
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

    let log = log.with("the guest has gone", "vm-17").await;
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

#[tokio::test]
async fn exit_hook_reports_which_stream_it_waits_for() {
    let log = Log::global();
    let (kept, kept_port) = Options::new().label("kept").create().unwrap();
    let (dropped, dropped_port) = Options::new().label("dropped").create().unwrap();
    let hook = AgentPort::exit_hook_for([&dropped_port, &kept_port], Duration::ZERO);
    drop(dropped);
    hook(0);
    let log_of_kept = log
        .with("the exit hook waits until the stream is dropped", "kept")
        .await;
    let warning = log_of_kept
        .lines()
        .find(|line| line.contains("limit is over, and the stream was not dropped"));
    assert!(
        warning.is_some_and(|line| line.contains(" WARN ")),
        "{log_of_kept}"
    );
    let log_of_dropped = log.with("the guest has gone", "dropped").await;
    assert!(!log_of_dropped.contains("exit hook"), "{log_of_dropped}");
    drop(kept);
}

#[cfg(feature = "msb_krun")]
#[tokio::test]
async fn attaching_reports_name_of_port() {
    let log = Log::global();
    let (_stream, port) = Options::new().label("to attach").create().unwrap();
    let _console = port.attach(msb_krun::ConsoleBuilder::new(), "agent");
    let log = log.about("to attach");
    let attached = log.lines().find(|line| line.contains(": attached "));
    assert!(
        attached.is_some_and(|line| line.contains(r#" port="agent""#)),
        "{log}"
    );
}

#[tokio::test]
async fn debug_is_one_short_line_with_label_and_without_payload() {
    let (mut stream, port) = Options::new().label("vm-17").create().unwrap();
    let handle = port.handle();
    backend(port).write(b"secret").unwrap();
    stream.fill_buf().await.unwrap();
    let (read, write) = stream.into_split();
    let halves = [format!("{read:?}"), format!("{write:?}")];
    let stream = read.reunite(write).unwrap();
    for text in [format!("{stream:?}"), format!("{handle:?}")]
        .into_iter()
        .chain(halves)
    {
        assert!(text.contains(r#"label: "vm-17""#), "{text}");
        assert!(!text.contains("secret"), "{text}");
        assert!(text.len() < 400, "{text}");
    }
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
async fn subscriber_of_exit_hook_may_use_stream_or_panic() {
    for panics in [false, true] {
        let (stream, port) = AgentStream::pair().unwrap();
        let stream = Arc::new(stream);
        let runs = Arc::new(AtomicUsize::new(0));
        let guard = at("the exit hook's limit is over", {
            let (stream, runs) = (Arc::clone(&stream), Arc::clone(&runs));
            move || {
                // On Windows a task ends the stream, a moment later.
                let read = stream.try_read(&mut [0; 8]);
                assert!(matches!(read, Ok(0)) || cfg!(windows), "{read:?}");
                runs.fetch_add(1, Ordering::Relaxed);
                assert!(!panics, "from the caller's subscriber");
            }
        });
        port.exit_hook(Duration::ZERO)(0);
        drop(guard);
        assert_eq!(runs.load(Ordering::Relaxed), 1);
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
