//! HTTP with hyper: the host sends several requests over one connection to a server in the guest.
//!
//! `cargo run --example http`

use std::convert::Infallible;
use std::error::Error;

use http_body_util::{BodyExt, Empty, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode, client, server};
use hyper_util::rt::TokioIo;
use tokio_krun::AgentStream;
use tokio_krun::agent::VirtioPort;
use tokio_krun::test_util::Guest;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let (stream, port) = AgentStream::pair()?;
    // With a VM: `VmBuilder::console(|console| port.attach(console, "agent"))`.
    let guest = Guest::boot(port);
    let agent = tokio::spawn(agent(guest.open()?));

    let (mut requests, connection) = client::conn::http1::handshake(TokioIo::new(stream)).await?;
    // Moves the bytes until `requests` is dropped.
    let connection = tokio::spawn(connection);
    for path in ["/uptime", "/hostname", "/secrets"] {
        // HTTP/1.1 requires a host header; this server ignores it.
        let request = Request::get(path)
            .header("host", "agent")
            .body(Empty::<Bytes>::new())?;
        requests.ready().await?;
        let response = requests.send_request(request).await?;
        let status = response.status();
        let body = response.into_body().collect().await?.to_bytes();
        println!("{path}: {status}: {}", String::from_utf8_lossy(&body));
    }
    drop(requests);
    connection.await??;
    agent.await??;
    Ok(())
}

/// The agent inside the guest.
async fn agent(port: VirtioPort) -> hyper::Result<()> {
    server::conn::http1::Builder::new()
        .serve_connection(TokioIo::new(port), service_fn(answer))
        .await
}

async fn answer(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let body = match request.uri().path() {
        "/uptime" => "3 days",
        "/hostname" => "guest",
        _ => {
            let mut response = Response::new(Full::from("no such thing"));
            *response.status_mut() = StatusCode::NOT_FOUND;
            return Ok(response);
        }
    };
    Ok(Response::new(Full::from(body)))
}
