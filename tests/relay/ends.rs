//! How the relay ends: with the VM, or because somebody closes its ports.

use super::common::watchdog;
use super::relay::client::Left;
use super::relay::frame::{Frame, Kind};
use super::rig::{MIB, Rig, body};

#[tokio::test(start_paused = true)]
async fn clients_receive_the_agents_last_words_and_unread_bytes_count_as_discarded() {
    watchdog(async {
        let (mut rig, mut agent) = Rig::start();
        let (mut talking, mut listening) = (rig.client().await, rig.client().await);

        // The agent will never read these.
        for turn in 0..3 {
            talking
                .send(Kind::Data, &body(talking.number, turn, MIB))
                .await;
        }
        talking.send(Kind::Control, b"all sent").await;
        assert_eq!(agent.control.next().await.body(), b"all sent");

        // And the host has not read these when the VM ends.
        for turn in 0..6 {
            let words = body(listening.number, turn, MIB);
            agent
                .data
                .send(&Frame::new(listening.number, Kind::Data, &words))
                .await;
        }
        agent
            .control
            .send(&Frame::new(listening.number, Kind::Control, b"goodbye"))
            .await;
        rig.vm.drained().await;
        let exit_code = rig.vm.exit_code();
        let exit = rig.vm.power_off(3);

        // The process is kept until the client has everything.
        assert_eq!(exit_code.await.unwrap(), 3);
        assert!(!exit.is_finished());
        let (mut turn, mut goodbyes) = (0, 0);
        while let Some(frame) = listening.wire.reader.next().await {
            match frame.kind() {
                Kind::Data => {
                    assert!(frame.body() == body(listening.number, turn, MIB));
                    turn += 1;
                }
                _ => {
                    assert_eq!(frame.body(), b"goodbye");
                    goodbyes += 1;
                }
            }
        }
        assert_eq!((turn, goodbyes), (6, 1));
        assert_eq!(talking.wire.reader.next().await, None);

        // End of file was no failure: the relay ends well, and the exit code says how the VM ended.
        rig.relay.await.unwrap().unwrap();
        exit.await.unwrap();
        for _ in 0..2 {
            assert!(matches!(rig.log.recv().await, Some((_, Left::AgentGone))));
        }
        // Of the talking client's three frames, the guest's device had taken a part.
        let stats = rig.data.stats().rx;
        assert!(stats.discarded > 2 * MIB as u64, "{stats:?}");
        assert_eq!(rig.data.stats().tx.discarded, 0);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_vm_that_never_ran_has_no_exit_code() {
    watchdog(async {
        let (rig, agent) = Rig::start();
        let exit_code = rig.vm.exit_code();
        drop((agent, rig.vm));
        rig.relay.await.unwrap().unwrap();
        exit_code.await.unwrap_err();
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_watcher_that_owns_nothing_ends_the_relay() {
    watchdog(async {
        let (rig, mut agent) = Rig::start();
        let mut client = rig.client().await;
        client.send(Kind::Data, b"hello").await;
        assert_eq!(agent.data.next().await.body(), b"hello");

        let ports = [rig.control, rig.data];
        // For example, at a deadline.
        ports.iter().for_each(|port| port.close());
        ports.iter().for_each(|port| port.close()); // the second time does nothing

        rig.relay.await.unwrap().unwrap();
        assert_eq!(client.wire.reader.next().await, None);
        // The agent sees the host hang up.
        assert!(agent.data.reader.next().await.is_none());
        // Nobody reads any longer, so the VM's end waits for nobody.
        rig.vm.power_off(0).await.unwrap();
    })
    .await;
}
