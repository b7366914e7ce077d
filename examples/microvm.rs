//! A host that boots a real microVM and talks to the agent inside.
//!
//! It needs two variables. `KRUNFW` is the path of libkrunfw, which holds the guest's kernel.
//! `GUEST_ROOT` is the guest's root folder, with the agent in it as `/init`.
//!
//! `tests/microvm/run --example microvm` makes both, with the agent of this crate's tests, and runs
//! the example.

use std::error::Error;
use std::path::Path;
use std::time::Duration;
use std::{env, fs, io, process, thread};

use futures::{SinkExt, StreamExt};
use msb_krun::VmBuilder;
use tokio_krun::AgentStream;
use tokio_util::codec::{Framed, LinesCodec};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    // Shows what krun reports with the crate `log`, such as a KVM that cannot run the guest.
    tracing_subscriber::fmt()
        .with_max_level(tracing::Level::WARN)
        .with_writer(io::stderr)
        .init();

    let kernel = env::var_os("KRUNFW").ok_or("KRUNFW is not set")?;
    let root = env::var_os("GUEST_ROOT").ok_or("GUEST_ROOT is not set")?;
    let agent = Path::new(&root).join("init");
    if !agent.exists() {
        return Err(format!("GUEST_ROOT has no agent: {} is missing", agent.display()).into());
    }

    // What the guest prints: a guest that does not boot says why.
    let console_log = env::temp_dir().join(format!("microvm-{}.log", process::id()));

    let (stream, port) = AgentStream::pair()?;
    let vm = VmBuilder::new()
        .machine(|machine| machine.vcpus(1).memory_mib(256))
        .kernel(|k| k.krunfw_path(kernel).init_path("/init"))
        .fs(|fs| fs.root(root))
        .exec(|exec| exec.path("/init").args(["echo"]))
        .on_exit(port.exit_hook(Duration::from_secs(10)))
        .console(|console| port.attach(console.output(&console_log), "agent"))
        .build()?;
    println!("booting the guest");
    thread::spawn(move || {
        // Returns only if the VM does not start.
        let Err(error) = vm.enter();
        eprintln!("the VM did not start: {error}");
        process::exit(1);
    });

    let mut lines = Framed::new(stream, LinesCodec::new());
    let Some(greeting) = lines.next().await.transpose()? else {
        eprintln!("the guest ended before its agent said anything");
        match fs::read_to_string(&console_log) {
            Ok(text) if !text.is_empty() => eprintln!("its console, in {console_log:?}:\n{text}"),
            _ => {
                eprintln!("its console is empty, so its kernel did not start: can this KVM run it?")
            }
        }
        process::exit(1);
    };
    println!("the agent says: {greeting}");
    lines.send("how are you?").await?;
    let echo = lines.next().await.ok_or("the guest is gone")??;
    println!("the agent says: {echo}");

    // This agent powers off when it reads end of file. krun then waits until you have read the
    // stream to its end and dropped it, and ends this process.
    lines.get_mut().hang_up();
    while let Some(line) = lines.next().await {
        println!("the agent says: {}", line?);
    }
    println!("the guest has powered off");
    fs::remove_file(console_log)?;
    Ok(())
}
