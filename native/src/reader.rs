//! One record: key, operation, position, time and content; or that it is not ours.

use crate::content::{content, members, Buffers, Content, Slots};
use crate::envelope::{
    envelope, payload, sequence, Envelope, Image, Images, DELETE, LOOKED_UP, SNAPSHOT, TOUCHED, UNCHANGED, UPSERT,
};
use crate::json::{string_of, Decline, Res, Scan};
use crate::keys;
use crate::layout::Layout;
use crate::plan::{Plan, Role};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyList};

const BEGINNING: &[u8] = br#"{"_id""#; // of a document that a server wrote: then it is no wrapped value either
const SECONDS_MAX: i64 = 1 << 31;
const TIMES: std::ops::RangeInclusive<i64> = -62_135_596_800_000..=253_402_300_799_999; // years 1 to 9999

pub struct Event {
    pub operation: u8,
    pub major: i64,
    pub minor: i64,
    pub event_time: i64,
    pub content: Option<Content>,
}

#[derive(Default)]
pub struct Reader {
    buffers: Buffers,
    slots: Slots,
    text: Vec<u8>,
    key_layout: Layout,
    document_layout: Layout,
    images: Images,
    id: Vec<u8>,
    pub key: Vec<u8>,
}

impl Reader {
    /// Read one record; its key is left in `key`.
    pub fn read(&mut self, py: Python<'_>, plan: &Plan, value: &[u8], key: &[u8], offset: i64) -> Res<Event> {
        // What is read is compared with what Python reads, which refuses bytes that are no UTF-8.
        if std::str::from_utf8(value).is_err() || std::str::from_utf8(key).is_err() {
            return Err(Decline);
        }
        self.key.clear();
        let envelope = envelope(plan, value, &mut self.images)?;
        if plan.documents {
            self.document_key(plan, key)?;
            self.document(py, plan, &envelope, offset)
        } else {
            self.row_key(py, plan, key)?;
            self.row(py, plan, &envelope, value)
        }
    }

    fn row_key(&mut self, py: Python<'_>, plan: &Plan, data: &[u8]) -> Res<()> {
        let mut scan = Scan::new(data);
        scan.space();
        let (slots, layout) = (&mut self.slots, &mut self.key_layout);
        if plan.wrapped_key {
            payload(&mut scan, plan.key_schema.as_deref(), true, |scan| members(scan, &plan.key_names, layout, slots))?;
        } else {
            if data.starts_with(br#"{"schema""#) {
                return Err(Decline);
            }
            members(&mut scan, &plan.key_names, layout, slots)?;
        }
        scan.end()?;
        if plan.key_kinds.is_empty() {
            return self.foreign_key(py, plan, data);
        }
        for (slot, &kind) in self.slots.iter().zip(&plan.key_kinds) {
            let (start, end) = slot.ok_or(Decline)?;
            keys::write(kind, &data[start..end], false, &mut self.text, &mut self.key)?;
        }
        Ok(())
    }

    fn foreign_key(&mut self, py: Python<'_>, plan: &Plan, data: &[u8]) -> Res<()> {
        let values = PyList::empty(py);
        for slot in &self.slots {
            let (start, end) = slot.ok_or(Decline)?;
            values.append(PyBytes::new(py, &data[start..end])).map_err(|_| Decline)?;
        }
        let said = plan.key_of.call1(py, (values,)).map_err(|_| Decline)?;
        self.key.extend_from_slice(said.bind(py).downcast::<PyBytes>().map_err(|_| Decline)?.as_bytes());
        Ok(())
    }

    fn document_key(&mut self, plan: &Plan, data: &[u8]) -> Res<()> {
        let mut scan = Scan::new(data);
        scan.space();
        let raw = if plan.wrapped_key { payload(&mut scan, None, false, id_of)? } else { id_of(&mut scan)? };
        scan.end()?;
        let id = string_of(raw).ok_or(Decline)?.plain(&mut self.id);
        let mut scan = Scan::new(id);
        scan.space();
        let value = scan.value()?;
        scan.end()?;
        let kind = *plan.key_kinds.first().ok_or(Decline)?;
        keys::write(kind, value, true, &mut self.text, &mut self.key)
    }

    fn row(&mut self, py: Python<'_>, plan: &Plan, envelope: &Envelope<'_>, data: &[u8]) -> Res<Event> {
        let (major, minor) = sequence(envelope.source.sequence)?;
        if !TIMES.contains(&envelope.source.ts_ms) {
            return Err(Decline);
        }
        let mut event = Event { operation: operation(envelope), major, minor, event_time: envelope.source.ts_ms, content: None };
        if event.operation == DELETE {
            return Ok(event);
        }
        if envelope.after == Image::Absent {
            return Err(Decline);
        }
        let after = content(py, plan, data, &self.images.after, &mut self.buffers)?;
        if plan.full_before && event.operation == UPSERT && envelope.op == b'u' {
            let told = envelope.before == Image::There && is_complete(plan, &after);
            if told && content(py, plan, data, &self.images.before, &mut self.buffers)? == after {
                event.operation = UNCHANGED;
                return Ok(event);
            }
        }
        event.content = Some(after);
        Ok(event)
    }

    fn document(&mut self, py: Python<'_>, plan: &Plan, envelope: &Envelope<'_>, offset: i64) -> Res<Event> {
        let (time, ord) = (envelope.source.ts_ms, envelope.source.ord.ok_or(Decline)?);
        if !(0..SECONDS_MAX * 1_000).contains(&time) || !(0..1 << 32).contains(&ord) {
            return Err(Decline);
        }
        let mut event = Event {
            operation: operation(envelope),
            major: (time / 1_000) << 32 | ord,
            minor: if envelope.source.in_transaction { offset } else { 0 },
            event_time: time,
            content: None,
        };
        if envelope.after == Image::Absent {
            return match envelope.op {
                b'd' => Ok(event),
                b'u' => {
                    event.operation = TOUCHED;
                    Ok(event)
                }
                _ => Err(Decline),
            };
        }
        if event.operation == DELETE {
            return Err(Decline);
        }
        if event.operation == UPSERT && envelope.op == b'u' && !plan.post_images && envelope.described {
            event.operation = LOOKED_UP;
        }
        event.content = Some(self.whole_document(py, plan)?);
        Ok(event)
    }

    fn whole_document(&mut self, py: Python<'_>, plan: &Plan) -> Res<Content> {
        let document = &self.images.document;
        if !document.starts_with(BEGINNING) {
            return Err(Decline);
        }
        let mut scan = Scan::new(document);
        members(&mut scan, &plan.names, &mut self.document_layout, &mut self.slots)?;
        scan.end()?;
        content(py, plan, document, &self.slots, &mut self.buffers)
    }
}

fn operation(envelope: &Envelope<'_>) -> u8 {
    match envelope.op {
        b'd' => DELETE,
        b'r' => SNAPSHOT,
        _ if envelope.source.snapshot => SNAPSHOT,
        _ => UPSERT,
    }
}

fn is_complete(plan: &Plan, content: &Content) -> bool {
    let masked_value = plan.fields.iter().any(|field| field.role == Role::Value)
        && content.values.iter().any(|value| value.as_deref() == Some("?"));
    content.masks.iter().all(Option::is_some) && !masked_value
}

fn id_of<'a>(scan: &mut Scan<'a>) -> Res<&'a [u8]> {
    let mut found = None;
    scan.object(|scan, name| {
        let value = scan.value()?;
        match name {
            b"id" if found.is_none() => found = Some(value),
            b"id" | b"payload" => return Err(Decline),
            _ => {}
        }
        Ok(())
    })?;
    found.ok_or(Decline)
}
