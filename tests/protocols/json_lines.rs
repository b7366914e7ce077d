//! JSON lines, as QEMU's guest agent speaks them. The host synchronises with an agent that restarted in the middle of a
//! message, in the agent's own way (`guest-sync-delimited`).

use futures::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio_krun::agent::VirtioPort;
use tokio_krun::test_util::Guest;
use tokio_krun::{AgentStream, Options};
use tokio_util::codec::{Framed, LinesCodec};

use crate::common::{SMALL, watchdog};

/// Never part of UTF-8, and so never part of JSON. Bytes before it are left over from an earlier exchange.
const SENTINEL: u8 = 0xff;
const MAX_LINE: usize = 16 * 1024;
/// The most stale bytes that the host reads from the guest before each sentinel.
const MAX_STALE: u64 = 1024 * 1024;

/// The host's side of `guest-sync-delimited`.
async fn synchronise(mut stream: AgentStream, id: u64) -> Framed<AgentStream, LinesCodec> {
    let request = json!({"execute": "guest-sync-delimited", "arguments": {"id": id}});
    stream.write_u8(SENTINEL).await.unwrap();
    stream
        .write_all(format!("{request}\n").as_bytes())
        .await
        .unwrap();
    loop {
        // Skip what an earlier agent has left behind.
        let mut stale = Vec::new();
        let mut most = (&mut stream).take(MAX_STALE);
        most.read_until(SENTINEL, &mut stale).await.unwrap();
        assert_eq!(
            stale.last(),
            Some(&SENTINEL),
            "too many stale bytes, or the agent ended"
        );
        let mut line = String::new();
        let mut most = (&mut stream).take(MAX_LINE as u64);
        most.read_line(&mut line).await.unwrap();
        if serde_json::from_str::<Value>(&line).unwrap()["return"] == id {
            return Framed::new(stream, LinesCodec::new_with_max_length(MAX_LINE));
        }
    }
}

async fn agent(port: VirtioPort) {
    let (read, mut write) = tokio::io::split(port);
    let mut read = BufReader::new(read);
    let mut line = Vec::new();
    while read.read_until(b'\n', &mut line).await.unwrap() > 0 {
        // Part of an old message may come before the sentinel.
        let delimited = line.iter().rposition(|&byte| byte == SENTINEL);
        let request: Value =
            serde_json::from_slice(&line[delimited.map_or(0, |at| at + 1)..]).unwrap();
        let reply = match request["execute"].as_str() {
            Some("guest-sync-delimited") => {
                write.write_u8(SENTINEL).await.unwrap();
                json!({"return": request["arguments"]["id"]})
            }
            Some("guest-file-read") => {
                let count = request["arguments"]["count"].as_u64().unwrap();
                json!({"return": {"count": count, "buf": "ä".repeat(count as usize / 2)}})
            }
            other => json!({"error": {"class": "CommandNotFound", "desc": other}}),
        };
        write
            .write_all(format!("{reply}\n").as_bytes())
            .await
            .unwrap();
        line.clear();
    }
}

#[tokio::test]
async fn json_lines_synchronise_with_restarted_agent() {
    watchdog(async {
        let (mut stream, port) = Options::new().capacity(SMALL).create().unwrap();
        let guest = Guest::boot(port);
        let mut first = guest.open().unwrap();
        // The first agent ends in the middle of a request and in the middle of a reply.
        stream
            .write_all(b"{\"execute\": \"guest-file-")
            .await
            .unwrap();
        first.read_exact(&mut [0; 10]).await.unwrap();
        first
            .write_all(b"{\"return\": {\"count\": 5, \"bu")
            .await
            .unwrap();
        guest.drained().await;
        drop(first);
        let agent = tokio::spawn(agent(guest.open().unwrap()));

        let mut lines = synchronise(stream, 4711).await;
        for count in [0, 2, 10_000] {
            let request = json!({"execute": "guest-file-read", "arguments": {"count": count}});
            lines.send(request.to_string()).await.unwrap();
            let reply: Value = serde_json::from_str(&lines.next().await.unwrap().unwrap()).unwrap();
            assert_eq!(reply["return"]["count"], count);
            assert_eq!(reply["return"]["buf"].as_str().unwrap().len(), count);
        }
        lines
            .send(json!({"execute": "guest-fly"}).to_string())
            .await
            .unwrap();
        let reply: Value = serde_json::from_str(&lines.next().await.unwrap().unwrap()).unwrap();
        assert_eq!(reply["error"]["class"], "CommandNotFound");
        drop(lines);
        agent.await.unwrap();
    })
    .await;
}
