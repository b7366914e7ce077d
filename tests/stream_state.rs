//! The format of a stream's state, and what is not one.

mod common;

use std::io::ErrorKind;

use common::SMALL;
use tokio::io::AsyncWriteExt;
use tokio_krun::{Error, Options, StreamState};

/// A small state with something in each field.
async fn state() -> StreamState {
    let (mut stream, port) = Options::new().capacity(SMALL).create().unwrap();
    let handle = port.handle();
    let backend = common::backend(port);
    backend.write(b"read and unread").unwrap();
    stream.try_read(&mut [0; 9]).unwrap();
    stream.write_all(b"taken and not").await.unwrap();
    backend.read(&mut [0; 10]).unwrap();
    stream.hang_up();
    common::leave(&backend);
    handle.checkpoint().capture().unwrap()
}

fn written(state: &StreamState) -> Vec<u8> {
    let mut bytes = Vec::new();
    state.write_to(&mut bytes).unwrap();
    bytes
}

fn read(mut bytes: &[u8]) -> std::io::Result<StreamState> {
    let state = StreamState::read_from(&mut bytes)?;
    assert!(bytes.is_empty());
    Ok(state)
}

/// With the sum that fits the other bytes.
fn with_sum(mut bytes: Vec<u8>) -> Vec<u8> {
    let end = bytes.len() - 4;
    let sum = crc32fast::hash(&bytes[..end]);
    bytes[end..].copy_from_slice(&sum.to_le_bytes());
    bytes
}

/// What was written once can be read for ever.
#[tokio::test]
async fn format_is_what_it_was() {
    let mut expected = b"tokiokrn".to_vec();
    expected.extend([1, 0, 0b111, 0]);
    for number in [SMALL as u64, 9, 6, 10, 3] {
        expected.extend(number.to_le_bytes());
    }
    expected.extend(b"unreadnot");
    expected.extend([0; 4]);
    let state = state().await;
    assert_eq!(written(&state), with_sum(expected));
    assert_eq!(read(&written(&state)).unwrap(), state);
    assert_eq!(state.capacity(), SMALL);
    assert!(!format!("{state:?}").contains("unreadnot"));
}

#[tokio::test]
async fn damage_to_any_bit_and_any_lack_of_bytes_is_an_error() {
    let bytes = written(&state().await);
    for bit in 0..8 * bytes.len() {
        let mut damaged = bytes.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        let error = StreamState::read_from(&damaged[..]).unwrap_err();
        let is_version = (8..10).contains(&(bit / 8));
        let expected = match is_version {
            true => ErrorKind::Unsupported,
            false => ErrorKind::InvalidData,
        };
        assert_eq!(error.kind(), expected, "bit {bit}");
    }
    for length in 0..bytes.len() {
        let error = StreamState::read_from(&bytes[..length]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidData, "{length} bytes");
    }
}

/// Each with a sum that fits.
#[tokio::test]
async fn what_no_stream_can_be_is_an_error() {
    let bytes = written(&state().await);
    let with = |at: usize, number: u64, size: usize| {
        let mut bytes = bytes.clone();
        bytes[at..at + size].copy_from_slice(&number.to_le_bytes()[..size]);
        read(&with_sum(bytes))
    };
    assert!(with(10, 0b111, 2).is_ok());
    let (flags, capacity, tx_read, tx_length, rx_read, rx_length) = (10, 12, 20, 28, 36, 44);
    for (at, number, size) in [
        (flags, 0b100_0000, 2),       // unknown
        (flags, 0b101, 2),            // hung up and not shut down
        (flags, 0b1_0011, 2),         // closed, and still reading
        (flags, 0b1_1001, 2),         // closed, and still writing
        (capacity, 0, 8),             // no stream
        (capacity, 2, 8),             // less than what there is
        (capacity, (1 << 30) + 1, 8), // more than any stream's
        (capacity, u64::MAX, 8),
        (tx_read, u64::MAX, 8), // no room for another byte
        (rx_read, u64::MAX - 2, 8),
        (tx_length, 2 * SMALL as u64 + 1, 8),
        (tx_length, u64::MAX, 8),
        (rx_length, SMALL as u64 + 1, 8),
        (rx_length, u64::MAX, 8),
    ] {
        let error = with(at, number, size).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidData, "{number} at {at}");
    }
    let error = with(8, 2, 2).unwrap_err();
    let reason = error.get_ref().and_then(|reason| reason.downcast_ref());
    assert!(matches!(
        reason,
        Some(Error::StateVersion { version: 2, .. })
    ));
}

#[tokio::test]
async fn state_passes_through_serde_in_both_kinds_of_formats() {
    let state = state().await;
    let json = serde_json::to_string(&state).unwrap();
    assert_eq!(serde_json::from_str::<StreamState>(&json).unwrap(), state);
    let mut cbor = Vec::new();
    ciborium::into_writer(&state, &mut cbor).unwrap();
    assert_eq!(
        ciborium::from_reader::<StreamState, _>(&cbor[..]).unwrap(),
        state
    );

    // More bytes, fewer bytes, none.
    let mut bytes = written(&state);
    bytes.push(0);
    let list = |bytes: &[u8]| serde_json::to_string(bytes).unwrap();
    for bytes in [&bytes[..], &bytes[..bytes.len() - 2], &[]] {
        assert!(serde_json::from_str::<StreamState>(&list(bytes)).is_err());
    }
}
