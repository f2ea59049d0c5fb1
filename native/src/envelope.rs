//! Debezium's envelopes: operation, position and time, and where the row or document stands.

use crate::content::{members, Slots};
use crate::json::{whole, Decline, Res, Scan};
use crate::layout::{Layout, SKIPPED};
use crate::plan::Plan;

pub const UPSERT: u8 = 1;
pub const DELETE: u8 = 2;
pub const SNAPSHOT: u8 = 3;
pub const TOUCHED: u8 = 4;
pub const UNCHANGED: u8 = 5;
pub const LOOKED_UP: u8 = 6;

#[derive(Default)]
pub struct Source<'a> {
    pub ts_ms: i64,
    /// Whether the snapshot's mark says that the record belongs to one.
    pub snapshot: bool,
    pub sequence: &'a [u8],
    pub ord: Option<i64>,
    pub in_transaction: bool,
}

/// Where a row before or after the change stands.
#[derive(Clone, Copy, PartialEq)]
pub enum Image {
    Absent,
    There,
}

/// What was found of images: the members of rows by their places in the record, the text of a document.
#[derive(Default)]
pub struct Images {
    pub before: Slots,
    pub after: Slots,
    pub document: Vec<u8>,
    rows: [Layout; 2],
    envelope: Layout,
    source: Layout,
}

pub struct Envelope<'a> {
    pub before: Image,
    pub after: Image,
    pub source: Source<'a>,
    pub op: u8,
    /// Whether there is a description of an update that is not null.
    pub described: bool,
}

const SNAPSHOTS: [&[u8]; 6] =
    [b"true", b"first", b"last", b"first_in_data_collection", b"last_in_data_collection", b"incremental"];

fn not_null(raw: &[u8]) -> Option<&[u8]> {
    if raw == b"null" {
        None
    } else {
        Some(raw)
    }
}

/// Read a record's value, with its schema beside it or alone.
pub fn envelope<'a>(plan: &Plan, data: &'a [u8], images: &mut Images) -> Res<Envelope<'a>> {
    let mut scan = Scan::new(data);
    scan.space();
    let found = if plan.wrapped {
        payload(&mut scan, plan.schema.as_deref(), false, |scan| bare(plan, scan, images))?
    } else {
        bare(plan, &mut scan, images)?
    };
    scan.end()?;
    Ok(found)
}

/// Read `{"schema": …, "payload": …}`; `schema`: the bytes that have to stand there, None: anything. `alone`: nothing else does.
pub fn payload<'a, T>(
    scan: &mut Scan<'a>,
    schema: Option<&[u8]>,
    alone: bool,
    mut read: impl FnMut(&mut Scan<'a>) -> Res<T>,
) -> Res<T> {
    let (mut found, mut described) = (None, false);
    scan.object(|scan, name| match name {
        b"payload" => {
            if found.is_some() {
                return Err(Decline);
            }
            found = Some(read(scan)?);
            Ok(())
        }
        b"schema" => {
            if described {
                return Err(Decline);
            }
            described = true;
            match schema {
                Some(schema) if scan.data[scan.at..].starts_with(schema) => {
                    scan.at += schema.len();
                    Ok(())
                }
                Some(_) => Err(Decline),
                None => scan.value().map(|_| ()),
            }
        }
        _ if alone => Err(Decline),
        _ => scan.value().map(|_| ()),
    })?;
    if described {
        found.ok_or(Decline)
    } else {
        Err(Decline)
    }
}

/// Read a row's members, or a document's text; an object or nothing where it is not needed.
#[inline]
fn image(
    plan: &Plan,
    scan: &mut Scan<'_>,
    needed: bool,
    layout: &mut Layout,
    slots: &mut Slots,
    document: &mut Vec<u8>,
) -> Res<Image> {
    match scan.peek() {
        b'n' => {
            scan.null()?;
            return Ok(Image::Absent);
        }
        b'"' if plan.documents && needed => {
            document.clear();
            scan.string_into(document)?;
        }
        b'{' if !plan.documents && needed => members(scan, &plan.names, layout, slots)?,
        b'{' if !needed => {
            scan.value()?;
        }
        _ if plan.documents && !needed => {
            scan.value()?;
        }
        _ => return Err(Decline),
    }
    Ok(Image::There)
}

fn envelope_member(name: &[u8]) -> u8 {
    match name {
        b"before" => 0,
        b"after" => 1,
        b"source" => 2,
        b"op" => 3,
        b"updateDescription" => 4,
        b"message" => 5,
        b"schema" | b"payload" => 6,
        _ => SKIPPED,
    }
}

fn bare<'a>(plan: &Plan, scan: &mut Scan<'a>, images: &mut Images) -> Res<Envelope<'a>> {
    let Images { before, after, document, rows, envelope, source } = images;
    let [row_before, row_after] = rows;
    let mut found = Envelope { before: Image::Absent, after: Image::Absent, source: Source::default(), op: 0, described: false };
    let mut has_source = false;
    envelope.read(scan, envelope_member, |scan, member| {
        match member {
            0 => found.before = image(plan, scan, plan.full_before, row_before, before, document)?,
            1 => found.after = image(plan, scan, true, row_after, after, document)?,
            2 => {
                found.source = source_of(plan, scan, source)?;
                has_source = true;
            }
            3 => found.op = operation(scan.value()?)?,
            4 => found.described = not_null(scan.value()?).is_some(),
            5 => scan.null()?,
            _ => return Err(Decline),
        }
        Ok(())
    })?;
    if has_source && found.op != 0 {
        Ok(found)
    } else {
        Err(Decline)
    }
}

fn operation(raw: &[u8]) -> Res<u8> {
    match raw {
        [b'"', op @ (b'c' | b'u' | b'd' | b'r'), b'"'] => Ok(*op),
        _ => Err(Decline),
    }
}

fn source_member(name: &[u8]) -> u8 {
    match name {
        b"connector" => 0,
        b"ts_ms" => 1,
        b"snapshot" => 2,
        b"sequence" => 3,
        b"lsn" => 4,
        b"ord" => 5,
        b"txnNumber" => 6,
        _ => SKIPPED,
    }
}

fn source_of<'a>(plan: &Plan, scan: &mut Scan<'a>, layout: &mut Layout) -> Res<Source<'a>> {
    let (mut connector, mut ts_ms, mut snapshot, mut sequence) = (None, None, None, None);
    let (mut ord, mut transaction) = (None, None);
    layout.read(scan, source_member, |scan, member| {
        match member {
            0 => connector = Some(scan.value()?),
            1 => ts_ms = Some(scan.int()?),
            2 => snapshot = Some(scan.value()?),
            3 => sequence = Some(scan.value()?),
            4 => scan.int_or_null().map(|_| ())?,
            5 => ord = scan.int_or_null()?,
            _ => transaction = scan.int_or_null()?,
        }
        Ok(())
    })?;
    let known = if plan.documents {
        connector == Some(br#""mongodb""#)
    } else {
        matches!(connector, None | Some(br#""""# | br#""postgresql""#))
    };
    if !known {
        return Err(Decline);
    }
    Ok(Source {
        ts_ms: ts_ms.ok_or(Decline)?,
        snapshot: is_snapshot(snapshot)?,
        sequence: sequence_text(plan, sequence)?,
        ord,
        in_transaction: transaction.is_some(),
    })
}

fn is_snapshot(raw: Option<&[u8]>) -> Res<bool> {
    match raw {
        None | Some(b"null" | br#""false""#) => Ok(false),
        Some([b'"', text @ .., b'"']) if SNAPSHOTS.contains(&text) => Ok(true),
        _ => Err(Decline),
    }
}

/// Documents need no sequence, but one that stands there has to be a text.
fn sequence_text<'a>(plan: &Plan, raw: Option<&'a [u8]>) -> Res<&'a [u8]> {
    match raw {
        Some(raw) if raw[0] == b'"' => Ok(raw),
        None | Some(b"null") if plan.documents => Ok(b""),
        _ => Err(Decline),
    }
}

/// Read `"[\"24\",\"25\"]"` as it stands in the record: a pair of positions, where null is the lowest.
pub fn sequence(raw: &[u8]) -> Res<(i64, i64)> {
    let inner = raw.strip_prefix(b"\"[").and_then(|rest| rest.strip_suffix(b"]\"")).ok_or(Decline)?;
    let comma = inner.iter().position(|&byte| byte == b',').ok_or(Decline)?;
    Ok((position(&inner[..comma])?, position(&inner[comma + 1..])?))
}

fn position(raw: &[u8]) -> Res<i64> {
    if raw == b"null" {
        return Ok(0);
    }
    let digits = raw.strip_prefix(b"\\\"").and_then(|rest| rest.strip_suffix(b"\\\"")).ok_or(Decline)?;
    match whole(digits)? {
        number if number >= 0 => Ok(number),
        _ => Err(Decline),
    }
}
