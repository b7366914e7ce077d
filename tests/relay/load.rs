//! Eight clients at once: five that work, one that floods, one that stalls, one that vanishes.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_krun::agent::VirtioPort;

use super::common::watchdog;
use super::relay::client::Left;
use super::relay::frame::{Frame, HEAD, Kind, MAX_FRAME};
use super::rig::{CONTROL_CAPACITY, Client, DATA_CAPACITY, KIB, MIB, Rig, Wire, body};

/// Of the working clients' frames, without the head. One frame is the largest there is.
const LENGTHS: [usize; 8] = [1, 4096, 70_001, MAX_FRAME - HEAD, 0, 1_000_003, 32 * KIB, 5];

/// Echoes every frame, except the relay's news. Tells what it received: from whom, of which kind, the relay's words.
async fn echo(mut wire: Wire<VirtioPort>, heard: mpsc::UnboundedSender<(u32, Kind, String)>) {
    while let Some(frame) = wire.reader.next().await {
        let words = match frame.kind() {
            Kind::Left => String::from_utf8(frame.body().to_vec()).unwrap(),
            _ => String::new(),
        };
        heard.send((frame.client(), frame.kind(), words)).unwrap();
        if frame.kind() != Kind::Left && wire.writer.send(&frame).await.is_err() {
            break;
        }
    }
}

/// Sends data and control frames, and checks that each kind comes back whole and in order.
async fn work(mut client: Client) -> Client {
    let (number, wire) = (client.number, &mut client.wire);
    let send = async {
        for (turn, length) in LENGTHS.into_iter().enumerate() {
            for (kind, length) in [(Kind::Data, length), (Kind::Control, turn)] {
                let frame = Frame::new(number, kind, &body(number, turn, length));
                wire.writer.send(&frame).await.unwrap();
            }
        }
    };
    let receive = async {
        let mut turns = HashMap::from([(Kind::Data, 0), (Kind::Control, 0)]);
        for _ in 0..2 * LENGTHS.len() {
            let frame = wire.reader.next().await.unwrap();
            let turn = turns.get_mut(&frame.kind()).unwrap();
            let length = if frame.kind() == Kind::Data {
                LENGTHS[*turn]
            } else {
                *turn
            };
            assert_eq!(frame.client(), number);
            assert!(
                frame.body() == body(number, *turn, length),
                "{number}: frame {turn} differs"
            );
            *turn += 1;
        }
    };
    tokio::join!(send, receive);
    client
}

/// Sends without a pause until it is told to stop. Returns how many frames it sent, once all have come back.
async fn flood(mut client: Client, stop: Arc<AtomicBool>) -> usize {
    let frame = Frame::new(client.number, Kind::Data, &body(client.number, 0, 64 * KIB));
    let Wire { reader, writer } = &mut client.wire;
    let (told, mut sent) = mpsc::unbounded_channel();
    let send = async move {
        while !stop.load(Ordering::Relaxed) {
            writer.send(&frame).await.unwrap();
            told.send(()).unwrap();
        }
    };
    let receive = async {
        let mut returned = 0;
        while sent.recv().await.is_some() {
            assert_eq!(reader.next().await.unwrap().body().len(), 64 * KIB);
            returned += 1;
        }
        returned
    };
    tokio::join!(send, receive).1
}

#[tokio::test(start_paused = true)]
async fn working_clients_do_not_notice_the_others() {
    watchdog(async {
        let (mut rig, agent) = Rig::start();
        let (heard, mut hears) = mpsc::unbounded_channel();
        tokio::spawn(echo(agent.control, heard.clone()));
        tokio::spawn(echo(agent.data, heard));
        let start = Instant::now();

        let mut stalling = rig.client().await;
        for turn in 0..3 {
            stalling
                .send(Kind::Data, &body(stalling.number, turn, MIB))
                .await; // and reads nothing
        }

        let mut vanishing = rig.client().await;
        let vanished = vanishing.number;
        for turn in 0..2 {
            let body = body(vanished, turn, 3000);
            vanishing.send(Kind::Data, &body).await;
            assert!(vanishing.wire.next().await.body() == body);
        }
        let unfinished = Frame::new(vanished, Kind::Data, &body(vanished, 2, MIB));
        let part = Frame::bytes(&unfinished).slice(..100 * KIB);
        tokio::io::AsyncWriteExt::write_all(&mut vanishing.wire.writer.0, &part)
            .await
            .unwrap();
        drop(vanishing);

        let flooding = rig.client().await;
        let flooder = flooding.number;
        let stop = Arc::new(AtomicBool::new(false));
        let flooding = tokio::spawn(flood(flooding, Arc::clone(&stop)));

        let mut working = Vec::new();
        for _ in 0..5 {
            working.push(tokio::spawn(work(rig.client().await)));
        }
        let mut clients = Vec::new();
        for client in working {
            clients.push(client.await.unwrap());
        }
        stop.store(true, Ordering::Relaxed);
        let flooded = flooding.await.unwrap();

        // So far no time has passed: nobody waited for the stalled client's limit.
        assert_eq!(start.elapsed(), Duration::ZERO);
        let mut left = HashMap::from([rig.left().await, rig.left().await]);
        assert!(
            matches!(left[&vanished], Left::Vanished(_)),
            "{}",
            left[&vanished]
        );
        assert!(
            matches!(left[&flooder], Left::Finished),
            "{}",
            left[&flooder]
        );

        // Now it passes. Only the stalled client is cut off, in the middle of a frame.
        rig.clock.release();
        let (number, words) = rig.left().await;
        assert_eq!(number, stalling.number);
        assert_eq!(words.to_string(), "it took nothing for 5s and was cut off");
        left.insert(number, words);
        assert!(stalling.wire.reader.is_cut_off().await);

        // The others still work.
        for client in &mut clients {
            client.send(Kind::Control, b"ping").await;
            assert_eq!(client.wire.next().await.body(), b"ping");
        }

        // The agent received whole frames only, and the relay's words about each client that left.
        let mut data = HashMap::<u32, usize>::new();
        while !left.is_empty() || data.values().sum::<usize>() < 5 * LENGTHS.len() + 3 + 2 + flooded
        {
            let (client, kind, words) = hears.recv().await.unwrap();
            match kind {
                Kind::Data => *data.entry(client).or_default() += 1,
                Kind::Left => assert_eq!(words, left.remove(&client).unwrap().to_string()),
                Kind::Control | Kind::Joined => {}
            }
        }
        assert_eq!(data[&vanished], 2);
        assert_eq!(data[&flooder], flooded);

        for (port, capacity) in [(&rig.control, CONTROL_CAPACITY), (&rig.data, DATA_CAPACITY)] {
            let stats = port.stats();
            assert!(stats.rx.high_water <= capacity as u64, "{stats:?}");
            assert!(stats.tx.high_water <= capacity as u64, "{stats:?}");
        }

        rig.vm.drained().await;
        let exit = rig.vm.power_off(0);
        rig.relay.await.unwrap().unwrap();
        exit.await.unwrap();
        for mut client in clients {
            assert_eq!(client.wire.reader.next().await, None);
        }
    })
    .await;
}
