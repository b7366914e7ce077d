//! A service with a child process for each VM. An in-process guest takes the place of a VM.
//!
//! krun ends the process with its VM. So the service starts itself again for each VM, and the child carries the VM's stream
//! over a socket to the service. The socket is the child's standard input, which is inherited without a further word.
//!
//! `cargo run --example child`, on Linux and macOS

#[cfg(unix)]
mod service {
    use std::error::Error;
    use std::io;
    use std::os::fd::{AsFd, OwnedFd};
    use std::os::unix::net::UnixStream as StdUnixStream;
    use std::process::ExitCode;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::UnixStream;
    use tokio::process::{Child, Command};
    use tokio_krun::test_util::Guest;
    use tokio_krun::{AgentPort, AgentStream, Carry};

    const CHILD: &str = "vm";

    #[tokio::main]
    pub(crate) async fn main() -> Result<ExitCode, Box<dyn Error>> {
        if std::env::args().nth(1).as_deref() == Some(CHILD) {
            return run_child().await;
        }
        run_service().await?;
        Ok(ExitCode::SUCCESS)
    }

    /// Starts a VM in a process of its own. Dropping the child kills it.
    fn start_vm() -> io::Result<(Child, UnixStream)> {
        let (ours, theirs) = StdUnixStream::pair()?;
        let child = Command::new(std::env::current_exe()?)
            .arg(CHILD)
            .stdin(OwnedFd::from(theirs))
            .kill_on_drop(true)
            .spawn()?;
        ours.set_nonblocking(true)?;
        Ok((child, UnixStream::from_std(ours)?))
    }

    async fn run_service() -> Result<(), Box<dyn Error>> {
        let (mut child, mut stream) = start_vm()?;
        println!("ping? {}", ask(&mut stream, b"ping").await?);
        // The child's carry hangs the guest up, and the guest powers off.
        drop(stream);
        println!("the first VM ended: {}", child.wait().await?);

        let (mut child, mut stream) = start_vm()?;
        println!("ping? {}", ask(&mut stream, b"ping").await?);
        child.start_kill()?; // as the system does when memory runs out
        if let Err(error) = ask(&mut stream, b"ping").await {
            // The socket only says that the child has gone. The child's status says why.
            println!(
                "the second VM does not answer: {error}: {}",
                child.wait().await?
            );
        }
        Ok(())
    }

    async fn ask(stream: &mut UnixStream, request: &[u8; 4]) -> io::Result<String> {
        stream.write_all(request).await?;
        let mut answer = [0; 4];
        stream.read_exact(&mut answer).await?;
        Ok(String::from_utf8_lossy(&answer).into_owned())
    }

    /// The child: its VM, and the carry between the VM's stream and the service.
    async fn run_child() -> Result<ExitCode, Box<dyn Error>> {
        let socket = StdUnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
        socket.set_nonblocking(true)?;
        let (stream, port) = AgentStream::pair()?;
        // With a VM: `VmBuilder`, the exit hook, and a thread that enters it, as in the example `microvm`.
        let vm = tokio::spawn(run_vm(port));
        let mut carry = Carry::new(stream, UnixStream::from_std(socket)?);
        let ended = carry.run().await;
        eprintln!("  child: {ended:?} after {:?}", carry.carried());
        ended?; // a failure is this process's status, and its reason is printed
        vm.await??;
        Ok(ExitCode::SUCCESS)
    }

    /// The agent in the VM echoes until it is hung up.
    async fn run_vm(port: AgentPort) -> io::Result<()> {
        let guest = Guest::boot(port);
        let (mut read, mut write) = guest.open()?.into_split();
        tokio::io::copy(&mut read, &mut write).await?;
        guest.power_off().await;
        Ok(())
    }
}

#[cfg(unix)]
use service::main;

#[cfg(not(unix))]
fn main() {
    println!("this example passes a Unix socket on to its child");
}
