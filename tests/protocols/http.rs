//! HTTP/1 with hyper, with the server in the guest or on the host.

use std::convert::Infallible;

use bytes::Bytes;
use futures::StreamExt;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode, client, server};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::JoinHandle;

use crate::common::{pattern, watchdog};
use crate::vm;

async fn echo(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let mut response = Response::new(Full::default());
    if request.uri().path() == "/echo" {
        let body = request.into_body().collect().await.unwrap();
        *response.body_mut() = body.to_bytes().into();
    } else {
        *response.status_mut() = StatusCode::NOT_FOUND;
    }
    Ok(response)
}

/// Sends requests and checks the responses. Then drops the client and returns the server, which still runs.
async fn request_all<C, S>(client: C, server: S) -> JoinHandle<hyper::Result<()>>
where
    C: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let server = tokio::spawn(
        server::conn::http1::Builder::new()
            .serve_connection(TokioIo::new(server), service_fn(echo)),
    );
    let (mut requests, connection) = client::conn::http1::handshake(TokioIo::new(client))
        .await
        .unwrap();
    let connection = tokio::spawn(connection);
    for length in [0, 1, 5_000, 300_000] {
        let body = Bytes::from(pattern(length));
        let request = Request::post("/echo").header("host", "agent");
        let request = request.body(Full::new(body.clone())).unwrap();
        requests.ready().await.unwrap();
        let response = requests.send_request(request).await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        let mut received = Vec::new();
        let mut parts = response.into_body().into_data_stream();
        while let Some(part) = parts.next().await {
            received.extend_from_slice(&part.unwrap());
        }
        assert!(received == body, "{length} bytes");
    }
    let request = Request::get("/").header("host", "agent");
    let request = request.body(Full::default()).unwrap();
    requests.ready().await.unwrap();
    let response = requests.send_request(request).await.unwrap();
    assert_eq!(response.status(), StatusCode::NOT_FOUND);
    drop(requests);
    connection.await.unwrap().unwrap();
    server
}

#[tokio::test]
async fn http_works_with_server_in_guest() {
    watchdog(async {
        let (stream, _guest, agent) = vm();
        // The client's stream was dropped, which hung up.
        request_all(stream, agent).await.await.unwrap().unwrap();
    })
    .await;
}

#[tokio::test]
async fn http_works_with_server_on_host() {
    watchdog(async {
        let (stream, guest, agent) = vm();
        let server = request_all(agent, stream).await;
        // The host cannot detect that the agent closed its port, but it does detect that the guest powered off.
        guest.power_off().await;
        server.await.unwrap().unwrap();
    })
    .await;
}
