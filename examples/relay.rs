//! Many local clients share one agent. Clients connect to a Unix socket, or on Windows to a named
//! pipe. Each connection becomes one yamux stream over the agent's channel.
//!
//! `cargo run --example relay [ROUNDS]` puts the relay under load. The agent echoes everything. More
//! clients connect than the relay accepts at once; some vanish, and some never read. Backpressure
//! reaches from end to end: a client that does not read fills only its own yamux window.

#[path = "relay/agent.rs"]
mod agent;
#[path = "relay/channel.rs"]
mod channel;
#[path = "relay/load.rs"]
mod load;
#[path = "relay/local.rs"]
mod local;

use std::io;

use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::{Duration, timeout};
use tokio_krun::{AgentStream, test_util::Guest};

type Result<T = ()> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// Carries each local connection over `stream`, until `stop` resolves or the agent hangs up.
///
/// Connections that are open then have `grace` to end by themselves. After that, closing the channel
/// may take `grace` again. If the agent hangs up, that is an error only if a client was connected.
async fn relay(
    listener: local::Listener,
    stream: AgentStream,
    stop: oneshot::Receiver<()>,
    grace: Duration,
) -> Result {
    let (requests, requested) = mpsc::channel(1);
    let (served, driven) = tokio::join!(
        serve(listener, requests, stop, grace),
        channel::drive(stream, requested, grace)
    );
    match (served?, driven) {
        (true, Err(yamux::ConnectionError::Closed)) => Ok(()),
        (_, driven) => Ok(driven?),
    }
}

/// Accepts clients. Returns whether none was connected when it stopped accepting.
async fn serve(
    mut listener: local::Listener,
    requests: mpsc::Sender<channel::Request>,
    mut stop: oneshot::Receiver<()>,
    grace: Duration,
) -> io::Result<bool> {
    let mut clients = JoinSet::new();
    let mut limit = channel::CLIENTS;
    let accepted = loop {
        tokio::select! {
            // Further clients wait in the listener's backlog.
            client = listener.accept(), if clients.len() < limit => match client {
                Ok(client) => drop(clients.spawn(channel::carry(client, requests.clone()))),
                // The client hung up before it was accepted.
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(error) if clients.is_empty() => break Err(error),
                // For example, too many open files: wait until a client hangs up.
                Err(error) => {
                    eprintln!("{} clients, cannot accept more: {error}", clients.len());
                    limit = clients.len();
                }
            },
            Some(_) = clients.join_next() => limit = channel::CLIENTS,
            () = requests.closed() => break Ok(()),
            _ = &mut stop => break Ok(()),
        }
    };
    drop((listener, requests));
    while clients.try_join_next().is_some() {}
    let idle = clients.is_empty();
    let own_ends = async { while clients.join_next().await.is_some() {} };
    let _ = timeout(grace, own_ends).await;
    clients.shutdown().await;
    accepted.map(|()| idle)
}

#[tokio::main]
async fn main() -> Result {
    let rounds = std::env::args().nth(1).map_or(Ok(200), |n| n.parse())?;
    let (stream, port) = AgentStream::pair()?;
    // With a VM: `VmBuilder::console(|console| port.attach(console, "agent"))`.
    let vm = tokio::spawn(agent::run(Guest::boot(port)));
    let (listener, address) = local::Listener::bind()?;
    let (stop, stopped) = oneshot::channel();
    let load = tokio::spawn(load::run(address, rounds, stop));
    let relayed = relay(listener, stream, stopped, Duration::from_secs(1)).await;
    match (relayed, load.await?, vm.await?) {
        (Ok(()), Ok(report), Ok(cut)) => {
            println!("{report}\nstreams that ended early at the agent: {cut}")
        }
        // One failure may cause another, so show all three.
        ends => return Err(format!("relay, load, agent: {ends:?}").into()),
    }
    Ok(())
}
