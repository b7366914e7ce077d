//! A guest that sends anything, in descriptors of any size, to a host that reads frames: what comes out
//! is what the codec makes of the same bytes in one piece.

#![no_main]

#[path = "../../tests/common/mod.rs"]
mod common;

use std::io::ErrorKind;
use std::iter::repeat;
use std::task::Poll;

use bytes::BytesMut;
use common::{SMALL, backend};
use futures::StreamExt;
use libfuzzer_sys::fuzz_target;
use tokio_krun::Options;
use tokio_test::task::spawn;
use tokio_util::codec::{Decoder, FramedRead, LengthDelimitedCodec, LinesCodec};

/// More are not looked at: a long run of empty ones takes long and shows nothing new.
const MOST_FRAMES: usize = 1000;

fn enough(frames: &[Vec<u8>]) -> Option<String> {
    (frames.len() == MOST_FRAMES).then(|| "enough".to_owned())
}

/// What has come out: frames, then at most one error, after which a reader ends.
type Frames = (Vec<Vec<u8>>, Option<String>);

trait Frame {
    fn into_bytes(self) -> Vec<u8>;
}

impl Frame for BytesMut {
    fn into_bytes(self) -> Vec<u8> {
        self.to_vec()
    }
}

impl Frame for String {
    fn into_bytes(self) -> Vec<u8> {
        String::into_bytes(self)
    }
}

/// The codec alone.
fn decoded<C: Decoder<Item: Frame, Error: ToString>>(mut codec: C, sent: &[u8]) -> Frames {
    let mut bytes = BytesMut::from(sent);
    let mut frames = Vec::new();
    loop {
        match codec.decode_eof(&mut bytes) {
            Ok(Some(frame)) => {
                frames.push(frame.into_bytes());
                if let Some(enough) = enough(&frames) {
                    return (frames, Some(enough));
                }
            }
            Ok(None) => return (frames, None),
            Err(error) => return (frames, Some(error.to_string())),
        }
    }
}

/// How a stream is used.
struct Use<'a> {
    capacity: usize,
    /// The sizes of the descriptors, over and over.
    sizes: &'a [u8],
    /// The host looks after so many of them, and when the guest would wait.
    looks_after: usize,
}

impl Use<'_> {
    /// Up to 64 KiB: the small sizes one by one, then in steps of half a kilobyte.
    fn sizes(&self) -> impl Iterator<Item = usize> {
        let sizes = self.sizes.iter().map(|&size| match size {
            0..128 => size as usize,
            128.. => (size as usize - 127) * 512,
        });
        let once = self.sizes.is_empty().then_some(1);
        sizes.chain(once).cycle()
    }
}

/// The codec on a stream.
fn read<C: Decoder<Item: Frame, Error: ToString>>(
    codec: C,
    sent: &[u8],
    usage: &Use<'_>,
) -> Frames {
    let options = Options::new().capacity(usage.capacity);
    let (stream, port) = options.create().unwrap();
    let (handle, guest) = (port.handle(), backend(port));
    let mut reader = FramedRead::new(stream, codec);
    let mut frames = Vec::new();
    let mut look = |at_end: bool| {
        loop {
            match spawn(reader.next()).poll() {
                Poll::Ready(Some(Ok(frame))) => {
                    frames.push(frame.into_bytes());
                    if let Some(enough) = enough(&frames) {
                        return Some(enough);
                    }
                }
                Poll::Ready(Some(Err(error))) => return Some(error.to_string()),
                Poll::Ready(None) => {
                    assert!(at_end, "an end before the guest's");
                    return None;
                }
                Poll::Pending => {
                    assert!(!at_end, "no end after the guest's");
                    return None;
                }
            }
        }
    };
    let mut rest = sent;
    let mut error = None;
    // A long text in small descriptors takes long and shows nothing new.
    let mut sizes = usage.sizes().take(1000).chain(repeat(64 * 1024));
    let mut written_since = 0;
    while !rest.is_empty() && error.is_none() {
        let size = sizes.next().unwrap().clamp(1, rest.len());
        let queued = handle.stats().tx.queued as usize;
        let room = usage.capacity - queued;
        match guest.write(&rest[..size]) {
            Ok(written) => {
                // Whole, or a ringful.
                assert_eq!(written, size.min(usage.capacity));
                assert!(written <= room);
                rest = &rest[written..];
                written_since += 1;
            }
            Err(refused) => {
                assert_eq!(refused.kind(), ErrorKind::WouldBlock);
                assert!(room < size.min(usage.capacity), "{room} bytes of room");
                written_since = usage.looks_after;
            }
        }
        if written_since >= usage.looks_after {
            error = look(false);
            written_since = 0;
            // Until there is no more, so the next one is taken.
            assert!(error.is_some() || handle.stats().tx.queued == 0);
        }
    }
    drop(guest);
    error = error.or_else(|| look(true));
    (frames, error)
}

/// What the guest sends: the bytes as they are, but `0xff, n` is the byte before 64 more times `n`. So a few
/// make a frame that crosses chunks, and fills a ring.
fn sent(encoded: &[u8], most: usize) -> Vec<u8> {
    let mut sent = Vec::new();
    let mut bytes = encoded.iter();
    while let Some(&byte) = bytes.next() {
        match (byte, sent.last().copied(), bytes.as_slice().first()) {
            (0xff, Some(last), Some(&times)) => {
                bytes.next();
                sent.resize(sent.len() + 64 * times as usize, last);
            }
            _ => sent.push(byte),
        }
        if sent.len() >= most {
            sent.truncate(most);
            break;
        }
    }
    sent
}

fuzz_target!(|data: &[u8]| {
    let [mode, data @ ..] = data else { return };
    let (sizes, encoded) = data.split_at(data.len() / 8);
    let (usage, most) = match mode >> 3 & 1 {
        0 => (SMALL, 3 * SMALL),
        _ => (512 * 1024, 768 * 1024),
    };
    let usage = Use {
        capacity: usage,
        sizes,
        looks_after: [1, 2, 5, usize::MAX][(mode >> 4 & 3) as usize],
    };
    let longest = [100, 1000, 5000, 70_000][(mode >> 6) as usize];
    let sent = sent(encoded, most);

    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()
        .unwrap();
    let _guard = runtime.enter();
    if mode & 1 == 0 {
        let codec = LinesCodec::new_with_max_length(longest);
        assert_eq!(read(codec.clone(), &sent, &usage), decoded(codec, &sent));
    } else {
        let codec = LengthDelimitedCodec::builder()
            .length_field_length(1 + (mode >> 1 & 3) as usize)
            // A length of one byte cannot say more.
            .max_frame_length(longest.min(if mode >> 1 & 3 == 0 { 255 } else { usize::MAX }))
            .new_codec();
        assert_eq!(read(codec.clone(), &sent, &usage), decoded(codec, &sent));
    }
});
