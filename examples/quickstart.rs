//! A host and an agent exchange frames. An in-process guest takes the place of a VM.
//!
//! `cargo run --example quickstart`

use std::error::Error;

use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use tokio_krun::agent::VirtioPort;
use tokio_krun::test_util::Guest;
use tokio_krun::{AgentPort, AgentStream};
use tokio_util::codec::{Framed, LengthDelimitedCodec};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let (stream, port) = AgentStream::pair()?;
    println!("this process plays the guest, without a VM");
    let vm = tokio::spawn(run_vm(port));

    let mut frames = Framed::new(stream, LengthDelimitedCodec::new());
    for request in ["uptime", "hostname"] {
        frames.send(Bytes::from(request)).await?;
        let reply = frames.next().await.ok_or("the guest is gone")??;
        println!("{request}? {}", String::from_utf8_lossy(&reply));
    }

    // Dropping the stream hangs up. The agent reads end of file, and the guest powers off.
    drop(frames);
    vm.await??;
    println!("the guest has powered off");
    Ok(())
}

/// With a VM: `VmBuilder::console(|console| port.attach(console, "agent"))`.
async fn run_vm(port: AgentPort) -> std::io::Result<()> {
    let guest = Guest::boot(port);
    agent(guest.open()?).await?;
    guest.power_off().await;
    Ok(())
}

/// The agent inside the guest.
async fn agent(port: VirtioPort) -> std::io::Result<()> {
    let mut frames = Framed::new(port, LengthDelimitedCodec::new());
    while let Some(request) = frames.next().await.transpose()? {
        let reply = match &request[..] {
            b"uptime" => Bytes::from_static(b"3 seconds"),
            b"hostname" => Bytes::from_static(b"microvm"),
            _ => Bytes::from_static(b"unknown request"),
        };
        frames.send(reply).await?;
    }
    Ok(())
}
