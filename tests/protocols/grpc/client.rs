//! A client of the service that makes several calls at once.

use std::io;

use futures::{StreamExt, stream};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tonic::Request;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Channel, Endpoint};
use tonic_prost::ProstCodec;
use tower::service_fn;

use super::service::Piece;

pub(crate) async fn connect<T>(io: T) -> Channel
where
    T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let mut io = Some(io);
    // The name only appears in headers.
    Endpoint::from_static("http://agent")
        .connect_with_connector(service_fn(move |_| {
            let io = io.take().map(TokioIo::new);
            // A port cannot be connected twice.
            std::future::ready(io.ok_or(io::Error::from(io::ErrorKind::NotConnected)))
        }))
        .await
        .unwrap()
}

/// Bytes that differ from piece to piece.
fn data(call: u64, number: u64) -> Vec<u8> {
    (0..100 * number)
        .map(|at| (call * 7 + number * 31 + at * 3) as u8)
        .collect()
}

pub(crate) async fn call_all(channel: Channel) {
    let calls: Vec<_> = (1..=4)
        .map(|call| {
            let mut client = tonic::client::Grpc::new(channel.clone());
            tokio::spawn(async move {
                let pieces = stream::iter(0..50).map(move |number| Piece {
                    number: number * call,
                    data: data(call, number),
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
                    assert!(piece.data == data(call, number));
                }
                assert!(answers.next().await.is_none());
            })
        })
        .collect();
    for call in calls {
        call.await.unwrap();
    }
}
