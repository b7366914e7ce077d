//! Reads any bytes as a stream's state. What is one is written as the same bytes again, and can be restored.

#![no_main]

use std::hint::black_box;

use libfuzzer_sys::fuzz_target;
use tokio_krun::{Options, StreamState};

/// CRC-32, so that most inputs get past the sum.
fn sum(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |sum, byte| {
        (0..8).fold(sum ^ u32::from(*byte), |sum, _| match sum & 1 {
            0 => sum >> 1,
            _ => sum >> 1 ^ 0xedb8_8320,
        })
    })
}

fuzz_target!(|data: &[u8]| {
    let _ = black_box(StreamState::read_from(data));
    let mut bytes = data.to_vec();
    bytes.extend(sum(data).to_le_bytes());
    let mut rest = &bytes[..];
    let Ok(state) = StreamState::read_from(&mut rest) else {
        return;
    };
    let mut written = Vec::new();
    state.write_to(&mut written).unwrap();
    assert_eq!(written, bytes[..bytes.len() - rest.len()]);

    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()
        .unwrap();
    let _guard = runtime.enter();
    let options = Options::new().test_capacity(state.capacity());
    let (stream, port) = options.restore(&state).unwrap();
    let stats = state.stats();
    assert_eq!(stream.stats().rx.queued, stats.rx.queued);
    // What the stream's owner has ended stays so.
    assert!([stats.tx.queued, 0].contains(&stream.stats().tx.queued));
    let again = port.handle().checkpoint().capture().unwrap();
    assert_eq!(again.stats().rx, stats.rx);
});
