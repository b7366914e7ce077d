//! gRPC with tonic: calls that stream both ways, with the server in the guest and on the host. What
//! `tonic-build` would generate is written out, as it takes only a few lines.

use std::convert::Infallible;
use std::io;

use futures::{Stream, StreamExt, stream};
use hyper::http::uri::PathAndQuery;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tonic::body::Body;
use tonic::transport::server::Connected;
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Request, Response, Status, Streaming};
use tonic_prost::ProstCodec;
use tower::service_fn;

use crate::common::{pattern, watchdog};
use crate::vm;

#[derive(Clone, PartialEq, prost::Message)]
struct Piece {
    #[prost(uint64, tag = "1")]
    number: u64,
    #[prost(bytes = "vec", tag = "2")]
    data: Vec<u8>,
}

/// Answers each piece with the sum of the numbers so far, and its data.
async fn sums(
    request: Request<Streaming<Piece>>,
) -> Result<Response<impl Stream<Item = Result<Piece, Status>>>, Status> {
    let pieces = request.into_inner();
    Ok(Response::new(pieces.scan(0, |sum, piece| {
        let piece = piece.map(|piece| {
            *sum += piece.number;
            Piece {
                number: *sum,
                ..piece
            }
        });
        std::future::ready(Some(piece))
    })))
}

async fn serve<T>(io: T)
where
    T: AsyncRead + AsyncWrite + Connected + Send + Unpin + 'static,
{
    let service = service_fn(async |request: hyper::Request<Body>| {
        let mut grpc = tonic::server::Grpc::new(ProstCodec::<Piece, Piece>::default());
        Ok::<_, Infallible>(grpc.streaming(service_fn(sums), request).await)
    });
    // The one connection there is; it goes on until its other end goes.
    let incoming = stream::iter([Ok::<_, Infallible>(io)]);
    Server::builder()
        .serve_with_incoming(service, incoming)
        .await
        .unwrap();
}

async fn connect<T>(io: T) -> Channel
where
    T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let mut io = Some(io);
    // The name is for the headers alone.
    Endpoint::from_static("http://agent")
        .connect_with_connector(service_fn(move |_| {
            let io = io.take().map(TokioIo::new);
            // A port cannot be connected to again.
            std::future::ready(io.ok_or(io::Error::from(io::ErrorKind::NotConnected)))
        }))
        .await
        .unwrap()
}

async fn call_all(channel: Channel) {
    let calls: Vec<_> = (1..=4_u64)
        .map(|call| {
            let mut client = tonic::client::Grpc::new(channel.clone());
            tokio::spawn(async move {
                let pieces = stream::iter(0..50).map(move |number| Piece {
                    number: number * call,
                    data: pattern(100 * number as usize),
                });
                client.ready().await.unwrap();
                let path = PathAndQuery::from_static("/agent.Agent/Sums");
                let codec = ProstCodec::<Piece, Piece>::default();
                let answers = client.streaming(Request::new(pieces), path, codec).await;
                let mut answers = answers.unwrap().into_inner();
                let mut sum = 0;
                for number in 0..50 {
                    let piece = answers.next().await.unwrap().unwrap();
                    sum += number * call;
                    assert_eq!(piece.number, sum);
                    assert!(piece.data == pattern(100 * number as usize));
                }
                assert!(answers.next().await.is_none());
            })
        })
        .collect();
    for call in calls {
        call.await.unwrap();
    }
}

#[tokio::test]
async fn grpc_streams_both_ways_to_a_server_in_the_guest() {
    watchdog(async {
        let (stream, _guest, agent) = vm();
        let server = tokio::spawn(serve(agent));
        call_all(connect(stream).await).await;
        server.await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn grpc_streams_both_ways_to_a_server_on_the_host() {
    watchdog(async {
        let (stream, _guest, agent) = vm();
        let server = tokio::spawn(serve(stream));
        call_all(connect(agent).await).await;
        server.abort();
    })
    .await;
}
