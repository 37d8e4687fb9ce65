//! Numbers from Python.

use pyo3::buffer::{Element, PyBuffer};
use pyo3::exceptions::{PyOverflowError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyList;

/// A number that must not be negative; `name` is for the error.
pub fn natural(name: &str, value: i64) -> PyResult<usize> {
    usize::try_from(value).map_err(|_| PyValueError::new_err(format!("{name} is {value}; it must not be negative")))
}

/// The integers of a list, of a one-dimensional array, or of any iterable.
pub fn integers(items: &Bound<'_, PyAny>) -> PyResult<Vec<i64>> {
    fn buffer<T: Element + Into<i64>>(items: &Bound<'_, PyAny>) -> Option<PyResult<Vec<i64>>> {
        // Only this machine's byte order, which has no sign in front of the type's letter.
        let buffer = PyBuffer::<T>::get(items).ok().filter(|buffer| buffer.format().to_bytes().len() == 1)?;
        if buffer.dimensions() != 1 {
            return Some(Err(PyValueError::new_err(format!("expected one dimension, not {}", buffer.dimensions()))));
        }
        Some(buffer.to_vec(items.py()).map(|items| items.into_iter().map(Into::into).collect()))
    }
    if !items.is_instance_of::<PyList>() {
        let found = buffer::<i64>(items).or_else(|| buffer::<u16>(items)).or_else(|| buffer::<u32>(items));
        if let Some(found) = found.or_else(|| buffer::<i32>(items)) {
            return found;
        }
    }
    let mut integers = Vec::with_capacity(items.len().unwrap_or(0));
    for item in items.try_iter()? {
        let item = item?;
        integers.push(item.extract().map_err(|error: PyErr| {
            if error.is_instance_of::<PyOverflowError>(item.py()) { PyValueError::new_err(format!("{item} is too large")) } else { error }
        })?);
    }
    Ok(integers)
}
