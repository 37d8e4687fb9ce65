//! Work without the interpreter, which Ctrl-C interrupts.

use std::path::Path;
use std::time::{Duration, Instant};

use pyo3::prelude::*;

use super::errors::{exception, os_error};
use crate::core::error::{Error, Result as CoreResult};
use crate::core::parallel::Check;

/// Runs `work` without the interpreter; `check`, called there, sees Ctrl-C.
pub fn detached<T: Send>(py: Python<'_>, work: impl FnOnce(&mut Check) -> CoreResult<T> + Send) -> PyResult<T> {
    detached_at(py, None, work)
}

/// The same for work that writes to `path`.
pub fn detached_at<T: Send>(py: Python<'_>, path: Option<&Path>, work: impl FnOnce(&mut Check) -> CoreResult<T> + Send) -> PyResult<T> {
    py.check_signals()?;
    let mut raised = None;
    let mut last = Instant::now();
    let mut check = || {
        // Taking the interpreter is not free when other threads want it.
        if last.elapsed() > Duration::from_millis(50) {
            last = Instant::now();
            if let Err(error) = Python::attach(|py| py.check_signals()) {
                raised = Some(error);
                return Err(Error::Stopped);
            }
        }
        Ok(())
    };
    let result = py.detach(|| work(&mut check));
    result.map_err(|error| match (error, raised, path) {
        (_, Some(raised), _) => raised,
        (Error::Io(error), _, Some(path)) => os_error(py, &error, path),
        (error, ..) => exception(error),
    })
}
