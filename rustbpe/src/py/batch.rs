//! Texts from Python that are worked on together.

use pyo3::prelude::*;
use pyo3::types::PyIterator;

use super::column::Column;
use super::text::{Held, iterate};
use crate::core::text::Text;

/// The texts of an iterable, counted so that an error can say which one it was.
pub struct Texts<'py> {
    items: Bound<'py, PyIterator>,
    index: usize,
}

impl<'py> Texts<'py> {
    pub fn new(texts: &Bound<'py, PyAny>) -> PyResult<Self> {
        Self::from(texts, 0)
    }

    /// `index` is the number of texts before these.
    fn from(texts: &Bound<'py, PyAny>, index: usize) -> PyResult<Self> {
        Ok(Texts { items: iterate(texts, "texts")?, index })
    }

    fn next(&mut self) -> PyResult<Option<Held>> {
        let Some(item) = self.items.next() else { return Ok(None) };
        let text = Held::new(&item?, || format!("text {}", self.index))?;
        self.index += 1;
        Ok(Some(text))
    }

    /// The next texts, until they are `length` characters or `n` texts; none at the end.
    pub fn batch(&mut self, length: usize, n: usize) -> PyResult<Batch> {
        let (index, mut texts, mut fetched) = (self.index, Vec::new(), 0);
        while fetched < length && texts.len() < n {
            let Some(text) = self.next()? else { break };
            fetched += text.text().length();
            texts.push(text);
        }
        Ok(Batch { index, source: Source::Objects(texts) })
    }

    /// All texts that are left.
    pub fn all(&mut self) -> PyResult<Batch> {
        self.batch(usize::MAX, usize::MAX)
    }
}

/// Texts that are worked on together, and the number of texts before them.
pub struct Batch {
    pub index: usize,
    source: Source,
}

enum Source {
    Objects(Vec<Held>),
    Column(Column),
}

impl Batch {
    /// The texts of an iterable, or of an array of pyarrow. `index` is the number of texts before these.
    pub fn from(texts: &Bound<'_, PyAny>, index: usize) -> PyResult<Self> {
        if !texts.hasattr("buffers")? {
            return Texts::from(texts, index)?.all();
        }
        Ok(Batch { index, source: Source::Column(Column::from(texts, index)?) })
    }

    pub fn len(&self) -> usize {
        match &self.source {
            Source::Objects(texts) => texts.len(),
            Source::Column(column) => column.ends.len(),
        }
    }

    pub fn texts(&self) -> Vec<Text<'_>> {
        match &self.source {
            Source::Objects(texts) => texts.iter().map(Held::text).collect(),
            Source::Column(column) => column.texts().collect(),
        }
    }
}
