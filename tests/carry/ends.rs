//! Each end from each side, over each kind of socket.

use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_krun::test_util::Guest;
use tokio_krun::{AgentStream, Carry, CarryError, Ended, carry};
use tokio_test::assert_pending;

use crate::common::{boot, many, pattern, watchdog};

const LENGTH: usize = many(1 << 20);

pub(crate) trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}
type Socket = Box<dyn Io>;

async fn tcp() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap());
    let (client, accepted) = tokio::join!(client, listener.accept());
    (client.unwrap(), accepted.unwrap().0)
}

/// The client's end and ours, of each kind of socket.
async fn sockets() -> Vec<(Socket, Socket)> {
    let (client, socket) = tokio::io::duplex(10_000);
    let mut sockets: Vec<(Socket, Socket)> = vec![(Box::new(client), Box::new(socket))];
    if cfg!(not(miri)) {
        let (client, socket) = tcp().await;
        sockets.push((Box::new(client), Box::new(socket)));
        #[cfg(unix)]
        {
            let (client, socket) = tokio::net::UnixStream::pair().unwrap();
            sockets.push((Box::new(client), Box::new(socket)));
        }
    }
    sockets
}

fn spawn(mut carry: Carry<Socket>) -> JoinHandle<(Result<Ended, CarryError>, Carry<Socket>)> {
    tokio::spawn(async move {
        let ended = carry.run().await;
        (ended, carry)
    })
}

#[tokio::test]
async fn guest_power_off_gives_client_all_bytes_and_end_and_lets_exit_hook_go() {
    watchdog(async {
        for (mut client, socket) in sockets().await {
            let (stream, port) = AgentStream::pair().unwrap();
            let guest = Guest::builder()
                .on_exit(port.exit_hook(Duration::from_secs(3600)))
                .port("agent", port)
                .boot();
            let mut agent = guest.open().unwrap();
            let carried = spawn(Carry::new(stream, socket));
            client.write_all(b"request").await.unwrap();
            agent.read_exact(&mut [0; 7]).await.unwrap();

            let sent = pattern(LENGTH);
            let mut received = Vec::new();
            let guest = async {
                agent.write_all(&sent).await.unwrap();
                guest.drained().await;
                guest.power_off().await; // returns once the hook has
            };
            tokio::join!(guest, async {
                client.read_to_end(&mut received).await.unwrap()
            });
            assert!(received == sent);

            // The carry is still alive: it has let the hook go itself.
            let (ended, mut carry) = carried.await.unwrap();
            assert_eq!(ended.unwrap(), Ended::Guest);
            assert_eq!(carry.carried().from_guest, sent.len() as u64);
            assert_eq!(carry.carried().to_guest, 7);
            assert_eq!(carry.run().await.unwrap(), Ended::Guest);
        }
    })
    .await;
}

#[tokio::test]
async fn dropped_vm_is_an_end_too() {
    watchdog(async {
        for (mut client, socket) in sockets().await {
            let (stream, port) = AgentStream::pair().unwrap();
            let carried = tokio::spawn(carry(stream, socket));
            drop(boot(port));
            assert_eq!(client.read(&mut [0; 8]).await.unwrap(), 0);
            assert_eq!(carried.await.unwrap().unwrap(), Ended::Guest);
        }
    })
    .await;
}

#[tokio::test]
async fn client_close_hangs_guest_up_after_last_byte() {
    watchdog(async {
        for (mut client, socket) in sockets().await {
            let (stream, port) = AgentStream::pair().unwrap();
            let guest = boot(port);
            let mut agent = guest.open().unwrap();
            let carried = spawn(Carry::new(stream, socket));
            let sent = pattern(LENGTH);
            let client = async {
                client.write_all(&sent).await.unwrap();
                drop(client);
            };
            let mut received = Vec::new();
            tokio::join!(client, async {
                agent.read_to_end(&mut received).await.unwrap()
            });
            assert!(received == sent);
            let (ended, carry) = carried.await.unwrap();
            assert_eq!(ended.unwrap(), Ended::Client);
            assert_eq!(carry.carried().to_guest, sent.len() as u64);
        }
    })
    .await;
}

#[tokio::test]
async fn client_that_ends_its_writing_reads_what_guest_had_written() {
    watchdog(async {
        for (mut client, socket) in sockets().await {
            let (stream, port) = AgentStream::pair().unwrap();
            let guest = boot(port);
            let sent = pattern(LENGTH);
            let mut agent = guest.open().unwrap();
            agent.write_all(&sent).await.unwrap();
            guest.drained().await;

            client.shutdown().await.unwrap();
            let carried = spawn(Carry::new(stream, socket));
            let mut received = Vec::new();
            client.read_to_end(&mut received).await.unwrap();
            assert!(received == sent);
            assert_eq!(carried.await.unwrap().0.unwrap(), Ended::Client);
            assert_eq!(agent.read(&mut [0; 8]).await.unwrap(), 0);
        }
    })
    .await;
}

#[tokio::test]
async fn client_end_that_only_shuts_down_leaves_the_answer_its_way() {
    watchdog(async {
        for (mut client, socket) in sockets().await {
            let (stream, port) = AgentStream::pair().unwrap();
            let guest = boot(port);
            let mut agent = guest.open().unwrap();
            let mut carry = Carry::new(stream, socket);
            carry.hang_up_on_client_end(false);
            let carried = spawn(carry);
            client.write_all(b"request").await.unwrap();
            client.shutdown().await.unwrap();
            agent.read_exact(&mut [0; 7]).await.unwrap();
            assert_pending!(tokio_test::task::spawn(agent.read_u8()).poll());

            let sent = pattern(LENGTH);
            let mut received = Vec::new();
            let guest = async {
                agent.write_all(&sent).await.unwrap();
                guest.drained().await;
                guest.power_off().await;
            };
            tokio::join!(guest, async {
                client.read_to_end(&mut received).await.unwrap()
            });
            assert!(received == sent);
            assert_eq!(carried.await.unwrap().0.unwrap(), Ended::Guest);
        }
    })
    .await;
}

#[tokio::test]
async fn both_ends_at_once_leave_no_byte_behind() {
    watchdog(async {
        for (mut client, socket) in sockets().await {
            let (stream, port) = AgentStream::pair().unwrap();
            let guest = boot(port);
            let mut agent = guest.open().unwrap();
            agent.write_all(b"last words").await.unwrap();
            guest.drained().await;
            guest.power_off().await;
            client.shutdown().await.unwrap();

            let (ended, carry) = spawn(Carry::new(stream, socket)).await.unwrap();
            let ended = ended.unwrap();
            assert!(matches!(ended, Ended::Guest | Ended::Client));
            assert_eq!(carry.carried().to_guest, 0);
            drop(carry);
            let mut heard = Vec::new();
            client.read_to_end(&mut heard).await.unwrap();
            assert_eq!(heard, b"last words");
        }
    })
    .await;
}

/// On Linux, a socket that is closed with unread bytes resets the connection.
#[cfg(all(target_os = "linux", not(miri)))]
#[tokio::test]
async fn client_reset_hangs_guest_up_and_says_why() {
    watchdog(async {
        let mut sockets = sockets().await;
        for (client, socket) in sockets.drain(1..) {
            let (stream, port) = AgentStream::pair().unwrap();
            let guest = boot(port);
            let mut agent = guest.open().unwrap();
            agent.write_all(b"unread").await.unwrap();
            guest.drained().await;
            let mut carry = Carry::new(stream, socket);
            {
                let mut run = tokio_test::task::spawn(carry.run());
                while tokio::time::timeout(Duration::from_millis(1), &mut run).await.is_ok() {}
            }
            assert_eq!(carry.carried().from_guest, 6);
            drop(client);

            let error = carry.run().await.unwrap_err();
            assert!(matches!(&error, CarryError::Client(error) if error.kind() == std::io::ErrorKind::ConnectionReset));
            assert_eq!(agent.read(&mut [0; 8]).await.unwrap(), 0); // hung up, while the carry lives
            assert!(matches!(carry.run().await, Err(CarryError::Client(_))));
        }
    })
    .await;
}
