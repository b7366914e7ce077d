//! Many streams in one runtime.

use std::time::Instant;

use tokio::io::AsyncReadExt;
use tokio::task::JoinSet;

use super::{READ, Setting, TX_DESCRIPTOR, on_vmm};
use crate::common::vmm::{Channel, Output, Transport};

/// Bytes per second over `streams` channels of `T` together.
///
/// One VMM thread serves the channels in turn. It writes 128 KiB to each, waiting for room. One task
/// reads each channel.
pub(crate) fn many<T: Transport>(streams: usize, bytes: usize, setting: Setting) -> f64 {
    /// Descriptors that a channel gets in its turn.
    const TURN: usize = 4;
    setting.run(move || async move {
        let mut tasks = JoinSet::new();
        let mut outputs = Vec::new();
        let mut others = Vec::new();
        // Each channel carries the same amount, in whole turns, after one turn to warm up.
        let each = bytes.div_ceil(streams * TURN * TX_DESCRIPTOR) * TURN * TX_DESCRIPTOR;
        let warm = TURN * TX_DESCRIPTOR;
        let (warmed, mut warming) = tokio::sync::mpsc::unbounded_channel();
        for _ in 0..streams {
            let Channel {
                mut read,
                write,
                input,
                output,
                ..
            } = T::new(setting.capacity);
            outputs.push(output);
            others.push((write, input));
            let warmed = warmed.clone();
            tasks.spawn(async move {
                let mut buffer = vec![0; READ];
                let mut received = 0;
                while received < warm {
                    received += read.read(&mut buffer).await.expect("the VMM hung up");
                }
                warmed.send(()).expect("the bench is gone");
                while received < warm + each {
                    received += read.read(&mut buffer).await.expect("the VMM hung up");
                }
            });
        }
        let (start, started) = std::sync::mpsc::channel();
        let vmm = on_vmm(setting.cores, move || {
            let mut pass = |descriptors: usize| {
                let descriptor = vec![7; TX_DESCRIPTOR];
                for turn in (0..descriptors).step_by(TURN) {
                    for output in &mut outputs {
                        for _ in turn..descriptors.min(turn + TURN) {
                            assert!(output.empty(&descriptor), "the host hung up");
                        }
                    }
                }
            };
            pass(TURN);
            started.recv().expect("the bench is gone");
            pass(each / TX_DESCRIPTOR);
            outputs
        });
        for _ in 0..streams {
            warming.recv().await.expect("the reading tasks are gone");
        }
        let began = Instant::now();
        start.send(()).expect("the VMM is gone");
        while let Some(task) = tasks.join_next().await {
            task.expect("a reading task panicked");
        }
        let rate = (each * streams) as f64 / began.elapsed().as_secs_f64();
        drop(vmm.join().expect("the VMM's thread panicked"));
        rate
    })
}
