//! A gRPC service that streams both ways, for the tests of this agent and of the in-process guest.
//! The code that `tonic-build` would generate is only a few lines, so it is written by hand.

use std::convert::Infallible;

use futures::{Stream, StreamExt};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_krun::tonic014::Incoming;
use tonic::body::Body;
use tonic::codegen::http;
use tonic::transport::Server;
use tonic::transport::server::Connected;
use tonic::{Request, Response, Status, Streaming};
use tonic_prost::ProstCodec;
use tower::service_fn;

#[derive(Clone, PartialEq, prost::Message)]
pub struct Piece {
    #[prost(uint64, tag = "1")]
    pub number: u64,
    #[prost(bytes = "vec", tag = "2")]
    pub data: Vec<u8>,
}

/// Serves until the other end is gone.
pub async fn serve<T>(io: T) -> Result<(), tonic::transport::Error>
where
    T: AsyncRead + AsyncWrite + Connected + Send + Unpin + 'static,
{
    let service = service_fn(async |request: http::Request<Body>| {
        let mut grpc = tonic::server::Grpc::new(ProstCodec::<Piece, Piece>::default());
        Ok::<_, Infallible>(grpc.streaming(service_fn(sums), request).await)
    });
    Server::builder()
        .serve_with_incoming(service, Incoming::new(io))
        .await
}

/// Answers each piece with its data and the sum of the numbers so far.
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
