//! A frame: four bytes of length, then that many bytes. These begin with the client's number and the kind of frame.

use std::io;

use bytes::{BufMut, Bytes, BytesMut};
use tokio_util::codec::LengthDelimitedCodec;

/// The largest length of a frame, without the four bytes that hold the length.
pub const MAX_LENGTH: usize = 4 * 1024 * 1024;
/// The largest frame as a whole.
pub const MAX_FRAME: usize = LENGTH + MAX_LENGTH;
/// What a frame has before its body.
pub const HEAD: usize = LENGTH + 4 + 1;

const LENGTH: usize = 4;

/// A frame travels over the port of its lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lane {
    Control,
    Data,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    Data,
    Control,
    /// From the relay to a client: its number.
    Joined,
    /// From the relay to the agent: why a client has left.
    Left,
}

impl Kind {
    const ALL: [Self; 4] = [Self::Data, Self::Control, Self::Joined, Self::Left];

    pub fn lane(self) -> Lane {
        match self {
            Self::Data => Lane::Data,
            Self::Control | Self::Joined | Self::Left => Lane::Control,
        }
    }
}

/// A whole frame as it was received. So passing it on copies nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    client: u32,
    kind: Kind,
    bytes: Bytes,
}

impl Frame {
    pub fn new(client: u32, kind: Kind, body: &[u8]) -> Self {
        let mut bytes = BytesMut::with_capacity(HEAD + body.len());
        bytes.put_u32((HEAD - LENGTH + body.len()) as u32);
        bytes.put_u32(client);
        bytes.put_u8(kind as u8);
        bytes.put_slice(body);
        let bytes = bytes.freeze();
        Self {
            client,
            kind,
            bytes,
        }
    }

    pub fn client(&self) -> u32 {
        self.client
    }

    pub fn kind(&self) -> Kind {
        self.kind
    }

    pub fn body(&self) -> &[u8] {
        &self.bytes[HEAD..]
    }

    /// The whole frame.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }
}

impl TryFrom<BytesMut> for Frame {
    type Error = io::Error;

    fn try_from(bytes: BytesMut) -> io::Result<Self> {
        let invalid = |what| io::Error::new(io::ErrorKind::InvalidData, what);
        let (_, rest) = bytes
            .split_at_checked(LENGTH)
            .ok_or_else(|| invalid("no length"))?;
        let (client, rest) = rest
            .split_first_chunk()
            .ok_or_else(|| invalid("no client"))?;
        let kind = rest
            .first()
            .and_then(|kind| Kind::ALL.get(usize::from(*kind)));
        Ok(Self {
            client: u32::from_be_bytes(*client),
            kind: *kind.ok_or_else(|| invalid("a frame of no known kind"))?,
            bytes: bytes.freeze(),
        })
    }
}

/// Cuts whole frames off a stream, each with its length.
pub fn codec() -> LengthDelimitedCodec {
    LengthDelimitedCodec::builder()
        .max_frame_length(MAX_LENGTH)
        .length_adjustment(LENGTH as isize)
        .num_skip(0)
        .new_codec()
}
