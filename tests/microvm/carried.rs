//! Tests a VM in a child process, whose stream is carried over a socket to its parent.
//!
//! The test is the parent. It starts itself again as the child. The child's standard output is the socket, because its
//! standard input says whether the parent lives (see `host.rs`).

use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::process::{self, Stdio};
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::{env, fs};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::process::{Child, Command};
use tokio_krun::{AgentStream, Carry, CarryError, Ended};

use super::pattern::{FROM_GUEST, FROM_HOST};
use super::scenarios::{MIB, Scenario, generate};
use super::vm::Vm;

pub(crate) const ALL: &[(&str, Scenario)] = &[
    ("client_close_ends_vm_of_child", || Box::pin(close())),
    ("guest_power_off_reaches_parent_of_child", || {
        Box::pin(power_off())
    }),
    ("parent_sees_in_words_why_child_died", || Box::pin(kill())),
    ("failing_socket_hangs_guest_of_child_up", || {
        Box::pin(reset())
    }),
];

/// In a child: the scenario of its agent.
const SCENARIO: &str = "TOKIO_KRUN_MICROVM_CARRIED";

/// Longer than any test may take, so that a hook that sits out its limit is a failure.
const HOOK_LIMIT: Duration = Duration::from_secs(3600);

/// Starts this program again, with a VM whose agent runs `scenario`.
fn start(scenario: &str) -> (Child, UnixStream) {
    let (ours, theirs) = StdUnixStream::pair().unwrap();
    let child = Command::new(env::current_exe().unwrap())
        .env(SCENARIO, scenario)
        .stdin(Stdio::piped())
        .stdout(OwnedFd::from(theirs))
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    ours.set_nonblocking(true).unwrap();
    (child, UnixStream::from_std(ours).unwrap())
}

/// The child's part: runs the VM, and never returns. Its status says how the carry ended.
async fn child(scenario: &str) -> ! {
    let socket = StdUnixStream::from(io::stdout().as_fd().try_clone_to_owned().unwrap());
    socket.set_nonblocking(true).unwrap();
    let socket = UnixStream::from_std(socket).unwrap();
    let (stream, port) = AgentStream::pair().unwrap();
    let mut vm = Vm::boot_with_exit_hook(scenario, [("agent", port)], Some(HOOK_LIMIT));
    let mut carry = Carry::new(stream, socket);
    let status = match carry.run().await {
        Ok(Ended::Guest) => 10,
        Ok(Ended::Client) => 11,
        Err(CarryError::Client(error)) if error.kind() == ErrorKind::ConnectionReset => 12,
        other => panic!("{other:?}"),
    };
    if status == 10 {
        let passed_on = vm.calls.written.load(Ordering::SeqCst);
        assert_eq!(carry.carried().from_guest, passed_on);
    }
    // Only once the exit hook has returned, although the carry is still here.
    vm.ended().await;
    process::exit(status);
}

/// The parent goes on; a child runs its VM here.
async fn unless_child() {
    if let Ok(scenario) = env::var(SCENARIO) {
        child(&scenario).await;
    }
}

async fn status(mut child: Child) -> Option<i32> {
    // `wait` would close it, and the child would end: see `end_with_parent`.
    let _stdin = child.stdin.take();
    child.wait().await.unwrap().code()
}

async fn greeting(socket: &mut UnixStream) {
    let mut greeting = [0; 21];
    socket.read_exact(&mut greeting).await.unwrap();
    assert_eq!(&greeting, b"hello from the guest\n");
}

async fn close() {
    unless_child().await;
    let (child, mut socket) = start("echo");
    greeting(&mut socket).await;
    let sent = generate(FROM_HOST, 4 * MIB);
    let mut received = vec![0; sent.len()];
    let (mut read, mut write) = socket.split();
    let (wrote, read) = tokio::join!(write.write_all(&sent), read.read_exact(&mut received));
    wrote.unwrap();
    read.unwrap();
    assert!(received == sent);

    // The guest is hung up, so its agent ends and it powers off.
    drop(socket);
    assert_eq!(status(child).await, Some(11));
}

async fn power_off() {
    unless_child().await;
    const LENGTH: usize = 4 * MIB;
    let (child, mut socket) = start("last-words");
    socket.write_u64_le(LENGTH as u64).await.unwrap();
    let mut received = Vec::new();
    socket.read_to_end(&mut received).await.unwrap();
    assert!(generate(FROM_GUEST, LENGTH).starts_with(&received));
    // krun's default queue, 32 descriptors of 32 KiB, may be lost.
    assert!(
        received.len() >= LENGTH - MIB,
        "read only {} bytes",
        received.len()
    );
    assert_eq!(status(child).await, Some(10));
}

async fn kill() {
    unless_child().await;
    let (mut child, mut socket) = start("flood");
    let mut received = vec![0; MIB];
    socket.read_exact(&mut received).await.unwrap();
    assert!(received == generate(FROM_GUEST, received.len()));

    child.start_kill().unwrap();
    // What the socket had, and then the end.
    let mut rest = Vec::new();
    socket.read_to_end(&mut rest).await.unwrap();
    let error = socket.write_all(b"request").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::BrokenPipe);
    let status = child.wait().await.unwrap();
    assert_eq!(status.to_string(), "signal: 9 (SIGKILL)");
    forget_agent_log();
}

async fn reset() {
    unless_child().await;
    let (child, socket) = start("echo");
    // The greeting is there, and stays unread: to close the socket then is to reset the connection.
    socket.readable().await.unwrap();
    drop(socket);
    assert_eq!(status(child).await, Some(12));
}

/// The agent of a VM that was killed had no time to write its log.
fn forget_agent_log() {
    let root = env::var_os("GUEST_ROOT").unwrap();
    let log = std::path::Path::new(&root).join("tmp/agent.log");
    fs::write(log, "").unwrap();
}
