//! An array of strings of pyarrow, which has their UTF-8 in one piece.

use pyo3::buffer::PyBuffer;
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;

use crate::core::text::Text;

/// A column of a table: its texts behind each other, and where each ends.
pub struct Column {
    text: String,
    pub ends: Vec<usize>,
}

impl Column {
    /// `index`, the number of texts before these, is for errors: TypeError for an array of what is not strings, ValueError for nulls and
    /// for what is not UTF-8.
    pub fn from(array: &Bound<'_, PyAny>, index: usize) -> PyResult<Self> {
        let kind = array.getattr("type")?.to_string();
        let width = match kind.as_str() {
            "string" => 4,
            "large_string" => 8,
            _ => return Err(PyTypeError::new_err(format!("the texts from {index} on are an array of {kind}, not of string"))),
        };
        if array.getattr("null_count")?.extract::<usize>()? > 0 {
            return Err(PyValueError::new_err(format!("among the texts from {index} on are nulls")));
        }
        let buffers: Vec<Option<Bound<'_, PyAny>>> = array.call_method0("buffers")?.extract()?;
        let [_, ends, utf8] = buffers.try_into().map_err(|_| PyTypeError::new_err("an array of strings has three buffers"))?;
        let (first, n): (usize, usize) = (array.getattr("offset")?.extract()?, array.len()?);
        if n == 0 {
            return Ok(Column { text: String::new(), ends: Vec::new() });
        }
        // Only those of these texts: many arrays may be parts of one.
        let ends = bytes(ends, first * width, (n + 1) * width)?;
        let end = |at: &[u8]| at.iter().rev().fold(0, |all, &byte| all << 8 | usize::from(byte));
        let ends: Vec<usize> = ends.chunks_exact(width).map(end).collect();
        let &[start, .., last] = ends.as_slice() else { return Ok(Column { text: String::new(), ends: Vec::new() }) };
        let wrong = || PyValueError::new_err(format!("the texts from {index} on are not all UTF-8"));
        if !ends.is_sorted() {
            return Err(wrong());
        }
        let text = String::from_utf8(bytes(utf8, start, last - start)?).map_err(|_| wrong())?;
        let ends: Vec<usize> = ends[1..].iter().map(|end| end - start).collect();
        if ends.iter().all(|&end| text.is_char_boundary(end)) { Ok(Column { text, ends }) } else { Err(wrong()) }
    }

    /// Each text.
    pub fn texts(&self) -> impl Iterator<Item = Text<'_>> {
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        starts.zip(&self.ends).map(|(start, &end)| self.text[start..end].into())
    }
}

/// A copy of `n` bytes of a buffer of pyarrow; none where the array has no such buffer.
fn bytes(buffer: Option<Bound<'_, PyAny>>, start: usize, n: usize) -> PyResult<Vec<u8>> {
    let Some(buffer) = buffer else { return Ok(Vec::new()) };
    let some = PyBuffer::<i8>::get(&buffer.call_method1("slice", (start, n))?)?;
    Ok(some.to_vec(buffer.py())?.into_iter().map(|byte| byte as u8).collect())
}
