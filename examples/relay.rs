//! Many local clients share one agent: each connection to a Unix socket (on Windows, a named pipe) becomes a
//! stream of its own, multiplexed by yamux over the agent's channel.
//!
//! `cargo run --example relay [ROUNDS]` puts a load on it: 128 clients at once, with an agent that sends back
//! what it gets. Backpressure goes the whole way: a client that does not read fills its own yamux window, and
//! nobody else's.

#[path = "relay/agent.rs"]
mod agent;
#[path = "relay/channel.rs"]
mod channel;
#[path = "relay/load.rs"]
mod load;
#[path = "relay/local.rs"]
mod local;

use std::error::Error;
use std::future::Future;
use std::pin::pin;

use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio_krun::AgentStream;
use tokio_krun::guest::Guest;
use tokio_util::compat::{FuturesAsyncReadCompatExt, TokioAsyncReadCompatExt};
use yamux::{Config, Connection, Mode};

const CLIENTS: usize = 128;

/// At most this many streams, of 256 KiB each.
fn config() -> Config {
    let mut config = Config::default();
    config.set_max_num_streams(2 * CLIENTS);
    config.set_max_connection_receive_window(Some(2 * CLIENTS * 256 * 1024));
    config
}

/// Carries each local connection over `stream`, until `stop` or until the agent has gone. Connections that are
/// open then go on to their own end.
async fn relay(
    mut listener: local::Listener,
    stream: AgentStream,
    stop: impl Future,
) -> Result<(), Box<dyn Error>> {
    let (asks, asked) = mpsc::channel(1);
    let connection = Connection::new(stream.compat(), config(), Mode::Client);
    let mut agent = tokio::spawn(channel::drive(connection, asked));
    let mut stop = pin!(stop);
    let mut clients = JoinSet::new();
    loop {
        let mut client = tokio::select! {
            client = listener.accept() => client?,
            _ = clients.join_next(), if !clients.is_empty() => continue,
            _ = &mut stop => break,
            result = &mut agent => return Ok(result??),
        };
        let asks = asks.clone();
        clients.spawn(async move {
            let (ask, answer) = oneshot::channel();
            // Either fails when the agent has gone: dropping the client tells it.
            asks.send(ask).await.ok()?;
            let mut stream = answer.await.ok()?.compat();
            // Each direction ends by itself. An error ends both, and is theirs alone.
            tokio::io::copy_bidirectional(&mut client, &mut stream)
                .await
                .ok()
        });
    }
    drop((listener, asks));
    while clients.join_next().await.is_some() {}
    Ok(agent.await??)
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let rounds = std::env::args()
        .nth(1)
        .map_or(Ok(200), |rounds| rounds.parse())?;
    let (stream, port) = AgentStream::new()?;
    // With a VM this is `VmBuilder::console(|console| port.attach(console, "agent"))`.
    let vm = tokio::spawn(agent::run(Guest::boot(port)));

    let address = local::address();
    let listener = local::Listener::bind(&address)?;
    let (stop, stopped) = oneshot::channel::<()>();
    let load = tokio::spawn(async move {
        let report = load::run(address, rounds).await;
        drop(stop);
        report
    });
    relay(listener, stream, stopped).await?;
    println!("{}", load.await?.map_err(|error| error as Box<dyn Error>)?);
    vm.await??;
    Ok(())
}
