//! Typed messages: a codec made of `LengthDelimitedCodec` and CBOR, with several requests in flight.
//!
//! `cargo run --example framed`

use std::error::Error;
use std::io;

use bytes::{BufMut, BytesMut};
use futures::{SinkExt, StreamExt};
use serde::{Deserialize, Serialize};
use tokio_krun::AgentStream;
use tokio_krun::agent::VirtioPort;
use tokio_krun::test_util::Guest;
use tokio_util::codec::{Decoder, Encoder, Framed, LengthDelimitedCodec};

#[derive(Clone, Debug, Deserialize, Serialize)]
enum Message {
    Add { id: u32, numbers: Vec<i64> },
    Greet { id: u32, name: String },
    Reply { id: u32, text: String },
}

/// Each frame starts with its length. Decoding fails before it allocates memory for an oversized
/// frame.
struct Cbor(LengthDelimitedCodec);

impl Cbor {
    fn new() -> Self {
        let frames = LengthDelimitedCodec::builder()
            .max_frame_length(1024 * 1024)
            .new_codec();
        Self(frames)
    }
}

impl Encoder<Message> for Cbor {
    type Error = io::Error;

    fn encode(&mut self, message: Message, target: &mut BytesMut) -> io::Result<()> {
        let mut bytes = BytesMut::new().writer();
        ciborium::into_writer(&message, &mut bytes).map_err(io::Error::other)?;
        self.0.encode(bytes.into_inner().freeze(), target)
    }
}

impl Decoder for Cbor {
    type Item = Message;
    type Error = io::Error;

    fn decode(&mut self, source: &mut BytesMut) -> io::Result<Option<Message>> {
        let Some(frame) = self.0.decode(source)? else {
            return Ok(None);
        };
        let invalid = |error| io::Error::new(io::ErrorKind::InvalidData, error);
        ciborium::from_reader(&frame[..]).map(Some).map_err(invalid)
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let (stream, port) = AgentStream::pair()?;
    // With a VM: `VmBuilder::console(|console| port.attach(console, "agent"))`.
    let guest = Guest::boot(port);
    let agent = tokio::spawn(agent(guest.open()?));

    let (mut requests, mut replies) = Framed::new(stream, Cbor::new()).split();
    let (numbers, name) = (vec![19, 23], "host".to_owned());
    let questions = [
        Message::Add { id: 1, numbers },
        Message::Greet { id: 2, name },
    ];
    for question in &questions {
        requests.feed(question.clone()).await?;
    }
    requests.flush().await?;
    // The agent answers in order.
    for question in questions {
        let reply = replies.next().await.ok_or("the guest is gone")??;
        println!("{question:?} -> {reply:?}");
    }
    // Dropping both halves drops the stream and hangs up, so the agent ends.
    drop((requests, replies));
    agent.await??;
    Ok(())
}

/// The agent inside the guest.
async fn agent(port: VirtioPort) -> io::Result<()> {
    let mut frames = Framed::new(port, Cbor::new());
    while let Some(message) = frames.next().await {
        let (id, text) = match message? {
            Message::Add { id, numbers } => (id, numbers.iter().sum::<i64>().to_string()),
            Message::Greet { id, name } => (id, format!("hello, {name}")),
            Message::Reply { .. } => return Err(io::ErrorKind::InvalidData.into()),
        };
        frames.send(Message::Reply { id, text }).await?;
    }
    Ok(())
}
