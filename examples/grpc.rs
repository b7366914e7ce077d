//! gRPC with tonic: the host calls a server in the guest, and the call streams both ways. This file
//! writes out what `tonic-build` would generate from a `.proto`.
//!
//! `cargo run --example grpc`

use std::convert::Infallible;
use std::error::Error;
use std::io;

use futures::{Stream, StreamExt, stream};
use hyper_util::rt::TokioIo;
use tokio_krun::AgentStream;
use tokio_krun::agent::VirtioPort;
use tokio_krun::test_util::Guest;
use tokio_krun::tonic014::Incoming;
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Request, Response, Status, Streaming};
use tonic_prost::ProstCodec;
use tower::service_fn;

#[derive(Clone, PartialEq, prost::Message)]
struct Command {
    #[prost(string, tag = "1")]
    line: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Output {
    #[prost(int32, tag = "1")]
    status: i32,
    #[prost(string, tag = "2")]
    text: String,
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let (stream, port) = AgentStream::pair()?;
    // With a VM: `VmBuilder::console(|console| port.attach(console, "agent"))`.
    let guest = Guest::boot(port);
    let agent = tokio::spawn(agent(guest.open()?));

    let mut client = tonic::client::Grpc::new(connect(stream).await?);
    client.ready().await?;
    let commands = stream::iter(["uname", "reboot"]).map(|line| Command { line: line.into() });
    let path = hyper::http::uri::PathAndQuery::from_static("/agent.Agent/Run");
    let codec = ProstCodec::<Command, Output>::default();
    let answer = client
        .streaming(Request::new(commands), path, codec)
        .await?;
    let mut outputs = answer.into_inner();
    while let Some(output) = outputs.message().await? {
        println!("{}: {}", output.status, output.text);
    }
    // Dropping the channel's last users closes the connection, so the server ends.
    drop((client, outputs));
    agent.await??;
    Ok(())
}

/// A channel over `stream`. It cannot reconnect, because there is only one stream.
async fn connect(stream: AgentStream) -> Result<Channel, tonic::transport::Error> {
    let mut stream = Some(stream);
    let connector = service_fn(move |_| {
        let io = stream.take().map(TokioIo::new);
        std::future::ready(io.ok_or(io::Error::from(io::ErrorKind::NotConnected)))
    });
    // The address only appears in headers.
    Endpoint::from_static("http://agent")
        .connect_with_connector(connector)
        .await
}

/// The agent inside the guest: serves until the host's client hangs up. A server on the host looks
/// the same: pass the `AgentStream` instead of the `VirtioPort`.
async fn agent(port: VirtioPort) -> Result<(), tonic::transport::Error> {
    let service = service_fn(async |request: hyper::Request<tonic::body::Body>| {
        let mut grpc = tonic::server::Grpc::new(ProstCodec::<Output, Command>::default());
        Ok::<_, Infallible>(grpc.streaming(service_fn(run), request).await)
    });
    Server::builder()
        .serve_with_incoming(service, Incoming::new(port))
        .await
}

async fn run(
    commands: Request<Streaming<Command>>,
) -> Result<Response<impl Stream<Item = Result<Output, Status>>>, Status> {
    let outputs = commands.into_inner().map(|command| {
        let (status, text) = match &*command?.line {
            "uname" => (0, "Linux".to_owned()),
            other => (126, format!("{other}: permission denied")),
        };
        Ok(Output { status, text })
    });
    Ok(Response::new(outputs))
}
