//! What travels between an agent and the host: frames with a length, whose first byte says what they are.
//!
//! An agent does one request at a time, in their order. So frames need no request number, and an answer that nobody reads
//! holds the agent up, not the host's memory.

use std::io;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::codec::{Framed, LengthDelimitedCodec};

/// The longest part of an answer. Longer answers are several parts.
pub const PART: usize = 64 * 1024;

/// The longest answer that may be asked for.
pub const LONGEST_ANSWER: u32 = 4 * 1024 * 1024;

/// The longest text in a frame.
const LONGEST_TEXT: usize = 1024;

/// What this service's agents do: work for a while, and then answer with `size` bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ask {
    /// Names the request. The bytes of its answer depend on it.
    pub key: u64,
    pub size: u32,
    pub work_ms: u32,
}

/// To an agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    Ask(Ask),
    /// Asks what it has done so far, and so whether it still works.
    Status,
    /// Asks it to say goodbye and to power off.
    Stop,
}

/// From an agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// A part of the answer to [`Request::Ask`]; more follows.
    Part(Bytes),
    /// The answer is complete.
    Done,
    /// The request could not be carried out, in words.
    Refused(String),
    /// What the agent has done since it was booted.
    Status { requests: u64, bytes: u64 },
    /// Its last words.
    Goodbye(String),
}

/// Frames over a stream, a port or a socket.
pub fn framed<S: AsyncRead + AsyncWrite>(stream: S) -> Framed<S, LengthDelimitedCodec> {
    LengthDelimitedCodec::builder()
        .max_frame_length(PART + 1)
        .new_framed(stream)
}

impl Request {
    pub fn encode(self) -> Bytes {
        let mut frame = BytesMut::with_capacity(17);
        match self {
            Self::Ask(Ask { key, size, work_ms }) => {
                frame.put_u8(b'a');
                frame.put_u64(key);
                frame.put_u32(size);
                frame.put_u32(work_ms);
            }
            Self::Status => frame.put_u8(b's'),
            Self::Stop => frame.put_u8(b'x'),
        }
        frame.freeze()
    }

    /// # Errors
    ///
    /// [`InvalidData`](io::ErrorKind::InvalidData) if it is none, or asks for more than [`LONGEST_ANSWER`].
    pub fn decode(frame: &[u8]) -> io::Result<Self> {
        let mut rest = frame;
        let request = match rest.try_get_u8() {
            Ok(b'a') if rest.len() == 16 => {
                let (key, size, work_ms) = (rest.get_u64(), rest.get_u32(), rest.get_u32());
                if size > LONGEST_ANSWER {
                    return Err(invalid("the request asks for too long an answer"));
                }
                Self::Ask(Ask { key, size, work_ms })
            }
            Ok(b's') => Self::Status,
            Ok(b'x') => Self::Stop,
            _ => return Err(invalid("not a request")),
        };
        if rest.is_empty() {
            Ok(request)
        } else {
            Err(invalid("a request with bytes left over"))
        }
    }
}

impl Answer {
    /// Whether nothing follows it.
    pub fn is_last(&self) -> bool {
        !matches!(self, Self::Part(_))
    }

    pub fn encode(&self) -> Bytes {
        let mut frame = BytesMut::new();
        match self {
            Self::Part(part) => {
                frame.reserve(1 + part.len());
                frame.put_u8(b'p');
                frame.put_slice(part);
            }
            Self::Done => frame.put_u8(b'd'),
            Self::Refused(words) => put_text(&mut frame, b'r', words),
            Self::Status { requests, bytes } => {
                frame.put_u8(b's');
                frame.put_u64(*requests);
                frame.put_u64(*bytes);
            }
            Self::Goodbye(words) => put_text(&mut frame, b'g', words),
        }
        frame.freeze()
    }

    /// # Errors
    ///
    /// [`InvalidData`](io::ErrorKind::InvalidData) if it is none. The guest is not trusted.
    pub fn decode(mut frame: Bytes) -> io::Result<Self> {
        Ok(match frame.try_get_u8() {
            Ok(b'p') => Self::Part(frame),
            Ok(b'd') if frame.is_empty() => Self::Done,
            Ok(b'r') => Self::Refused(text(&frame)),
            Ok(b's') if frame.len() == 16 => Self::Status {
                requests: frame.get_u64(),
                bytes: frame.get_u64(),
            },
            Ok(b'g') => Self::Goodbye(text(&frame)),
            _ => return Err(invalid("not an answer")),
        })
    }
}

fn put_text(frame: &mut BytesMut, tag: u8, words: &str) {
    frame.put_u8(tag);
    frame.put_slice(&words.as_bytes()[..words.len().min(LONGEST_TEXT)]);
}

/// Text from outside, for one line of a table: no control characters.
pub fn text(bytes: &[u8]) -> String {
    let bytes = &bytes[..bytes.len().min(LONGEST_TEXT)];
    String::from_utf8_lossy(bytes)
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect()
}

fn invalid(words: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, words)
}

/// The answer's bytes from `offset` on. The caller makes them too, to check what it got.
pub fn content(key: u64, offset: usize, len: usize) -> Bytes {
    // A block whose length is odd, so that a part that is lost or comes twice shows.
    let block: [u8; 251] =
        std::array::from_fn(|i| (i as u8).wrapping_add(key as u8) ^ (key >> 8) as u8);
    let start = offset % block.len();
    let mut bytes = BytesMut::with_capacity(len + block.len());
    bytes.put_slice(&block[start..]);
    while bytes.len() < len {
        bytes.put_slice(&block);
    }
    bytes.truncate(len);
    bytes.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_survive_their_encoding() {
        for request in [
            Request::Ask(Ask {
                key: 1,
                size: 2,
                work_ms: 3,
            }),
            Request::Status,
            Request::Stop,
        ] {
            assert_eq!(Request::decode(&request.encode()).unwrap(), request);
        }
        let part = Answer::Part(Bytes::from_static(b"part"));
        let status = Answer::Status {
            requests: 1,
            bytes: 2,
        };
        for answer in [
            part,
            Answer::Done,
            Answer::Refused("no".into()),
            status,
            Answer::Goodbye("bye".into()),
        ] {
            assert_eq!(Answer::decode(answer.encode()).unwrap(), answer);
        }
    }

    #[test]
    fn what_is_no_message_is_refused() {
        for frame in [
            &b""[..],
            b"a",
            b"s!",
            b"?",
            b"a00000000\xff\xff\xff\xff0000",
        ] {
            assert_eq!(
                Request::decode(frame).unwrap_err().kind(),
                io::ErrorKind::InvalidData
            );
        }
        for frame in [&b""[..], b"s", b"d!", b"?"] {
            let error = Answer::decode(Bytes::from_static(frame)).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        }
        assert_eq!(text(b"a\x1b[2J"), "a [2J");
    }

    #[test]
    fn content_does_not_depend_on_its_parts() {
        let whole = content(7, 0, 1000);
        assert_eq!(content(7, 300, 700), whole[300..]);
        assert_ne!(content(8, 0, 1000), whole);
    }
}
