//! Who waits for whom: turns between clients, control before data, and what a client's budget holds up.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::common::watchdog;
use super::relay::client::Left;
use super::relay::frame::{Frame, HEAD, Kind, MAX_FRAME};
use super::rig::{Client, DATA_CAPACITY, KIB, LIMITS, MIB, Rig, body};

/// Of a whole frame.
const FRAME: usize = 64 * KIB;

/// Sends data without an end, and counts the bytes of the frames that the socket has taken whole.
fn flood(mut client: Client) -> Arc<AtomicUsize> {
    let sent = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&sent);
    tokio::spawn(async move {
        let frame = Frame::new(
            client.number,
            Kind::Data,
            &body(client.number, 0, FRAME - HEAD),
        );
        while client.wire.writer.send(&frame).await.is_ok() {
            count.fetch_add(FRAME, Ordering::Relaxed);
        }
    });
    sent
}

/// The most that a flooding client can get rid of while the agent reads nothing.
fn most_flooded() -> usize {
    const IN_SESSION: usize = LIMITS.to_agent + 4 * FRAME;
    const IN_VIRTQUEUE: usize = 32 * 4 * KIB;
    const IN_SOCKET: usize = 2 * MIB;
    DATA_CAPACITY + IN_SESSION + IN_VIRTQUEUE + IN_SOCKET
}

#[tokio::test(start_paused = true)]
async fn a_flood_gets_no_more_turns_than_others() {
    const FRAMES: usize = 40;
    watchdog(async {
        let (rig, mut agent) = Rig::start();
        let flooding = rig.client().await;
        let flooder = flooding.number;
        let flooded = flood(flooding);

        // Seven clients send their data and then a control frame. The agent reads no data yet.
        let mut steady = HashSet::new();
        let mut clients = Vec::new();
        for _ in 0..7 {
            let mut client = rig.client().await;
            let number = client.number;
            steady.insert(number);
            clients.push(tokio::spawn(async move {
                for turn in 0..FRAMES {
                    client
                        .send(Kind::Data, &body(number, turn, FRAME - HEAD))
                        .await;
                }
                client.send(Kind::Control, b"all sent").await;
                client
            }));
        }
        // The control frames arrive, past the data. Each was the client's last, so the relay has all its data by then.
        let mut waiting = steady.clone();
        while !waiting.is_empty() {
            let frame = agent.control.next().await;
            assert_eq!(frame.body(), b"all sent");
            assert!(waiting.remove(&frame.client()));
        }
        assert!(flooded.load(Ordering::Relaxed) <= most_flooded());

        // Before this frame, those that came first may have had more turns.
        let stats = rig.data.stats().rx;
        let from = (stats.bytes + stats.queued) as usize / FRAME + 1;
        let mut order = Vec::new();
        let mut turns = HashMap::<u32, usize>::new();
        while steady
            .iter()
            .any(|client| turns.get(client) != Some(&FRAMES))
        {
            let frame = agent.data.next().await;
            let turn = turns.entry(frame.client()).or_default();
            // The flood repeats one frame.
            let expected = if frame.client() == flooder { 0 } else { *turn };
            assert!(frame.body() == body(frame.client(), expected, FRAME - HEAD));
            *turn += 1;
            order.push(frame.client());
        }

        // Between two turns of a client that waits, no other has more than one, or two if it was just late to wait.
        let mut unfair = Vec::new();
        for client in &steady {
            let places = (from..order.len()).filter(|&place| order[place] == *client);
            let places: Vec<usize> = places.collect();
            for pair in places.windows(2) {
                let mut others = HashMap::<u32, usize>::new();
                for other in &order[pair[0] + 1..pair[1]] {
                    *others.entry(*other).or_default() += 1;
                }
                unfair.extend(others.into_iter().filter(|(_, turns)| *turns > 2));
            }
        }
        assert!(unfair.is_empty(), "{unfair:?} in {order:?}");
        assert!(turns[&flooder] > 0);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_reads_nothing_is_given_whole_frames_or_nothing() {
    watchdog(async {
        let (mut rig, mut agent) = Rig::start();
        let flooding = rig.client().await;
        let flooder = flooding.number;
        let flooded = flood(flooding);

        // The clock goes on once the flood finds no more room.
        rig.clock.release();
        let (number, left) = rig.left().await;
        assert_eq!(number, flooder);
        assert_eq!(left.to_string(), "the agent made no room for 60s");
        assert!(flooded.load(Ordering::Relaxed) <= most_flooded());
        let stats = rig.data.stats().rx;
        let written = (stats.bytes + stats.queued) as usize;
        assert_eq!(written % FRAME, 0);
        assert!(stats.high_water <= DATA_CAPACITY as u64);

        // Nothing of the frame that waited is left behind.
        for _ in 0..written / FRAME {
            assert_eq!(agent.data.next().await.body().len(), FRAME - HEAD);
        }
        let mut next = rig.client().await;
        next.send(Kind::Data, b"next").await;
        assert_eq!(agent.data.next().await.body(), b"next");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn control_frames_pass_data_that_waits_for_the_client() {
    watchdog(async {
        let (rig, mut agent) = Rig::start();
        let (mut slow, mut other) = (rig.client().await, rig.client().await);
        // Data for the slow client, which does not read yet. Then control frames for both.
        let frames = 8;
        for turn in 0..frames {
            let data = Frame::new(slow.number, Kind::Data, &body(slow.number, turn, MIB / 2));
            agent.data.send(&data).await;
        }
        agent
            .data
            .send(&Frame::new(other.number, Kind::Data, b"after the data"))
            .await;
        assert_eq!(other.wire.next().await.body(), b"after the data");
        agent
            .control
            .send(&Frame::new(slow.number, Kind::Control, b"first"))
            .await;
        agent
            .control
            .send(&Frame::new(
                other.number,
                Kind::Control,
                b"after the control",
            ))
            .await;
        assert_eq!(other.wire.next().await.body(), b"after the control");

        // By now everything waits in the relay, and at most one frame has begun.
        let mut turn = 0;
        for place in 0..=frames {
            let frame = slow.wire.next().await;
            if frame.kind() == Kind::Control {
                assert!(place <= 1, "control after {place} frames");
                continue;
            }
            assert!(frame.body() == body(slow.number, turn, MIB / 2));
            turn += 1;
        }
        assert_eq!(turn, frames);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_used_up_budget_delays_only_data_and_only_until_the_limit() {
    watchdog(async {
        let (mut rig, mut agent) = Rig::start();
        let (mut stalling, mut other) = (rig.client().await, rig.client().await);
        let (stalled, number) = (stalling.number, other.number);
        // More than the budget, the rings and the sockets hold together.
        tokio::spawn(async move {
            for turn in 0..16 {
                let data = Frame::new(stalled, Kind::Data, &body(stalled, turn, MAX_FRAME - HEAD));
                agent.data.send(&data).await;
            }
            agent
                .data
                .send(&Frame::new(number, Kind::Data, b"data"))
                .await;
            agent.data
        });
        agent
            .control
            .send(&Frame::new(number, Kind::Control, b"control"))
            .await;
        assert_eq!(other.wire.next().await.body(), b"control");

        rig.clock.release();
        tokio::select! {
            biased;
            frame = other.wire.next() => panic!("{:?} before the limit", frame.kind()),
            (number, left) = rig.left() => {
                assert_eq!(number, stalled);
                assert!(matches!(left, Left::Stalled(_)));
            }
        }
        assert_eq!(other.wire.next().await.body(), b"data");
        assert!(stalling.wire.reader.is_cut_off().await);
        assert!(rig.data.stats().tx.high_water <= DATA_CAPACITY as u64);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_client_that_breaks_the_protocol_is_cut_off_in_words() {
    watchdog(async {
        let (mut rig, mut agent) = Rig::start();
        let too_long = Frame::new(1, Kind::Control, &[0; MIB]);
        let for_another = Frame::new(77, Kind::Data, b"hello");
        let beyond = Frame::new(3, Kind::Data, &[0; MAX_FRAME]);
        let words = [
            "it sent a frame of 1048585 bytes, and the port holds 262144",
            "it broke the protocol and was cut off: this client may not send such a frame",
            "it broke the protocol and was cut off: frame size too big",
        ];
        for (frame, words) in [too_long, for_another, beyond].into_iter().zip(words) {
            let mut client = rig.client().await;
            let _cut_off = client.wire.writer.send(&frame).await;
            let (number, left) = rig.left().await;
            assert_eq!((number, left.to_string().as_str()), (client.number, words));
            // The agent hears the same, and nothing of the frame.
            let news = agent.control.next().await;
            assert_eq!((news.client(), news.kind()), (client.number, Kind::Left));
            assert_eq!(news.body(), words.as_bytes());
        }
        assert_eq!(rig.data.stats().rx.queued + rig.data.stats().rx.bytes, 0);
    })
    .await;
}
