//! Canonical key bytes, as `core/keys.py` says them.

use crate::canonical::{only_member, write_hex};
use crate::json::{string_of, whole, Decline, Res};
use crate::plan::KeyKind;

/// Append one column of a key; `document`: its value is extended JSON.
pub fn write(kind: KeyKind, raw: &[u8], document: bool, buffer: &mut Vec<u8>, out: &mut Vec<u8>) -> Res<()> {
    if raw[0] == b'{' {
        if !document {
            return Err(Decline);
        }
        let (name, inner) = only_member(raw).ok_or(Decline)?;
        let text = string_of(inner).filter(|text| !text.escaped).ok_or(Decline)?.raw;
        return match (kind, name) {
            (KeyKind::Int, b"$numberInt" | b"$numberLong") => {
                write_int(whole(text)?, out);
                Ok(())
            }
            (KeyKind::ObjectId, b"$oid") => hex(text, false, 12, out),
            _ => Err(Decline),
        };
    }
    if raw[0] == b'"' {
        let text = string_of(raw).ok_or(Decline)?.plain(buffer);
        return match kind {
            KeyKind::Text => {
                write_text(text, out);
                Ok(())
            }
            KeyKind::Uuid => hex(text, true, 16, out),
            KeyKind::ObjectId if !document => hex(text, false, 12, out),
            _ => Err(Decline),
        };
    }
    match kind {
        KeyKind::Int => {
            write_int(whole(raw)?, out);
            Ok(())
        }
        _ => Err(Decline),
    }
}

fn hex(text: &[u8], dashes: bool, count: usize, out: &mut Vec<u8>) -> Res<()> {
    if write_hex(text, dashes, count, out) {
        Ok(())
    } else {
        Err(Decline)
    }
}

fn write_int(number: i64, out: &mut Vec<u8>) {
    let size = (64 - number.unsigned_abs().leading_zeros() as usize).div_ceil(8);
    if number >= 0 {
        out.push(0x80 + size as u8);
        out.extend_from_slice(&number.to_be_bytes()[8 - size..]);
    } else {
        out.push(0x80 - size as u8);
        let shifted = i128::from(number) + (1i128 << (8 * size)) - 1;
        out.extend_from_slice(&shifted.to_be_bytes()[16 - size..]);
    }
}

fn write_text(text: &[u8], out: &mut Vec<u8>) {
    if text.contains(&0) {
        for &byte in text {
            out.push(byte);
            if byte == 0 {
                out.push(0xff);
            }
        }
    } else {
        out.extend_from_slice(text);
    }
    out.extend_from_slice(&[0, 1]);
}
