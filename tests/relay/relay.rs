//! A relay: many clients on this machine share one agent, over two ports. You may copy it, with the files in `relay/`.
//!
//! It uses only the public API. No lock holds a half of a stream, nothing polls, and the ports know their own capacity.
//!
//! What it holds in memory at most, besides the ports' rings: for each client its budgets, one frame that is being
//! received, and for each port one frame that is being received.

pub mod client;
pub mod frame;
mod ports;
mod queue;

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_krun::AgentStream;

use client::{Inbox, Left, Limits};
use frame::{Frame, Kind, Lane};
use ports::Ports;
use queue::{Sender, queue};

pub struct Relay {
    /// Carries control frames, which never wait for data.
    pub control: AgentStream,
    pub data: AgentStream,
    /// How many clients it serves at once. Others wait.
    pub clients: usize,
    /// For each client.
    pub limits: Limits,
    /// How long the agent may leave no room for a client's frame.
    pub agent_stall: Duration,
    /// Hears which client has left, and why.
    pub log: mpsc::UnboundedSender<(u32, Left)>,
}

impl Relay {
    /// Serves the clients that connect until the VM ends, and until they have received the agent's last words.
    ///
    /// The end of the VM is not an error: how it ended, its exit observers know. An error means that the agent sent
    /// something invalid.
    pub async fn run<C>(self, mut connections: mpsc::Receiver<C>) -> io::Result<()>
    where
        C: AsyncRead + AsyncWrite + Send + 'static,
    {
        let (from_control, to_control) = self.control.into_split();
        let (from_data, to_data) = self.data.into_split();
        let ports = Ports {
            control: Arc::new(to_control),
            data: Arc::new(to_data),
            stall: self.agent_stall,
        };
        let clients = Clients::default();
        let mut readers = JoinSet::new();
        readers.spawn(ports::deliver(from_control, Lane::Control, clients.clone()));
        readers.spawn(ports::deliver(from_data, Lane::Data, clients.clone()));

        let mut sessions = JoinSet::new();
        let mut connected = 0;
        let mut ended = Vec::new();
        while !readers.is_empty() {
            tokio::select! {
                Some(reader) = readers.join_next() => ended.push(reader??),
                Some(session) = sessions.join_next() => clients.remove(session?, &self.log),
                Some(socket) = connections.recv(), if sessions.len() < self.clients => {
                    connected += 1;
                    let inbox = clients.add(connected, self.limits.to_client).await;
                    let (number, limits, ports) = (connected, self.limits, ports.clone());
                    sessions.spawn(async move {
                        (number, client::serve(number, socket, limits, ports, inbox).await)
                    });
                }
            }
        }
        // Nothing more comes for the clients. Their sessions end once they have what there is.
        clients.close();
        while let Some(session) = sessions.join_next().await {
            clients.remove(session?, &self.log);
        }
        // All is read and passed on. Dropping the reading halves lets krun end the process.
        drop(ended);
        Ok(())
    }
}

/// Where the agent's frames go.
#[derive(Clone, Default)]
struct Clients(Arc<Mutex<HashMap<u32, Outbox>>>);

struct Outbox {
    control: Sender,
    data: Sender,
}

impl Clients {
    /// Adds a client, and tells it its number.
    async fn add(&self, number: u32, budget: usize) -> Inbox {
        let (to_control, control) = queue(budget);
        let (to_data, data) = queue(budget);
        to_control.send(Frame::new(number, Kind::Joined, &[])).await;
        let outbox = Outbox {
            control: to_control,
            data: to_data,
        };
        self.with(|clients| clients.insert(number, outbox));
        Inbox { control, data }
    }

    fn outbox(&self, number: u32, lane: Lane) -> Option<Sender> {
        self.with(|clients| {
            clients.get(&number).map(|outbox| match lane {
                Lane::Control => outbox.control.clone(),
                Lane::Data => outbox.data.clone(),
            })
        })
    }

    fn remove(&self, (number, left): (u32, Left), log: &mpsc::UnboundedSender<(u32, Left)>) {
        self.with(|clients| clients.remove(&number));
        let _ = log.send((number, left));
    }

    fn close(&self) {
        self.with(HashMap::clear);
    }

    fn with<T>(&self, change: impl FnOnce(&mut HashMap<u32, Outbox>) -> T) -> T {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
