//! Python's str, read where Python stores it.

use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::string::PyStringData;
use pyo3::types::{PyIterator, PyString};

use crate::core::text::Text;

/// A str, kept alive, and the memory that it has its text in: UTF-8 is made of it by the thread that needs it.
pub struct Held {
    _owner: Py<PyString>,
    text: Text<'static>,
}

impl Held {
    /// Errors: TypeError for what is not a str; `name` says which it was.
    pub fn new(item: &Bound<'_, PyAny>, name: impl Fn() -> String) -> PyResult<Self> {
        /// SAFETY: the caller guarantees that they live as long as they are used.
        unsafe fn lasting<T>(values: &[T]) -> &'static [T] {
            unsafe { std::slice::from_raw_parts(values.as_ptr(), values.len()) }
        }
        let Ok(owner) = item.cast::<PyString>() else {
            return Err(PyTypeError::new_err(format!("{} is {}, not str", name(), item.get_type().name()?)));
        };
        // SAFETY: a str neither changes nor moves as long as there is a reference to it, and we own one as long as the text can
        // be borrowed. That pyo3 reads a str's fields as this build of Python lays them out is tested with texts of all kinds.
        let text = unsafe {
            match owner.data()? {
                PyStringData::Ucs1(text) => Text::Latin1(lasting(text)),
                PyStringData::Ucs2(text) => Text::Ucs2(lasting(text)),
                PyStringData::Ucs4(text) => Text::Ucs4(lasting(text)),
            }
        };
        Ok(Held { _owner: owner.clone().unbind(), text })
    }

    pub fn text(&self) -> Text<'_> {
        self.text
    }
}

/// An iterator over `items`, which must not be one single str: its characters are surely not what was meant.
pub fn iterate<'py>(items: &Bound<'py, PyAny>, name: &str) -> PyResult<Bound<'py, PyIterator>> {
    if items.is_instance_of::<PyString>() {
        return Err(PyTypeError::new_err(format!("{name} is one str; put it into a list")));
    }
    items.try_iter()
}
