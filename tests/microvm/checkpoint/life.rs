//! A life in its own process: the VM, and the host's end of its ports.

use std::env;
use std::future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use futures::future::join_all;
use msb_krun::{VmBuilder, VmControl, VmExecutionState};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{mpsc, watch};
use tokio_krun::{AgentPort, AgentStream, Options, OwnedReadHalf, OwnedWriteHalf, PortHandle};

use super::root::Root;
use super::snapshot::Snapshot;
use super::{Life, SAVED, WHOLE, guest_root};
use crate::host::pattern::{FROM_GUEST, FROM_HOST, Pattern};
use crate::host::scenarios::MIB;

const NAMES: [&str; 2] = ["agent", "agent1"];
/// The two numbers with which the host begins: see `traffic`.
const HEADER: u64 = 16;
/// How long a life may take to come to its start.
const START_LIMIT: Duration = Duration::from_secs(60);

impl Life {
    /// Runs the VM in this process.
    pub(super) async fn live(self) {
        let started = Instant::now();
        let snapshot = self.from.as_deref().map(Snapshot::new);
        let (mut ends, ports) = match &snapshot {
            None => self.create().await,
            Some(snapshot) => self.recreate(snapshot),
        };
        let handles: Vec<PortHandle> = ports.iter().map(AgentPort::handle).collect();
        let (vm, mut ended) = start(ports, snapshot.as_ref());
        if snapshot.is_some() {
            let paused = vm.wait_until_paused(START_LIMIT).unwrap();
            let VmExecutionState::Paused(pause) = paused else {
                panic!("not paused: {paused:?}");
            };
            vm.resume(pause).unwrap();
            println!("restored after {:?}", started.elapsed());
        }
        carry_all(&mut ends, self.until).await;
        if let Some(to) = &self.to {
            // Sometimes the guest writes on until the ring is full.
            tokio::time::sleep(Duration::from_millis(fastrand::u64(..100))).await;
            let unread: u64 = handles.iter().map(|port| port.stats().tx.queued).sum();
            let untaken: u64 = handles.iter().map(|port| port.stats().rx.queued).sum();
            let started = Instant::now();
            Snapshot::new(to).save(&vm, &handles).unwrap();
            println!(
                "paused for {:?}; {unread} bytes unread, {untaken} not taken",
                started.elapsed()
            );
            println!("{SAVED}");
            carry_all(&mut ends, u64::MAX).await;
            return future::pending().await; // until it is killed
        }
        for end in &mut ends {
            end.check_trailer().await;
        }
        drop(ends);
        ended.recv().await.expect("the VM's thread panicked");
        println!("{WHOLE}");
    }

    async fn create(&self) -> (Vec<End>, Vec<AgentPort>) {
        let (mut ends, mut ports) = (Vec::new(), Vec::new());
        for number in 0..NAMES.len() {
            let (mut stream, port) = Options::new().capacity(MIB).create().unwrap();
            stream.write_u64_le(self.amount).await.unwrap();
            stream.write_u64_le(self.amount).await.unwrap();
            ends.push(End::new(stream, number as u64, self.amount));
            ports.push(port);
        }
        (ends, ports)
    }

    fn recreate(&self, snapshot: &Snapshot) -> (Vec<End>, Vec<AgentPort>) {
        let states = snapshot.streams().unwrap();
        assert_eq!(states.len(), NAMES.len());
        let numbered = (0..).zip(&states).map(|(number, state)| {
            let options = Options::new().capacity(state.capacity());
            let (stream, port) = options.restore(state).unwrap();
            (End::new(stream, number, self.amount), port)
        });
        numbered.unzip()
    }
}

/// Boots or restores the VM, in a thread of its own. The receiver gets a value when the VM has ended.
fn start(
    ports: Vec<AgentPort>,
    snapshot: Option<&Snapshot>,
) -> (VmControl, mpsc::UnboundedReceiver<()>) {
    let (exited, ended) = mpsc::unbounded_channel();
    let mut vm = VmBuilder::new()
        .machine(|machine| machine.vcpus(1).memory_mib(64))
        .kernel(|kernel| {
            let path = env::var_os("KRUNFW").expect("the parent checked it");
            kernel.krunfw_path(path).init_path("/init")
        })
        .fs(|fs| {
            let root = Root::new(&guest_root().join("init")).unwrap();
            fs.tag("/dev/root").custom(Box::new(root))
        })
        .exec(|exec| exec.path("/init").args(["two-ports"]))
        .on_exit(move |_| {
            let _ = exited.send(());
            // Holds krun here while the test ends the process itself.
            thread::sleep(Duration::from_secs(60));
        })
        .console(|console| {
            let ports = ports.into_iter().zip(NAMES);
            ports.fold(console.disable_implicit(), |console, (port, name)| {
                port.attach(console, name)
            })
        })
        .build()
        .unwrap();
    if let Some(snapshot) = snapshot {
        snapshot.restore(&mut vm).unwrap();
    }
    let control = vm.control_handle();
    thread::spawn(move || {
        let error = vm.enter().expect_err("`enter` returned without an error");
        panic!("cannot enter the VM: {error}");
    });
    (control, ended)
}

/// The host's end of a port.
struct End {
    number: u64,
    amount: u64,
    sent: u64,
    received: u64,
    reading: OwnedReadHalf,
    writing: OwnedWriteHalf,
}

/// Carries bytes over all ports until `until` have moved, in all lives together, or all is carried.
async fn carry_all(ends: &mut [End], until: u64) {
    let moved = AtomicU64::new(ends.iter().map(|end| end.sent + end.received).sum());
    let (stop, _) = watch::channel(false);
    let carry = ends.iter_mut().map(|end| {
        let (moved, stop) = (&moved, &stop);
        end.carry(
            move |count| {
                let before = moved.fetch_add(count as u64, Ordering::Relaxed);
                if before + count as u64 >= until {
                    stop.send_replace(true);
                }
            },
            stop.subscribe(),
        )
    });
    join_all(carry).await;
}

impl End {
    /// A restored stream's counters go on. They say how far the host had come.
    fn new(stream: AgentStream, number: u64, amount: u64) -> Self {
        let stats = stream.stats();
        let (reading, writing) = stream.into_split();
        Self {
            number,
            amount,
            sent: stats.rx.bytes + stats.rx.queued - HEADER,
            received: stats.tx.bytes,
            reading,
            writing,
        }
    }

    async fn carry(&mut self, moved: impl Fn(usize), mut stop: watch::Receiver<bool>) {
        let mut sending = pattern(FROM_HOST + self.number, self.sent);
        let mut receiving = pattern(FROM_GUEST + self.number, self.received);
        let mut piece = Vec::new();
        let mut buffer = vec![0; 64 * 1024];
        while self.sent < self.amount || self.received < self.amount {
            if piece.is_empty() {
                let length = (self.amount - self.sent).min(1 + fastrand::u64(..70_000));
                piece.resize(length as usize, 0);
                sending.fill(&mut piece);
            }
            let left = (self.amount - self.received).min(buffer.len() as u64) as usize;
            // A read or write that is dropped has moved nothing.
            let count = tokio::select! {
                _ = stop.wait_for(|stop| *stop) => return,
                read = self.reading.read(&mut buffer[..left]), if left > 0 => {
                    let read = read.unwrap();
                    assert_ne!(read, 0, "the guest ended {} bytes early", self.amount - self.received);
                    let right = receiving.check(&buffer[..read]);
                    assert_eq!(right, Ok(()), "wrong from byte {} on", self.received);
                    self.received += read as u64;
                    read
                }
                written = self.writing.write(&piece), if !piece.is_empty() => {
                    let written = written.unwrap();
                    piece.drain(..written);
                    self.sent += written as u64;
                    written
                }
            };
            moved(count);
        }
    }

    /// Reads what the guest says of all that it has received, in all lives, and lets the guest end.
    async fn check_trailer(&mut self) {
        let mut checksum = crc32fast::Hasher::new();
        let mut pattern = Pattern::new(FROM_HOST + self.number);
        let mut piece = vec![0; 64 * 1024];
        let mut left = self.amount;
        while left > 0 {
            piece.truncate(left.min(piece.len() as u64) as usize);
            pattern.fill(&mut piece);
            checksum.update(&piece);
            left -= piece.len() as u64;
        }
        assert_eq!(self.reading.read_u64_le().await.unwrap(), self.amount);
        assert_eq!(
            self.reading.read_u32_le().await.unwrap(),
            checksum.finalize()
        );
        assert_eq!(
            self.reading.read_u32_le().await.unwrap(),
            1,
            "the guest received wrong bytes"
        );
        self.writing.write_u8(0).await.unwrap();
    }
}

/// The stream that begins with `seed`, from byte `place` on.
fn pattern(seed: u64, place: u64) -> Pattern {
    let mut pattern = Pattern::new(seed);
    pattern.skip(place);
    pattern
}
