//! The rows of `core/keyrows.py`, changed in place: sections of writes are opened, updated, joined and settled in one pass each.
//!
//! It decides the common cases alone, as `core/hotpath.py` does by columns; what it leaves goes to the general path. The columns
//! stay Python's: they are borrowed for as long as this object lives, and touched by one thread, which holds the interpreter.

use pyo3::buffer::{Element, PyBuffer};
use pyo3::exceptions::{PyBufferError, PyIndexError, PyValueError};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyList};
use std::collections::{HashMap, HashSet};

const HEAD: usize = 7; // words of a write before its identity
const LONE: [u8; 2] = [6, 7]; // ALONE, ALONE_PARKED
const PENDING: u8 = 1;
const PARKED: u8 = 2;
const SETTLED: u8 = 3;
const ALONE: u8 = 6;
const UPDATED: u8 = 9;
const DELETE: u8 = 2;
const SNAPSHOT: u8 = 3;
const LAST_PLAIN: u8 = DELETE;
const UNKNOWN_MAPPING: u8 = 255;
const UNSAVED: u32 = u32::MAX;
const BLOCK_BITS: usize = 12;
const OLDER_MAX: usize = 5;
const OLDER_WHEN_SETTLED: u8 = 4;
const DIGEST: usize = 16;

/// A column of Python's that nobody else changes meanwhile.
struct Column<T: Element> {
    at: *mut T,
    length: usize,
    _held: PyBuffer<T>,
}

// The pointer is Python's memory, which the buffer keeps; every use holds the interpreter.
unsafe impl<T: Element> Send for Column<T> {}
unsafe impl<T: Element> Sync for Column<T> {}

impl<T: Element> Column<T> {
    fn new(object: &Bound<'_, PyAny>) -> PyResult<Self> {
        let held = PyBuffer::<T>::get(object)?;
        if held.readonly() || !held.is_c_contiguous() {
            return Err(PyBufferError::new_err("A column has to be writable and in one piece."));
        }
        Ok(Column { at: held.buf_ptr().cast(), length: held.item_count(), _held: held })
    }

    #[inline]
    fn all(&mut self) -> &mut [T] {
        unsafe { std::slice::from_raw_parts_mut(self.at, self.length) }
    }
}

/// One write, as a row holds it.
#[derive(Clone, Copy)]
struct Head([u64; HEAD]);

impl Head {
    #[inline]
    fn of(words: &[u64]) -> Self {
        let mut head = [0; HEAD];
        head.copy_from_slice(&words[..HEAD]);
        Head(head)
    }
    #[inline]
    fn operation(&self) -> u8 {
        self.0[0] as u8
    }
    #[inline]
    fn mapping(&self) -> u8 {
        (self.0[0] >> 16) as u8
    }
    #[inline]
    fn parts(&self) -> u8 {
        (self.0[0] >> 32) as u8
    }
    #[inline]
    fn token(&self) -> (u32, i64, i64) {
        (self.0[1] as u32, self.0[2] as i64, self.0[3] as i64)
    }
    #[inline]
    fn event_time(&self) -> i64 {
        self.0[5] as i64
    }
    #[inline]
    fn due(&self) -> i64 {
        self.0[6] as i64
    }
    /// Whether it has a higher token than the other one, which may be blank.
    #[inline]
    fn is_newer(&self, known: &Head) -> bool {
        known.operation() == 0 || self.token() > known.token()
    }
}

/// Whether a key's one write is exactly what came, in all of its fields; a field that neither carries is not proven.
fn answers(held: &[u64], shown: &[u64]) -> bool {
    let (one, other) = (Head::of(held), Head::of(shown));
    one.operation() == other.operation()
        && one.mapping() == other.mapping()
        && one.parts() == other.parts()
        && other.operation() <= LAST_PLAIN
        && other.mapping() != UNKNOWN_MAPPING
        && held[HEAD..] == shown[HEAD..]
        && (other.parts() == 0 || held[HEAD + 2..].chunks_exact(2).all(|part| part != [0, 0]))
}

/// Whether it is a delete, or leaves no field out.
fn is_whole(new: &[u64]) -> bool {
    let head = Head::of(new);
    if head.parts() == 0 {
        return head.operation() == DELETE;
    }
    new[HEAD + 2..].chunks_exact(2).all(|part| part != [0, 0])
}

/// Whether what the target shows, with the content that was expected before, could be what is expected now.
fn might_show(shown: &Head, held: &[u64], new: &[u64]) -> bool {
    let parts = Head::of(new).parts();
    if shown.operation() == 0 || (shown.parts() > 0) != (parts > 0) {
        return false;
    }
    let pairs = held[HEAD..].chunks_exact(2).zip(new[HEAD..].chunks_exact(2));
    parts == 0 || pairs.enumerate().all(|(part, (one, other))| one == other || (part > 0 && one == [0, 0]))
}

/// A section's columns, borrowed from its bytes.
struct Section<'py> {
    first: u64,
    epoch: u64,
    keys: Bound<'py, PyList>,
    operations: Bound<'py, PyBytes>,
    contents: Bound<'py, PyBytes>,
    digests: Bound<'py, PyBytes>,
    numbers: [Bound<'py, PyBytes>; 5], // majors, minors, offsets, event times, append times
    masks: Option<Bound<'py, PyList>>,
}

impl<'py> Section<'py> {
    /// `told`: the first word of its writes without operation and parts; and the section.
    fn new(told: &Bound<'py, PyAny>) -> PyResult<Self> {
        let (first, section): (u64, Bound<'py, PyAny>) = told.extract()?;
        let py = told.py();
        let bytes = |name: &Bound<'py, pyo3::types::PyString>| -> PyResult<Bound<'py, PyBytes>> {
            Ok(section.getattr(name)?.downcast_into::<PyBytes>()?)
        };
        let masks = section.getattr(intern!(py, "masks"))?;
        let made = Section {
            first,
            epoch: section.getattr(intern!(py, "epoch"))?.extract::<u32>()?.into(),
            keys: section.getattr(intern!(py, "keys"))?.downcast_into::<PyList>()?,
            operations: bytes(intern!(py, "operations"))?,
            contents: bytes(intern!(py, "contents"))?,
            digests: bytes(intern!(py, "digests"))?,
            numbers: [
                bytes(intern!(py, "majors"))?,
                bytes(intern!(py, "minors"))?,
                bytes(intern!(py, "offsets"))?,
                bytes(intern!(py, "event_times"))?,
                bytes(intern!(py, "append_times"))?,
            ],
            masks: if masks.is_none() { None } else { Some(masks.downcast_into::<PyList>()?) },
        };
        let count = made.keys.len();
        let whole = made.operations.as_bytes().len() == count
            && made.contents.as_bytes().len() == count
            && made.digests.as_bytes().len() == DIGEST * count
            && made.numbers.iter().all(|column| column.as_bytes().len() == 8 * count)
            && made.masks.as_ref().is_none_or(|masks| masks.len() == count);
        if whole {
            Ok(made)
        } else {
            Err(PyValueError::new_err("The columns of a section differ in length."))
        }
    }

    #[inline]
    fn number(&self, column: usize, row: usize) -> u64 {
        let bytes = self.numbers[column].as_bytes();
        u64::from_le_bytes(bytes[8 * row..8 * row + 8].try_into().unwrap())
    }

    /// Write an event as a row holds it.
    #[inline]
    fn write(&self, row: usize, parts: usize, hold: i64, out: &mut [u64]) -> PyResult<()> {
        let content = self.contents.as_bytes()[row] as u64;
        let (time, appended) = (self.number(3, row) as i64, self.number(4, row) as i64);
        out[0] = self.first | u64::from(self.operations.as_bytes()[row]) | ((content * parts as u64) & 0xff) << 32;
        out[1] = self.epoch;
        out[2] = self.number(0, row);
        out[3] = self.number(1, row);
        out[4] = self.number(2, row);
        out[5] = time as u64;
        out[6] = time.max(appended).wrapping_add(hold) as u64;
        let digest = &self.digests.as_bytes()[DIGEST * row..DIGEST * (row + 1)];
        put(&mut out[HEAD..HEAD + 2], digest);
        if parts > 1 {
            out[HEAD + 2..].fill(0);
            if let Some(masks) = &self.masks {
                let masks = masks.get_item(row)?;
                for (part, mask) in masks.try_iter()?.enumerate() {
                    let mask = mask?;
                    let mask = mask.downcast::<PyBytes>()?.as_bytes();
                    if mask.len() == DIGEST && part + 1 < parts {
                        put(&mut out[HEAD + 2 * (part + 1)..HEAD + 2 * (part + 2)], mask);
                    }
                }
            }
        }
        Ok(())
    }
}

#[inline]
fn put(words: &mut [u64], digest: &[u8]) {
    words[0] = u64::from_le_bytes(digest[..8].try_into().unwrap());
    words[1] = u64::from_le_bytes(digest[8..16].try_into().unwrap());
}

/// Known rows that events are of, and which of them come more than once.
#[derive(Default)]
struct Seen {
    bits: Vec<u64>,
    rows: Vec<usize>,
    often: Vec<usize>,
}

impl Seen {
    fn take(&mut self, row: usize) {
        let (word, bit) = (row / 64, 1 << (row % 64));
        if word >= self.bits.len() {
            self.bits.resize(word + 1, 0);
        }
        if self.bits[word] & bit == 0 {
            self.bits[word] |= bit;
            self.rows.push(row);
        } else {
            self.often.push(row);
        }
    }

    /// Begin anew; return the rows that came more than once.
    fn often(&mut self) -> Vec<usize> {
        for row in self.rows.drain(..) {
            self.bits[row / 64] = 0;
        }
        self.often.sort_unstable();
        std::mem::take(&mut self.often)
    }
}

/// What `core/keyrows.py` has as arrays.
#[pyclass]
pub struct Rows {
    parts: usize,
    width: usize,
    place: Column<u8>,
    words: Column<u64>,
    shown: Column<u64>,
    olders: Column<u8>,
    older: Column<u64>,
    order: Column<i64>,
    segment: Column<u32>,
    block_due: Column<i64>,
    seen: Seen,
}

/// Key and write of each event that the general path has to take, in their order.
type Rest<'py> = Vec<(Bound<'py, PyAny>, Bound<'py, PyBytes>)>;
/// How many keys are new, how many were updated, and joined; the next place in line; the earliest time; the rest.
type Expected<'py> = (usize, usize, usize, i64, i64, Rest<'py>);
/// How many keys are new, how many were settled; the next place in line; the earliest time of the new; delays; the rest.
type Observed<'py> = (usize, usize, i64, i64, Vec<u64>, Rest<'py>);

struct Candidate {
    place: usize,
    section: usize,
    event: usize,
    row: usize,
}

#[pymethods]
impl Rows {
    #[new]
    #[allow(clippy::too_many_arguments)]
    fn new(
        parts: usize,
        place: &Bound<'_, PyAny>,
        words: &Bound<'_, PyAny>,
        shown: &Bound<'_, PyAny>,
        olders: &Bound<'_, PyAny>,
        older: &Bound<'_, PyAny>,
        order: &Bound<'_, PyAny>,
        segment: &Bound<'_, PyAny>,
        block_due: &Bound<'_, PyAny>,
    ) -> PyResult<Self> {
        let width = HEAD + 2 * parts;
        let made = Rows {
            parts,
            width,
            place: Column::new(place)?,
            words: Column::new(words)?,
            shown: Column::new(shown)?,
            olders: Column::new(olders)?,
            older: Column::new(older)?,
            order: Column::new(order)?,
            segment: Column::new(segment)?,
            block_due: Column::new(block_due)?,
            seen: Seen::default(),
        };
        let capacity = made.place.length;
        let fits = made.words.length == capacity * width
            && made.shown.length == capacity * HEAD
            && made.olders.length == capacity
            && made.older.length == capacity * OLDER_MAX * 2 * parts
            && made.order.length == capacity
            && made.segment.length == capacity
            && made.block_due.length > capacity >> BLOCK_BITS;
        if parts > 0 && parts < 128 && fits {
            Ok(made)
        } else {
            Err(PyValueError::new_err("The columns do not belong together."))
        }
    }

    /// Open the keys that are new, join and update the known ones where that is all there is to it.
    ///
    /// `at`: rows by key; `keys`: by row, to which new ones are appended, for which there has to be room; `rules`: the last
    /// operation that is plain, whether contents are compared by identity alone, whether updates are taken, how many older
    /// identities are kept; `clock`: the next place in line.
    #[allow(clippy::too_many_arguments)]
    fn expect<'py>(
        &mut self,
        sections: &Bound<'py, PyList>,
        at: &Bound<'_, PyDict>,
        keys: &Bound<'_, PyList>,
        hold: i64,
        rules: (u8, bool, bool, usize),
        clock: i64,
    ) -> PyResult<Expected<'py>> {
        let (last_plain, joins, updates, history) = rules;
        let (first, mut clock) = (keys.len(), clock);
        let (mut low, mut rest) = (i64::MAX, Vec::new());
        let (mut known, mut blocked): (Vec<Candidate>, HashSet<Vec<u8>>) = (Vec::new(), HashSet::new());
        let sections = sections.iter().map(|told| Section::new(&told)).collect::<PyResult<Vec<_>>>()?;
        self.room(first, sections.iter().map(|section| section.keys.len()).sum())?;
        let (mut row, mut place) = (first, 0);
        for (number, section) in sections.iter().enumerate() {
            for event in 0..section.keys.len() {
                let key = section.keys.get_item(event)?;
                let plain = section.operations.as_bytes()[event] <= last_plain;
                match at.get_item(&key)? {
                    Some(found) => {
                        let found: usize = found.extract()?;
                        if found < first && plain {
                            known.push(Candidate { place, section: number, event, row: found });
                        } else {
                            rest.push(place);
                        }
                        if found < first {
                            self.seen.take(found);
                        }
                    }
                    None => {
                        let key = key.downcast_into::<PyBytes>()?;
                        if !plain {
                            blocked.insert(key.as_bytes().to_vec());
                            rest.push(place);
                        } else if !blocked.is_empty() && blocked.contains(key.as_bytes()) {
                            rest.push(place);
                        } else {
                            low = low.min(self.open(PENDING, row, &key, (section, event), (at, keys), hold, &mut clock)?);
                            row += 1;
                        }
                    }
                }
                place += 1;
            }
        }
        let often = self.seen.often();
        let (mut joined, mut updated) = (0, 0);
        if !known.is_empty() {
            let mut new = vec![0; self.width];
            let mut left = Vec::with_capacity(known.len());
            for one in known {
                let lone = LONE.contains(&self.place.all()[one.row]);
                if joins && lone && often.binary_search(&one.row).is_err() {
                    sections[one.section].write(one.event, self.parts, hold, &mut new)?;
                    if self.join(one.row, &new, &mut clock) {
                        joined += 1;
                        continue;
                    }
                }
                left.push(one);
            }
            for one in left {
                if joins && updates && self.place.all()[one.row] == SETTLED && often.binary_search(&one.row).is_err() {
                    sections[one.section].write(one.event, self.parts, hold, &mut new)?;
                    if self.update(one.row, &new, history, &mut clock) {
                        low = low.min(Head::of(&new).event_time());
                        updated += 1;
                        continue;
                    }
                }
                rest.push(one.place);
            }
            rest.sort_unstable();
        }
        Ok((row - first, updated, joined, clock, low, self.told(&sections, &rest, hold)?))
    }

    /// Settle the keys whose only write is shown as it was expected, open unknown ones, of which there may be so many.
    #[allow(clippy::too_many_arguments)]
    fn observe<'py>(
        &mut self,
        sections: &Bound<'py, PyList>,
        at: &Bound<'_, PyDict>,
        keys: &Bound<'_, PyList>,
        hold: i64,
        open_max: usize,
        bounds: Vec<i64>,
        clock: i64,
    ) -> PyResult<Observed<'py>> {
        let (first, mut clock) = (keys.len(), clock);
        let (mut low, mut rest) = (i64::MAX, Vec::new());
        let (mut known, mut unknown): (Vec<Candidate>, Vec<Candidate>) = (Vec::new(), Vec::new());
        let sections = sections.iter().map(|told| Section::new(&told)).collect::<PyResult<Vec<_>>>()?;
        self.room(first, sections.iter().map(|section| section.keys.len()).sum())?;
        let mut place = 0;
        for (number, section) in sections.iter().enumerate() {
            for event in 0..section.keys.len() {
                match at.get_item(section.keys.get_item(event)?)? {
                    Some(found) => {
                        let row: usize = found.extract()?;
                        self.seen.take(row);
                        known.push(Candidate { place, section: number, event, row });
                    }
                    None => unknown.push(Candidate { place, section: number, event, row: 0 }),
                }
                place += 1;
            }
        }
        let often = self.seen.often();
        if known.iter().any(|one| one.row >= first) {
            return Err(PyIndexError::new_err("A key has a row that there is not."));
        }
        let opened = if unknown.len() <= open_max {
            self.open_alone(&sections, unknown, (at, keys), hold, &mut clock, &mut low, &mut rest)?
        } else {
            rest.extend(unknown.iter().map(|one| one.place));
            0
        };
        let (mut settled, mut delays, mut new) = (0, vec![0; bounds.len() + 1], vec![0; self.width]);
        for one in known {
            sections[one.section].write(one.event, self.parts, hold, &mut new)?;
            if often.binary_search(&one.row).is_ok() {
                rest.push(one.place);
                continue;
            }
            match self.settle(one.row, &new, &mut clock) {
                Some(delay) => {
                    delays[bounds.partition_point(|&bound| bound < delay)] += 1;
                    settled += 1;
                }
                None => rest.push(one.place),
            }
        }
        rest.sort_unstable();
        Ok((opened, settled, clock, low, delays, self.told(&sections, &rest, hold)?))
    }
}

/// How many events, reads aside, are of a time before this one.
#[pyfunction]
pub fn late(event_times: &[u8], operations: &[u8], before: i64) -> usize {
    let times = event_times.chunks_exact(8).map(|time| i64::from_le_bytes(time.try_into().unwrap()));
    times.zip(operations).filter(|&(time, &operation)| time < before && operation != SNAPSHOT).count()
}

/// Words by byte plane, those of the columns in `steps` as what they rise by from row to row.
#[pyfunction]
pub fn planes<'py>(
    py: Python<'py>,
    words: &Bound<'py, PyAny>,
    width: usize,
    steps: (usize, usize),
) -> PyResult<Bound<'py, PyBytes>> {
    let held = PyBuffer::<u64>::get(words)?;
    let count = if width == 0 { 0 } else { held.item_count() / width };
    if !held.is_c_contiguous() || width == 0 || held.item_count() != count * width || steps.0 > steps.1 || steps.1 > width {
        return Err(PyValueError::new_err("These are not rows of so many words."));
    }
    let words = unsafe { std::slice::from_raw_parts(held.buf_ptr().cast::<u64>(), count * width) };
    PyBytes::new_with(py, 8 * width * count, |out| {
        for column in 0..width {
            let rising = (steps.0..steps.1).contains(&column);
            let (mut before, planes) = (0, &mut out[8 * column * count..8 * (column + 1) * count]);
            for row in 0..count {
                let word = words[row * width + column];
                let told = if rising { word.wrapping_sub(before) } else { word };
                before = word;
                for (byte, value) in told.to_le_bytes().into_iter().enumerate() {
                    planes[byte * count + row] = value;
                }
            }
        }
        Ok(())
    })
}

impl Rows {
    /// What the sections' events at these places, in their order, say.
    fn told<'py>(&self, sections: &[Section<'py>], places: &[usize], hold: i64) -> PyResult<Rest<'py>> {
        let (mut found, mut words) = (Vec::with_capacity(places.len()), vec![0; self.width]);
        let (mut number, mut start) = (0, 0);
        for &place in places {
            while place >= start + sections[number].keys.len() {
                start += sections[number].keys.len();
                number += 1;
            }
            let section = &sections[number];
            section.write(place - start, self.parts, hold, &mut words)?;
            let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
            let length = 8 * HEAD + DIGEST * usize::from(Head::of(&words).parts());
            found.push((section.keys.get_item(place - start)?, PyBytes::new(section.keys.py(), &bytes[..length])));
        }
        Ok(found)
    }

    fn room(&self, first: usize, count: usize) -> PyResult<()> {
        if first + count > self.place.length {
            return Err(PyIndexError::new_err("There is no room for so many rows."));
        }
        Ok(())
    }

    #[inline]
    fn changed(&mut self, row: usize, clock: &mut i64) {
        self.segment.all()[row] = UNSAVED;
        self.order.all()[row] = *clock;
        *clock += 1;
    }

    #[inline]
    fn wait(&mut self, row: usize, due: i64) {
        let block = &mut self.block_due.all()[row >> BLOCK_BITS];
        *block = due.min(*block);
    }

    /// Make a row of a key that is not known, at the end of all; return its write's time.
    #[allow(clippy::too_many_arguments)]
    fn open(
        &mut self,
        place: u8,
        row: usize,
        key: &Bound<'_, PyBytes>,
        (section, event): (&Section<'_>, usize),
        (at, keys): (&Bound<'_, PyDict>, &Bound<'_, PyList>),
        hold: i64,
        clock: &mut i64,
    ) -> PyResult<i64> {
        let words = &mut self.words.all()[row * self.width..(row + 1) * self.width];
        section.write(event, self.parts, hold, words)?;
        let head = Head::of(words);
        at.set_item(key, row)?;
        keys.append(key)?;
        self.place.all()[row] = place;
        self.changed(row, clock);
        self.wait(row, head.due());
        Ok(head.event_time())
    }

    /// Open unknown keys that come once; of a key that comes more than once, the general path takes all.
    #[allow(clippy::too_many_arguments)]
    fn open_alone(
        &mut self,
        sections: &[Section<'_>],
        unknown: Vec<Candidate>,
        (at, keys): (&Bound<'_, PyDict>, &Bound<'_, PyList>),
        hold: i64,
        clock: &mut i64,
        low: &mut i64,
        rest: &mut Vec<usize>,
    ) -> PyResult<usize> {
        let first = keys.len();
        let mut times: HashMap<Vec<u8>, usize> = HashMap::with_capacity(unknown.len());
        for one in &unknown {
            let key = sections[one.section].keys.get_item(one.event)?.downcast_into::<PyBytes>()?;
            *times.entry(key.as_bytes().to_vec()).or_insert(0) += 1;
        }
        let mut row = first;
        for one in unknown {
            let section = &sections[one.section];
            let key = section.keys.get_item(one.event)?.downcast_into::<PyBytes>()?;
            if times[key.as_bytes()] > 1 || section.operations.as_bytes()[one.event] > LAST_PLAIN {
                rest.push(one.place);
                continue;
            }
            *low = self.open(ALONE, row, &key, (section, one.event), (at, keys), hold, clock)?.min(*low);
            row += 1;
        }
        Ok(row - first)
    }

    /// Settle a key of which the target alone has shown just what is expected now.
    fn join(&mut self, row: usize, new: &[u64], clock: &mut i64) -> bool {
        let (width, from) = (self.width, row * self.width);
        let held = &mut self.words.all()[from..from + width];
        if !answers(held, new) {
            return false;
        }
        let head = Head::of(held);
        held.copy_from_slice(new);
        self.close(row, &head, clock);
        true
    }

    fn close(&mut self, row: usize, shown: &Head, clock: &mut i64) {
        self.place.all()[row] = SETTLED;
        self.shown.all()[row * HEAD..(row + 1) * HEAD].copy_from_slice(&shown.0);
        self.changed(row, clock);
    }

    /// Open a settled key of which something new is expected that the target does not show, nor did before.
    fn update(&mut self, row: usize, new: &[u64], history: usize, clock: &mut i64) -> bool {
        let (width, size) = (self.width, 2 * self.parts);
        let shown = Head::of(&self.shown.all()[row * HEAD..(row + 1) * HEAD]);
        let known = usize::from(self.olders.all()[row]);
        let older = &mut self.older.all()[row * OLDER_MAX * size..(row + 1) * OLDER_MAX * size];
        let held = &mut self.words.all()[row * width..(row + 1) * width];
        let before = Head::of(held);
        if !Head::of(new).is_newer(&before) || !is_whole(new) || might_show(&shown, held, new) {
            return false;
        }
        if older.chunks_exact(size).take(known.min(OLDER_MAX)).any(|identity| identity == &held[HEAD..]) {
            return false;
        }
        if before.parts() > 0 {
            older.copy_within(..(OLDER_MAX - 1) * size, size);
            older[..size].copy_from_slice(&held[HEAD..]);
            self.olders.all()[row] = (known + 1).min(history) as u8;
        }
        held.copy_from_slice(new);
        self.place.all()[row] = UPDATED;
        self.changed(row, clock);
        self.wait(row, Head::of(new).due());
        true
    }

    /// Settle an open key of which exactly its one write is shown, by something newer than before; return after how long.
    fn settle(&mut self, row: usize, new: &[u64], clock: &mut i64) -> Option<i64> {
        let place = self.place.all()[row];
        if !(PENDING..=PARKED).contains(&(place & 7)) {
            return None;
        }
        let held = &self.words.all()[row * self.width..(row + 1) * self.width];
        if !answers(held, new) {
            return None;
        }
        let (before, head) = (Head::of(held), Head::of(new));
        if place >= UPDATED {
            if !head.is_newer(&Head::of(&self.shown.all()[row * HEAD..(row + 1) * HEAD])) {
                return None;
            }
            let olders = &mut self.olders.all()[row];
            *olders = if before.parts() > 0 { OLDER_WHEN_SETTLED.min(*olders) } else { 0 };
        }
        self.close(row, &head, clock);
        Some(head.event_time().wrapping_sub(before.event_time()))
    }
}
