//! The Python module `rustbpe`, which holds the interpreter only to fetch texts and to build results.
//!
//! Python calls `training`, `encoding` and `packing`. They use `text`, `column` and `batch` (input of texts), `numbers` (input of numbers),
//! `arrays` (output as numpy arrays), `detached` and `pipeline` (work without the interpreter lock) and `errors` (exceptions).

mod arrays;
mod batch;
mod column;
mod detached;
mod encoding;
mod errors;
mod numbers;
mod packing;
mod pipeline;
mod text;
mod training;

use pyo3::prelude::*;

#[pymodule]
fn rustbpe(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    module.add_function(wrap_pyfunction!(training::train, module)?)?;
    module.add_function(wrap_pyfunction!(packing::plan_rows, module)?)?;
    module.add_class::<encoding::Encoding>()
}
