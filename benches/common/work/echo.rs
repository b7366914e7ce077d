//! Requests that the guest sends back.

use std::time::Duration;

use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio_util::codec::{Framed, LengthDelimitedCodec};

use super::{RX_DESCRIPTOR, Setting, on_vmm};
use crate::common::meter::Trips;
use crate::common::place::Cores;
use crate::common::vmm::{Channel, Input, Output, Transport};

/// Times round trips of 64 bytes over a new channel of `T`.
pub(crate) fn round_trips<T: Transport>(setting: Setting) -> Vec<Duration> {
    setting.run(move || async move {
        let Channel {
            mut read,
            mut write,
            mut input,
            mut output,
            ..
        } = T::new(setting.capacity);
        let vmm = on_vmm(setting.cores, move || {
            let mut descriptor = vec![0; RX_DESCRIPTOR];
            loop {
                let filled = input.fill(&mut descriptor);
                if filled == 0 || !output.empty(&descriptor[..filled]) {
                    return;
                }
            }
        });
        let mut message = [7; Trips::MESSAGE];
        let mut trips = Trips::new(setting.span);
        while let Some(sent) = trips.next() {
            write.write_all(&message).await.expect("the VMM hung up");
            read.read_exact(&mut message)
                .await
                .expect("the VMM hung up");
            trips.add(sent);
        }
        drop((read, write));
        vmm.join().expect("the VMM's thread panicked");
        trips.times()
    })
}

/// Sends `count` requests over frames and reads their answers, to count the cost of each.
pub(crate) async fn framed_echo<T: Transport>(
    channel: Channel<T>,
    cores: Cores,
    size: usize,
    count: usize,
) where
    T::Read: AsyncRead,
    T::Write: AsyncWrite,
{
    let Channel {
        read,
        write,
        mut input,
        mut output,
        ..
    } = channel;
    let vmm = on_vmm(cores, move || {
        let mut descriptor = vec![0; RX_DESCRIPTOR];
        loop {
            let filled = input.fill(&mut descriptor);
            if filled == 0 || !output.empty(&descriptor[..filled]) {
                return;
            }
        }
    });
    let mut frames = Framed::new(tokio::io::join(read, write), LengthDelimitedCodec::new());
    let payload = Bytes::from(vec![7; size]);
    for _ in 0..count {
        frames.send(payload.clone()).await.expect("the VMM hung up");
        frames
            .next()
            .await
            .expect("the VMM hung up")
            .expect("not a frame");
    }
    drop(frames);
    vmm.join().expect("the VMM's thread panicked");
}
