//! An agent that restarts: how both sides find the start of a frame again.
//!
//! krun does not report that the guest closed its port. So the host's codec may return one frame that
//! the agent's first life began and its second life finished. As with QEMU's `guest-sync-delimited`,
//! the host sends a mark and a new random id, and discards everything until that id comes back.
//!
//! `cargo run --example resync`

use std::error::Error;
use std::io;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use futures::{SinkExt, StreamExt};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::timeout;
use tokio_krun::agent::VirtioPort;
use tokio_krun::test_util::Guest;
use tokio_krun::{AgentStream, Options};
use tokio_util::codec::{Decoder, Framed, FramedParts, LengthDelimitedCodec};

/// The start of a sync request, which no frame may contain. Its first four bytes are a length that the
/// codec refuses. So an agent that did not restart stops at it, too.
const MARK: [u8; 16] = *b"\xff\xff\xff\xff\x9e\x1b\x6c\x52\xd7\x03\xa8\xf4\x2d\x71\xbe\x85";

type Frames<T> = Framed<T, LengthDelimitedCodec>;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let (stream, port) = Options::new().capacity(32 * 1024).create()?;
    let guest = Guest::boot(port);
    let mut first_life = guest.open()?;
    let mut frames = framed(stream, BytesMut::new());

    // The agent dies while it reads one frame and writes another, of which it has sent 14 of 20 bytes.
    // So its second life starts in the middle of a frame from the host.
    let restart = async {
        first_life.read_exact(&mut [0; 1000]).await?;
        first_life.write_all(b"\0\0\0\x14the first life").await?;
        guest.drained().await;
        drop(first_life);
        guest.open().map(|port| drop(tokio::spawn(agent(port))))
    };
    let upload = Bytes::from(vec![1; 1024 * 1024]);
    tokio::try_join!(frames.send(upload), restart)?;

    // The host notices only that no answer comes.
    let limit = Duration::from_millis(100);
    assert!(timeout(limit, frames.next()).await.is_err());
    let (mut old_codec, mut old_bytes) = (frames.codec().clone(), frames.read_buffer().clone());
    let (mut frames, id) = resync(frames).await?;
    frames.send(Bytes::from("hello")).await?;
    let answer = frames.next().await.ok_or("the guest is gone")??;
    assert_eq!(answer, "hello");

    // Without the sync, the codec would have gone on with what the second life sent.
    old_bytes.extend_from_slice(&id);
    let mixed = old_codec.decode(&mut old_bytes)?.ok_or("no frame")?;
    assert_eq!(mixed, [&b"the first life"[..], &id[..6]].concat());
    println!("{answer:?} came after the sync; without it, {mixed:?}");
    Ok(())
}

/// The host's side. If no answer comes, try again with another id.
async fn resync(frames: Frames<AgentStream>) -> io::Result<(Frames<AgentStream>, [u8; 16])> {
    let mut parts = frames.into_parts();
    let id = fastrand::u128(..).to_be_bytes();
    // After the rest of a frame, if you have stopped sending one.
    parts.write_buf.extend([MARK, id].concat());
    let (mut read, mut write) = parts.io.split();
    // Both at once: an agent that waits with an answer does not read.
    let written = write.write_all(&parts.write_buf);
    tokio::try_join!(written, skip_past(&id, &mut read, &mut parts.read_buf))?;
    Ok((framed(parts.io, parts.read_buf), id))
}

/// The agent. In each life, it waits for a sync request first.
async fn agent(mut port: VirtioPort) -> io::Result<()> {
    let mut buf = BytesMut::new();
    loop {
        skip_past(&MARK, &mut port, &mut buf).await?;
        let mut id = [0; MARK.len()];
        let mut rest = AsyncReadExt::chain(&buf[..], &mut port);
        rest.read_exact(&mut id).await?;
        buf.advance(buf.len().min(id.len()));
        port.write_all(&id).await?;
        let mut frames = framed(port, buf);
        while let Some(Ok(request)) = frames.next().await {
            frames.send(request.freeze()).await?; // an echo
        }
        // The end of the file, a sync request, or bytes that are no frame.
        let parts = frames.into_parts();
        (port, buf) = (parts.io, parts.read_buf);
    }
}

/// Reads up to the end of `mark`. What comes after it stays in `buf`.
async fn skip_past<R>(mark: &[u8], port: &mut R, buf: &mut BytesMut) -> io::Result<()>
where
    R: AsyncRead + Unpin,
{
    loop {
        if let Some(at) = buf.windows(mark.len()).position(|part| part == mark) {
            buf.advance(at + mark.len());
            return Ok(());
        }
        // The last bytes may be the beginning of the mark.
        buf.advance(buf.len().saturating_sub(mark.len() - 1));
        if port.read_buf(buf).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}

/// With a new codec: the old one may expect the rest of a frame.
fn framed<T: AsyncRead + AsyncWrite>(io: T, read_buf: BytesMut) -> Frames<T> {
    let mut parts = FramedParts::new::<Bytes>(io, LengthDelimitedCodec::new());
    parts.read_buf = read_buf;
    Framed::from_parts(parts)
}
