//! Texts into unique pieces and how often each was seen.

use super::counts::Counts;
use crate::core::error::Result;
use crate::core::parallel::{Check, parallel, thread_count};
use crate::core::split::Splitter;
use crate::core::split::parts::group_by_length;
use crate::core::text::{Text, no_utf8};

/// Text per job of a thread, in bytes or characters.
const JOB_LENGTH: usize = 1 << 18;

/// Counts the pieces of a stream of texts, on several threads, each with a table of its own.
pub struct Counter {
    splitter: Splitter,
    tables: Vec<Counts>,
}

impl Counter {
    /// `threads` 0 is every core. Errors: `Invalid` for a bad pattern.
    pub fn new(pattern: &str, threads: usize) -> Result<Self> {
        let tables = (0..thread_count(threads)).map(|_| Counts::default()).collect();
        Ok(Counter { splitter: Splitter::new(pattern)?, tables })
    }

    /// Counts the pieces of one batch of texts. Errors: `Surrogate`.
    pub fn add(&mut self, texts: &[Text], check: &mut Check) -> Result<()> {
        let parts = self.splitter.parts(texts, JOB_LENGTH);
        let jobs = group_by_length(&parts, JOB_LENGTH);
        let splitter = &self.splitter;
        parallel(&mut self.tables, jobs.len(), check, |counts, job| {
            let mut scratch = Vec::new();
            for part in &parts[jobs[job].clone()] {
                counts.add(splitter, part.text.utf8(&mut scratch).ok_or_else(|| no_utf8(texts))?);
            }
            Ok(())
        })?;
        Ok(())
    }

    /// Each unique piece and how often it was seen.
    pub fn finish(self) -> Counts {
        let mut tables = self.tables.into_iter();
        let mut total = tables.next().unwrap_or_default();
        tables.for_each(|table| total.merge(table));
        total
    }
}
