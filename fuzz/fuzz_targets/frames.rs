//! The guest sends any bytes in descriptors of any size, and the host reads frames. It must get the same frames as the
//! codec decodes from those bytes in one piece.

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

/// Both sides stop after so many frames, because a long run of empty frames takes long and shows nothing new.
const MAX_FRAMES: usize = 1000;

fn enough(frames: &[Vec<u8>]) -> Option<String> {
    (frames.len() == MAX_FRAMES).then(|| "enough".to_owned())
}

/// The frames, and then at most one error, which ends a reader.
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

/// Decodes without a stream.
fn decode_alone<C: Decoder<Item: Frame, Error: ToString>>(mut codec: C, sent: &[u8]) -> Frames {
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

/// How guest and host use the stream.
struct Usage<'a> {
    capacity: usize,
    /// The sizes of the descriptors, which repeat.
    sizes: &'a [u8],
    /// The host reads after so many descriptors, and whenever the guest would wait.
    reads_after: usize,
}

impl Usage<'_> {
    /// Sizes of up to 64 KiB: each size below 128, then steps of half a kilobyte.
    fn sizes(&self) -> impl Iterator<Item = usize> {
        let sizes = self.sizes.iter().map(|&size| match size {
            0..128 => size as usize,
            128.. => (size as usize - 127) * 512,
        });
        let once = self.sizes.is_empty().then_some(1);
        sizes.chain(once).cycle()
    }
}

/// Decodes from a stream.
fn decode_from_stream<C: Decoder<Item: Frame, Error: ToString>>(
    codec: C,
    sent: &[u8],
    usage: &Usage<'_>,
) -> Frames {
    let options = Options::new().capacity(usage.capacity);
    let (stream, port) = options.create().unwrap();
    let (handle, guest) = (port.handle(), backend(port));
    let mut reader = FramedRead::new(stream, codec);
    let mut frames = Vec::new();
    let mut read_frames = |at_end: bool| {
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
                    assert!(at_end, "the reader ended before the guest");
                    return None;
                }
                Poll::Pending => {
                    assert!(!at_end, "the reader did not end after the guest");
                    return None;
                }
            }
        }
    };
    let mut rest = sent;
    let mut error = None;
    // After so many sizes, use large descriptors: many bytes in small ones take long and show nothing new.
    let mut sizes = usage.sizes().take(1000).chain(repeat(64 * 1024));
    let mut written_since = 0;
    while !rest.is_empty() && error.is_none() {
        let size = sizes.next().unwrap().clamp(1, rest.len());
        let queued = handle.stats().tx.queued as usize;
        let room = usage.capacity - queued;
        match guest.write(&rest[..size]) {
            Ok(written) => {
                // The whole descriptor, or a ringful.
                assert_eq!(written, size.min(usage.capacity));
                assert!(written <= room);
                rest = &rest[written..];
                written_since += 1;
            }
            Err(refused) => {
                assert_eq!(refused.kind(), ErrorKind::WouldBlock);
                assert!(room < size.min(usage.capacity), "{room} bytes of room");
                written_since = usage.reads_after;
            }
        }
        if written_since >= usage.reads_after {
            error = read_frames(false);
            written_since = 0;
            // The host has read everything, so the ring takes the next descriptor.
            assert!(error.is_some() || handle.stats().tx.queued == 0);
        }
    }
    drop(guest);
    error = error.or_else(|| read_frames(true));
    (frames, error)
}

/// Expands the fuzzer's input into the bytes that the guest sends. `0xff, n` repeats the byte before it 64 * `n` times
/// more. Other bytes stay as they are. So a few input bytes make a frame that crosses chunks and fills a ring.
fn expand(encoded: &[u8], longest: usize) -> Vec<u8> {
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
        if sent.len() >= longest {
            sent.truncate(longest);
            break;
        }
    }
    sent
}

fuzz_target!(|data: &[u8]| {
    let [mode, data @ ..] = data else { return };
    let (sizes, encoded) = data.split_at(data.len() / 8);
    let (capacity, longest_sent) = match mode >> 3 & 1 {
        0 => (SMALL, 3 * SMALL),
        _ => (512 * 1024, 768 * 1024),
    };
    let usage = Usage {
        capacity,
        sizes,
        reads_after: [1, 2, 5, usize::MAX][(mode >> 4 & 3) as usize],
    };
    let max_frame = [100, 1000, 5000, 70_000][(mode >> 6) as usize];
    let sent = expand(encoded, longest_sent);

    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()
        .unwrap();
    let _guard = runtime.enter();
    if mode & 1 == 0 {
        let codec = LinesCodec::new_with_max_length(max_frame);
        assert_eq!(
            decode_from_stream(codec.clone(), &sent, &usage),
            decode_alone(codec, &sent)
        );
    } else {
        let codec = LengthDelimitedCodec::builder()
            .length_field_length(1 + (mode >> 1 & 3) as usize)
            // A length field of one byte holds no more than 255.
            .max_frame_length(max_frame.min(if mode >> 1 & 3 == 0 { 255 } else { usize::MAX }))
            .new_codec();
        assert_eq!(
            decode_from_stream(codec.clone(), &sent, &usage),
            decode_alone(codec, &sent)
        );
    }
});
