//! The few forms of msgpack that a section has, in the shortest way, as msgspec writes them.

pub fn array(out: &mut Vec<u8>, count: usize) {
    match count {
        0..=15 => out.push(0x90 | count as u8),
        16..=0xffff => head16(out, 0xdc, count),
        _ => head32(out, 0xdd, count),
    }
}

pub fn bin_head(out: &mut Vec<u8>, size: usize) {
    match size {
        0..=0xff => out.extend_from_slice(&[0xc4, size as u8]),
        0x100..=0xffff => head16(out, 0xc5, size),
        _ => head32(out, 0xc6, size),
    }
}

pub fn bin(out: &mut Vec<u8>, bytes: &[u8]) {
    bin_head(out, bytes.len());
    out.extend_from_slice(bytes);
}

pub fn text(out: &mut Vec<u8>, text: &str) {
    match text.len() {
        size @ 0..=31 => out.push(0xa0 | size as u8),
        size @ 32..=0xff => out.extend_from_slice(&[0xd9, size as u8]),
        size @ 0x100..=0xffff => head16(out, 0xda, size),
        size => head32(out, 0xdb, size),
    }
    out.extend_from_slice(text.as_bytes());
}

pub fn nil(out: &mut Vec<u8>) {
    out.push(0xc0);
}

/// A number of 64 bits with its sign, or of 64 bits without one.
pub fn int(out: &mut Vec<u8>, number: i128) {
    match number {
        0..=0x7f => out.push(number as u8),
        0x80..=0xff => out.extend_from_slice(&[0xcc, number as u8]),
        0x100..=0xffff => head16(out, 0xcd, number as usize),
        0x1_0000..=0xffff_ffff => head32(out, 0xce, number as usize),
        0x1_0000_0000.. => {
            out.push(0xcf);
            out.extend_from_slice(&(number as u64).to_be_bytes());
        }
        -32..=-1 => out.push(number as i8 as u8),
        -0x80..=-33 => out.extend_from_slice(&[0xd0, number as i8 as u8]),
        -0x8000..=-0x81 => {
            out.push(0xd1);
            out.extend_from_slice(&(number as i16).to_be_bytes());
        }
        -0x8000_0000..=-0x8001 => {
            out.push(0xd2);
            out.extend_from_slice(&(number as i32).to_be_bytes());
        }
        _ => {
            out.push(0xd3);
            out.extend_from_slice(&(number as i64).to_be_bytes());
        }
    }
}

/// Little-endian numbers of 64 bits, as one byte string.
pub fn numbers(out: &mut Vec<u8>, column: &[i64]) {
    bin_head(out, 8 * column.len());
    for number in column {
        out.extend_from_slice(&number.to_le_bytes());
    }
}

fn head16(out: &mut Vec<u8>, code: u8, count: usize) {
    out.push(code);
    out.extend_from_slice(&(count as u16).to_be_bytes());
}

fn head32(out: &mut Vec<u8>, code: u8, count: usize) {
    out.push(code);
    out.extend_from_slice(&(count as u32).to_be_bytes());
}
