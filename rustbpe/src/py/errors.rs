//! Errors as Python's exceptions.

use std::io;
use std::path::Path;

use pyo3::exceptions::{PyOSError, PyValueError};
use pyo3::prelude::*;

use crate::core::error::Error;

/// OSError for what the system reports, else ValueError.
pub fn exception(error: Error) -> PyErr {
    match error {
        Error::Io(error) => error.into(),
        error => PyValueError::new_err(error.to_string()),
    }
}

/// OSError as Python's own functions raise it, with the number and the file.
pub fn os_error(py: Python<'_>, error: &io::Error, path: &Path) -> PyErr {
    let Some(number) = error.raw_os_error() else { return PyOSError::new_err(format!("{error}: {}", path.display())) };
    let reason = py.import("os").and_then(|os| os.call_method1("strerror", (number,))).map(Bound::unbind);
    match reason {
        Ok(reason) => PyOSError::new_err((number, reason, path.as_os_str().to_owned())),
        Err(error) => error,
    }
}
