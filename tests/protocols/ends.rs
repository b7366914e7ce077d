//! Which protocols end by themselves, and which wait forever. The table in the crate's documentation is made from these
//! tests, and from those at the foot of the other files.
//!
//! The host cannot detect that the agent closed its port, so it goes on as long as its protocol expects bytes. The agent
//! does notice when the host drops its stream.

use std::convert::Infallible;
use std::pin::pin;
use std::time::Duration;

use bytes::Bytes;
use futures::{StreamExt, stream};
use http_body_util::{BodyExt, Empty, StreamBody};
use hyper::body::{Body, Frame};
use hyper::client::conn::{http1, http2};
use hyper::service::service_fn;
use hyper::{Request, Response, server};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::task::JoinHandle;
use tokio_krun::agent::VirtioPort;
use tokio_krun::test_util::Guest;
use tokio_krun::{AgentStream, Options, PortHandle};
use tokio_util::codec::{Framed, LinesCodec};

use crate::common::{SMALL, watchdog};

/// A VM that stays up when its agent has ended.
pub(crate) struct Vm {
    pub(crate) guest: Guest,
    handle: PortHandle,
}

impl Vm {
    pub(crate) fn boot() -> (AgentStream, VirtioPort, Self) {
        let (stream, port) = Options::new().capacity(SMALL).create().unwrap();
        let handle = port.handle();
        let guest = Guest::boot(port);
        let agent = guest.open().unwrap();
        (stream, agent, Self { guest, handle })
    }

    /// Waits until the agent has closed its port. Returns whether the host's `task` then waits for something that can no
    /// longer come.
    pub(crate) async fn makes_wait_forever<T>(&self, task: &JoinHandle<T>) -> bool {
        drop(self.reopen().await);
        self.idle().await;
        let unread = self.handle.stats().tx.queued;
        assert_eq!(unread, 0, "the host has more to read");
        !task.is_finished()
    }

    /// Waits until the agent has closed its port. Returns whether the host has then dropped its stream.
    #[cfg(unix)] // ttrpc
    pub(crate) async fn has_host_ended(&self) -> bool {
        let mut agent = self.reopen().await;
        self.idle().await;
        // What nobody will read is discarded.
        let before = self.handle.stats().tx.discarded;
        let written = agent.write_u8(0).await;
        self.guest.drained().await;
        written.is_err() || self.handle.stats().tx.discarded > before
    }

    /// Opens the port as soon as the agent has closed it. Its library may do so in a task of its own.
    async fn reopen(&self) -> VirtioPort {
        loop {
            match self.guest.open() {
                Ok(agent) => return agent,
                Err(_) => tokio::task::yield_now().await,
            }
        }
    }

    /// Waits until no task of the host can go on, unless the guest writes again.
    async fn idle(&self) {
        self.guest.drained().await;
        // A paused clock goes on only when no task can. Before its first step, the runtime may just have seen the last bytes.
        tokio::time::pause();
        for _ in 0..2 {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        tokio::time::resume();
    }
}

#[tokio::test]
async fn lines_wait_forever_after_agent_closed_its_port() {
    watchdog(async {
        let (stream, mut agent, vm) = Vm::boot();
        let host = tokio::spawn(Framed::new(stream, LinesCodec::new()).collect::<Vec<_>>());
        agent.write_all(b"last words\n").await.unwrap();
        drop(agent);
        assert!(vm.makes_wait_forever(&host).await);
        vm.guest.power_off().await;
        assert_eq!(host.await.unwrap().len(), 1);
    })
    .await;
}

mod http {
    use super::*;

    /// An agent that answers one request with these bytes and then closes its port.
    async fn answer_once(mut agent: VirtioPort, response: &'static str) {
        read_to(&mut agent, b"\r\n\r\n").await;
        agent.write_all(response.as_bytes()).await.unwrap();
    }

    /// Reads until `end` has come.
    async fn read_to(agent: &mut VirtioPort, end: &[u8]) {
        let mut read = Vec::new();
        while !read.ends_with(end) {
            read.push(agent.read_u8().await.unwrap());
        }
    }

    /// Sends a request to such an agent. Returns the tasks that read the body and drive the connection, and what keeps
    /// the connection open.
    async fn request(
        stream: AgentStream,
        agent: VirtioPort,
        response: &'static str,
    ) -> (
        JoinHandle<hyper::Result<Bytes>>,
        JoinHandle<hyper::Result<()>>,
        http1::SendRequest<Empty<Bytes>>,
    ) {
        let agent = tokio::spawn(answer_once(agent, response));
        let (mut requests, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
        let connection = tokio::spawn(connection);
        let request = Request::get("/").header("host", "agent").body(Empty::new());
        let response = requests.send_request(request.unwrap()).await.unwrap();
        let body = tokio::spawn(async { Ok(response.into_body().collect().await?.to_bytes()) });
        agent.await.unwrap();
        (body, connection, requests)
    }

    #[tokio::test]
    async fn http1_body_with_length_or_in_chunks_ends_by_itself() {
        for response in [
            "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n",
            "HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nhi",
        ] {
            watchdog(async {
                let (stream, agent, _vm) = Vm::boot();
                let (body, ..) = request(stream, agent, response).await;
                assert_eq!(body.await.unwrap().unwrap(), "hi", "{response:?}");
            })
            .await;
        }
    }

    #[tokio::test]
    async fn http1_body_that_lasts_until_close_waits_forever() {
        for response in [
            "HTTP/1.0 200 OK\r\n\r\nhi",
            "HTTP/1.1 200 OK\r\nconnection: close\r\n\r\nhi",
            // The agent ended too early.
            "HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nhi",
        ] {
            watchdog(async {
                let (stream, agent, vm) = Vm::boot();
                let (body, ..) = request(stream, agent, response).await;
                assert!(vm.makes_wait_forever(&body).await, "{response:?}");
            })
            .await;
        }
    }

    #[tokio::test]
    async fn http1_client_on_host_ends_with_connection_close_or_when_dropped() {
        watchdog(async {
            for response in [
                "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nhi",
                "HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nhi",
            ] {
                let (stream, agent, _vm) = Vm::boot();
                let (_, connection, _requests) = request(stream, agent, response).await;
                connection.await.unwrap().unwrap();
            }

            let (stream, agent, vm) = Vm::boot();
            let response = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi";
            let (_, connection, requests) = request(stream, agent, response).await;
            assert!(vm.makes_wait_forever(&connection).await);
            drop(requests);
            connection.await.unwrap().unwrap();
        })
        .await;
    }

    /// Answers with a body of unknown length.
    async fn hi<B>(
        _: Request<B>,
    ) -> Result<Response<impl Body<Data = Bytes, Error = Infallible>>, Infallible> {
        let frames = stream::iter([Ok::<_, Infallible>(Frame::data(Bytes::from("hi")))]);
        Ok(Response::new(StreamBody::new(frames)))
    }

    fn serve_http1(stream: AgentStream) -> JoinHandle<hyper::Result<()>> {
        let server = server::conn::http1::Builder::new();
        tokio::spawn(server.serve_connection(TokioIo::new(stream), service_fn(hi)))
    }

    #[tokio::test]
    async fn http1_server_on_host_ends_only_after_connection_close() {
        watchdog(async {
            // The agent reads to the end of file, as the host's server has dropped its stream.
            for (request, end) in [
                ("GET / HTTP/1.0\r\n\r\n", "\r\n\r\nhi"),
                (
                    "GET / HTTP/1.1\r\nhost: host\r\nconnection: close\r\n\r\n",
                    "\r\n\r\n2\r\nhi\r\n0\r\n\r\n",
                ),
            ] {
                let (stream, mut agent, _vm) = Vm::boot();
                let server = serve_http1(stream);
                agent.write_all(request.as_bytes()).await.unwrap();
                let mut response = String::new();
                agent.read_to_string(&mut response).await.unwrap();
                assert!(response.ends_with(end), "{response}");
                server.await.unwrap().unwrap();
            }

            let (stream, mut agent, vm) = Vm::boot();
            let server = serve_http1(stream);
            let request = b"GET / HTTP/1.1\r\nhost: host\r\n\r\n";
            agent.write_all(request).await.unwrap();
            read_to(&mut agent, b"\r\n0\r\n\r\n").await;
            drop(agent);
            assert!(vm.makes_wait_forever(&server).await);
        })
        .await;
    }

    #[tokio::test]
    async fn http2_server_on_host_ends_after_goodbye_of_client() {
        watchdog(async {
            for says_goodbye in [true, false] {
                let (stream, mut agent, vm) = Vm::boot();
                let server = server::conn::http2::Builder::new(TokioExecutor::new());
                let server = server.serve_connection(TokioIo::new(stream), service_fn(hi));
                let server = tokio::spawn(server);
                // hyper says goodbye whichever way you drop its client. An agent that is killed says nothing, like this
                // one when the task ends that carries its bytes.
                let (client, mut carried) = tokio::io::duplex(SMALL);
                let carrier = tokio::spawn(async move {
                    tokio::io::copy_bidirectional(&mut agent, &mut carried).await
                });
                let (requests, _) = fetch_http2(client).await;
                if says_goodbye {
                    drop(requests);
                    server.await.unwrap().unwrap();
                } else {
                    carrier.abort();
                    assert!(vm.makes_wait_forever(&server).await);
                }
            }
        })
        .await;
    }

    #[tokio::test]
    async fn http2_client_on_host_ends_after_goodbye_of_server() {
        watchdog(async {
            for says_goodbye in [true, false] {
                let (stream, agent, vm) = Vm::boot();
                let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
                let agent = tokio::spawn(async move {
                    let server = server::conn::http2::Builder::new(TokioExecutor::new());
                    let mut server =
                        pin!(server.serve_connection(TokioIo::new(agent), service_fn(hi)));
                    tokio::select! {
                        _ = &mut server => panic!("the client ended first"),
                        _ = stopped => {}
                    }
                    if says_goodbye {
                        server.as_mut().graceful_shutdown();
                        // The client may hang up while the server says its last goodbye, which then fails.
                        let _ = server.await;
                    }
                });
                let (requests, connection) = fetch_http2(stream).await;
                stop.send(()).unwrap();
                agent.await.unwrap();
                if says_goodbye {
                    connection.await.unwrap().unwrap();
                } else {
                    assert!(vm.makes_wait_forever(&connection).await);
                    drop(requests);
                    connection.await.unwrap().unwrap();
                }
            }
        })
        .await;
    }

    /// Makes one request. Returns what keeps the connection open, and the task that drives it.
    async fn fetch_http2<T>(
        io: T,
    ) -> (
        http2::SendRequest<Empty<Bytes>>,
        JoinHandle<hyper::Result<()>>,
    )
    where
        T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let handshake = http2::handshake(TokioExecutor::new(), TokioIo::new(io));
        let (mut requests, connection) = handshake.await.unwrap();
        let connection = tokio::spawn(connection);
        let response = requests
            .send_request(Request::new(Empty::new()))
            .await
            .unwrap();
        let body = response.into_body().collect().await.unwrap();
        assert_eq!(body.to_bytes(), "hi");
        (requests, connection)
    }
}
