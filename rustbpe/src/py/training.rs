//! `train`: texts into the tokens of a vocabulary.

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use super::batch::Texts;
use super::detached::detached;
use super::errors::exception;
use super::numbers::natural;
use super::pipeline::pipeline;
use crate::core::train::counter::Counter;
use crate::core::train::learn::learn;

/// Texts fetched before they are worked on together: characters, and at most so many texts.
const BATCH_LENGTH: usize = 16 << 20;
const BATCH_TEXTS: usize = 1 << 17;

/// Learn `vocab_size` tokens from texts; see rustbpe.pyi.
#[pyfunction]
#[pyo3(signature = (texts, vocab_size, pattern, *, threads = 0))]
pub fn train<'py>(
    py: Python<'py>,
    texts: &Bound<'py, PyAny>,
    vocab_size: i64,
    pattern: &str,
    threads: i64,
) -> PyResult<Vec<Bound<'py, PyBytes>>> {
    let vocab_size = natural("vocab_size", vocab_size)?;
    if vocab_size < 256 {
        // Known before any text is read.
        return Err(PyValueError::new_err(format!("vocab_size is {vocab_size}, but the 256 bytes alone are 256 tokens")));
    }
    let counter = Counter::new(pattern, natural("threads", threads)?).map_err(exception)?;
    let mut texts = Texts::new(texts)?;
    let next = || texts.batch(BATCH_LENGTH, BATCH_TEXTS).map(|batch| Some(batch).filter(|batch| batch.len() > 0));
    let counter = pipeline(py, None, counter, next, |counter, texts, check| counter.add(texts, check), |()| Ok(()))?;
    let tokens = detached(py, |check| learn(counter.finish(), vocab_size, check))?;
    Ok(tokens.iter().map(|token| PyBytes::new(py, token)).collect())
}
