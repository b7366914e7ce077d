//! A host that boots a real microVM and talks with the agent inside.
//!
//! `KRUNFW` is the path of libkrunfw, which holds the guest's kernel, and `GUEST_ROOT` the folder
//! that is the guest's root, with the agent in it as `/init`. To have both made, with the agent of
//! this project's tests: `tests/microvm/run --example microvm`

use std::error::Error;
use std::time::Duration;
use std::{env, thread};

use futures::{SinkExt, StreamExt};
use msb_krun::VmBuilder;
use tokio_krun::AgentStream;
use tokio_util::codec::{Framed, LinesCodec};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let kernel = env::var_os("KRUNFW").ok_or("KRUNFW is not set")?;
    let root = env::var_os("GUEST_ROOT").ok_or("GUEST_ROOT is not set")?;

    let (stream, port) = AgentStream::pair()?;
    let vm = VmBuilder::new()
        .machine(|machine| machine.vcpus(1).memory_mib(256))
        .kernel(|k| k.krunfw_path(kernel).init_path("/init"))
        .fs(|fs| fs.root(root))
        .exec(|exec| exec.path("/init").args(["echo"]))
        .on_exit(port.exit_hook(Duration::from_secs(10)))
        .console(|console| port.attach(console.disable_implicit(), "agent"))
        .build()?;
    thread::spawn(move || {
        // It returns only if the VM cannot be started; that drops the port and ends the stream.
        let Err(error) = vm.enter();
        eprintln!("the VM did not start: {error}");
    });

    let mut lines = Framed::new(stream, LinesCodec::new());
    let greeting = lines.next().await.ok_or("the guest has gone")??;
    println!("the agent says: {greeting}");
    lines.send("how are you?").await?;
    let echo = lines.next().await.ok_or("the guest has gone")??;
    println!("the agent says: {echo}");

    // This agent powers off at the end of the file. krun ends the process with the guest, once
    // the stream was read to its end and dropped.
    lines.get_mut().hang_up();
    while let Some(line) = lines.next().await {
        println!("the agent says: {}", line?);
    }
    println!("the guest has powered off");
    Ok(())
}
