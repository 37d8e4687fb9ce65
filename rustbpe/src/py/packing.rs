//! `Encoding.pack_rows` and `plan_rows`: documents into rows.

use std::fs;
use std::io::BufWriter;
use std::path::Path;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyIterator, PyTuple};

use super::arrays::array;
use super::batch::Batch;
use super::detached::{detached, detached_at};
use super::errors::{exception, os_error};
use super::numbers::{integers, natural};
use super::pipeline::pipeline;
use super::text::iterate;
use crate::core::encode::{Encoded, Encoder};
use crate::core::id::Id;
use crate::core::pack::file::EagerFile;
use crate::core::pack::packer::{Packer, check_pack};
use crate::core::pack::plan;
use crate::core::parallel::Check;
use crate::core::text::Text;

/// Parameters of packing.
pub struct Rows {
    /// Ids per row.
    pub row: usize,
    /// The id in front of every document.
    pub bos: usize,
    /// Number of waiting documents to choose from.
    pub buffer: usize,
    pub threads: usize,
}

/// Encodes batches of texts and writes them to `path` as rows: (rows, tokens, bytes of text).
pub fn pack_rows(py: Python<'_>, encoder: &Encoder, texts: &Bound<'_, PyAny>, path: &Path, rows: &Rows) -> PyResult<(u64, u64, u64)> {
    if rows.bos >= encoder.n_vocab() {
        return Err(PyValueError::new_err(format!("bos is {}, but the vocabulary has {} ids", rows.bos, encoder.n_vocab())));
    }
    check_pack(rows.row, rows.buffer).map_err(exception)?;
    let batches = iterate(texts, "texts")?;
    let file = BufWriter::with_capacity(1 << 20, EagerFile::create(path).map_err(|error| os_error(py, &error, path))?);
    let result = if encoder.fits_u16() {
        pack::<u16>(py, encoder, batches, file, path, rows)
    } else {
        pack::<u32>(py, encoder, batches, file, path, rows)
    };
    if result.is_err() && fs::symlink_metadata(path).is_ok_and(|found| found.is_file()) {
        // Remove the incomplete file, and report the original error.
        let _ = fs::remove_file(path);
    }
    result
}

/// Encodes batches of documents and packs them into `file`, with ids that are stored as `I`.
fn pack<I: Id>(
    py: Python<'_>,
    encoder: &Encoder,
    mut batches: Bound<'_, PyIterator>,
    file: BufWriter<EagerFile>,
    path: &Path,
    rows: &Rows,
) -> PyResult<(u64, u64, u64)> {
    let mut packer = Packer::new(file, rows.row, rows.bos as u32, rows.buffer).map_err(exception)?;
    let (mut bytes, mut index) = (0, 0);
    let next = || {
        let Some(batch) = batches.next() else { return Ok(None) };
        let batch = Batch::from(&batch?, index)?;
        index += batch.len();
        Ok(Some(batch))
    };
    let encode = |_: &mut (), texts: &[Text], check: &mut Check| encoder.encode_batch::<I>(texts, rows.threads, check);
    let add = |parts: Vec<Encoded<I>>| {
        let mut document = Vec::new();
        for part in parts {
            bytes += part.bytes as u64;
            let mut start = 0;
            for end in part.ends {
                document.extend_from_slice(&part.ids[start..end]);
                packer.add(std::mem::take(&mut document))?;
                start = end;
            }
            document.extend_from_slice(&part.ids[start..]);
        }
        Ok(())
    };
    pipeline(py, Some(path), (), next, encode, add)?;
    let summary = detached_at(py, Some(path), |_| packer.finish())?;
    Ok((summary.rows, summary.tokens, bytes))
}

/// Best-fit packing over lengths alone; see rustbpe.pyi.
#[pyfunction]
#[pyo3(signature = (lengths, row, *, buffer, crop))]
pub fn plan_rows<'py>(py: Python<'py>, lengths: &Bound<'py, PyAny>, row: i64, buffer: i64, crop: bool) -> PyResult<Bound<'py, PyTuple>> {
    let (row, buffer) = (natural("row", row)?, natural("buffer", buffer)?);
    let lengths = integers(lengths)?;
    let plan = detached(py, |_| plan::plan_rows(&lengths, row, buffer, crop))?;
    let columns: [fn(&plan::Placement) -> usize; 4] = [|part| part.row, |part| part.item, |part| part.start, |part| part.length];
    let mut arrays = Vec::new();
    for column in columns {
        let values: Vec<i64> = plan.iter().map(|part| column(part) as i64).collect();
        arrays.push(array(py, "int64", &[&values], 1)?);
    }
    PyTuple::new(py, arrays)
}
