//! From the members of a row or document to digest, mask digests, values and version.

use crate::canonical::{only_member, Kind};
use crate::json::{string_of, whole, Decline, Res, Scan};
use crate::layout::{Layout, SKIPPED};
use crate::plan::{Field, Plan, Role};
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use xxhash_rust::xxh3::xxh3_128;

const NULL: u8 = 1;
const VALUE: u8 = 2;
const MASKED_VALUE: &str = "?";

pub type Slots = Vec<Option<(usize, usize)>>;

#[derive(PartialEq)]
pub struct Content {
    pub digest: [u8; 16],
    pub masks: Vec<Option<[u8; 16]>>,
    pub values: Vec<Option<String>>,
    pub version: Option<i64>,
}

/// Buffers that are used again and again.
#[derive(Default)]
pub struct Buffers {
    text: Vec<u8>,
    joined: Vec<u8>,
    part: Vec<u8>,
}

enum Part {
    Written,
    Masked,
}

/// Find the wanted members of an object and leave where their values stand.
#[inline]
pub fn members(scan: &mut Scan<'_>, names: &[Vec<u8>], layout: &mut Layout, slots: &mut Slots) -> Res<()> {
    slots.clear();
    slots.resize(names.len(), None);
    let class = |name: &[u8]| names.iter().position(|known| known == name).map_or(SKIPPED, |at| at as u8);
    layout.read(scan, class, |scan, at| {
        let start = scan.at;
        scan.value()?;
        slots[at as usize] = Some((start, scan.at));
        Ok(())
    })
}

pub fn content(py: Python<'_>, plan: &Plan, data: &[u8], slots: &Slots, buffers: &mut Buffers) -> Res<Content> {
    let Buffers { text, joined, part } = buffers;
    if plan.refused.iter().any(|&slot| slots[slot].is_some()) {
        return Err(Decline);
    }
    joined.clear();
    let mut content = Content { digest: [0; 16], masks: Vec::new(), values: Vec::new(), version: None };
    for (at, field) in plan.fields.iter().enumerate() {
        let raw = slots[field.slot].map(|(start, end)| &data[start..end]);
        match field.role {
            Role::Fixed => {
                let start = joined.len();
                joined.extend_from_slice(&[0; 4]);
                match write(py, plan, at, field, raw, text, joined)? {
                    Part::Written => {}
                    Part::Masked => return Err(Decline), // the catalogue says that it never is
                }
                let length = (joined.len() - start - 4) as u32;
                joined[start..start + 4].copy_from_slice(&length.to_le_bytes());
            }
            Role::Mask => {
                part.clear();
                content.masks.push(match write(py, plan, at, field, raw, text, part)? {
                    Part::Written => Some(xxh3_128(part).to_be_bytes()),
                    Part::Masked => None,
                });
            }
            Role::Value => {
                part.clear();
                content.values.push(match write(py, plan, at, field, raw, text, part)? {
                    Part::Written => value_text(py, plan, part)?,
                    Part::Masked => Some(MASKED_VALUE.to_owned()),
                });
            }
        }
    }
    content.digest = xxh3_128(joined).to_be_bytes();
    content.version = version(plan, data, slots)?;
    Ok(content)
}

/// Append a field's canonical bytes.
fn write(
    py: Python<'_>,
    plan: &Plan,
    at: usize,
    field: &Field,
    raw: Option<&[u8]>,
    text: &mut Vec<u8>,
    out: &mut Vec<u8>,
) -> Res<Part> {
    let Some(raw) = raw else {
        out.extend_from_slice(field.absent.as_ref().ok_or(Decline)?);
        return Ok(Part::Written);
    };
    if raw == b"null" && !matches!(field.kind, Kind::Deep) {
        out.push(NULL);
        return Ok(Part::Written);
    }
    if raw[0] == b'"' && !plan.placeholders.is_empty() {
        let spelt = string_of(raw).ok_or(Decline)?.plain(text);
        if plan.placeholders.iter().any(|placeholder| placeholder == spelt) {
            return Ok(Part::Masked);
        }
    }
    let start = out.len();
    out.push(VALUE);
    if field.kind.write(raw, plan.documents, text, out) {
        return Ok(Part::Written);
    }
    out.truncate(start);
    let said = plan.foreign.call1(py, (at, PyBytes::new(py, raw))).map_err(|_| Decline)?;
    let said = said.bind(py);
    if said.is_none() {
        return Ok(Part::Masked);
    }
    let bytes = said.downcast::<PyBytes>().map_err(|_| Decline)?;
    out.extend_from_slice(bytes.as_bytes());
    Ok(Part::Written)
}

fn value_text(py: Python<'_>, plan: &Plan, part: &[u8]) -> Res<Option<String>> {
    if part.first() == Some(&VALUE) && !part.contains(&b'e') {
        return String::from_utf8(part[1..].to_vec()).map(Some).map_err(|_| Decline);
    }
    let said = plan.value_text.call1(py, (PyBytes::new(py, part),)).map_err(|_| Decline)?;
    said.extract(py).map_err(|_| Decline)
}

fn version(plan: &Plan, data: &[u8], slots: &Slots) -> Res<Option<i64>> {
    let Some(slot) = plan.version else { return Ok(None) };
    let found = match slots[slot].map(|(start, end)| &data[start..end]) {
        None | Some(b"null") => None,
        Some(raw) if raw[0] == b'{' && plan.documents => match only_member(raw) {
            Some((b"$numberLong" | b"$numberInt", inner)) => Some(whole(string_of(inner).ok_or(Decline)?.raw)?),
            _ => return Err(Decline),
        },
        Some(raw) => Some(whole(raw)?),
    };
    if found.is_none() && plan.needs_version {
        return Err(Decline);
    }
    Ok(found)
}
