//! Fetching texts, working on them and using the result, all three at once.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use pyo3::prelude::*;

use super::batch::Batch;
use super::detached::{detached, detached_at};
use super::errors::exception;
use crate::core::error::{Error, Result as CoreResult};
use crate::core::parallel::Check;
use crate::core::text::Text;

/// Three steps at once: `next` fetches texts with the interpreter, `work` runs on a thread of its own with the texts before
/// and `state`, which comes back at the end, and `after` takes what the work before that gave.
pub fn pipeline<S: Send, T: Send>(
    py: Python<'_>,
    path: Option<&Path>,
    state: S,
    mut next: impl FnMut() -> PyResult<Option<Batch>>,
    work: impl Fn(&mut S, &[Text], &mut Check) -> CoreResult<T> + Sync,
    mut after: impl FnMut(T) -> CoreResult<()> + Send,
) -> PyResult<S> {
    let stop = AtomicBool::new(false);
    let start = |mut state: S, texts: Batch| {
        let refs = texts.texts();
        let mut check = || if stop.load(Ordering::Relaxed) { Err(Error::Stopped) } else { Ok(()) };
        let result = work(&mut state, &refs, &mut check);
        drop(refs);
        (state, texts, result)
    };
    thread::scope(|scope| {
        let run = || {
            let (mut state, mut texts, mut done) = (state, next()?, None);
            loop {
                let Some(batch) = texts else {
                    done.map_or(Ok(()), |done| detached_at(py, path, |_| after(done)))?;
                    return Ok(state);
                };
                let (sender, receiver) = channel();
                let start = &start;
                thread::Builder::new().spawn_scoped(scope, move || sender.send(start(state, batch)))?;
                done.map_or(Ok(()), |done| detached_at(py, path, |_| after(done)))?;
                let fetched = next();
                let (back, batch, result): (S, Batch, CoreResult<T>) = detached(py, move |check| wait(&receiver, check))?;
                let before = batch.index;
                drop(batch); // with the interpreter, which owns it
                (state, done) = (back, Some(result.map_err(|error| exception(error.behind(before)))?));
                texts = fetched?;
            }
        };
        let result = run();
        stop.store(true, Ordering::Relaxed);
        result
    })
}

/// Receives a value from another thread, checking for signals meanwhile.
fn wait<T>(receiver: &Receiver<T>, check: &mut Check) -> CoreResult<T> {
    loop {
        match receiver.recv_timeout(Duration::from_millis(50)) {
            Ok(value) => return Ok(value),
            Err(RecvTimeoutError::Timeout) => check()?,
            Err(RecvTimeoutError::Disconnected) => return Err(Error::Stopped),
        }
    }
}
