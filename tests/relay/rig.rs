//! What a test needs around the relay: the agent behind its two ports, clients, and a clock that stands still.

mod local;

use std::io;
use std::sync::mpsc as std_mpsc;
use std::time::Duration;

use futures::StreamExt;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinHandle, spawn_blocking};
use tokio_krun::agent::VirtioPort;
use tokio_krun::test_util::Guest;
use tokio_krun::{AgentPort, Options, PortHandle};
use tokio_util::codec::{FramedRead, LengthDelimitedCodec};

use super::relay::Relay;
use super::relay::client::{Left, Limits};
use super::relay::frame::{self, Frame, Kind, MAX_FRAME};
use local::{Listener, Socket};

pub const KIB: usize = 1024;
pub const MIB: usize = 1024 * KIB;

pub const LIMITS: Limits = Limits {
    to_agent: MAX_FRAME,
    to_client: 2 * MAX_FRAME,
    stall: Duration::from_secs(5),
};
pub const AGENT_STALL: Duration = Duration::from_secs(60);
pub const CONTROL_CAPACITY: usize = 256 * KIB;
pub const DATA_CAPACITY: usize = 8 * MIB;

pub struct Rig {
    pub relay: JoinHandle<io::Result<()>>,
    /// Which client has left, and why.
    pub log: mpsc::UnboundedReceiver<(u32, Left)>,
    pub control: PortHandle,
    pub data: PortHandle,
    pub vm: Vm,
    pub clock: StoppedClock,
    listener: Listener,
}

impl Rig {
    /// Starts a relay without clients, and a VM with an agent that does nothing yet.
    pub fn start() -> (Self, Agent) {
        let clock = StoppedClock::new();
        let (control, control_port) = Options::new().capacity(CONTROL_CAPACITY).create().unwrap();
        let (data, data_port) = Options::new().capacity(DATA_CAPACITY).create().unwrap();
        let (log, reported) = mpsc::unbounded_channel();
        let relay = Relay {
            control,
            data,
            clients: 8,
            limits: LIMITS,
            agent_stall: AGENT_STALL,
            log,
        };
        let (listener, connections) = Listener::bind();
        let handles = (control_port.handle(), data_port.handle());
        let (vm, agent) = Vm::boot(control_port, data_port);
        let rig = Self {
            relay: tokio::spawn(relay.run(connections)),
            log: reported,
            control: handles.0,
            data: handles.1,
            vm,
            clock,
            listener,
        };
        (rig, agent)
    }

    pub async fn client(&self) -> Client {
        let mut wire = Wire::new(self.listener.connect().await);
        let joined = wire.next().await;
        assert_eq!((joined.kind(), joined.body()), (Kind::Joined, &[][..]));
        Client {
            number: joined.client(),
            wire,
        }
    }

    /// The next client that leaves, and why.
    pub async fn left(&mut self) -> (u32, Left) {
        self.log.recv().await.unwrap()
    }
}

/// Both ports of a VM, and its exit observers.
pub struct Vm {
    guests: [Guest; 2],
    exit_hook: Box<dyn Fn(i32) + Send>,
    exit_code: watch::Sender<Option<i32>>,
}

impl Vm {
    fn boot(control: AgentPort, data: AgentPort) -> (Self, Agent) {
        // Nothing here waits for so long: a test that hangs is aborted before.
        let exit_hook = AgentPort::exit_hook_for([&control, &data], Duration::from_secs(3600));
        let guests = [control, data].map(Guest::boot);
        let [control, data] = [0, 1].map(|port: usize| Wire::new(guests[port].open().unwrap()));
        let vm = Self {
            guests,
            exit_hook: Box::new(exit_hook),
            exit_code: watch::Sender::new(None),
        };
        (vm, Agent { control, data })
    }

    /// Resolves to the VM's exit code, or to an error if it goes without one.
    pub fn exit_code(&self) -> impl Future<Output = Result<i32, watch::error::RecvError>> + use<> {
        let mut code = self.exit_code.subscribe();
        async move { Ok(code.wait_for(Option::is_some).await?.unwrap_or_default()) }
    }

    /// Waits until the host's ends have taken all that the agent wrote.
    pub async fn drained(&self) {
        for guest in &self.guests {
            guest.drained().await;
        }
    }

    /// Powers off as krun does: it calls the exit observers in their order, and then the VM is gone. The first observer
    /// notes the code, so whoever reads end of file can tell why.
    pub fn power_off(self, code: i32) -> JoinHandle<()> {
        spawn_blocking(move || {
            self.exit_code.send_replace(Some(code));
            (self.exit_hook)(code);
        })
    }
}

/// The agent's ends of the two ports.
pub struct Agent {
    pub control: Wire<VirtioPort>,
    pub data: Wire<VirtioPort>,
}

pub struct Client {
    pub number: u32,
    pub wire: Wire<Socket>,
}

impl Client {
    pub async fn send(&mut self, kind: Kind, body: &[u8]) {
        self.wire.send(&Frame::new(self.number, kind, body)).await;
    }
}

/// A connection that carries frames.
pub struct Wire<S> {
    pub reader: Reader<S>,
    pub writer: Writer<S>,
}

impl<S: AsyncRead + AsyncWrite> Wire<S> {
    fn new(stream: S) -> Self {
        let (reader, writer) = tokio::io::split(stream);
        Self {
            reader: Reader(FramedRead::new(reader, frame::codec())),
            writer: Writer(writer),
        }
    }

    pub async fn next(&mut self) -> Frame {
        self.reader.next().await.expect("a frame")
    }

    pub async fn send(&mut self, frame: &Frame) {
        self.writer.send(frame).await.unwrap();
    }
}

pub struct Reader<S>(FramedRead<ReadHalf<S>, LengthDelimitedCodec>);

impl<S: AsyncRead> Reader<S> {
    /// Returns `None` at the end, if that comes after a whole frame.
    pub async fn next(&mut self) -> Option<Frame> {
        let bytes = self.0.next().await?.unwrap();
        Some(Frame::try_from(bytes).unwrap())
    }

    /// Checks that the connection ends in the middle of a frame, or with an error.
    pub async fn is_cut_off(&mut self) -> bool {
        loop {
            match self.0.next().await {
                Some(Ok(_)) => {}
                Some(Err(_)) => return true,
                None => return false,
            }
        }
    }
}

pub struct Writer<S>(pub WriteHalf<S>);

impl<S: AsyncWrite> Writer<S> {
    pub async fn send(&mut self, frame: &Frame) -> io::Result<()> {
        self.0.write_all(frame.bytes()).await
    }
}

/// tokio's clock, which stands still. The test must have started with the clock paused.
pub struct StoppedClock(Option<std_mpsc::Sender<()>>);

impl StoppedClock {
    fn new() -> Self {
        let (running, stop) = std_mpsc::channel();
        // tokio does not advance a paused clock while a blocking task runs: see `tokio::time::pause`.
        spawn_blocking(move || stop.recv());
        Self(Some(running))
    }

    /// From now on, the clock advances to the next timer whenever the runtime has nothing to do.
    pub fn release(&mut self) {
        self.0 = None;
    }
}

/// A body that tells which one it is, whose lost or swapped parts show.
pub fn body(client: u32, turn: usize, length: usize) -> Vec<u8> {
    // A prime number of bytes, so that the period fits no buffer.
    let start = client as usize * 31 + turn * 7;
    let period: Vec<u8> = (start..start + 251).map(|at| (at % 251) as u8).collect();
    let mut body = period.repeat(length.div_ceil(251));
    body.truncate(length);
    body
}
