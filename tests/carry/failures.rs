//! Either side fails: the other is ended, and the reason stays.

use std::error::Error as _;
use std::io::{self, ErrorKind};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_krun::{AgentStream, Carry, CarryError, Ended, Error, Options};

use crate::common::{SMALL, backend, boot, cancelled_at, pattern, watchdog};
use crate::scripted::{Read, Scripted, Write};

#[tokio::test]
async fn failed_read_ends_guest_after_what_was_read_before() {
    watchdog(async {
        let (stream, port) = AgentStream::pair().unwrap();
        let guest = boot(port);
        let mut agent = guest.open().unwrap();
        let client = Scripted::default();
        client.reads([
            Read::Bytes(pattern(100_000)),
            Read::Error(ErrorKind::TimedOut),
        ]);
        let mut carry = Carry::new(stream, client.clone());
        let error = carry.run().await.unwrap_err();
        assert!(matches!(&error, CarryError::Client(error) if error.kind() == ErrorKind::TimedOut));

        let mut received = Vec::new();
        agent.read_to_end(&mut received).await.unwrap();
        assert!(received == pattern(100_000));
        assert!(!client.with(|script| script.is_shut_down));

        // As an `io::Error`, it keeps the kind and the reason.
        let error = io::Error::from(error);
        assert_eq!(error.kind(), ErrorKind::TimedOut);
        let reason = error
            .get_ref()
            .and_then(|reason| reason.downcast_ref::<CarryError>());
        assert!(reason.is_some_and(|reason| reason.source().is_some()));
    })
    .await;
}

#[tokio::test]
async fn failed_write_ends_guest_that_still_writes() {
    watchdog(async {
        let (stream, port) = AgentStream::pair().unwrap();
        let guest = boot(port);
        let mut agent = guest.open().unwrap();
        agent.write_all(b"one").await.unwrap();
        guest.drained().await;
        let client = Scripted::default();
        client.with(|script| {
            script
                .writes
                .extend([Write::Takes(1), Write::Error(ErrorKind::BrokenPipe)])
        });
        let mut carry = Carry::new(stream, client.clone());
        let error = carry.run().await.unwrap_err();
        assert!(
            matches!(error, CarryError::Client(error) if error.kind() == ErrorKind::BrokenPipe)
        );
        assert_eq!(carry.carried().from_guest, 1);
        assert_eq!(agent.read(&mut [0; 8]).await.unwrap(), 0);
        // What the client did not get is still there.
        assert_eq!(carry.into_parts().to_client, ["ne"]);
    })
    .await;
}

#[tokio::test]
async fn client_that_closes_while_guest_writes_leaves_its_last_request() {
    watchdog(async {
        let (stream, port) = AgentStream::pair().unwrap();
        let guest = boot(port);
        let mut agent = guest.open().unwrap();
        agent.write_all(b"log line").await.unwrap();
        guest.drained().await;
        let client = Scripted::default();
        client.reads([Read::Bytes(b"power off".into()), Read::End]);
        client.with(|script| script.writes.push_back(Write::Error(ErrorKind::BrokenPipe)));
        let ended = Carry::new(stream, client).run().await;
        assert_eq!(ended.unwrap(), Ended::Client); // no failure: it has closed
        let mut heard = String::new();
        agent.read_to_string(&mut heard).await.unwrap();
        assert_eq!(heard, "power off");
    })
    .await;
}

#[tokio::test]
async fn client_that_takes_nothing_fails() {
    watchdog(async {
        let (stream, port) = AgentStream::pair().unwrap();
        let guest = boot(port);
        guest.open().unwrap().write_all(b"log line").await.unwrap();
        guest.drained().await;
        let client = Scripted::default();
        client.with(|script| script.writes.push_back(Write::Takes(0)));
        let error = Carry::new(stream, client).run().await.unwrap_err();
        assert!(matches!(error, CarryError::Client(error) if error.kind() == ErrorKind::WriteZero));
    })
    .await;
}

#[tokio::test]
async fn guest_that_is_cut_off_leaves_its_bytes_and_the_reason() {
    watchdog(async {
        let (stream, port) = Options::new().capacity(SMALL).create().unwrap();
        let handle = port.handle();
        let backend = backend(port);
        let sent = pattern(2 * SMALL + 10);
        handle.quiesce();
        assert_eq!(backend.write(&sent).unwrap(), sent.len());
        let client = Scripted::default();
        let error = Carry::new(stream, client.clone()).run().await.unwrap_err();
        let CarryError::Guest(error) = error else {
            panic!("{error}");
        };
        let reason = error.get_ref().and_then(|reason| reason.downcast_ref());
        assert!(matches!(reason, Some(Error::CutOff)));
        assert!(client.arrived() == sent[..2 * SMALL]);
        // The client must not take this for a proper end.
        assert!(!client.with(|script| script.is_shut_down));
    })
    .await;
}

#[tokio::test]
async fn stream_closed_elsewhere_is_no_end_of_the_guest() {
    watchdog(async {
        let (stream, port) = AgentStream::pair().unwrap();
        let handle = port.handle();
        let guest = boot(port);
        let _agent = guest.open().unwrap();
        let client = Scripted::default();
        let carried = tokio::spawn({
            let client = client.clone();
            async move { Carry::new(stream, client).run().await }
        });
        tokio::task::yield_now().await;
        handle.close();
        let error = carried.await.unwrap().unwrap_err();
        assert!(matches!(error, CarryError::Guest(error) if error.to_string().contains("closed the stream")));
        assert!(!client.with(|script| script.is_shut_down));
    })
    .await;
}

#[tokio::test]
async fn stream_that_was_shut_down_carries_only_from_guest() {
    watchdog(async {
        for reads in [vec![], vec![Read::Bytes(b"request".into())]] {
            let fails = !reads.is_empty();
            let (mut stream, port) = AgentStream::pair().unwrap();
            stream.shutdown().await.unwrap();
            let guest = boot(port);
            guest.open().unwrap().write_all(b"log line").await.unwrap();
            guest.drained().await;
            let client = Scripted::default();
            client.reads(reads);
            let mut carry = Carry::new(stream, client.clone());
            let (ended, ()) = tokio::join!(carry.run(), async {
                if !fails {
                    guest.power_off().await;
                }
            });
            if fails {
                assert!(matches!(ended, Err(CarryError::Guest(error)) if error.kind() == ErrorKind::BrokenPipe));
            } else {
                assert_eq!(ended.unwrap(), Ended::Guest);
            }
            assert_eq!(client.arrived(), b"log line");
        }
    })
    .await;
}

#[tokio::test]
async fn failed_write_to_guest_leaves_client_all_that_came_before() {
    watchdog(async {
        let (mut stream, port) = AgentStream::pair().unwrap();
        stream.shutdown().await.unwrap();
        let guest = boot(port);
        let mut agent = guest.open().unwrap();
        let sent = pattern(1 << 20);
        agent.write_all(&sent).await.unwrap();
        guest.drained().await;
        let client = Scripted::default();
        client.reads([Read::Bytes(b"request".into())]);
        client.with(|script| script.writes.push_back(Write::Takes(1)));
        let mut carry = Carry::new(stream, client.clone());
        let CarryError::Guest(error) = carry.run().await.unwrap_err() else {
            panic!("the stream has failed");
        };
        let reason = error.get_ref().and_then(|reason| reason.downcast_ref());
        assert!(matches!(reason, Some(Error::ShutDown)));
        assert!(client.arrived() == sent);
        // The client must not take this for a proper end.
        assert!(!client.with(|script| script.is_shut_down));
        assert_eq!(carry.into_parts().to_guest, "request");
    })
    .await;
}

#[tokio::test]
async fn failed_writes_to_both_sides_are_no_end() {
    watchdog(async {
        let (mut stream, port) = AgentStream::pair().unwrap();
        stream.shutdown().await.unwrap();
        let guest = boot(port);
        let mut agent = guest.open().unwrap();
        agent.write_all(b"log line").await.unwrap();
        guest.drained().await;
        let client = Scripted::default();
        client.reads([Read::Bytes(b"request".into())]);
        client.with(|script| script.is_full = true);
        let mut carry = Carry::new(stream, client.clone());
        assert!(cancelled_at(1, carry.run()).await.is_none());
        client.with(|script| {
            script.is_full = false;
            script.writes.push_back(Write::Error(ErrorKind::BrokenPipe));
        });
        assert!(matches!(carry.run().await, Err(CarryError::Client(_))));
    })
    .await;
}

#[tokio::test]
async fn second_run_says_the_reason_again() {
    watchdog(async {
        let (stream, port) = Options::new().capacity(SMALL).create().unwrap();
        let handle = port.handle();
        let backend = backend(port);
        handle.quiesce();
        let sent = pattern(2 * SMALL + 10);
        assert_eq!(backend.write(&sent).unwrap(), sent.len());
        let mut cut_off = Carry::new(stream, Scripted::default());

        let (mut stream, port) = AgentStream::pair().unwrap();
        stream.shutdown().await.unwrap();
        let client = Scripted::default();
        client.reads([Read::Bytes(b"request".into())]);
        let mut shut_down = Carry::new(stream, client);
        for _ in 0..3 {
            let error = io::Error::from(cut_off.run().await.unwrap_err());
            assert_eq!(error.kind(), ErrorKind::UnexpectedEof);
            assert!(matches!(reason(&error), Some(Error::CutOff)));
            let error = io::Error::from(shut_down.run().await.unwrap_err());
            assert_eq!(error.kind(), ErrorKind::BrokenPipe);
            assert!(matches!(reason(&error), Some(Error::ShutDown)));
        }
        drop(port);
    })
    .await;
}

/// The crate's own error in a `CarryError::Guest`.
fn reason(error: &io::Error) -> Option<&Error> {
    let error = error.get_ref()?.downcast_ref::<CarryError>()?;
    let CarryError::Guest(error) = error else {
        return None;
    };
    error.get_ref()?.downcast_ref()
}

#[tokio::test]
async fn second_run_says_the_error_of_the_socket_again() {
    watchdog(async {
        for error in [
            io::Error::from_raw_os_error(5),
            io::Error::other("TLS alert"),
        ] {
            let expected = (error.raw_os_error(), error.kind());
            let (stream, _port) = AgentStream::pair().unwrap();
            let client = tokio_test::io::Builder::new().read_error(error).build();
            let mut carry = Carry::new(stream, client);
            for _ in 0..3 {
                let CarryError::Client(error) = carry.run().await.unwrap_err() else {
                    panic!("the client's socket has failed");
                };
                assert_eq!((error.raw_os_error(), error.kind()), expected);
            }
        }
    })
    .await;
}

/// On Windows the port ends with the runtime.
#[cfg(not(windows))]
#[test]
fn second_run_says_again_that_the_runtime_has_gone() {
    let runtime = || {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap()
    };
    let home = runtime();
    let (stream, _port) = Options::new().create_on(home.handle()).unwrap();
    drop(home);
    let mut carry = Carry::new(stream, Scripted::default());
    runtime().block_on(watchdog(async {
        for _ in 0..3 {
            let error = io::Error::from(carry.run().await.unwrap_err());
            assert!(matches!(reason(&error), Some(Error::RuntimeGone)));
        }
    }));
}
