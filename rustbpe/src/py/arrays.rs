//! Numpy arrays from vectors.

use std::sync::Mutex;
use std::thread;

use pyo3::buffer::{Element, PyBuffer};
use pyo3::prelude::*;

/// Bytes of an array for which another thread is worth starting.
const LARGE: usize = 2 << 20;

/// A numpy array of the values of all parts, copied once. Large arrays are copied by several threads, because most of the time is spent
/// in the kernel, which creates the memory's pages at the first write.
pub fn array<'py, T: Element + Send + Sync>(py: Python<'py>, dtype: &str, parts: &[&[T]], threads: usize) -> PyResult<Bound<'py, PyAny>> {
    let total: usize = parts.iter().map(|part| part.len()).sum();
    let array = py.import("numpy")?.call_method1("empty", (total, dtype))?;
    if total == 0 {
        return Ok(array);
    }
    let buffer = PyBuffer::<T>::get(&array)?;
    // SAFETY: numpy has just allocated it for as many values, and there is no other reference to it.
    let mut rest = unsafe { std::slice::from_raw_parts_mut(buffer.buf_ptr().cast::<T>(), total) };
    let places = parts.iter().map(|part| {
        let (here, after) = std::mem::take(&mut rest).split_at_mut(part.len());
        rest = after;
        (here, *part)
    });
    let places: Mutex<Vec<(&mut [T], &[T])>> = Mutex::new(places.collect());
    let copy = || {
        while let Some((to, from)) = places.lock().ok().and_then(|mut places| places.pop()) {
            to.copy_from_slice(from);
        }
    };
    thread::scope(|scope| {
        for _ in 1..threads.min(total * size_of::<T>() / LARGE) {
            // One that cannot start leaves its work to the others.
            let _ = thread::Builder::new().spawn_scoped(scope, copy);
        }
        copy();
    });
    Ok(array)
}
