//! Large tables, what processors do at once, and UTF-8 made by hand: all of the core that is not safe Rust.

/// A new vector of `n` values, in huge pages where the kernel has them: a look into a table of many small pages
/// waits for the page's address, and then for the memory.
pub fn filled<T: Clone>(n: usize, value: T) -> Vec<T> {
    let mut values = Vec::with_capacity(n);
    #[cfg(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64")))]
    ask_for_huge_pages(values.spare_capacity_mut());
    values.resize(n, value);
    values
}

/// Must come before the first write, which makes the pages. What the kernel answers is of no concern.
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
        // SAFETY: the whole pages from start to end lie within `memory`, and this advice leaves what is in them as it is.
        unsafe { madvise(start as *mut u8, end - start, MADV_HUGEPAGE) };
    }
}

/// Has the processor fetch a value that will be read soon.
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

/// Appends the first `n` of some values. That all of them are written, whatever n, spares the processor a branch that it
/// cannot foretell.
#[inline(always)]
pub fn append<T: Copy, const N: usize>(values: &mut Vec<T>, some: [T; N], n: usize) {
    assert!(n <= N);
    values.reserve(N);
    // SAFETY: there is room for N values behind the last, and the first n of them are written before they count.
    unsafe {
        values.as_mut_ptr().add(values.len()).cast::<[T; N]>().write_unaligned(some);
        values.set_len(values.len() + n);
    }
}

/// The bits of the bytes that are as asked.
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

/// Latin-1 as UTF-8: a byte of it is a code point.
pub fn from_latin1(latin1: &[u8]) -> String {
    const TOGETHER: usize = 16;
    let mut utf8 = Vec::with_capacity(latin1.len() + latin1.len() / 8);
    let mut some = [0; 2 * TOGETHER + 1];
    for bytes in latin1.chunks(TOGETHER) {
        if bytes.is_ascii() {
            utf8.extend_from_slice(bytes);
            continue;
        }
        let mut length = 0;
        for &byte in bytes {
            // What is behind an ASCII character is written over by the next.
            let (first, second) = if byte < 0x80 { (byte, 0) } else { (0xC0 | byte >> 6, 0x80 | byte & 0x3F) };
            some[length..length + 2].copy_from_slice(&[first, second]);
            length += 1 + usize::from(byte >> 7);
        }
        utf8.extend_from_slice(&some[..length]);
    }
    // SAFETY: it consists of ASCII, and of the two bytes that code points from U+0080 to U+00FF have.
    unsafe { String::from_utf8_unchecked(utf8) }
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
    fn every_byte_of_latin1_is_its_code_point() {
        for length in [0, 1, 15, 16, 17, 1_000] {
            let latin1: Vec<u8> = (0..length).map(|i: u32| ((i * 37) >> 2) as u8).collect();
            assert_eq!(from_latin1(&latin1), latin1.iter().map(|&byte| char::from(byte)).collect::<String>());
        }
        let all: Vec<u8> = (0..=255).collect();
        assert_eq!(from_latin1(&all), all.iter().map(|&byte| char::from(byte)).collect::<String>());
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
