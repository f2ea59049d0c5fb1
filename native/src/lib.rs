//! The compiled hot path of Gapwatch's ingest: whole batches of Debezium's records become columns.
//!
//! It reads what is usual and declines everything else: what it declines, the Python loops read, and they alone say what is
//! wrong with a record. Nothing here may guess.

mod canonical;
mod content;
mod envelope;
mod json;
mod keys;
mod layout;
mod plan;
mod reader;

use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyList, PyTuple};

/// Of plan, columns and canonical form; raised with every change of one of them.
const INTERFACE: u32 = 1;

/// The lists of an `EventColumns`.
struct Columns<'py> {
    keys: Bound<'py, PyList>,
    operations: Bound<'py, PyList>,
    offsets: Bound<'py, PyList>,
    majors: Bound<'py, PyList>,
    minors: Bound<'py, PyList>,
    event_times: Bound<'py, PyList>,
    append_times: Bound<'py, PyList>,
    digests: Bound<'py, PyList>,
    masks: Option<Bound<'py, PyList>>,
    values: Option<Bound<'py, PyList>>,
    versions: Option<Bound<'py, PyList>>,
    target_ids: Option<Bound<'py, PyList>>,
    nothing: Bound<'py, PyBytes>,
    none: Bound<'py, PyTuple>,
}

fn column<'py>(out: &Bound<'py, PyAny>, name: &str, there: bool) -> PyResult<Option<Bound<'py, PyList>>> {
    if there {
        Ok(Some(out.getattr(name)?.downcast_into()?))
    } else {
        Ok(None)
    }
}

impl<'py> Columns<'py> {
    fn new(py: Python<'py>, plan: &plan::Plan, out: &Bound<'py, PyAny>) -> PyResult<Self> {
        let list = |name: &str| -> PyResult<Bound<'py, PyList>> { Ok(out.getattr(name)?.downcast_into()?) };
        Ok(Columns {
            keys: list("keys")?,
            operations: list("operations")?,
            offsets: list("offsets")?,
            majors: list("majors")?,
            minors: list("minors")?,
            event_times: list("event_times")?,
            append_times: list("append_times")?,
            digests: list("digests")?,
            masks: column(out, "masks", plan.has_masks)?,
            values: column(out, "values", plan.has_values)?,
            versions: column(out, "versions", plan.has_versions)?,
            target_ids: column(out, "target_ids", plan.has_target_ids)?,
            nothing: PyBytes::new(py, b""),
            none: PyTuple::empty(py),
        })
    }

    fn add(
        &self,
        py: Python<'py>,
        key: &[u8],
        event: reader::Event,
        offset: &Bound<'py, PyAny>,
        stamp: &Bound<'py, PyAny>,
    ) -> PyResult<()> {
        self.keys.append(PyBytes::new(py, key))?;
        self.operations.append(event.operation)?;
        self.offsets.append(offset)?;
        self.majors.append(event.major)?;
        self.minors.append(event.minor)?;
        self.event_times.append(event.event_time)?;
        self.append_times.append(stamp)?;
        match &event.content {
            Some(content) => self.digests.append(PyBytes::new(py, &content.digest))?,
            None => self.digests.append(&self.nothing)?,
        }
        self.add_optional(py, event.content)
    }

    fn add_optional(&self, py: Python<'py>, content: Option<content::Content>) -> PyResult<()> {
        if let Some(masks) = &self.masks {
            match &content {
                Some(content) => {
                    let made = content.masks.iter().map(|mask| match mask {
                        Some(digest) => PyBytes::new(py, digest),
                        None => self.nothing.clone(),
                    });
                    masks.append(PyTuple::new(py, made.collect::<Vec<_>>())?)?;
                }
                None => masks.append(&self.none)?,
            }
        }
        if let Some(values) = &self.values {
            match &content {
                Some(content) => values.append(PyTuple::new(py, &content.values)?)?,
                None => values.append(&self.none)?,
            }
        }
        if let Some(versions) = &self.versions {
            versions.append(content.as_ref().and_then(|content| content.version))?;
        }
        if let Some(target_ids) = &self.target_ids {
            target_ids.append(&self.nothing)?;
        }
        Ok(())
    }
}

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

    /// Append what the messages say to the columns of `out`. Runs of messages that are not read are handed to `declined`, in
    /// their place: it appends what they say. Returns how many were read.
    #[allow(clippy::too_many_arguments)]
    fn read<'py>(
        &mut self,
        py: Python<'py>,
        messages: &Bound<'py, PyList>,
        values: &Bound<'py, PyList>,
        keys: &Bound<'py, PyList>,
        offsets: &Bound<'py, PyList>,
        stamps: &Bound<'py, PyList>,
        out: &Bound<'py, PyAny>,
        declined: &Bound<'py, PyAny>,
    ) -> PyResult<usize> {
        let columns = Columns::new(py, &self.plan, out)?;
        let (mut read, mut waiting) = (0, 0); // messages before the current one that were declined one after the other
        for at in 0..messages.len() {
            let (offset, stamp) = (offsets.get_item(at)?, stamps.get_item(at)?);
            let (value, key) = (values.get_item(at)?, keys.get_item(at)?);
            let event = match (value.downcast::<PyBytes>(), key.downcast::<PyBytes>()) {
                (Ok(value), Ok(key)) => self.reader.read(py, &self.plan, value.as_bytes(), key.as_bytes(), offset.extract()?),
                _ => Err(json::Decline),
            };
            let Ok(event) = event else {
                waiting += 1;
                continue;
            };
            if waiting > 0 {
                declined.call1((messages.get_slice(at - waiting, at),))?;
                waiting = 0;
            }
            columns.add(py, &self.reader.key, event, &offset, &stamp)?;
            read += 1;
        }
        if waiting > 0 {
            declined.call1((messages.get_slice(messages.len() - waiting, messages.len()),))?;
        }
        Ok(read)
    }
}

#[pymodule]
fn gapwatch_native(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("INTERFACE", INTERFACE)?;
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    module.add_class::<Loop>()
}
