//! `Encoding`: a vocabulary that encodes and decodes.

use std::collections::HashMap;
use std::path::PathBuf;

use pyo3::buffer::Element;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use super::arrays::array;
use super::batch::Texts;
use super::detached::detached;
use super::numbers::{integers, natural};
use super::packing::{self, Rows};
use super::text::Held;
use crate::core::encode::Encoder;
use crate::core::error::{Error, Result as CoreResult};
use crate::core::id::Id;
use crate::core::parallel::thread_count;
use crate::core::text::{Text, no_utf8};

/// A vocabulary that encodes and decodes; see rustbpe.pyi.
#[pyclass(frozen, module = "rustbpe")]
pub struct Encoding(Encoder);

#[pymethods]
impl Encoding {
    #[new]
    #[pyo3(signature = (tokens, pattern, special_tokens = None))]
    fn new(py: Python<'_>, tokens: Vec<Vec<u8>>, pattern: &str, special_tokens: Option<HashMap<String, i64>>) -> PyResult<Self> {
        let mut specials = Vec::new();
        for (name, id) in special_tokens.unwrap_or_default() {
            let id = u32::try_from(id).map_err(|_| PyValueError::new_err(format!("special token {name:?} has id {id}")))?;
            specials.push((name, id));
        }
        specials.sort();
        detached(py, |_| Encoder::new(tokens, pattern, specials)).map(Encoding)
    }

    #[getter]
    fn n_vocab(&self) -> usize {
        self.0.n_vocab()
    }

    fn encode(&self, py: Python<'_>, text: &Bound<'_, PyAny>) -> PyResult<Vec<u32>> {
        let held = Held::new(text, || "text".into())?;
        let (text, mut scratch) = (held.text(), Vec::new());
        detached(py, |_| text.utf8(&mut scratch).map(|text| self.0.encode(text)).ok_or_else(|| no_utf8(&[text])))
    }

    #[pyo3(signature = (texts, *, threads = 0))]
    fn encode_batch<'py>(
        &self,
        py: Python<'py>,
        texts: &Bound<'py, PyAny>,
        threads: i64,
    ) -> PyResult<(Bound<'py, PyAny>, Bound<'py, PyAny>)> {
        let threads = natural("threads", threads)?;
        let texts = Texts::new(texts)?.all()?;
        let texts = texts.texts();
        if self.0.fits_u16() { self.arrays::<u16>(py, &texts, threads) } else { self.arrays::<u32>(py, &texts, threads) }
    }

    fn decode_bytes<'py>(&self, py: Python<'py>, ids: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyBytes>> {
        let ids = integers(ids)?;
        let bytes = detached(py, |_| self.0.decode(ids))?;
        Ok(PyBytes::new(py, &bytes))
    }

    fn decode_batch<'py>(
        &self,
        py: Python<'py>,
        ids: &Bound<'py, PyAny>,
        offsets: &Bound<'py, PyAny>,
    ) -> PyResult<Vec<Bound<'py, PyBytes>>> {
        let (ids, offsets) = (integers(ids)?, integers(offsets)?);
        let documents = detached(py, |_| {
            let document = |ends: &[i64]| {
                let range = usize::try_from(ends[0]).ok().zip(usize::try_from(ends[1]).ok());
                let ids = range
                    .and_then(|(start, end)| ids.get(start..end))
                    .ok_or_else(|| Error::Invalid(format!("the offsets {} and {} bound no part of {} ids", ends[0], ends[1], ids.len())))?;
                self.0.decode(ids.iter().copied())
            };
            offsets.windows(2).map(document).collect::<CoreResult<Vec<_>>>()
        })?;
        Ok(documents.iter().map(|bytes| PyBytes::new(py, bytes)).collect())
    }

    #[pyo3(signature = (texts, row, path, bos, *, buffer = 1000, threads = 0))]
    #[allow(clippy::too_many_arguments)]
    fn pack_rows(
        &self,
        py: Python<'_>,
        texts: &Bound<'_, PyAny>,
        row: i64,
        path: PathBuf,
        bos: i64,
        buffer: i64,
        threads: i64,
    ) -> PyResult<(u64, u64, u64)> {
        let (row, bos) = (natural("row", row)?, natural("bos", bos)?);
        let (buffer, threads) = (natural("buffer", buffer)?, natural("threads", threads)?);
        packing::pack_rows(py, &self.0, texts, &path, &Rows { row, bos, buffer, threads })
    }

    fn __repr__(&self) -> String {
        format!("<rustbpe.Encoding of {} ids>", self.0.n_vocab())
    }
}

impl Encoding {
    /// (ids, offsets) of `texts`.
    fn arrays<'py, I: Id + Element>(
        &self,
        py: Python<'py>,
        texts: &[Text],
        threads: usize,
    ) -> PyResult<(Bound<'py, PyAny>, Bound<'py, PyAny>)> {
        let parts = detached(py, |check| self.0.encode_batch::<I>(texts, threads, check))?;
        let mut start = 0;
        let mut offsets = Vec::with_capacity(texts.len() + 1);
        offsets.push(0);
        for part in &parts {
            offsets.extend(part.ends.iter().map(|&end| (start + end) as i64));
            start += part.ids.len();
        }
        let ids: Vec<&[I]> = parts.iter().map(|part| &*part.ids).collect();
        let dtype = if size_of::<I>() == 2 { "uint16" } else { "uint32" };
        Ok((array(py, dtype, &ids, thread_count(threads))?, array(py, "int64", &[&offsets], 1)?))
    }
}
