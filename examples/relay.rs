//! Many local clients share one agent: each connection to a Unix socket (on Windows, a named pipe) becomes a
//! stream of its own, multiplexed by yamux over the agent's channel.
//!
//! `cargo run --example relay [ROUNDS]` puts a load on it, with an agent that sends back what it gets: more
//! clients than there is room for, of which some vanish, and some never read. Backpressure goes the whole way: a
//! client that does not read fills its own yamux window, and nobody else's.

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

/// Carries each local connection over `stream`, until `stop` or until the agent has gone. Connections that are
/// open then have `grace` to come to their own end, and the agent as much again to hear that it is over. That the
/// agent has gone is an error only if somebody was connected.
async fn relay(
    listener: local::Listener,
    stream: AgentStream,
    stop: oneshot::Receiver<()>,
    grace: Duration,
) -> Result {
    let (asks, asked) = mpsc::channel(1);
    let (served, driven) = tokio::join!(
        serve(listener, asks, stop, grace),
        channel::drive(stream, asked, grace)
    );
    match (served?, driven) {
        (true, Err(yamux::ConnectionError::Closed)) => Ok(()),
        (_, driven) => Ok(driven?),
    }
}

/// Says whether nobody was connected when it stopped to accept.
async fn serve(
    mut listener: local::Listener,
    asks: mpsc::Sender<channel::Ask>,
    mut stop: oneshot::Receiver<()>,
    grace: Duration,
) -> io::Result<bool> {
    let mut clients = JoinSet::new();
    let mut most = channel::CLIENTS;
    let accepted = loop {
        tokio::select! {
            // More than that wait in the listener's backlog.
            client = listener.accept(), if clients.len() < most => match client {
                Ok(client) => drop(clients.spawn(channel::carry(client, asks.clone()))),
                // That client has gone again.
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(error) if clients.is_empty() => break Err(error),
                // Such as too many open files: it is of no use to try again before a client has gone.
                Err(error) => {
                    eprintln!("{} clients, and for now no more: {error}", clients.len());
                    most = clients.len();
                }
            },
            Some(_) = clients.join_next() => most = channel::CLIENTS,
            () = asks.closed() => break Ok(()),
            _ = &mut stop => break Ok(()),
        }
    };
    drop((listener, asks));
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
    // With a VM this is `VmBuilder::console(|console| port.attach(console, "agent"))`.
    let vm = tokio::spawn(agent::run(Guest::boot(port)));
    let (listener, address) = local::Listener::bind()?;
    let (stop, stopped) = oneshot::channel();
    let load = tokio::spawn(load::run(address, rounds, stop));
    let relayed = relay(listener, stream, stopped, Duration::from_secs(1)).await;
    match (relayed, load.await?, vm.await?) {
        (Ok(()), Ok(report), Ok(cut)) => println!("{report}; the agent was cut off {cut} times"),
        // One's failure may be another's doing: all are shown.
        ends => return Err(format!("relay, load, agent: {ends:?}").into()),
    }
    Ok(())
}
