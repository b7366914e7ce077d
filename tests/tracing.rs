//! The feature `tracing` logs a stream's lifecycle, and never its payload.

use std::io::{self, Write};
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_krun::AgentStream;
use tokio_krun::test_util::Guest;
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
    // Global, because krun's threads log some of the events.
    tracing_subscriber::fmt()
        .with_max_level(tracing_subscriber::filter::LevelFilter::TRACE)
        .with_writer(log.clone())
        .init();
    let (mut stream, port) = AgentStream::pair().unwrap();
    let handle = port.handle();
    let guest = Guest::boot(port);
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
