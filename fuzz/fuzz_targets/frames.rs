//! A guest that sends anything, in descriptors of any size, to a host that reads frames: what comes out
//! is what the codec makes of the same bytes in one piece.

#![no_main]

#[path = "../../tests/common/mod.rs"]
mod common;

use std::task::Poll;

use bytes::BytesMut;
use common::{SMALL, pair};
use futures::StreamExt;
use libfuzzer_sys::fuzz_target;
use tokio_test::task::spawn;
use tokio_util::codec::{Decoder, FramedRead, LengthDelimitedCodec, LinesCodec};

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
            Ok(Some(frame)) => frames.push(frame.into_bytes()),
            Ok(None) => return (frames, None),
            Err(error) => return (frames, Some(error.to_string())),
        }
    }
}

/// The codec on a stream, with a look after each descriptor at whatever has come so far.
fn read<C: Decoder<Item: Frame, Error: ToString>>(
    codec: C,
    sent: &[u8],
    mut size: impl FnMut() -> usize,
) -> Frames {
    let (stream, guest) = pair();
    let mut reader = FramedRead::new(stream, codec);
    let mut frames = Vec::new();
    let mut look = |at_end: bool| {
        loop {
            match spawn(reader.next()).poll() {
                Poll::Ready(Some(Ok(frame))) => frames.push(frame.into_bytes()),
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
    while !rest.is_empty() && error.is_none() {
        let (descriptor, more) = rest.split_at(size().clamp(1, rest.len()));
        assert_eq!(guest.write(descriptor).unwrap(), descriptor.len());
        rest = more;
        error = look(false);
    }
    drop(guest);
    error = error.or_else(|| look(true));
    (frames, error)
}

fuzz_target!(|data: &[u8]| {
    let [mode, data @ ..] = data else { return };
    // The descriptors' sizes, over and over, then what they carry.
    let (sizes, sent) = data.split_at(data.len() / 8);
    let sent = &sent[..sent.len().min(SMALL)];
    let mut sizes = sizes.iter().cycle();
    let size = || sizes.next().map_or(1, |&size| size as usize);

    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()
        .unwrap();
    let _guard = runtime.enter();
    if mode & 1 == 0 {
        let codec = LinesCodec::new_with_max_length(100);
        assert_eq!(read(codec.clone(), sent, size), decoded(codec, sent));
    } else {
        let codec = LengthDelimitedCodec::builder()
            .length_field_length(1 + (mode >> 1 & 3) as usize)
            .max_frame_length(1000)
            .new_codec();
        assert_eq!(read(codec.clone(), sent, size), decoded(codec, sent));
    }
});
