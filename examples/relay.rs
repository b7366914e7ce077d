//! Many local clients share one agent. They connect to a Unix socket, or on Windows to a named pipe. Each connection
//! becomes one yamux stream over the agent's channel, so a client that does not read holds up nobody else.
//!
//! `cargo run --example relay [ROUNDS]`
//!
//! `tests/relay` has a relay that routes frames over two ports, with a budget for each client.

#[path = "relay/channel.rs"]
mod channel;
#[path = "relay/demo.rs"]
mod demo;
#[path = "relay/local.rs"]
mod local;

use std::io;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_krun::{AgentStream, test_util::Guest};

type Result<T = ()> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// How long open connections may take to end by themselves after a stop, and then the channel to close.
const GRACE: Duration = Duration::from_secs(1);

#[tokio::main]
async fn main() -> Result {
    let rounds = std::env::args().nth(1).map_or(Ok(200), |n| n.parse())?;
    let (stream, port) = AgentStream::pair()?;
    // With a VM: `VmBuilder::console(|console| port.attach(console, "agent"))`.
    let agent = tokio::spawn(demo::agent(Guest::boot(port)));
    let (listener, address) = local::Listener::bind()?;
    let (stop, stopped) = oneshot::channel();
    let relay = tokio::spawn(relay(listener, stream, stopped));

    let table = demo::clients(address, rounds).await;
    drop(stop);
    relay.await??;
    agent.await??;
    print!("{}", table?);
    Ok(())
}

/// Carries each local connection over `stream`, until `stop` resolves or the agent hangs up. That is an error only if a
/// client was connected.
async fn relay(
    listener: local::Listener,
    stream: AgentStream,
    stop: oneshot::Receiver<()>,
) -> Result {
    let (requests, requested) = mpsc::channel(1);
    let (idle, driven) = tokio::join!(
        serve(listener, requests, stop),
        channel::drive(stream, requested, GRACE)
    );
    match (idle?, driven) {
        (true, Err(yamux::ConnectionError::Closed)) => Ok(()),
        (_, driven) => Ok(driven?),
    }
}

/// Accepts clients. Returns whether none was connected when it stopped accepting.
async fn serve(
    mut listener: local::Listener,
    requests: mpsc::Sender<channel::Request>,
    mut stop: oneshot::Receiver<()>,
) -> io::Result<bool> {
    let mut clients = JoinSet::new();
    let mut limit = channel::CLIENTS;
    loop {
        tokio::select! {
            // Further clients wait in the listener's backlog.
            client = listener.accept(), if clients.len() < limit => match client {
                Ok(client) => drop(clients.spawn(channel::carry(client, requests.clone()))),
                // The client hung up before it was accepted.
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(error) if clients.is_empty() => return Err(error),
                // For example, too many open files: wait until a client hangs up.
                Err(error) => {
                    eprintln!("{} clients, cannot accept more: {error}", clients.len());
                    limit = clients.len();
                }
            },
            Some(_) = clients.join_next() => limit = channel::CLIENTS,
            () = requests.closed() => break,
            _ = &mut stop => break,
        }
    }
    drop((listener, requests));
    while clients.try_join_next().is_some() {}
    let idle = clients.is_empty();
    let own_ends = async { while clients.join_next().await.is_some() {} };
    let _ = timeout(GRACE, own_ends).await;
    clients.shutdown().await;
    Ok(idle)
}
