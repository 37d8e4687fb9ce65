//! The Python module. It holds the interpreter to fetch texts and to build results; all work runs without it.

use std::collections::HashMap;
use std::fs;
use std::io::{self, BufWriter};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use pyo3::buffer::{Element, PyBuffer};
use pyo3::exceptions::{PyOSError, PyOverflowError, PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::string::PyStringData;
use pyo3::types::{PyBytes, PyIterator, PyList, PyString, PyTuple};

use crate::core::encode::{Encoded, Encoder, Id};
use crate::core::pack::{self, EagerFile, Packer};
use crate::core::text::{Text, no_utf8};
use crate::core::train::{Counter, learn};
use crate::core::{Check, Error, Result as CoreResult, thread_count};

/// Texts fetched before they are worked on together: characters, and at most so many texts.
const BATCH_LENGTH: usize = 16 << 20;
const BATCH_TEXTS: usize = 1 << 17;
/// Bytes of an array for which another thread is worth starting.
const LARGE: usize = 2 << 20;

/// Learn `vocab_size` tokens from texts; see rustbpe.pyi.
#[pyfunction]
#[pyo3(signature = (texts, vocab_size, pattern, *, threads = 0))]
fn train<'py>(
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

/// A vocabulary that encodes and decodes; see rustbpe.pyi.
#[pyclass(frozen, module = "rustbpe")]
struct Encoding(Encoder);

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
        let (text, mut room) = (held.text(), Vec::new());
        detached(py, |_| text.utf8(&mut room).map(|text| self.0.encode(text)).ok_or_else(|| no_utf8(&[text])))
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
        if bos >= self.0.n_vocab() {
            return Err(PyValueError::new_err(format!("bos is {bos}, but the vocabulary has {} ids", self.0.n_vocab())));
        }
        pack::check_pack(row, buffer).map_err(exception)?;
        let batches = iterate(texts, "texts")?;
        let file = BufWriter::with_capacity(1 << 20, EagerFile::create(&path).map_err(|error| os_error(py, &error, &path))?);
        let pack = || {
            if self.0.fits_u16() {
                self.pack::<u16>(py, batches, Packer::new(file, row, bos as u32, buffer).map_err(exception)?, &path, threads)
            } else {
                self.pack::<u32>(py, batches, Packer::new(file, row, bos as u32, buffer).map_err(exception)?, &path, threads)
            }
        };
        let result = pack();
        if result.is_err() && fs::symlink_metadata(&path).is_ok_and(|found| found.is_file()) {
            // Half a file is no use to anyone; what led here is the error to report.
            let _ = fs::remove_file(&path);
        }
        result
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

    fn pack<'py, I: Id>(
        &self,
        py: Python<'py>,
        batches: Bound<'py, PyIterator>,
        mut packer: Packer<BufWriter<EagerFile>, I>,
        path: &Path,
        threads: usize,
    ) -> PyResult<(u64, u64, u64)> {
        let (mut bytes, mut index) = (0, 0);
        let mut batches = batches;
        let next = || {
            let Some(batch) = batches.next() else { return Ok(None) };
            let batch = Batch::from(&batch?, index)?;
            index += batch.len();
            Ok(Some(batch))
        };
        let encode = |_: &mut (), texts: &[Text], check: &mut Check| self.0.encode_batch::<I>(texts, threads, check);
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
}

/// Best-fit packing over lengths alone; see rustbpe.pyi.
#[pyfunction]
#[pyo3(signature = (lengths, row, *, buffer, crop))]
fn plan_rows<'py>(py: Python<'py>, lengths: &Bound<'py, PyAny>, row: i64, buffer: i64, crop: bool) -> PyResult<Bound<'py, PyTuple>> {
    let (row, buffer) = (natural("row", row)?, natural("buffer", buffer)?);
    let lengths = integers(lengths)?;
    let plan = detached(py, |_| pack::plan_rows(&lengths, row, buffer, crop))?;
    let columns: [fn(&pack::Placement) -> usize; 4] = [|part| part.row, |part| part.item, |part| part.start, |part| part.length];
    let mut arrays = Vec::new();
    for column in columns {
        let values: Vec<i64> = plan.iter().map(|part| column(part) as i64).collect();
        arrays.push(array(py, "int64", &[&values], 1)?);
    }
    PyTuple::new(py, arrays)
}

#[pymodule]
fn rustbpe(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    module.add_function(wrap_pyfunction!(train, module)?)?;
    module.add_function(wrap_pyfunction!(plan_rows, module)?)?;
    module.add_class::<Encoding>()
}

// Texts in

/// The texts of an iterable, counted so that an error can say which one it was.
struct Texts<'py> {
    items: Bound<'py, PyIterator>,
    index: usize,
}

impl<'py> Texts<'py> {
    fn new(texts: &Bound<'py, PyAny>) -> PyResult<Self> {
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
    fn batch(&mut self, length: usize, n: usize) -> PyResult<Batch> {
        let (index, mut texts, mut fetched) = (self.index, Vec::new(), 0);
        while fetched < length && texts.len() < n {
            let Some(text) = self.next()? else { break };
            fetched += text.text().length();
            texts.push(text);
        }
        Ok(Batch { index, source: Source::Objects(texts) })
    }

    fn all(&mut self) -> PyResult<Batch> {
        self.batch(usize::MAX, usize::MAX)
    }
}

/// Texts that are worked on together, and the number of texts before them.
struct Batch {
    index: usize,
    source: Source,
}

enum Source {
    Objects(Vec<Held>),
    /// A column of a table: the texts behind each other, and where each ends.
    Column(String, Vec<usize>),
}

impl Batch {
    /// The texts of an iterable, or of an array of pyarrow, which has their UTF-8 in one piece.
    fn from(texts: &Bound<'_, PyAny>, index: usize) -> PyResult<Self> {
        if !texts.hasattr("buffers")? {
            return Texts::from(texts, index)?.all();
        }
        let column = |text, ends| Batch { index, source: Source::Column(text, ends) };
        let kind = texts.getattr("type")?.to_string();
        let width = match kind.as_str() {
            "string" => 4,
            "large_string" => 8,
            _ => return Err(PyTypeError::new_err(format!("the texts from {index} on are an array of {kind}, not of string"))),
        };
        if texts.getattr("null_count")?.extract::<usize>()? > 0 {
            return Err(PyValueError::new_err(format!("among the texts from {index} on are nulls")));
        }
        let buffers: Vec<Option<Bound<'_, PyAny>>> = texts.call_method0("buffers")?.extract()?;
        let [_, ends, utf8] = buffers.try_into().map_err(|_| PyTypeError::new_err("an array of strings has three buffers"))?;
        let bytes = |buffer: Option<Bound<'_, PyAny>>, start: usize, n: usize| -> PyResult<Vec<u8>> {
            let Some(buffer) = buffer else { return Ok(Vec::new()) };
            let some = PyBuffer::<i8>::get(&buffer.call_method1("slice", (start, n))?)?;
            Ok(some.to_vec(texts.py())?.into_iter().map(|byte| byte as u8).collect())
        };
        let (first, n): (usize, usize) = (texts.getattr("offset")?.extract()?, texts.len()?);
        if n == 0 {
            return Ok(column(String::new(), Vec::new()));
        }
        // Only those of these texts: many arrays may be parts of one.
        let ends = bytes(ends, first * width, (n + 1) * width)?;
        let end = |at: &[u8]| at.iter().rev().fold(0, |all, &byte| all << 8 | usize::from(byte));
        let ends: Vec<usize> = ends.chunks_exact(width).map(end).collect();
        let &[start, .., last] = ends.as_slice() else { return Ok(column(String::new(), Vec::new())) };
        let wrong = || PyValueError::new_err(format!("the texts from {index} on are not all UTF-8"));
        if !ends.is_sorted() {
            return Err(wrong());
        }
        let text = String::from_utf8(bytes(utf8, start, last - start)?).map_err(|_| wrong())?;
        let ends: Vec<usize> = ends[1..].iter().map(|end| end - start).collect();
        if ends.iter().all(|&end| text.is_char_boundary(end)) { Ok(column(text, ends)) } else { Err(wrong()) }
    }

    fn len(&self) -> usize {
        match &self.source {
            Source::Objects(texts) => texts.len(),
            Source::Column(_, ends) => ends.len(),
        }
    }

    fn texts(&self) -> Vec<Text<'_>> {
        match &self.source {
            Source::Objects(texts) => texts.iter().map(Held::text).collect(),
            Source::Column(text, ends) => {
                let starts = std::iter::once(0).chain(ends.iter().copied());
                starts.zip(ends).map(|(start, &end)| text[start..end].into()).collect()
            }
        }
    }
}

/// An iterator over `items`, which must not be one single str: its characters are surely not what was meant.
fn iterate<'py>(items: &Bound<'py, PyAny>, name: &str) -> PyResult<Bound<'py, PyIterator>> {
    if items.is_instance_of::<PyString>() {
        return Err(PyTypeError::new_err(format!("{name} is one str; put it into a list")));
    }
    items.try_iter()
}

/// A str, kept alive, and the memory that it has its text in: UTF-8 is made of it by the thread that needs it.
struct Held {
    _owner: Py<PyString>,
    text: Text<'static>,
}

impl Held {
    /// Errors: TypeError for what is not a str; `name` says which it was.
    fn new(item: &Bound<'_, PyAny>, name: impl Fn() -> String) -> PyResult<Self> {
        /// SAFETY: the caller sees to it that they stay as long as they are used.
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

    fn text(&self) -> Text<'_> {
        self.text
    }
}

// Numbers in, arrays out

fn natural(name: &str, value: i64) -> PyResult<usize> {
    usize::try_from(value).map_err(|_| PyValueError::new_err(format!("{name} is {value}; it must not be negative")))
}

/// The integers of a list, of a one-dimensional array, or of any iterable.
fn integers(items: &Bound<'_, PyAny>) -> PyResult<Vec<i64>> {
    fn buffer<T: Element + Into<i64>>(items: &Bound<'_, PyAny>) -> Option<PyResult<Vec<i64>>> {
        // Only this machine's byte order, which has no sign in front of the type's letter.
        let buffer = PyBuffer::<T>::get(items).ok().filter(|buffer| buffer.format().to_bytes().len() == 1)?;
        if buffer.dimensions() != 1 {
            return Some(Err(PyValueError::new_err(format!("expected one dimension, not {}", buffer.dimensions()))));
        }
        Some(buffer.to_vec(items.py()).map(|items| items.into_iter().map(Into::into).collect()))
    }
    if !items.is_instance_of::<PyList>() {
        let found = buffer::<i64>(items).or_else(|| buffer::<u16>(items)).or_else(|| buffer::<u32>(items));
        if let Some(found) = found.or_else(|| buffer::<i32>(items)) {
            return found;
        }
    }
    let mut integers = Vec::with_capacity(items.len().unwrap_or(0));
    for item in items.try_iter()? {
        let item = item?;
        integers.push(item.extract().map_err(|error: PyErr| {
            if error.is_instance_of::<PyOverflowError>(item.py()) { PyValueError::new_err(format!("{item} is too large")) } else { error }
        })?);
    }
    Ok(integers)
}

/// A numpy array of the values of all parts, copied once; by several threads where they are large, since most of the time is the
/// kernel's, which makes the memory's pages as they are first written to.
fn array<'py, T: Element + Send + Sync>(py: Python<'py>, dtype: &str, parts: &[&[T]], threads: usize) -> PyResult<Bound<'py, PyAny>> {
    let total: usize = parts.iter().map(|part| part.len()).sum();
    let array = py.import("numpy")?.call_method1("empty", (total, dtype))?;
    if total == 0 {
        return Ok(array);
    }
    let buffer = PyBuffer::<T>::get(&array)?;
    // SAFETY: numpy has just made it, with room for as many values, and nobody else knows of it.
    let mut rest = unsafe { std::slice::from_raw_parts_mut(buffer.buf_ptr().cast::<T>(), total) };
    let places = parts.iter().map(|part| {
        let (here, after) = std::mem::take(&mut rest).split_at_mut(part.len());
        rest = after;
        (here, *part)
    });
    let places: Mutex<Vec<(&mut [T], &[T])>> = Mutex::new(places.collect());
    let copy = || {
        while let Some((to, from)) = places.lock().ok().and_then(|mut places| places.pop()) {
            to.copy_from_slice(from);
        }
    };
    thread::scope(|scope| {
        for _ in 1..threads.min(total * size_of::<T>() / LARGE) {
            // One that cannot start leaves its work to the others.
            let _ = thread::Builder::new().spawn_scoped(scope, copy);
        }
        copy();
    });
    Ok(array)
}

// Work without the interpreter, errors and signals

/// Three steps at once: `next` fetches texts with the interpreter, `work` runs on a thread of its own with the texts before
/// and `state`, which comes back at the end, and `after` takes what the work before that gave.
fn pipeline<S: Send, T: Send>(
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

/// What another thread sends, with a look at signals meanwhile.
fn wait<T>(receiver: &Receiver<T>, check: &mut Check) -> CoreResult<T> {
    loop {
        match receiver.recv_timeout(Duration::from_millis(50)) {
            Ok(value) => return Ok(value),
            Err(RecvTimeoutError::Timeout) => check()?,
            Err(RecvTimeoutError::Disconnected) => return Err(Error::Stopped),
        }
    }
}

/// Runs `work` without the interpreter; `check`, called there, sees Ctrl-C.
fn detached<T: Send>(py: Python<'_>, work: impl FnOnce(&mut Check) -> CoreResult<T> + Send) -> PyResult<T> {
    detached_at(py, None, work)
}

/// The same for work that writes to `path`.
fn detached_at<T: Send>(py: Python<'_>, path: Option<&Path>, work: impl FnOnce(&mut Check) -> CoreResult<T> + Send) -> PyResult<T> {
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

fn exception(error: Error) -> PyErr {
    match error {
        Error::Io(error) => error.into(),
        error => PyValueError::new_err(error.to_string()),
    }
}

/// OSError as Python's own functions raise it, with the number and the file.
fn os_error(py: Python<'_>, error: &io::Error, path: &Path) -> PyErr {
    let Some(number) = error.raw_os_error() else { return PyOSError::new_err(format!("{error}: {}", path.display())) };
    let reason = py.import("os").and_then(|os| os.call_method1("strerror", (number,))).map(Bound::unbind);
    match reason {
        Ok(reason) => PyOSError::new_err((number, reason, path.as_os_str().to_owned())),
        Err(error) => error,
    }
}
