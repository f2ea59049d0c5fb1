//! What a consumer has fetched, taken from librdkafka without an object for each message.
//!
//! The consumer stays the Python client's: it joins groups, seeks, pauses and commits. librdkafka tells of its handle while it is
//! made, by an interceptor, which this module adds as a plugin (`plugin.library.paths`); and the partitions' queues are forwarded to
//! one of our own, in which nothing but messages, ends and errors of partitions arrive.

use crate::librdkafka::{interface, owned, Interface, Message};
use pyo3::exceptions::{PyIndexError, PyRuntimeError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PySlice};
use std::cell::{Cell, Ref, RefCell};
use std::collections::HashMap;
use std::ffi::{c_char, c_int, c_void, CString};
use std::sync::{Arc, Mutex, Weak};

const NO_MESSAGE: c_int = 0;
const PARTITION_END: c_int = -191; // RD_KAFKA_RESP_ERR__PARTITION_EOF
const FETCHED_MAX: usize = 100_000; // messages of one call

thread_local! {
    static MADE: Cell<*mut c_void> = const { Cell::new(std::ptr::null_mut()) }; // the newest client of this thread
}

/// Called by librdkafka when it loads this module as a plugin.
///
/// # Safety
/// `conf` is a configuration of librdkafka's.
#[no_mangle]
pub unsafe extern "C" fn conf_init(conf: *mut c_void, _plugin: *mut *mut c_void, _error: *mut c_char, _size: usize) -> c_int {
    match interface() {
        Some(kafka) => (kafka.add_on_new)(conf, c"gapwatch".as_ptr(), on_new, std::ptr::null_mut()),
        None => 0,
    }
}

unsafe extern "C" fn on_new(client: *mut c_void, _: *const c_void, _: *mut c_void, _: *mut c_char, _: usize) -> c_int {
    MADE.set(client);
    0
}

/// Messages of one call. They are touched with the GIL only.
pub struct Held {
    kafka: &'static Interface,
    messages: RefCell<Vec<*mut Message>>,
}

// SAFETY: whoever has one is a Python object, and has the GIL when it looks into it.
unsafe impl Send for Held {}
unsafe impl Sync for Held {}

impl Held {
    fn free(&self) {
        if let Ok(mut messages) = self.messages.try_borrow_mut() {
            for message in messages.drain(..) {
                // SAFETY: it is ours, and is given back once.
                unsafe { (self.kafka.destroy)(message) };
            }
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.free();
    }
}

fn gone() -> PyErr {
    PyRuntimeError::new_err("The consumer of this message is closed.")
}

/// Messages of one partition in the order of their offsets: a sequence of them.
#[pyclass(sequence, frozen)]
pub struct Run {
    held: Arc<Held>,
    start: usize,
    end: usize,
}

/// What a message brought, while it is borrowed.
pub struct Brought<'a> {
    pub value: Option<&'a [u8]>,
    pub key: Option<&'a [u8]>,
    pub offset: i64,
    pub stamp: i64,
}

impl Run {
    pub fn count(&self) -> usize {
        self.end - self.start
    }

    pub fn part(&self, start: usize, end: usize) -> Run {
        Run { held: self.held.clone(), start: self.start + start, end: self.start + end }
    }

    /// Return the messages; they stay as long as they are borrowed.
    pub fn messages(&self) -> PyResult<Messages<'_>> {
        let messages = self.held.messages.try_borrow().map_err(|_| gone())?;
        if messages.len() < self.end {
            return Err(gone());
        }
        Ok(Messages { kafka: self.held.kafka, messages, start: self.start })
    }
}

pub struct Messages<'a> {
    kafka: &'static Interface,
    messages: Ref<'a, Vec<*mut Message>>,
    start: usize,
}

impl Messages<'_> {
    fn raw(&self, at: usize) -> &Message {
        // SAFETY: it is given back only when nobody borrows the vector.
        unsafe { &*self.messages[self.start + at] }
    }

    pub fn brought(&self, at: usize) -> Brought<'_> {
        let message = self.raw(at);
        let mut kind = 0;
        Brought {
            value: bytes_at(message.payload, message.size),
            key: bytes_at(message.key, message.key_size),
            offset: message.offset,
            // SAFETY: it is a message of librdkafka's.
            stamp: unsafe { (self.kafka.timestamp)(message, &mut kind) },
        }
    }
}

fn bytes_at<'a>(start: *const u8, size: usize) -> Option<&'a [u8]> {
    // SAFETY: librdkafka says that so many bytes stand there.
    (!start.is_null()).then(|| unsafe { std::slice::from_raw_parts(start, size) })
}

#[pymethods]
impl Run {
    fn __len__(&self) -> usize {
        self.count()
    }

    fn __getitem__<'py>(&self, py: Python<'py>, at: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        let count = self.count() as isize;
        if let Ok(slice) = at.downcast::<PySlice>() {
            let part = slice.indices(count)?;
            if part.step != 1 {
                return Err(PyIndexError::new_err("Messages are taken in their order."));
            }
            let (start, end) = (part.start as usize, part.stop.max(part.start) as usize);
            return Ok(Bound::new(py, self.part(start, end))?.into_any());
        }
        let at: isize = at.extract()?;
        let place = if at < 0 { at + count } else { at };
        if place < 0 || place >= count {
            return Err(PyIndexError::new_err("There is no such message."));
        }
        let record = Record { held: self.held.clone(), at: self.start + place as usize };
        Ok(Bound::new(py, record)?.into_any())
    }
}

/// One message, as the Python client's own are asked.
#[pyclass(frozen)]
pub struct Record {
    held: Arc<Held>,
    at: usize,
}

impl Record {
    fn ask<T>(&self, ask: impl FnOnce(&Interface, &Message) -> T) -> PyResult<T> {
        let messages = self.held.messages.try_borrow().map_err(|_| gone())?;
        let message = messages.get(self.at).ok_or_else(gone)?;
        // SAFETY: it is given back only when nobody borrows the vector.
        Ok(ask(self.held.kafka, unsafe { &**message }))
    }
}

type Header<'py> = (String, Option<Bound<'py, PyBytes>>);

#[pymethods]
impl Record {
    fn error(&self) -> Option<bool> {
        None
    }

    fn topic(&self) -> PyResult<String> {
        // SAFETY: a message has a topic.
        self.ask(|kafka, message| unsafe { owned((kafka.topic_name)(message.topic)) })
    }

    fn partition(&self) -> PyResult<i32> {
        self.ask(|_, message| message.partition)
    }

    fn offset(&self) -> PyResult<i64> {
        self.ask(|_, message| message.offset)
    }

    fn timestamp(&self) -> PyResult<(c_int, i64)> {
        self.ask(|kafka, message| {
            let mut kind = 0;
            // SAFETY: it is a message of librdkafka's.
            let time = unsafe { (kafka.timestamp)(message, &mut kind) };
            (kind, time)
        })
    }

    fn key<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyBytes>>> {
        self.ask(|_, message| bytes_at(message.key, message.key_size).map(|key| PyBytes::new(py, key)))
    }

    fn value<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyBytes>>> {
        self.ask(|_, message| bytes_at(message.payload, message.size).map(|value| PyBytes::new(py, value)))
    }

    fn headers<'py>(&self, py: Python<'py>) -> PyResult<Option<Vec<Header<'py>>>> {
        self.ask(|kafka, message| {
            let mut headers = std::ptr::null_mut();
            let mut found = Vec::new();
            // SAFETY: librdkafka fills what it is given, and ends the list with an error.
            unsafe {
                if (kafka.headers)(message, &mut headers) != NO_MESSAGE || headers.is_null() {
                    return None;
                }
                let (mut name, mut value, mut size) = (std::ptr::null(), std::ptr::null(), 0);
                while (kafka.header)(headers, found.len(), &mut name, &mut value, &mut size) == 0 {
                    found.push((owned(name), bytes_at(value, size).map(|value| PyBytes::new(py, value))));
                }
            }
            Some(found)
        })
    }
}

/// Messages that nobody has looked at yet.
struct Pile(Vec<*mut Message>);

// SAFETY: librdkafka's messages belong to no thread.
unsafe impl Send for Pile {}

/// A queue of librdkafka's, and what was forwarded to it. One thread is in here at a time.
struct Queue {
    kafka: &'static Interface,
    client: *mut c_void,
    queue: *mut c_void,
    forwarded: HashMap<At, *mut c_void>,
    buffer: Vec<*mut Message>,
}

// SAFETY: librdkafka's queues belong to no thread.
unsafe impl Send for Queue {}

impl Queue {
    fn forward(&mut self, topic: &str, partition: i32) -> bool {
        let Ok(name) = CString::new(topic) else { return false };
        // SAFETY: client and queue live until this is dropped; a queue of theirs is given back once.
        unsafe {
            let theirs = (self.kafka.queue_of)(self.client, name.as_ptr(), partition);
            if theirs.is_null() {
                return false;
            }
            (self.kafka.queue_forward)(theirs, self.queue);
            if let Some(before) = self.forwarded.insert((topic.to_owned(), partition), theirs) {
                (self.kafka.queue_destroy)(before);
            }
        }
        true
    }

    fn fetch(&mut self, limit: usize, timeout_ms: c_int) -> Pile {
        self.buffer.resize(limit.min(FETCHED_MAX), std::ptr::null_mut());
        // SAFETY: so many places are there.
        let count = unsafe { (self.kafka.consume)(self.queue, timeout_ms, self.buffer.as_mut_ptr(), self.buffer.len()) };
        Pile(self.buffer[..count.max(0) as usize].to_vec())
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        // SAFETY: each is given back once, and the client still lives.
        unsafe {
            for &theirs in self.forwarded.values() {
                (self.kafka.queue_forward)(theirs, std::ptr::null_mut());
                (self.kafka.queue_destroy)(theirs);
            }
            (self.kafka.queue_destroy)(self.queue);
        }
    }
}

/// Fetches for a consumer. It has to be closed before that is; then no message can be looked at any more.
#[pyclass(frozen)]
pub struct Fetcher {
    queue: Mutex<Option<Queue>>,
    held: Mutex<Vec<Weak<Held>>>,
    #[pyo3(get)]
    consumer: Py<PyAny>, // dropped after the queue
}

type At = (String, i32);
type Fetched = (Vec<(String, i32, Run)>, Vec<(String, i32, i64)>, Vec<(Option<At>, c_int, String)>);

impl Fetcher {
    fn with<T>(&self, act: impl FnOnce(&mut Queue) -> T) -> PyResult<T> {
        let mut queue = self.queue.lock().map_err(|_| gone())?;
        queue.as_mut().map(act).ok_or_else(gone)
    }
}

/// What one call brought, by what it is.
struct Sorted {
    kafka: &'static Interface,
    runs: Vec<(At, Vec<*mut Message>)>,
    ends: Vec<(String, i32, i64)>,
    faults: Vec<(Option<At>, c_int, String)>,
}

impl Sorted {
    fn of(kafka: &'static Interface, messages: Vec<*mut Message>) -> Self {
        let mut sorted = Sorted { kafka, runs: Vec::new(), ends: Vec::new(), faults: Vec::new() };
        let (mut last, mut run) = ((std::ptr::null_mut(), -1), 0);
        for pointer in messages {
            // SAFETY: it is a message that was fetched and not yet given back.
            let message = unsafe { &*pointer };
            if message.error != NO_MESSAGE {
                sorted.note(message);
                // SAFETY: as above; nobody looks at it any more.
                unsafe { (kafka.destroy)(pointer) };
                continue;
            }
            let here = (message.topic, message.partition);
            if here != last {
                last = here;
                run = sorted.run(message);
            }
            sorted.runs[run].1.push(pointer);
        }
        sorted
    }

    fn topic(&self, message: &Message) -> String {
        // SAFETY: a topic has a name.
        unsafe { owned((self.kafka.topic_name)(message.topic)) }
    }

    fn run(&mut self, message: &Message) -> usize {
        let at = (self.topic(message), message.partition);
        if let Some(known) = self.runs.iter().position(|(known, _)| *known == at) {
            return known;
        }
        self.runs.push((at, Vec::new()));
        self.runs.len() - 1
    }

    fn note(&mut self, message: &Message) {
        let topic = (!message.topic.is_null()).then(|| self.topic(message));
        match topic {
            Some(topic) if message.error == PARTITION_END => self.ends.push((topic, message.partition, message.offset)),
            topic => {
                // SAFETY: it is a message of librdkafka's.
                let text = unsafe { owned((self.kafka.error_text)(message)) };
                self.faults.push((topic.map(|topic| (topic, message.partition)), message.error, text));
            }
        }
    }
}

#[pymethods]
impl Fetcher {
    /// Let `make` make a consumer that loads this module as a plugin, and fetch for it.
    #[new]
    fn new(make: &Bound<'_, PyAny>) -> PyResult<Self> {
        let kafka = interface().ok_or_else(|| PyRuntimeError::new_err("There is no librdkafka that could be used."))?;
        MADE.set(std::ptr::null_mut());
        let consumer = make.call0()?;
        let client = MADE.replace(std::ptr::null_mut());
        if client.is_null() {
            return Err(PyRuntimeError::new_err("The consumer did not load the plugin."));
        }
        // SAFETY: the client was made just now, and lives as long as the consumer.
        let queue = unsafe { (kafka.queue_new)(client) };
        let queue = Queue { kafka, client, queue, forwarded: HashMap::new(), buffer: Vec::new() };
        Ok(Fetcher { queue: Mutex::new(Some(queue)), held: Mutex::new(Vec::new()), consumer: consumer.unbind() })
    }

    /// Whether there is a librdkafka that could be used.
    #[staticmethod]
    fn available() -> bool {
        interface().is_some()
    }

    /// Have these partitions' messages arrive here; before they are assigned. False: one of them is not known.
    fn forward(&self, py: Python<'_>, partitions: Vec<(String, i32)>) -> PyResult<bool> {
        py.detach(|| self.with(|queue| partitions.iter().all(|(topic, partition)| queue.forward(topic, *partition))))
    }

    /// Return what arrived within so many seconds, up to `limit` messages: runs by partition, ends of partitions that were
    /// reached, and errors with their codes.
    fn fetch(&self, py: Python<'_>, limit: usize, seconds: f64) -> PyResult<Fetched> {
        let timeout_ms = (seconds.clamp(0.0, 3_600.0) * 1_000.0) as c_int;
        let (kafka, Pile(messages)) = py.detach(|| self.with(|queue| (queue.kafka, queue.fetch(limit, timeout_ms))))?;
        let sorted = Sorted::of(kafka, messages);
        let mut known = self.held.lock().map_err(|_| gone())?;
        known.retain(|held| held.strong_count() > 0);
        let mut runs = Vec::with_capacity(sorted.runs.len());
        for ((topic, partition), messages) in sorted.runs {
            let end = messages.len();
            let held = Arc::new(Held { kafka, messages: RefCell::new(messages) });
            known.push(Arc::downgrade(&held));
            runs.push((topic, partition, Run { held, start: 0, end }));
        }
        Ok((runs, sorted.ends, sorted.faults))
    }

    /// Give everything back to librdkafka.
    fn close(&self, py: Python<'_>) -> PyResult<()> {
        py.detach(|| self.queue.lock().map(|mut queue| drop(queue.take())).map_err(|_| gone()))?;
        for held in self.held.lock().map_err(|_| gone())?.drain(..) {
            if let Some(held) = held.upgrade() {
                held.free();
            }
        }
        Ok(())
    }
}
