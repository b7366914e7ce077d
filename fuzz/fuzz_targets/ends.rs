//! Runs any operations on both ends of a stream, in any order, and compares the results with two plain queues.

#![no_main]

#[path = "../../tests/common/mod.rs"]
mod common;
#[path = "../../tests/common/script.rs"]
mod script;

use common::SMALL;
use libfuzzer_sys::arbitrary::{Result, Unstructured};
use libfuzzer_sys::fuzz_target;
use script::{By, SMALL_RING, Setup, Step, TINY_RINGS, USUAL_CHUNK, USUAL_RING, Use};

/// How many kinds of steps an older input chooses from. It stays what it was: new kinds come after those.
const OLDER_KINDS: u8 = 32;

fn length(u: &mut Unstructured<'_>) -> Result<usize> {
    let edge = [0, 1, 2048, 4096, SMALL - 4096, SMALL, 3 * SMALL];
    Ok(match u.arbitrary::<u8>()? {
        // Near an edge: a chunk is 4 KiB, and up to half a chunk is copied.
        kind @ 0..128 => edge[kind as usize / 16 % edge.len()] + kind as usize % 16,
        128..192 => u.int_in_range(0..=255)?,
        192..224 => u.int_in_range(0..=20_000)?,
        // Near an edge of the other ring.
        kind @ 224.. => {
            let edge = [
                USUAL_CHUNK / 2,
                USUAL_CHUNK,
                USUAL_RING.capacity,
                3 * USUAL_CHUNK,
            ];
            edge[kind as usize / 8 % edge.len()] + kind as usize % 8 - 4
        }
    })
}

fn how(u: &mut Unstructured<'_>) -> Result<Use> {
    Ok(*u.choose(&[Use::Slice, Use::Slices, Use::Bytes])?)
}

fn step(u: &mut Unstructured<'_>, kinds: u8) -> Result<Step> {
    Ok(match u.int_in_range(0..=kinds - 1)? {
        0..=1 => Step::GuestWrite(length(u)?),
        2..=3 => Step::GuestRead(length(u)?),
        4 => Step::TryRead(length(u)?),
        5 => Step::TryReadBuf(length(u)?),
        6 => Step::TryReadVectored(length(u)?, length(u)?),
        7 => Step::Read(length(u)?),
        8 => Step::FillBuf(length(u)?),
        9..=10 => Step::Chunk(u.arbitrary()?),
        11 => Step::DropHeld,
        12 => Step::TryWrite(length(u)?),
        13 => Step::TryWriteVectored(length(u)?, length(u)?),
        14 => Step::Write(length(u)?),
        15 => Step::SendChunk(length(u)?),
        16 => Step::Reunite,
        17 => Step::GuestGoes,
        18 => Step::ShutDown,
        19 => Step::HangUp,
        20 => Step::DropRead,
        21 => Step::DropWrite,
        22 => Step::ForgetRead,
        23 => Step::ForgetWrite,
        24 => Step::Drained,
        25 => Step::Ready,
        26 => Step::PollReadReady,
        27 => Step::PollWriteReady,
        28 => Step::GuestOpened,
        29 => Step::Quiesce,
        30 => Step::Resume,
        31 => Step::GuestRead(SMALL),
        32 => Step::TryWriteAll(length(u)?),
        33 => Step::TryWriteBytes(length(u)?),
        34..=35 => Step::TryReserve(length(u)?),
        36 => Step::Reserve(length(u)?),
        37 => Step::UsePermit(u.arbitrary::<u8>()?.into(), how(u)?, length(u)?),
        38 => Step::UseWholePermit(u.arbitrary::<u8>()?.into(), how(u)?),
        39 => Step::DropPermit(u.arbitrary::<u8>()?.into()),
        40 => Step::SendShared(length(u)?),
        41 => Step::TryReadAvailable(u.arbitrary::<u8>()?.into(), length(u)?),
        42 => Step::ReadAvailable(u.arbitrary::<u8>()?.into(), length(u)?),
        _ => Step::Close(*u.choose(&[By::Half, By::Handle])?),
    })
}

fuzz_target!(|data: &[u8]| {
    let [kind, data @ ..] = data else { return };
    let ring = match kind >> 3 & 3 {
        0 if kind & 2 == 0 => SMALL_RING,
        0 => USUAL_RING,
        tiny => TINY_RINGS[tiny as usize - 1],
    };
    let setup = Setup {
        hang_up_on_drop: kind & 1 == 0,
        ..ring
    };
    let kinds = if kind & 4 == 0 { OLDER_KINDS } else { 44 };
    let mut u = Unstructured::new(data);
    let mut steps = Vec::new();
    while !u.is_empty() && steps.len() < 200 {
        let Ok(step) = step(&mut u, kinds) else { break };
        steps.push(step);
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()
        .unwrap();
    let _guard = runtime.enter();
    script::play(setup, &steps);
});
