//! The program inside the VM: sends back what it gets, on each stream.

use std::future::poll_fn;
use std::io;

use futures::io::{AsyncReadExt, AsyncWriteExt};
use tokio_krun::guest::Guest;
use tokio_util::compat::TokioAsyncReadCompatExt;
use yamux::{Connection, Mode};

pub async fn run(guest: Guest) -> io::Result<()> {
    let port = guest.open()?;
    let mut connection = Connection::new(port.compat(), super::config(), Mode::Server);
    while let Some(stream) = poll_fn(|cx| connection.poll_next_inbound(cx)).await {
        let stream = stream.map_err(io::Error::other)?;
        tokio::spawn(async move {
            let (mut read, mut write) = stream.split();
            futures::io::copy(&mut read, &mut write).await?;
            write.close().await
        });
    }
    guest.power_off().await;
    Ok(())
}
