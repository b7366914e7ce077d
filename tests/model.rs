//! Random operations on both ends, compared with two plain queues.

mod common;
#[path = "common/script.rs"]
mod script;

use common::SMALL;
use proptest::prelude::*;
use script::{By, SMALL_RING, Setup, Step, TINY_RINGS, USUAL_CHUNK, USUAL_RING, Use};

/// Lengths around the limits: zero, one, half a chunk of 4 KiB and a whole one, the small ring, and a usual chunk. Some
/// exceed them, and some are in between. For a tiny ring, most are around its capacity.
fn length(capacity: usize) -> BoxedStrategy<usize> {
    if capacity < SMALL {
        prop_oneof![3 => 0..capacity + 2, 1 => any_length()].boxed()
    } else {
        any_length().boxed()
    }
}

fn any_length() -> impl Strategy<Value = usize> {
    // Under Miri no ring has such chunks.
    let usual_chunk = if cfg!(miri) { SMALL } else { USUAL_CHUNK };
    prop_oneof![
        Just(0),
        1..4usize,
        2040..2056usize,
        4090..4100usize,
        0..20_000usize,
        SMALL - 1..SMALL + 2,
        Just(3 * SMALL),
        usual_chunk - 2..usual_chunk + 3,
        Just(3 * usual_chunk),
    ]
}

fn step(capacity: usize) -> impl Strategy<Value = Step> {
    let length = || length(capacity);
    // Several permits at once are the more interesting case.
    let claim = || prop_oneof![1 => length(), 2 => 0..=capacity / 4];
    prop_oneof![
        8 => length().prop_map(Step::GuestWrite),
        8 => length().prop_map(Step::GuestRead),
        3 => length().prop_map(Step::TryRead),
        2 => length().prop_map(Step::TryReadBuf),
        2 => (length(), length()).prop_map(|(a, b)| Step::TryReadVectored(a, b)),
        3 => length().prop_map(Step::Read),
        3 => length().prop_map(Step::FillBuf),
        3 => any::<bool>().prop_map(Step::Chunk),
        2 => Just(Step::DropHeld),
        3 => length().prop_map(Step::TryWrite),
        2 => (length(), length()).prop_map(|(a, b)| Step::TryWriteVectored(a, b)),
        2 => length().prop_map(Step::Write),
        2 => length().prop_map(Step::SendChunk),
        1 => Just(Step::Reunite),
        2 => Just(Step::Fork),
        2 => Just(Step::Restore),
        1 => Just(Step::Drained),
        1 => Just(Step::Ready),
        1 => Just(Step::PollReadReady),
        1 => Just(Step::PollWriteReady),
        1 => Just(Step::GuestOpened),
        1 => prop_oneof![1 => Just(Step::Quiesce), 3 => Just(Step::Resume)],
        2 => length().prop_map(Step::TryWriteAll),
        2 => length().prop_map(Step::TryWriteBytes),
        4 => claim().prop_map(Step::TryReserve),
        4 => claim().prop_map(Step::Reserve),
        5 => (0..4usize, how(), length()).prop_map(|(w, how, n)| Step::UsePermit(w, how, n)),
        3 => (0..4usize, how()).prop_map(|(w, how)| Step::UseWholePermit(w, how)),
        1 => (0..4usize).prop_map(Step::DropPermit),
        3 => length().prop_map(Step::SendShared),
        2 => (0..100usize, length()).prop_map(|(a, b)| Step::TryReadAvailable(a, b)),
        2 => (0..100usize, length()).prop_map(|(a, b)| Step::ReadAvailable(a, b)),
    ]
}

fn how() -> impl Strategy<Value = Use> {
    prop_oneof![Just(Use::Slice), Just(Use::Slices), Just(Use::Bytes)]
}

fn setup() -> impl Strategy<Value = Setup> {
    let tiny = prop::sample::select(&TINY_RINGS[..]);
    let ring = if cfg!(miri) {
        prop_oneof![1 => Just(SMALL_RING), 1 => tiny].boxed()
    } else {
        prop_oneof![3 => Just(SMALL_RING), 1 => Just(USUAL_RING), 3 => tiny].boxed()
    };
    (ring, any::<bool>()).prop_map(|(ring, hang_up_on_drop)| Setup {
        hang_up_on_drop,
        ..ring
    })
}

/// An end, and the steps after it. `step` has no ends, because with them most sequences would be over at once.
fn end_and_later_steps(capacity: usize) -> impl Strategy<Value = Vec<Step>> {
    let end = prop_oneof![
        Just(Step::GuestGoes),
        Just(Step::ShutDown),
        Just(Step::HangUp),
        Just(Step::DropRead),
        Just(Step::DropWrite),
        Just(Step::ForgetRead),
        Just(Step::ForgetWrite),
        Just(Step::Close(By::Half)),
        Just(Step::Close(By::Handle)),
    ];
    (end, prop::collection::vec(step(capacity), 0..20)).prop_map(|(end, mut steps)| {
        steps.insert(0, end);
        steps
    })
}

fn script() -> impl Strategy<Value = (Setup, Vec<Step>, Vec<Vec<Step>>)> {
    setup().prop_flat_map(|setup| {
        let steps = 0..if cfg!(miri) { 20 } else { 120 };
        (
            Just(setup),
            prop::collection::vec(step(setup.capacity), steps),
            prop::collection::vec(end_and_later_steps(setup.capacity), 0..4),
        )
    })
}

proptest! {
    #![proptest_config(ProptestConfig {
        failure_persistence: None,
        // `PROPTEST_CASES` overrides this number.
        ..ProptestConfig::with_cases(if cfg!(miri) { 2 } else { 400 })
    })]

    #[test]
    fn both_ends_agree_with_two_plain_queues((setup, steps, ends) in script()) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .build()
            .unwrap();
        let _guard = runtime.enter();
        script::play(setup, steps.iter().chain(ends.iter().flatten()));
    }
}
