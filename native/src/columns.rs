//! Events as columns, as `core/envelopes/columns.py` has them; and the sections that are cut out of them, packed.

use crate::content::Content;
use crate::msgpack;
use crate::reader::Event;
use pyo3::exceptions::PyIndexError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyList};
use xxhash_rust::xxh3::xxh3_64;

const DIGEST: usize = 16;
const NO_VERSION: i64 = i64::MIN;
const MEMBERS: usize = 21; // of a packed section
const MASK_BYTES: usize = 2; // around a mask digest on the wire, at most
const VALUE_BYTES: usize = 5;
const CHARACTER_BYTES: usize = 4;
const SPARE: usize = 16; // events that a partition may have more than its share, before it has to grow

/// A column of rows that hold several values: each row as it travels.
#[derive(Default, Clone)]
struct Packed {
    data: Vec<u8>,
    ends: Vec<usize>,
    /// What each row counts against the limit of a record.
    weights: Vec<usize>,
    /// Rows that hold anything.
    full: usize,
}

impl Packed {
    fn push(&mut self, weight: usize, full: bool, write: impl FnOnce(&mut Vec<u8>)) {
        write(&mut self.data);
        self.ends.push(self.data.len());
        self.weights.push(weight);
        self.full += usize::from(full);
    }

    fn start(&self, row: usize) -> usize {
        if row == 0 {
            0
        } else {
            self.ends[row - 1]
        }
    }

    fn rows(&self, start: usize, end: usize) -> &[u8] {
        &self.data[self.start(start)..self.start(end)]
    }

    fn push_of(&mut self, other: &Packed, row: usize, empty: usize) {
        let bytes = other.rows(row, row + 1);
        self.push(other.weights[row], bytes.len() > empty, |data| data.extend_from_slice(bytes));
    }

    fn masks(&mut self, masks: &[Option<[u8; DIGEST]>]) {
        let weight = masks.iter().map(|mask| MASK_BYTES + mask.map_or(0, |_| DIGEST)).sum();
        self.push(weight, !masks.is_empty(), |data| {
            msgpack::array(data, masks.len());
            for mask in masks {
                msgpack::bin(data, mask.as_ref().map_or(&[], |digest| &digest[..]));
            }
        });
    }

    fn values<T: AsRef<str>>(&mut self, values: &[Option<T>]) {
        let weight_of = |text: &T| CHARACTER_BYTES * text.as_ref().chars().count() + VALUE_BYTES;
        let weight = values.iter().flatten().map(weight_of).sum();
        self.push(weight, !values.is_empty(), |data| {
            msgpack::array(data, values.len());
            for value in values {
                match value {
                    Some(value) => msgpack::text(data, value.as_ref()),
                    None => msgpack::nil(data),
                }
            }
        });
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.push(bytes.len(), !bytes.is_empty(), |data| msgpack::bin(data, bytes));
    }

    /// Pack rows as a section's column: nothing, where no row of the whole section holds anything.
    fn pack(&self, out: &mut Vec<u8>, start: usize, end: usize) {
        if self.full == 0 {
            return msgpack::nil(out);
        }
        msgpack::array(out, end - start);
        out.extend_from_slice(self.rows(start, end));
    }
}

const EMPTY_ROW: usize = 1; // bytes of an empty array
const EMPTY_BYTES: usize = 2; // of no bytes

/// Columns of equal length. `others`: what is no event, by offset; the owner fills it.
#[pyclass]
pub struct Columns {
    keys: Vec<u8>,
    ends: Vec<usize>,
    operations: Vec<u8>,
    offsets: Vec<i64>,
    majors: Vec<i64>,
    minors: Vec<i64>,
    event_times: Vec<i64>,
    append_times: Vec<i64>,
    contents: Vec<u8>,
    digests: Vec<u8>,
    masks: Option<Packed>,
    values: Option<Packed>,
    versions: Option<Vec<Option<i64>>>,
    target_ids: Option<Packed>,
    #[pyo3(get)]
    others: Py<PyList>,
}

type Told<'py> = (
    Bound<'py, PyBytes>,
    u8,
    i64,
    i64,
    i64,
    Bound<'py, PyBytes>,
    Option<Vec<Bound<'py, PyBytes>>>,
    Option<Vec<Option<String>>>,
    Option<i64>,
    Option<Bound<'py, PyBytes>>,
);
type Head = (String, u8, String, i64, i64, u64);

impl Columns {
    /// Append an event that was read from a message.
    pub fn append(&mut self, key: &[u8], event: &Event, offset: i64, stamp: i64) {
        self.keys.extend_from_slice(key);
        self.ends.push(self.keys.len());
        self.operations.push(event.operation);
        self.offsets.push(offset);
        self.majors.push(event.major);
        self.minors.push(event.minor);
        self.event_times.push(event.event_time);
        self.append_times.push(stamp);
        self.append_content(event.content.as_ref());
    }

    fn append_content(&mut self, content: Option<&Content>) {
        self.contents.push(u8::from(content.is_some()));
        self.digests.extend_from_slice(content.map_or(&[0; DIGEST], |content| &content.digest));
        if let Some(masks) = &mut self.masks {
            masks.masks(content.map_or(&[], |content| &content.masks));
        }
        if let Some(values) = &mut self.values {
            values.values(content.map_or(&[], |content| &content.values));
        }
        if let Some(versions) = &mut self.versions {
            versions.push(content.and_then(|content| content.version));
        }
        if let Some(target_ids) = &mut self.target_ids {
            target_ids.bytes(&[]);
        }
    }

    fn key(&self, row: usize) -> &[u8] {
        let start = if row == 0 { 0 } else { self.ends[row - 1] };
        &self.keys[start..self.ends[row]]
    }

    fn push_of(&mut self, other: &Columns, row: usize) {
        self.keys.extend_from_slice(other.key(row));
        self.ends.push(self.keys.len());
        self.operations.push(other.operations[row]);
        self.offsets.push(other.offsets[row]);
        self.majors.push(other.majors[row]);
        self.minors.push(other.minors[row]);
        self.event_times.push(other.event_times[row]);
        self.append_times.push(other.append_times[row]);
        self.contents.push(other.contents[row]);
        self.digests.extend_from_slice(&other.digests[DIGEST * row..DIGEST * (row + 1)]);
        if let (Some(mine), Some(theirs)) = (&mut self.masks, &other.masks) {
            mine.push_of(theirs, row, EMPTY_ROW);
        }
        if let (Some(mine), Some(theirs)) = (&mut self.values, &other.values) {
            mine.push_of(theirs, row, EMPTY_ROW);
        }
        if let (Some(mine), Some(theirs)) = (&mut self.versions, &other.versions) {
            mine.push(theirs[row]);
        }
        if let (Some(mine), Some(theirs)) = (&mut self.target_ids, &other.target_ids) {
            mine.push_of(theirs, row, EMPTY_BYTES);
        }
    }

    /// Columns like these, with room for so many events.
    fn room(&self, count: usize, py: Python<'_>) -> Self {
        let (masks, values) = (self.masks.is_some(), self.values.is_some());
        let mut made = Columns::new(py, masks, values, self.versions.is_some(), self.target_ids.is_some());
        made.keys.reserve(count * (self.keys.len() / self.ends.len().max(1) + 1));
        made.reserve(count);
        made
    }

    /// Make room for so many more events.
    pub fn reserve(&mut self, count: usize) {
        self.ends.reserve(count);
        self.operations.reserve(count);
        for column in [&mut self.offsets, &mut self.majors, &mut self.minors, &mut self.event_times, &mut self.append_times] {
            column.reserve(count);
        }
        self.contents.reserve(count);
        self.digests.reserve(DIGEST * count);
    }

    fn weight(&self, row: usize) -> usize {
        let several = [&self.masks, &self.values, &self.target_ids].into_iter().flatten().map(|column| column.weights[row]);
        self.key(row).len() + DIGEST * usize::from(self.contents[row]) + several.sum::<usize>()
    }

    /// The first place, from `least` on, of the events that share the raw offset at `row`.
    fn begin_of(&self, row: usize, least: usize) -> usize {
        let mut start = row;
        while start > least && self.offsets[start - 1] == self.offsets[row] {
            start -= 1;
        }
        start
    }

    fn cuts_by_number(&self, events_max: usize) -> Vec<usize> {
        let (mut cuts, mut last, mut end) = (vec![0], 0, events_max);
        while end < self.offsets.len() {
            let start = self.begin_of(end, last);
            if start > last {
                cuts.push(start);
                last = start;
                end = start + events_max;
            } else {
                end += 1; // one raw offset has more events than that
            }
        }
        cuts
    }

    fn cuts_by_size(&self, events_max: usize, bytes_max: usize, head_bytes: usize, event_bytes: usize) -> Vec<usize> {
        let (mut cuts, mut last, mut size) = (vec![0], 0, head_bytes);
        for row in 0..self.offsets.len() {
            let weight = event_bytes + self.weight(row);
            if row > last && (row - last >= events_max || size + weight > bytes_max) {
                let start = self.begin_of(row, last);
                if start > last {
                    cuts.push(start);
                    last = start;
                    size = head_bytes + (start..row).map(|at| event_bytes + self.weight(at)).sum::<usize>();
                }
            }
            size += weight;
        }
        cuts
    }
}

#[pymethods]
impl Columns {
    #[new]
    fn new(py: Python<'_>, masks: bool, values: bool, versions: bool, target_ids: bool) -> Self {
        Columns {
            keys: Vec::new(),
            ends: Vec::new(),
            operations: Vec::new(),
            offsets: Vec::new(),
            majors: Vec::new(),
            minors: Vec::new(),
            event_times: Vec::new(),
            append_times: Vec::new(),
            contents: Vec::new(),
            digests: Vec::new(),
            masks: masks.then(Packed::default),
            values: values.then(Packed::default),
            versions: versions.then(Vec::new),
            target_ids: target_ids.then(Packed::default),
            others: PyList::empty(py).unbind(),
        }
    }

    fn __len__(&self) -> usize {
        self.ends.len()
    }

    /// Add one event of the general decoder; offsets must not fall.
    fn add(&mut self, event: Told<'_>, offset: i64, append_time: i64) {
        let (key, operation, major, minor, event_time, digest, masks, values, version, target_id) = event;
        self.keys.extend_from_slice(key.as_bytes());
        self.ends.push(self.keys.len());
        self.operations.push(operation);
        self.offsets.push(offset);
        self.majors.push(major);
        self.minors.push(minor);
        self.event_times.push(event_time);
        self.append_times.push(append_time);
        let digest: Option<[u8; DIGEST]> = digest.as_bytes().try_into().ok();
        self.contents.push(u8::from(digest.is_some()));
        self.digests.extend_from_slice(&digest.unwrap_or([0; DIGEST]));
        if let Some(column) = &mut self.masks {
            let masks: Vec<_> = masks.unwrap_or_default().iter().map(|mask| mask.as_bytes().try_into().ok()).collect();
            column.masks(&masks);
        }
        if let Some(column) = &mut self.values {
            column.values(&values.unwrap_or_default());
        }
        if let Some(column) = &mut self.versions {
            column.push(version);
        }
        if let Some(column) = &mut self.target_ids {
            column.bytes(target_id.as_ref().map_or(&[], |id| id.as_bytes()));
        }
    }

    /// Add all events of other columns of the same shape.
    fn extend(&mut self, other: PyRef<'_, Columns>) {
        for row in 0..other.ends.len() {
            self.push_of(&other, row);
        }
    }

    /// The first place whose offset is not below this one.
    fn place(&self, offset: i64) -> usize {
        self.offsets.partition_point(|&known| known < offset)
    }

    /// Return the last position and the newest time, where positions rise from `highest` on and no event before `offset_from`
    /// or of a snapshot is among them; None: each has to be looked at.
    fn rising(&self, offset_from: i64, highest: (i64, i64), snapshot: u8) -> Option<(i64, i64, i64)> {
        if self.offsets.first()? < &offset_from || self.operations.contains(&snapshot) {
            return None;
        }
        let mut last = highest;
        for here in self.majors.iter().copied().zip(self.minors.iter().copied()) {
            if here < last {
                return None;
            }
            last = here;
        }
        Some((last.0, last.1, *self.event_times.iter().max()?))
    }

    /// Return the events at places from `start` to `end` by the partition that their key lives in; None: it has none.
    fn dealt(&self, py: Python<'_>, partitions: usize, start: usize, end: usize) -> PyResult<Vec<Option<Columns>>> {
        if partitions == 0 || start > end || end > self.ends.len() {
            return Err(PyIndexError::new_err("There are no such places."));
        }
        let mut found: Vec<Option<Columns>> = (0..partitions).map(|_| None).collect();
        for row in start..end {
            let partition = (xxh3_64(self.key(row)) % partitions as u64) as usize;
            found[partition].get_or_insert_with(|| self.room((end - start) / partitions + SPARE, py)).push_of(self, row);
        }
        Ok(found)
    }

    /// What the events at these places count against the limit of a record, without what each costs at least.
    fn size(&self, start: usize, end: usize) -> usize {
        (start..end).map(|row| self.weight(row)).sum()
    }

    /// Where the parts begin that a section of all events is cut into.
    fn cuts(&self, events_max: usize, bytes_max: usize, head_bytes: usize, event_bytes: usize) -> Vec<usize> {
        let count = self.ends.len();
        if head_bytes + event_bytes * count + self.size(0, count) > bytes_max {
            return self.cuts_by_size(events_max, bytes_max, head_bytes, event_bytes);
        }
        if count <= events_max {
            return vec![0];
        }
        self.cuts_by_number(events_max)
    }

    /// The section of the events at these places, as it travels. `head`: pipeline, side, feed, its partition, epoch, mapping.
    fn pack<'py>(&self, py: Python<'py>, head: Head, range: (i64, i64), start: usize, end: usize) -> Bound<'py, PyBytes> {
        let count = end - start;
        let mut out = Vec::with_capacity(256 + count * (96 + self.keys.len() / self.ends.len().max(1)));
        msgpack::array(&mut out, MEMBERS);
        let (pipeline, side, feed, partition, epoch, mapping) = head;
        msgpack::text(&mut out, &pipeline);
        msgpack::int(&mut out, side.into());
        msgpack::text(&mut out, &feed);
        for number in [partition.into(), epoch.into(), mapping.into(), range.0.into(), range.1.into()] {
            msgpack::int(&mut out, number);
        }
        msgpack::array(&mut out, count);
        for row in start..end {
            msgpack::bin(&mut out, self.key(row));
        }
        msgpack::bin(&mut out, &self.operations[start..end]);
        for column in [&self.offsets, &self.majors, &self.minors, &self.event_times, &self.append_times] {
            msgpack::numbers(&mut out, &column[start..end]);
        }
        msgpack::bin(&mut out, &self.contents[start..end]);
        msgpack::bin(&mut out, &self.digests[DIGEST * start..DIGEST * end]);
        for column in [&self.masks, &self.values] {
            match column {
                Some(column) => column.pack(&mut out, start, end),
                None => msgpack::nil(&mut out),
            }
        }
        match &self.versions {
            Some(versions) if versions.iter().any(Option::is_some) => {
                let known: Vec<i64> = versions[start..end].iter().map(|version| version.unwrap_or(NO_VERSION)).collect();
                msgpack::numbers(&mut out, &known);
            }
            _ => msgpack::nil(&mut out),
        }
        match &self.target_ids {
            Some(column) => column.pack(&mut out, start, end),
            None => msgpack::nil(&mut out),
        }
        PyBytes::new(py, &out)
    }

    #[getter]
    fn offsets(&self) -> Vec<i64> {
        self.offsets.clone()
    }

    #[getter]
    fn majors(&self) -> Vec<i64> {
        self.majors.clone()
    }

    #[getter]
    fn minors(&self) -> Vec<i64> {
        self.minors.clone()
    }

    #[getter]
    fn event_times(&self) -> Vec<i64> {
        self.event_times.clone()
    }

    #[getter]
    fn operations<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.operations)
    }

    /// All columns by name: lists; `masks`, `values` and `target_ids` as msgpack.
    fn lists<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let found = PyDict::new(py);
        let count = self.ends.len();
        found.set_item("keys", PyList::new(py, (0..count).map(|row| PyBytes::new(py, self.key(row))))?)?;
        found.set_item("operations", PyList::new(py, &self.operations)?)?;
        found.set_item("offsets", &self.offsets)?;
        found.set_item("majors", &self.majors)?;
        found.set_item("minors", &self.minors)?;
        found.set_item("event_times", &self.event_times)?;
        found.set_item("append_times", &self.append_times)?;
        let digest = |row: usize| -> &[u8] {
            if self.contents[row] == 0 {
                &[]
            } else {
                &self.digests[DIGEST * row..DIGEST * (row + 1)]
            }
        };
        found.set_item("digests", PyList::new(py, (0..count).map(|row| PyBytes::new(py, digest(row))))?)?;
        for (name, column) in [("masks", &self.masks), ("values", &self.values), ("target_ids", &self.target_ids)] {
            let packed = column.as_ref().map(|column| {
                let mut out = Vec::new();
                msgpack::array(&mut out, count);
                out.extend_from_slice(&column.data);
                out
            });
            found.set_item(name, packed.map(|packed| PyBytes::new(py, &packed)))?;
        }
        found.set_item("versions", &self.versions)?;
        Ok(found)
    }
}
