//! Canonical payloads of single values, as `core/canonical.py` says them. False: the general form has to read the value.

use crate::json::{string_of, whole, Scan};

const INFINITE_DAYS: i64 = 2_147_400_000;
const DAY_SECONDS: i64 = 86_400;
const EXACT_DOUBLE: u64 = 1 << 53;

#[derive(Clone, Copy)]
pub struct Unit {
    pub per_second: i64,
    pub wanted: i64,
    pub round: bool,
}

#[derive(Clone, Copy)]
pub enum Kind {
    Foreign,
    /// Foreign, null included: the field lies deeper in the member.
    Deep,
    Text {
        nfc: bool,
    },
    /// A number as text, as an integer, or (`fractions`) as it stands in JSON.
    Decimal {
        scale: Option<usize>,
        fractions: bool,
    },
    Unscaled {
        scale: i64,
    },
    Float,
    Epoch {
        unit: Unit,
        low: i64,
        high: i64,
    },
    Iso {
        unit: Unit,
    },
    Days,
    Time {
        unit: Unit,
    },
    Bool,
    Uuid,
    ObjectId,
}

impl Kind {
    /// Append the payload of a JSON value that is not null; `document`: it is extended JSON.
    pub fn write(self, raw: &[u8], document: bool, buffer: &mut Vec<u8>, out: &mut Vec<u8>) -> bool {
        if raw[0] == b'{' {
            return document && self.write_wrapped(raw, out);
        }
        if raw[0] == b'"' {
            let Some(text) = string_of(raw) else { return false };
            return self.write_text(text.plain(buffer), document, out);
        }
        match self {
            Kind::Decimal { scale, fractions } => match whole(raw) {
                Ok(number) => {
                    write_whole(number, out);
                    true
                }
                Err(_) => fractions && write_decimal(raw, scale, out),
            },
            Kind::Float => write_float(raw, out),
            Kind::Epoch { unit, low, high } if !document => match whole(raw) {
                Ok(number) if low < number && number < high => write_scaled(number.into(), unit, out),
                _ => false,
            },
            Kind::Days => match whole(raw) {
                Ok(number) if -INFINITE_DAYS < number && number < INFINITE_DAYS => write_int(number.into(), out),
                _ => false,
            },
            Kind::Time { unit } => whole(raw).is_ok_and(|number| write_scaled(number.into(), unit, out)),
            Kind::Bool => {
                match raw {
                    b"true" => out.push(b't'),
                    b"false" => out.push(b'f'),
                    _ => return false,
                }
                true
            }
            _ => false,
        }
    }

    fn write_text(self, text: &[u8], document: bool, out: &mut Vec<u8>) -> bool {
        match self {
            Kind::Text { nfc } => {
                if nfc && !text.is_ascii() {
                    return false;
                }
                out.extend_from_slice(text);
                true
            }
            Kind::Decimal { scale, .. } => write_decimal(text, scale, out),
            Kind::Unscaled { scale } if !document => write_unscaled(text, scale, out),
            Kind::Iso { unit } => write_iso(text, unit, 9, out),
            Kind::Uuid => write_hex(text, true, 16, out),
            Kind::ObjectId => write_hex(text, false, 12, out),
            _ => false,
        }
    }

    /// Extended JSON: an object with one member that says what the value is.
    fn write_wrapped(self, raw: &[u8], out: &mut Vec<u8>) -> bool {
        let Some((name, inner)) = only_member(raw) else { return false };
        let text = string_of(inner).filter(|text| !text.escaped).map(|text| text.raw);
        match (self, name, text) {
            (Kind::Decimal { .. }, b"$numberInt" | b"$numberLong", Some(text)) => {
                whole(text).map(|number| write_whole(number, out)).is_ok()
            }
            (Kind::Decimal { scale, .. }, b"$numberDecimal", Some(text)) => write_decimal(text, scale, out),
            (Kind::Epoch { unit, .. } | Kind::Iso { unit }, b"$date", text) => write_date(inner, text, unit, out),
            (Kind::ObjectId, b"$oid", Some(text)) => write_hex(text, false, 12, out),
            _ => false,
        }
    }
}

/// Return name and value of an object's only member.
pub fn only_member(raw: &[u8]) -> Option<(&[u8], &[u8])> {
    let mut found = None;
    let mut scan = Scan::new(raw);
    let mut count = 0;
    scan.object(|scan, name| {
        count += 1;
        found = Some((name, scan.value()?));
        Ok(())
    })
    .ok()?;
    if count == 1 && scan.at == raw.len() {
        found
    } else {
        None
    }
}

fn write_date(inner: &[u8], text: Option<&[u8]>, unit: Unit, out: &mut Vec<u8>) -> bool {
    let unit = Unit { per_second: 1_000, ..unit };
    if let Some(text) = text {
        return write_iso(text, unit, 6, out);
    }
    if inner[0] == b'{' {
        return match only_member(inner) {
            Some((b"$numberLong", text)) => match string_of(text).map(|text| whole(text.raw)) {
                Some(Ok(number)) => write_scaled(number.into(), unit, out),
                _ => false,
            },
            _ => false,
        };
    }
    whole(inner).is_ok_and(|number| write_scaled(number.into(), unit, out))
}

fn write_int(mut number: i128, out: &mut Vec<u8>) -> bool {
    if number < 0 {
        out.push(b'-');
        number = -number;
    }
    let mut digits = [0u8; 40];
    let mut at = digits.len();
    if let Ok(mut small) = u64::try_from(number) {
        loop {
            at -= 1;
            digits[at] = b'0' + (small % 10) as u8;
            small /= 10;
            if small == 0 {
                break;
            }
        }
    } else {
        loop {
            at -= 1;
            digits[at] = b'0' + (number % 10) as u8;
            number /= 10;
            if number == 0 {
                break;
            }
        }
    }
    out.extend_from_slice(&digits[at..]);
    true
}

/// Append digits without trailing zeros, then the power of ten where it is not 0. Nothing but zeros is "0".
fn write_digits(negative: bool, digits: &[u8], exponent: i64, out: &mut Vec<u8>) {
    let first = digits.iter().position(|&digit| digit != b'0');
    let Some(first) = first else {
        out.push(b'0');
        return;
    };
    let last = digits.iter().rposition(|&digit| digit != b'0').unwrap_or(first);
    if negative {
        out.push(b'-');
    }
    out.extend_from_slice(&digits[first..=last]);
    let exponent = exponent + (digits.len() - 1 - last) as i64;
    if exponent != 0 {
        out.push(b'e');
        write_int(exponent.into(), out);
    }
}

fn write_whole(number: i64, out: &mut Vec<u8>) {
    let start = out.len();
    write_int(number.into(), out);
    if number != 0 && number % 10 == 0 {
        let last = out[start..].iter().rposition(|&digit| digit != b'0').unwrap_or(0);
        let zeros = out.len() - start - 1 - last;
        out.truncate(start + last + 1);
        out.push(b'e');
        write_int(zeros as i128, out);
    }
}

/// A number as it is usually written: no exponent, no plus, digits before the point.
fn write_decimal(text: &[u8], scale: Option<usize>, out: &mut Vec<u8>) -> bool {
    let (negative, rest) = match text.split_first() {
        Some((b'-', rest)) => (true, rest),
        _ => (false, text),
    };
    if rest.len() > 64 {
        return false;
    }
    let point = rest.iter().position(|&byte| byte == b'.').unwrap_or(rest.len());
    let (head, fraction) = (&rest[..point], rest.get(point + 1..).unwrap_or(&[]));
    if head.is_empty() || !head.iter().chain(fraction).all(u8::is_ascii_digit) {
        return false;
    }
    if scale.is_some_and(|scale| fraction.len() > scale) {
        return false; // to be cut or rounded
    }
    let mut digits = [0u8; 64];
    digits[..head.len()].copy_from_slice(head);
    digits[head.len()..head.len() + fraction.len()].copy_from_slice(fraction);
    write_digits(negative, &digits[..head.len() + fraction.len()], -(fraction.len() as i64), out);
    true
}

fn write_unscaled(text: &[u8], scale: i64, out: &mut Vec<u8>) -> bool {
    if text.is_empty() || text.len() % 4 != 0 || text.len() > 20 {
        return false;
    }
    let mut bytes = [0u8; 15];
    let mut count = 0;
    let padding = text.iter().rev().take(2).take_while(|&&byte| byte == b'=').count();
    for group in text.chunks(4) {
        let mut word: u32 = 0;
        for (at, &byte) in group.iter().enumerate() {
            let last = std::ptr::eq(group.as_ptr(), text[text.len() - 4..].as_ptr());
            let digit = match byte {
                b'A'..=b'Z' => byte - b'A',
                b'a'..=b'z' => byte - b'a' + 26,
                b'0'..=b'9' => byte - b'0' + 52,
                b'+' => 62,
                b'/' => 63,
                b'=' if last && at >= 4 - padding => 0,
                _ => return false,
            };
            word = word << 6 | u32::from(digit);
        }
        bytes[count..count + 3].copy_from_slice(&word.to_be_bytes()[1..]);
        count += 3;
    }
    let kept = count - padding;
    if bytes[kept..count].iter().any(|&byte| byte != 0) {
        return false; // bits that no byte holds
    }
    let mut number: i128 = if bytes[0] & 0x80 != 0 { -1 } else { 0 };
    for &byte in &bytes[..kept] {
        number = number << 8 | i128::from(byte);
    }
    let mut digits = Vec::with_capacity(40);
    write_int(number.abs(), &mut digits);
    write_digits(number < 0, &digits, -scale, out);
    true
}

fn write_float(raw: &[u8], out: &mut Vec<u8>) -> bool {
    if let Ok(number) = whole(raw) {
        if number.unsigned_abs() > EXACT_DOUBLE {
            return false;
        }
        write_whole(number, out);
        return true;
    }
    if !raw.iter().any(|byte| matches!(byte, b'.' | b'e' | b'E')) {
        return false;
    }
    let Some(number) = std::str::from_utf8(raw).ok().and_then(|text| text.parse::<f64>().ok()) else { return false };
    if !number.is_finite() {
        return false;
    }
    let text = format!("{:e}", number.abs());
    let Some((digits, exponent)) = text.split_once('e') else { return false };
    let Ok(exponent) = exponent.parse::<i64>() else { return false };
    let plain: Vec<u8> = digits.bytes().filter(|&byte| byte != b'.').collect();
    write_digits(number < 0.0, &plain, exponent - (plain.len() as i64 - 1), out);
    true
}

fn rescaled(value: i128, unit: Unit) -> i128 {
    let (per, wanted) = (i128::from(unit.per_second), i128::from(unit.wanted));
    if per <= wanted {
        return value * (wanted / per);
    }
    let step = per / wanted;
    if unit.round {
        (2 * value + step).div_euclid(2 * step)
    } else {
        value.div_euclid(step)
    }
}

fn write_scaled(value: i128, unit: Unit, out: &mut Vec<u8>) -> bool {
    write_int(rescaled(value, unit), out)
}

fn number_at(text: &[u8], from: usize, count: usize) -> Option<i64> {
    let mut value = 0;
    for &byte in text.get(from..from + count)? {
        if !byte.is_ascii_digit() {
            return None;
        }
        value = value * 10 + i64::from(byte - b'0');
    }
    Some(value)
}

fn days_from_civil(year: i64, month: i64, day: i64) -> Option<i64> {
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let length = match month {
        2 => 28 + i64::from(leap),
        4 | 6 | 9 | 11 => 30,
        1..=12 => 31,
        _ => return None,
    };
    if day < 1 || day > length {
        return None;
    }
    let shifted = year - i64::from(month <= 2);
    let (era, of_era) = (shifted.div_euclid(400), shifted.rem_euclid(400));
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    Some(era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + day_of_year - 719_468)
}

/// `2026-11-27T02:44:27.123456Z`, with no fraction or one of so many digits.
fn write_iso(text: &[u8], unit: Unit, places_max: usize, out: &mut Vec<u8>) -> bool {
    let moment = || -> Option<i128> {
        if text.len() < 20 || text[text.len() - 1] != b'Z' {
            return None;
        }
        if text[4] != b'-' || text[7] != b'-' || text[10] != b'T' || text[13] != b':' || text[16] != b':' {
            return None;
        }
        let days = days_from_civil(number_at(text, 0, 4)?, number_at(text, 5, 2)?, number_at(text, 8, 2)?)?;
        let (hour, minute, second) = (number_at(text, 11, 2)?, number_at(text, 14, 2)?, number_at(text, 17, 2)?);
        if hour > 23 || minute > 59 || second > 59 {
            return None;
        }
        let seconds = days * DAY_SECONDS + hour * 3_600 + minute * 60 + second;
        let places = text.len() - 20;
        let mut nanos = 0;
        if places > 0 {
            if text[19] != b'.' || places == 1 || places - 1 > places_max {
                return None;
            }
            nanos = number_at(text, 20, places - 1)? * 10i64.pow(9 - (places as u32 - 1));
        }
        Some(i128::from(seconds) * 1_000_000_000 + i128::from(nanos))
    };
    match moment() {
        Some(value) => write_scaled(value, Unit { per_second: 1_000_000_000, ..unit }, out),
        None => false,
    }
}

/// Append the bytes that hexadecimal digits spell; dashes only where a UUID has them.
pub fn write_hex(text: &[u8], dashes: bool, count: usize, out: &mut Vec<u8>) -> bool {
    let dashed = dashes && text.len() == 36;
    if !dashed && text.len() != 2 * count {
        return false;
    }
    let start = out.len();
    let mut half = None;
    for (at, &byte) in text.iter().enumerate() {
        if dashed && matches!(at, 8 | 13 | 18 | 23) {
            if byte != b'-' {
                out.truncate(start);
                return false;
            }
            continue;
        }
        let Some(digit) = (byte as char).to_digit(16) else {
            out.truncate(start);
            return false;
        };
        match half.take() {
            None => half = Some(digit),
            Some(high) => out.push((high << 4 | digit) as u8),
        }
    }
    true
}
