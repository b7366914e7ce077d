//! TLS with rustls, with the server in the guest or on the host, and how it ends: `close_notify` does what the device does
//! not, also for one direction alone.

use std::io::ErrorKind;
use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio_rustls::rustls::pki_types::{PrivatePkcs8KeyDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream};

use crate::common::{pattern, watchdog};
use crate::ends::Vm;

/// Wraps both ends, once they have shaken hands.
async fn shake_hands<C, S>(client: C, server: S) -> (TlsStream<C>, TlsStream<S>)
where
    C: AsyncRead + AsyncWrite + Unpin,
    S: AsyncRead + AsyncWrite + Unpin,
{
    let own = rcgen::generate_simple_self_signed(["agent".to_owned()]).unwrap();
    let key = PrivatePkcs8KeyDer::from(own.signing_key.serialize_der());
    let certificate = own.cert.der().clone();
    let mut roots = RootCertStore::empty();
    roots.add(certificate.clone()).unwrap();
    let config = ClientConfig::builder()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let connector = TlsConnector::from(Arc::new(config));
    let config = ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key.into());
    let acceptor = TlsAcceptor::from(Arc::new(config.unwrap()));
    let name = ServerName::try_from("agent").unwrap();
    let (client, server) =
        tokio::try_join!(connector.connect(name, client), acceptor.accept(server)).unwrap();
    (client.into(), server.into())
}

/// Sends much each way, says that `first` has no more, then answers, and ends.
async fn exchange(
    first: &mut (impl AsyncRead + AsyncWrite + Unpin),
    second: &mut (impl AsyncRead + AsyncWrite + Unpin),
) {
    let question = pattern(200_000);
    let asks = async {
        first.write_all(&question).await.unwrap();
        first.shutdown().await.unwrap();
        let mut answer = Vec::new();
        first.read_to_end(&mut answer).await.unwrap();
        assert!(answer.iter().rev().eq(&question));
    };
    let answers = async {
        let mut heard = Vec::new();
        second.read_to_end(&mut heard).await.unwrap();
        heard.reverse();
        second.write_all(&heard).await.unwrap();
        second.shutdown().await.unwrap();
    };
    tokio::join!(asks, answers);
}

#[tokio::test]
async fn close_notify_ends_one_direction_and_then_the_other() {
    watchdog(async {
        let (stream, agent, _vm) = Vm::boot();
        let (mut host, mut agent) = shake_hands(stream, agent).await;
        exchange(&mut host, &mut agent).await;

        let (stream, agent, _vm) = Vm::boot();
        let (mut agent, mut host) = shake_hands(agent, stream).await;
        exchange(&mut agent, &mut host).await;
    })
    .await;
}

#[tokio::test]
async fn without_close_notify_host_waits_forever_and_agent_fails() {
    watchdog(async {
        let (stream, agent, vm) = Vm::boot();
        let (mut host, agent) = shake_hands(stream, agent).await;
        let host = tokio::spawn(async move { host.read_u8().await });
        drop(agent);
        assert!(vm.makes_wait_forever(&host).await);

        let (stream, agent, _vm) = Vm::boot();
        let (host, mut agent) = shake_hands(stream, agent).await;
        drop(host);
        let cut_off = agent.read(&mut [0]).await.unwrap_err();
        assert_eq!(cut_off.kind(), ErrorKind::UnexpectedEof);
    })
    .await;
}
