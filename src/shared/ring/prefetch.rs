//! Tells the CPU which memory is needed next, so that it fetches it while other bytes are copied.
//!
//! If the two sides run on different cores, each line of a chunk comes from the other core's cache. The CPU's own
//! prefetcher stays within a page of 4 KiB (Intel 64 and IA-32 Architectures Optimization Reference Manual, "Data
//! Prefetching"), so each page begins with a wait, and a writer waits for most lines.
//!
//! These are hints: they change no memory, order nothing, and may name any address. Where there is no code for the CPU,
//! they do nothing.

#![deny(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]
#![cfg_attr(
    all(target_arch = "x86_64", not(miri)),
    expect(unsafe_code, reason = "a hint to the CPU is an instruction")
)]

use std::ops::Range;

/// How many bytes ahead of the copied ones the hints are. So far ahead, a line has time to arrive, and few lines are
/// pushed out of the nearest cache (32 KiB or more).
const AHEAD: usize = 4096;

const CACHE_LINE: usize = 64;

/// Has the first `count` of `bytes` copied, piece by piece, and says before each piece what is read after it.
pub(super) fn read(bytes: &[u8], count: usize, mut copy: impl FnMut(&[u8])) {
    let (taken, _) = bytes.split_at(bytes.len().min(count));
    let mut end: usize = 0;
    for piece in taken.chunks(AHEAD) {
        end = end.saturating_add(piece.len());
        for offset in ahead(end, piece.len(), bytes.len()).step_by(CACHE_LINE) {
            will_read(bytes.as_ptr().wrapping_add(offset));
        }
        copy(piece);
    }
}

/// Says what is written next to the memory of `size` bytes from `start`, after the `count` bytes before `end`. A copy of
/// more than [`AHEAD`] fetches ahead enough by itself.
pub(super) fn for_writing(start: *const u8, end: usize, count: usize, size: usize) {
    if count <= AHEAD {
        for offset in ahead(end, count, size).step_by(CACHE_LINE) {
            will_write(start.wrapping_add(offset));
        }
    }
}

/// As many bytes as were copied, but [`AHEAD`] further on.
fn ahead(end: usize, count: usize, size: usize) -> Range<usize> {
    let end = end.saturating_add(AHEAD);
    end.saturating_sub(count).min(size)..end.min(size)
}

#[cfg(all(target_arch = "x86_64", not(miri)))]
fn will_read(line: *const u8) {
    use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};

    // SAFETY: the instruction only changes what is in the caches, whatever the address.
    unsafe {
        _mm_prefetch::<_MM_HINT_T0>(line.cast());
    }
}

/// The intrinsic for this fetches the line only to read, unless the program is built for newer CPUs.
#[cfg(all(target_arch = "x86_64", not(miri)))]
fn will_write(line: *const u8) {
    use std::arch::asm;

    // SAFETY: the instruction only changes what is in the caches, whatever the address. AMD's 64-bit CPUs all have it, and
    // those of Intel's that do not take it as no operation.
    unsafe {
        asm!("prefetchw [{}]", in(reg) line, options(readonly, nostack, preserves_flags));
    }
}

#[cfg(not(all(target_arch = "x86_64", not(miri))))]
fn will_read(_line: *const u8) {}

#[cfg(not(all(target_arch = "x86_64", not(miri))))]
fn will_write(_line: *const u8) {}

#[cfg(all(test, not(tokio_krun_loom)))]
mod tests {
    use super::*;

    #[test]
    fn pieces_of_any_size_name_each_byte_behind_the_first_ones_once() {
        const SIZE: usize = 3 * AHEAD;
        for piece in [1, 64, 100, AHEAD] {
            let mut named = AHEAD;
            let mut end: usize = 0;
            while end < SIZE {
                let count = piece.min(SIZE - end);
                end += count;
                let next = ahead(end, count, SIZE);
                assert_eq!(next.start, named, "after {end} bytes in pieces of {piece}");
                named = next.end;
            }
            assert_eq!(named, SIZE);
        }
    }
}
