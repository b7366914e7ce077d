//! The agent as the init of a microVM. Build it for musl, and put it into the guest's root as `/init`.

#[cfg(target_os = "linux")]
fn main() {
    use rustix::system::{RebootCommand, reboot};

    if std::process::id() != 1 {
        eprintln!("guest: run me only as the init of a microVM; here I would restart your machine");
        std::process::exit(1);
    }
    if let Err(error) = serve() {
        eprintln!("guest: {error}"); // on the VM's console
    }
    // krun ends the VM when it restarts.
    let failed = reboot(RebootCommand::Restart);
    eprintln!("guest: cannot end the VM: {failed:?}");
}

#[cfg(target_os = "linux")]
fn serve() -> std::io::Result<()> {
    tokio_krun::agent::mount_filesystems()?;
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(async {
            let port = tokio_krun::agent::VirtioPort::open("agent").await?;
            fleet::agent::serve(port, |_| Ok(())).await
        })
}

#[cfg(not(target_os = "linux"))]
fn main() {
    eprintln!("guest: a microVM's guest runs Linux");
}
