//! Tests what a guest makes of the names of ports, up to the limits that `AgentPort::attach` documents.

use bytes::Bytes;
use futures::SinkExt;
use tokio_krun::{AgentPort, AgentStream};
use tokio_util::codec::{Framed, LengthDelimitedCodec};

use super::scenarios::Scenario;
use super::vm::Vm;

pub(crate) const ALL: &[(&str, Scenario)] =
    &[("fifteen_names_up_to_the_limits_find_their_ports", || {
        Box::pin(fifteen_names())
    })];

/// As many ports as a device can name.
const PORTS: usize = 15;
const TWIN: &str = "twin";

async fn fifteen_names() {
    let longest: &str = "n".repeat(AgentPort::MAX_NAME_LEN).leak();
    let names: [&str; PORTS] = [
        "agent",
        longest,
        "two words",
        "a/b",
        "..",
        "line\n",
        "\n",
        "größe",
        "🦀",
        "krun-stdin",
        "\x01\x7f",
        "%s $(x)",
        TWIN,
        TWIN,
        "last",
    ];
    let (mut streams, mut ports) = (Vec::new(), Vec::new());
    for name in names {
        let (stream, port) = AgentStream::pair().unwrap();
        streams.push((name, stream));
        ports.push((name, port));
    }
    let mut vm = Vm::boot_with("names", <[_; PORTS]>::try_from(ports).unwrap());
    let (_, agent) = streams.remove(0);
    let mut agent = Framed::new(agent, LengthDelimitedCodec::new());
    let (mut twins, others): (Vec<_>, Vec<_>) =
        streams.into_iter().partition(|(name, _)| *name == TWIN);
    for (name, stream) in &others {
        agent
            .send(Bytes::from_static(name.as_bytes()))
            .await
            .unwrap();
        expect(name, stream).await;
    }

    // The guest opens one of two ports with the same name. The other's stream never hears of it.
    agent
        .send(Bytes::from_static(TWIN.as_bytes()))
        .await
        .unwrap();
    let [(_, first), (_, second)] = &twins[..] else {
        panic!("two ports are called {TWIN}")
    };
    let silent = tokio::select! {
        () = expect(TWIN, first) => second,
        () = expect(TWIN, second) => first,
    };
    assert_eq!(silent.stats().tx.bytes, 0);
    assert!(!silent.has_guest_opened());

    agent.get_mut().hang_up();
    twins.clear();
    drop((agent, others));
    vm.ended().await;
}

/// Reads the port's name from the stream.
async fn expect(name: &str, stream: &AgentStream) {
    let mut received = Vec::new();
    while received.len() < name.len() {
        stream.readable().await.unwrap();
        assert_ne!(
            stream.try_read_buf(&mut received).unwrap(),
            0,
            "{name:?} ended"
        );
    }
    assert_eq!(String::from_utf8(received).unwrap(), name);
}
