//! Large tables and the processor: all of this crate that is not safe Rust.

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
}
