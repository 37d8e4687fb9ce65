//! All of the core's `unsafe`: large tables, SIMD instructions, construction of UTF-8, and hints to the kernel.

use std::fs::File;
use std::ops::BitOr;

/// A new vector of `n` values in huge pages, if the kernel has them, because lookups in a table of many small pages
/// miss the TLB.
pub fn filled<T: Clone>(n: usize, value: T) -> Vec<T> {
    let mut values = Vec::with_capacity(n);
    #[cfg(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64")))]
    ask_for_huge_pages(values.spare_capacity_mut());
    values.resize(n, value);
    values
}

/// Must be called before the first write, which creates the pages. The kernel's result is ignored.
#[cfg(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64")))]
fn ask_for_huge_pages<T>(memory: &mut [T]) {
    unsafe extern "C" {
        fn madvise(start: *mut u8, bytes: usize, advice: i32) -> i32;
    }
    const HUGE: usize = 2 << 20;
    const MADV_HUGEPAGE: i32 = 14;
    let range = memory.as_mut_ptr_range();
    let (start, end) = ((range.start as usize).next_multiple_of(HUGE), range.end as usize / HUGE * HUGE);
    if start < end {
        // SAFETY: the whole pages from start to end are within `memory`, and this advice does not change their content.
        unsafe { madvise(start as *mut u8, end - start, MADV_HUGEPAGE) };
    }
}

/// Prefetches a value that will be read soon.
#[inline(always)]
pub fn fetch<T>(value: &T) {
    let address: *const T = value;
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch changes nothing but the caches, and every x86-64 has it.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(address.cast());
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: as above, with every AArch64.
    unsafe {
        std::arch::asm!("prfm pldl1keep, [{0}]", in(reg) address, options(nostack, preserves_flags, readonly));
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let _ = address;
}

/// Asks the kernel to begin writing a part of a file to disk. Its result is ignored; only an fsync makes the file durable.
#[allow(unused_variables)]
pub fn write_back(file: &File, start: u64, bytes: u64) {
    #[cfg(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64")))]
    {
        use std::os::fd::AsRawFd;
        unsafe extern "C" {
            fn sync_file_range(file: i32, start: i64, bytes: i64, flags: u32) -> i32;
        }
        const SYNC_FILE_RANGE_WRITE: u32 = 2;
        // SAFETY: the descriptor is open as long as `file` is, and nothing of the file changes.
        unsafe { sync_file_range(file.as_raw_fd(), start as i64, bytes as i64, SYNC_FILE_RANGE_WRITE) };
    }
}

/// Appends the first `n` of some values. All values are written for any n, which avoids an unpredictable
/// branch.
#[inline(always)]
pub fn append<T: Copy, const N: usize>(values: &mut Vec<T>, some: [T; N], n: usize) {
    assert!(n <= N);
    values.reserve(N);
    // SAFETY: the capacity includes N more values, and the first n of them are written before the length is changed.
    unsafe {
        values.as_mut_ptr().add(values.len()).cast::<[T; N]>().write_unaligned(some);
        values.set_len(values.len() + n);
    }
}

/// A bit for each byte that meets the condition.
#[inline(always)]
pub fn mask(bytes: &[u8; 64], is: impl Fn(u8) -> bool) -> u64 {
    let mut are = [0u8; 64];
    for (are, &byte) in are.iter_mut().zip(bytes) {
        *are = if is(byte) { 0xFF } else { 0 };
    }
    let mut bits = 0;
    #[cfg(target_arch = "x86_64")]
    for (i, sixteen) in are.chunks_exact(16).enumerate() {
        use std::arch::x86_64::{_mm_loadu_si128, _mm_movemask_epi8};
        // SAFETY: the sixteen bytes that are read are those of the chunk, and every x86-64 has SSE2.
        let some = unsafe { _mm_movemask_epi8(_mm_loadu_si128(sixteen.as_ptr().cast())) };
        bits |= u64::from(some as u16) << (16 * i);
    }
    #[cfg(not(target_arch = "x86_64"))]
    for (i, eight) in are.chunks_exact(8).enumerate() {
        let eight = eight.try_into().map_or(0, u64::from_le_bytes) & 0x0101_0101_0101_0101;
        bits |= (eight.wrapping_mul(0x0102_0408_1020_4080) >> 56) << (8 * i);
    }
    bits
}

/// Latin-1 as UTF-8, where it is that already.
#[inline]
pub fn ascii(latin1: &[u8]) -> Option<&str> {
    // SAFETY: ASCII is UTF-8.
    latin1.is_ascii().then(|| unsafe { std::str::from_utf8_unchecked(latin1) })
}

/// A code point, of any width.
pub trait CodePoint: Copy + Into<u32> + PartialEq + BitOr<Output = Self> {
    fn lowest_byte(self) -> u8;
}

impl CodePoint for u8 {
    fn lowest_byte(self) -> u8 {
        self
    }
}

impl CodePoint for u16 {
    fn lowest_byte(self) -> u8 {
        self as u8
    }
}

impl CodePoint for u32 {
    fn lowest_byte(self) -> u8 {
        self as u8
    }
}

/// Code points as UTF-8, in `room`; None if UTF-8 cannot encode one.
pub fn utf8<'r, U: CodePoint>(text: &[U], room: &'r mut Vec<u8>) -> Option<&'r str> {
    room.clear();
    for many in text.chunks(64) {
        if append_ascii::<U, 64>(room, many) {
            continue;
        }
        for some in many.chunks(8) {
            if append_ascii::<U, 8>(room, some) {
                continue;
            }
            let (mut utf8, mut length) = ([0; 4 * 8], 0);
            for &unit in some {
                let (bytes, width) = character(unit.into())?;
                utf8[length..length + 4].copy_from_slice(&bytes);
                length += width;
            }
            append(room, utf8, length);
        }
    }
    // SAFETY: whole characters, each as UTF-8 has it.
    Some(unsafe { std::str::from_utf8_unchecked(room) })
}

/// Appends `N` characters of ASCII; false, and nothing, where they are not.
#[inline(always)]
fn append_ascii<U: CodePoint, const N: usize>(utf8: &mut Vec<u8>, text: &[U]) -> bool {
    let ascii = text.len() == N && text[1..].iter().fold(text[0], |all, &unit| all | unit).into() < 0x80;
    if ascii {
        append::<u8, N>(utf8, std::array::from_fn(|i| text[i].lowest_byte()), N);
    }
    ascii
}

/// The bytes of a character, and how many they are.
#[inline(always)]
fn character(code_point: u32) -> Option<([u8; 4], usize)> {
    let more = |places: u32| 0x80 | (code_point >> (6 * places)) as u8 & 0x3F;
    let first = |marker: u8, places: u32| marker | (code_point >> (6 * places)) as u8;
    if code_point < 0x800 {
        // In Latin-1 a branch on the length would be unpredictable.
        let ascii = code_point < 0x80;
        Some(([if ascii { code_point as u8 } else { first(0xC0, 1) }, more(0), 0, 0], if ascii { 1 } else { 2 }))
    } else if code_point < 0x1_0000 {
        (code_point >> 11 != 0xD800 >> 11).then_some(([first(0xE0, 2), more(1), more(0), 0], 3))
    } else {
        (code_point <= char::MAX as u32).then_some(([first(0xF0, 3), more(2), more(1), more(0)], 4))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn appended_values_are_the_first_ones() {
        let (mut values, mut slow) = (Vec::new(), Vec::new());
        for n in (0..=4).cycle().take(1_000) {
            append(&mut values, [7u16, 8, 9, 10], n);
            slow.extend_from_slice(&[7, 8, 9, 10][..n]);
        }
        assert_eq!(values, slow);
    }

    #[test]
    #[should_panic(expected = "n <= N")]
    fn more_than_there_are_is_refused() {
        append(&mut Vec::new(), [1, 2], 3);
    }

    #[test]
    fn filled_vectors_are_as_any_other() {
        for n in [0, 1, 1_000, 1 << 20] {
            let values = filled(n, 7u64);
            assert!(values.len() == n && values.iter().all(|&value| value == 7));
            values.iter().for_each(fetch);
        }
    }

    #[test]
    fn masks_have_a_bit_for_each_byte() {
        let bytes: [u8; 64] = std::array::from_fn(|i| (i * i) as u8);
        for wanted in bytes {
            let slow = (0..64).filter(|&i| bytes[i] == wanted).fold(0, |all, i| all | 1 << i);
            assert_eq!(mask(&bytes, |byte| byte == wanted), slow);
        }
    }
}
