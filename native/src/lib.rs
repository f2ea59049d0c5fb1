//! The compiled hot path of Gapwatch: whole batches of Debezium's records become columns, and whole sections change rows of keys.
//!
//! It reads what is usual and declines everything else: what it declines, the Python loops read, and they alone say what is
//! wrong with a record. Nothing here may guess.

mod canonical;
mod columns;
mod content;
mod envelope;
mod fetch;
mod json;
mod keys;
mod layout;
mod librdkafka;
mod msgpack;
mod plan;
mod reader;
mod rows;

use columns::Columns;
use fetch::{Brought, Run};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyList};

/// Of plan, columns, canonical form, sections and rows; raised with every change of one of them.
const INTERFACE: u32 = 3;

/// Reads the batches of one feed, as its plan says. One owner.
#[pyclass]
struct Loop {
    plan: plan::Plan,
    reader: reader::Reader,
}

#[pymethods]
impl Loop {
    #[new]
    fn new(plan: &Bound<'_, PyDict>) -> PyResult<Self> {
        Ok(Loop { plan: plan::Plan::new(plan)?, reader: reader::Reader::default() })
    }

    /// Append what messages of the Python client say to `out`. Runs of messages that are not read are handed to `declined`, in
    /// their place, as columns that it has to fill. Returns how many were read.
    #[allow(clippy::too_many_arguments)]
    fn read<'py>(
        &mut self,
        py: Python<'py>,
        messages: &Bound<'py, PyList>,
        values: &Bound<'py, PyList>,
        keys: &Bound<'py, PyList>,
        offsets: Vec<i64>,
        stamps: Vec<i64>,
        out: &Bound<'py, Columns>,
        declined: &Bound<'py, PyAny>,
    ) -> PyResult<usize> {
        let mut run = Declined { count: 0, read: 0 };
        for at in 0..messages.len() {
            let (value, key) = (values.get_item(at)?, keys.get_item(at)?);
            let (value, key) = (value.downcast::<PyBytes>().ok(), key.downcast::<PyBytes>().ok());
            let brought = Brought {
                value: value.map(|value| value.as_bytes()),
                key: key.map(|key| key.as_bytes()),
                offset: offsets[at],
                stamp: stamps[at],
            };
            let hand = |start, end| Ok(declined.call1((messages.get_slice(start, end),)).map(|_| ())?);
            self.one(py, at, &brought, out, &mut run, hand)?;
        }
        if run.count > 0 {
            declined.call1((messages.get_slice(messages.len() - run.count, messages.len()),))?;
        }
        Ok(run.read)
    }

    /// As `read`, of messages that were fetched by this module.
    fn read_run<'py>(
        &mut self,
        py: Python<'py>,
        messages: PyRef<'py, Run>,
        out: &Bound<'py, Columns>,
        declined: &Bound<'py, PyAny>,
    ) -> PyResult<usize> {
        let (held, count) = (messages.messages()?, messages.count());
        let mut run = Declined { count: 0, read: 0 };
        for at in 0..count {
            let hand = |start, end| declined.call1((messages.part(start, end),)).map(|_| ());
            self.one(py, at, &held.brought(at), out, &mut run, hand)?;
        }
        if run.count > 0 {
            declined.call1((messages.part(count - run.count, count),))?;
        }
        Ok(run.read)
    }
}

/// Messages before the current one that were declined one after the other; and how many were read.
struct Declined {
    count: usize,
    read: usize,
}

impl Loop {
    #[inline]
    fn one<'py>(
        &mut self,
        py: Python<'py>,
        at: usize,
        brought: &Brought<'_>,
        out: &Bound<'py, Columns>,
        run: &mut Declined,
        hand: impl FnOnce(usize, usize) -> PyResult<()>,
    ) -> PyResult<()> {
        let event = match (brought.value, brought.key) {
            (Some(value), Some(key)) => self.reader.read(py, &self.plan, value, key, brought.offset),
            _ => Err(json::Decline),
        };
        let Ok(event) = event else {
            run.count += 1;
            return Ok(());
        };
        if run.count > 0 {
            hand(at - run.count, at)?;
            run.count = 0;
        }
        out.borrow_mut().append(&self.reader.key, &event, brought.offset, brought.stamp);
        run.read += 1;
        Ok(())
    }
}

#[pymodule]
fn gapwatch_native(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("INTERFACE", INTERFACE)?;
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    module.add_class::<Columns>()?;
    module.add_class::<fetch::Fetcher>()?;
    module.add_class::<Run>()?;
    module.add_class::<rows::Rows>()?;
    module.add_function(wrap_pyfunction!(rows::late, module)?)?;
    module.add_function(wrap_pyfunction!(rows::planes, module)?)?;
    module.add_class::<Loop>()
}
