//! The client has closed its socket, which a failed write finds first: its last bytes still go to the guest.

use std::future::{Future, poll_fn};
use std::io::ErrorKind;
use std::pin::pin;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::task::{coop, yield_now};
use tokio_krun::test_util::Guest;
use tokio_krun::{AgentStream, Carry, CarryError, Ended, Options};
#[cfg(unix)]
use tokio_test::assert_pending;

use crate::common::{SMALL, boot, cancelled_at, pattern, watchdog};
use crate::scripted::{Read, Scripted, Write};

/// More than there is room for.
const LENGTH: usize = 10 * SMALL;

/// The guest has written something, and the client's socket takes none of it.
async fn closed_client(
    reads: impl IntoIterator<Item = Read>,
) -> (
    AgentStream,
    (Guest, impl AsyncRead + AsyncWrite + Unpin),
    Scripted,
) {
    let (stream, port) = Options::new().capacity(SMALL).create().unwrap();
    let guest = boot(port);
    let mut agent = guest.open().unwrap();
    agent.write_all(b"log line").await.unwrap();
    guest.drained().await;
    let client = Scripted::default();
    client.reads(reads);
    client.with(|script| script.writes.push_back(Write::Error(ErrorKind::BrokenPipe)));
    (stream, (guest, agent), client)
}

fn is_broken_pipe(ended: &Result<Ended, CarryError>) -> bool {
    matches!(ended, Err(CarryError::Client(error)) if error.kind() == ErrorKind::BrokenPipe)
}

/// Gives the other task the turns to go as far as it can.
async fn turns() {
    for _ in 0..100 {
        yield_now().await;
    }
}

#[tokio::test]
async fn last_request_that_has_no_room_waits_for_it() {
    watchdog(async {
        let (stream, (_guest, mut agent), client) =
            closed_client([Read::Bytes(pattern(LENGTH)), Read::End]).await;
        let carried = tokio::spawn(async move { Carry::new(stream, client).run().await });
        turns().await;
        // On Windows, krun takes all of it and keeps it for the guest.
        if cfg!(unix) {
            assert!(!carried.is_finished());
        }
        let mut heard = Vec::new();
        agent.read_to_end(&mut heard).await.unwrap();
        assert!(heard == pattern(LENGTH));
        assert_eq!(carried.await.unwrap().unwrap(), Ended::Client);
    })
    .await;
}

#[tokio::test]
async fn last_request_reaches_guest_that_waits_for_room_itself() {
    watchdog(async {
        let (stream, (_guest, mut agent), client) =
            closed_client([Read::Bytes(pattern(LENGTH)), Read::End]).await;
        let carried = tokio::spawn(async move { Carry::new(stream, client).run().await });
        // It reads only once it has written all of this.
        agent.write_all(&pattern(10 * SMALL)).await.unwrap();
        let mut heard = Vec::new();
        agent.read_to_end(&mut heard).await.unwrap();
        assert!(heard == pattern(LENGTH));
        assert_eq!(carried.await.unwrap().unwrap(), Ended::Client);
    })
    .await;
}

#[tokio::test]
async fn last_request_survives_a_task_without_budget() {
    watchdog(async {
        for used in 0..=128 {
            let (stream, (_guest, mut agent), client) =
                closed_client([Read::Bytes(b"power off".into()), Read::End]).await;
            let mut carry = Carry::new(stream, client);
            let mut run = pin!(carry.run());
            let mut left = used;
            yield_now().await; // to a full budget
            let ended = poll_fn(|cx| {
                for _ in 0..std::mem::take(&mut left) {
                    if let std::task::Poll::Ready(budget) = coop::poll_proceed(cx) {
                        budget.made_progress();
                    }
                }
                run.as_mut().poll(cx)
            })
            .await;
            assert_eq!(ended.unwrap(), Ended::Client, "{used} used");
            let mut heard = String::new();
            agent.read_to_string(&mut heard).await.unwrap();
            assert_eq!(heard, "power off", "{used} used");
        }
    })
    .await;
}

/// The runtime learns from the system only now and then what has reached a socket.
#[cfg(all(unix, not(miri)))]
#[tokio::test]
async fn last_request_that_the_runtime_has_not_noticed_is_found() {
    use std::io::Write as _;

    watchdog(async {
        let (stream, port) = AgentStream::pair().unwrap();
        let guest = boot(port);
        let mut agent = guest.open().unwrap();
        let (mut client, socket) = std::os::unix::net::UnixStream::pair().unwrap();
        socket.set_nonblocking(true).unwrap();
        let socket = tokio::net::UnixStream::from_std(socket).unwrap();
        let mut carry = Carry::new(stream, socket);
        let mut run = tokio_test::task::spawn(carry.run());
        assert_pending!(run.poll());
        yield_now().await;
        assert_pending!(run.poll());

        // From here on, nothing gives the runtime a turn until the carry does.
        client.write_all(b"power off").unwrap();
        drop(client);
        assert!(
            tokio_test::task::spawn(agent.write_all(b"log line"))
                .poll()
                .is_ready()
        );
        assert_eq!(run.await.unwrap(), Ended::Client);
        let mut heard = String::new();
        agent.read_to_string(&mut heard).await.unwrap();
        assert_eq!(heard, "power off");
    })
    .await;
}

#[tokio::test]
async fn last_request_is_carried_on_after_a_cancelled_run() {
    watchdog(async {
        let (stream, (_guest, mut agent), client) =
            closed_client([Read::Bytes(pattern(LENGTH)), Read::End]).await;
        let mut carry = Carry::new(stream, client);
        let mut heard = vec![0; LENGTH];
        let mut cancelled = 0;
        let mut ended = None;
        for part in heard.chunks_mut(1000) {
            for polls in [1, 2] {
                if ended.is_none() {
                    ended = cancelled_at(polls, carry.run()).await;
                    cancelled += 1;
                }
            }
            agent.read_exact(part).await.unwrap();
        }
        assert!(cancelled > 10);
        assert!(heard == pattern(LENGTH));
        assert_eq!(carry.run().await.unwrap(), Ended::Client);
        assert_eq!(agent.read(&mut [0; 8]).await.unwrap(), 0);
    })
    .await;
}

#[tokio::test]
async fn client_that_only_stopped_reading_fails_when_it_pauses() {
    watchdog(async {
        let (stream, (_guest, mut agent), client) =
            closed_client([Read::Bytes(pattern(LENGTH))]).await;
        let carried = tokio::spawn(async move { Carry::new(stream, client).run().await });
        let mut heard = Vec::new();
        agent.read_to_end(&mut heard).await.unwrap();
        assert!(heard == pattern(LENGTH));
        assert!(is_broken_pipe(&carried.await.unwrap()));
    })
    .await;
}

#[tokio::test]
async fn client_that_only_stopped_reading_and_never_pauses_goes_on_until_guest_ends() {
    watchdog(async {
        let (stream, (guest, mut agent), client) = closed_client([Read::Flood]).await;
        let carried = tokio::spawn(async move { Carry::new(stream, client).run().await });
        let mut heard = vec![0; 10 * SMALL];
        agent.read_exact(&mut heard).await.unwrap();
        turns().await;
        assert!(!carried.is_finished());
        guest.power_off().await;
        assert!(is_broken_pipe(&carried.await.unwrap()));
    })
    .await;
}

#[tokio::test]
async fn failed_read_is_no_end() {
    watchdog(async {
        // A socket says only once that it has failed.
        let reads = [Read::Error(ErrorKind::ConnectionReset), Read::End];
        let (stream, _booted, client) = closed_client(reads).await;
        let error = Carry::new(stream, client).run().await.unwrap_err();
        assert!(
            matches!(error, CarryError::Client(error) if error.kind() == ErrorKind::ConnectionReset)
        );
    })
    .await;
}

#[tokio::test]
async fn reset_is_no_end_but_leaves_what_came_before() {
    watchdog(async {
        let reads = [Read::Bytes(b"power off".into()), Read::End];
        let (stream, (_guest, mut agent), client) = closed_client(reads).await;
        client.with(|script| script.writes = [Write::Error(ErrorKind::ConnectionReset)].into());
        let error = Carry::new(stream, client).run().await.unwrap_err();
        assert!(
            matches!(error, CarryError::Client(error) if error.kind() == ErrorKind::ConnectionReset)
        );
        let mut heard = String::new();
        agent.read_to_string(&mut heard).await.unwrap();
        assert_eq!(heard, "power off");
    })
    .await;
}

#[tokio::test]
async fn client_that_ended_before_the_failed_write_has_ended() {
    watchdog(async {
        let (stream, _booted, client) = closed_client([Read::End]).await;
        client.with(|script| script.writes = [Write::Error(ErrorKind::ConnectionReset)].into());
        assert_eq!(
            Carry::new(stream, client).run().await.unwrap(),
            Ended::Client
        );
    })
    .await;
}
