//! CBOR messages in frames of `LengthDelimitedCodec`.

use bytes::{Bytes, BytesMut};
use futures::{SinkExt, StreamExt};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio_util::codec::{Framed, LengthDelimitedCodec};

use crate::common::{pattern, watchdog};
use crate::vm;

#[derive(Debug, Deserialize, Serialize)]
enum Request {
    Read {
        id: u64,
        offset: usize,
        length: usize,
    },
    Stop,
}

#[derive(Debug, Deserialize, PartialEq, Serialize)]
struct Reply {
    id: u64,
    data: Vec<u8>,
}

fn encode(message: &impl Serialize) -> Bytes {
    let mut bytes = Vec::new();
    ciborium::into_writer(message, &mut bytes).unwrap();
    bytes.into()
}

fn decode<T: DeserializeOwned>(frame: &BytesMut) -> T {
    ciborium::from_reader(&frame[..]).unwrap()
}

#[tokio::test]
async fn pipelined_cbor_requests_get_their_replies() {
    watchdog(async {
        let (stream, _guest, agent) = vm();
        let file = pattern(100_000);
        let served = file.clone();
        let agent = tokio::spawn(async move {
            let mut frames = Framed::new(agent, LengthDelimitedCodec::new());
            while let Request::Read { id, offset, length } =
                decode(&frames.next().await.unwrap().unwrap())
            {
                let data = served[offset..offset + length].to_vec();
                frames.send(encode(&Reply { id, data })).await.unwrap();
            }
        });

        let (mut sink, mut replies) = Framed::new(stream, LengthDelimitedCodec::new()).split();
        // The host sends each request without waiting for the reply to the one before.
        let requests: Vec<_> = (0..200)
            .map(|id| (id as u64, id * 300, [0, 1, 5_000, 40_000][id % 4]))
            .collect();
        let sent = requests.clone();
        let sender = tokio::spawn(async move {
            for (id, offset, length) in sent {
                let request = Request::Read { id, offset, length };
                sink.send(encode(&request)).await.unwrap();
            }
            sink.send(encode(&Request::Stop)).await.unwrap();
        });
        for (id, offset, length) in requests {
            let reply: Reply = decode(&replies.next().await.unwrap().unwrap());
            let data = file[offset..offset + length].to_vec();
            assert!(reply == Reply { id, data }, "the reply to {id}");
        }
        sender.await.unwrap();
        agent.await.unwrap();
    })
    .await;
}
