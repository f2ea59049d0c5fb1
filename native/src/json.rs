//! A strict reader of JSON texts. What it takes, every reader takes alike; all else is declined.

/// The message is not ours: the general form decides what it says.
#[derive(Debug)]
pub struct Decline;
pub type Res<T> = Result<T, Decline>;

const DEPTH_MAX: usize = 64;
const NUMBER_MAX: usize = 40; // characters; longer ones may be out of somebody's range

pub struct Scan<'a> {
    pub data: &'a [u8],
    pub at: usize,
}

/// The content of a string, between its quotes.
#[derive(Clone, Copy)]
pub struct Text<'a> {
    pub raw: &'a [u8],
    pub escaped: bool,
}

pub struct Number<'a> {
    pub raw: &'a [u8],
    pub whole: bool,
}

const ONES: u64 = 0x0101_0101_0101_0101;
const HIGH: u64 = 0x8080_8080_8080_8080;

/// The first byte of eight that ends a plain stretch of a string: a quote, a backslash or a control character.
#[inline]
fn stop_in(word: u64) -> u64 {
    let quote = word ^ (ONES * 0x22);
    let slash = word ^ (ONES * 0x5c);
    let control = word.wrapping_sub(ONES * 0x20) & !word;
    ((quote.wrapping_sub(ONES) & !quote) | (slash.wrapping_sub(ONES) & !slash) | control) & HIGH
}

/// As `stop_in`, of sixteen bytes: one bit for each.
#[cfg(target_arch = "x86_64")]
#[inline]
fn stop_in_sixteen(bytes: &[u8]) -> u32 {
    use std::arch::x86_64::{_mm_cmpeq_epi8, _mm_loadu_si128, _mm_min_epu8, _mm_movemask_epi8, _mm_or_si128, _mm_set1_epi8};
    assert!(bytes.len() == 16);
    // SAFETY: sixteen bytes are there, loaded unaligned; every x86-64 has SSE2.
    unsafe {
        let word = _mm_loadu_si128(bytes.as_ptr().cast());
        let quote = _mm_cmpeq_epi8(word, _mm_set1_epi8(0x22));
        let slash = _mm_cmpeq_epi8(word, _mm_set1_epi8(0x5c));
        let control = _mm_cmpeq_epi8(_mm_min_epu8(word, _mm_set1_epi8(0x1f)), word);
        _mm_movemask_epi8(_mm_or_si128(_mm_or_si128(quote, slash), control)) as u32
    }
}

impl<'a> Scan<'a> {
    pub fn new(data: &'a [u8]) -> Self {
        Scan { data, at: 0 }
    }

    #[inline]
    pub fn peek(&self) -> u8 {
        *self.data.get(self.at).unwrap_or(&0)
    }

    #[inline]
    pub fn space(&mut self) {
        while matches!(self.peek(), b' ' | b'\t' | b'\n' | b'\r') {
            self.at += 1;
        }
    }

    #[inline]
    fn expect(&mut self, byte: u8) -> Res<()> {
        if self.peek() != byte {
            return Err(Decline);
        }
        self.at += 1;
        Ok(())
    }

    pub fn end(&mut self) -> Res<()> {
        self.space();
        if self.at == self.data.len() {
            Ok(())
        } else {
            Err(Decline)
        }
    }

    /// Go on to the next byte that ends a plain stretch of a string.
    #[inline]
    fn stretch(&mut self) {
        #[cfg(target_arch = "x86_64")]
        while let Some(bytes) = self.data.get(self.at..self.at + 16) {
            let stop = stop_in_sixteen(bytes);
            if stop != 0 {
                self.at += stop.trailing_zeros() as usize;
                return;
            }
            self.at += 16;
        }
        while let Some(bytes) = self.data.get(self.at..self.at + 8) {
            let word = u64::from_le_bytes(bytes.try_into().unwrap());
            let stop = stop_in(word);
            if stop != 0 {
                self.at += stop.trailing_zeros() as usize / 8;
                return;
            }
            self.at += 8;
        }
        while self.at < self.data.len() && !matches!(self.data[self.at], b'"' | b'\\' | 0..=0x1f) {
            self.at += 1;
        }
    }

    #[inline]
    pub fn string(&mut self) -> Res<Text<'a>> {
        self.expect(b'"')?;
        let start = self.at;
        let mut escaped = false;
        loop {
            self.stretch();
            match self.peek() {
                b'"' => {
                    let raw = &self.data[start..self.at];
                    self.at += 1;
                    return Ok(Text { raw, escaped });
                }
                b'\\' => {
                    escaped = true;
                    self.escape()?;
                }
                _ => return Err(Decline),
            }
        }
    }

    /// Read a string into `out`, without its escapes.
    pub fn string_into(&mut self, out: &mut Vec<u8>) -> Res<()> {
        self.expect(b'"')?;
        loop {
            let start = self.at;
            self.stretch();
            out.extend_from_slice(&self.data[start..self.at]);
            match self.peek() {
                b'"' => {
                    self.at += 1;
                    return Ok(());
                }
                b'\\' => {
                    let start = self.at;
                    self.escape()?;
                    match self.data[start + 1] {
                        b'u' => unescape_code(self.data, start, out),
                        kind => out.push(escaped(kind)),
                    }
                }
                _ => return Err(Decline),
            }
        }
    }

    fn escape(&mut self) -> Res<()> {
        self.at += 1;
        let kind = self.peek();
        self.at += 1;
        match kind {
            b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't' => Ok(()),
            b'u' => {
                let high = self.four()?;
                match high {
                    0xdc00..=0xdfff => Err(Decline),
                    0xd800..=0xdbff => {
                        self.expect(b'\\')?;
                        self.expect(b'u')?;
                        match self.four()? {
                            0xdc00..=0xdfff => Ok(()),
                            _ => Err(Decline),
                        }
                    }
                    _ => Ok(()),
                }
            }
            _ => Err(Decline),
        }
    }

    fn four(&mut self) -> Res<u32> {
        let digits = self.data.get(self.at..self.at + 4).ok_or(Decline)?;
        self.at += 4;
        hex4(digits)
    }

    fn digits(&mut self) -> Res<()> {
        let start = self.at;
        while self.peek().is_ascii_digit() {
            self.at += 1;
        }
        if self.at == start {
            Err(Decline)
        } else {
            Ok(())
        }
    }

    pub fn number(&mut self) -> Res<Number<'a>> {
        let start = self.at;
        let mut whole = true;
        if self.peek() == b'-' {
            self.at += 1;
        }
        if self.peek() == b'0' {
            self.at += 1;
        } else {
            self.digits()?;
        }
        if self.peek() == b'.' {
            whole = false;
            self.at += 1;
            self.digits()?;
        }
        if matches!(self.peek(), b'e' | b'E') {
            whole = false;
            self.at += 1;
            if matches!(self.peek(), b'+' | b'-') {
                self.at += 1;
            }
            let exponent = self.at;
            self.digits()?;
            if self.at - exponent > 3 {
                return Err(Decline);
            }
        }
        if self.at - start > NUMBER_MAX {
            return Err(Decline);
        }
        Ok(Number { raw: &self.data[start..self.at], whole })
    }

    fn word(&mut self, word: &[u8]) -> Res<()> {
        if self.data.get(self.at..self.at + word.len()) != Some(word) {
            return Err(Decline);
        }
        self.at += word.len();
        Ok(())
    }

    /// Read one value of any kind and return its bytes.
    #[inline]
    pub fn value(&mut self) -> Res<&'a [u8]> {
        let start = self.at;
        self.skip(0)?;
        Ok(&self.data[start..self.at])
    }

    fn skip(&mut self, depth: usize) -> Res<()> {
        match self.peek() {
            b'"' => self.string().map(|_| ()),
            b'{' => {
                self.deeper(depth)?;
                self.object_at(|scan, _| scan.skip(depth + 1))
            }
            b'[' => {
                self.deeper(depth)?;
                self.array(depth)
            }
            b't' => self.word(b"true"),
            b'f' => self.word(b"false"),
            b'n' => self.word(b"null"),
            _ => self.number().map(|_| ()),
        }
    }

    fn deeper(&self, depth: usize) -> Res<()> {
        if depth < DEPTH_MAX {
            Ok(())
        } else {
            Err(Decline)
        }
    }

    fn array(&mut self, depth: usize) -> Res<()> {
        self.at += 1;
        self.space();
        if self.peek() == b']' {
            self.at += 1;
            return Ok(());
        }
        loop {
            self.space();
            self.skip(depth + 1)?;
            self.space();
            match self.peek() {
                b',' => self.at += 1,
                b']' => {
                    self.at += 1;
                    return Ok(());
                }
                _ => return Err(Decline),
            }
        }
    }

    #[inline]
    fn object_at(&mut self, mut each: impl FnMut(&mut Self, Text<'a>) -> Res<()>) -> Res<()> {
        self.expect(b'{')?;
        self.space();
        if self.peek() == b'}' {
            self.at += 1;
            return Ok(());
        }
        loop {
            self.space();
            let name = self.string()?;
            self.space();
            self.expect(b':')?;
            self.space();
            each(self, name)?;
            self.space();
            match self.peek() {
                b',' => self.at += 1,
                b'}' => {
                    self.at += 1;
                    return Ok(());
                }
                _ => return Err(Decline),
            }
        }
    }

    /// Read an object; `each` takes the value of the member that it is told of. A name that is written with escapes could be
    /// any: such an object is declined.
    #[inline]
    pub fn object(&mut self, mut each: impl FnMut(&mut Self, &'a [u8]) -> Res<()>) -> Res<()> {
        self.object_at(|scan, name| if name.escaped { Err(Decline) } else { each(scan, name.raw) })
    }

    pub fn null(&mut self) -> Res<()> {
        self.word(b"null")
    }

    /// Read a whole number that fits 64 bits.
    pub fn int(&mut self) -> Res<i64> {
        let number = self.number()?;
        if number.whole {
            whole(number.raw)
        } else {
            Err(Decline)
        }
    }

    pub fn int_or_null(&mut self) -> Res<Option<i64>> {
        if self.peek() == b'n' {
            self.null()?;
            return Ok(None);
        }
        self.int().map(Some)
    }
}

fn hex4(digits: &[u8]) -> Res<u32> {
    let mut value = 0;
    for &digit in digits {
        value = value << 4 | (digit as char).to_digit(16).ok_or(Decline)?;
    }
    Ok(value)
}

/// Read the digits of a whole number as they are usually written: no leading zero, no plus, no minus zero.
pub fn whole(text: &[u8]) -> Res<i64> {
    let (negative, digits) = match text.split_first() {
        Some((b'-', rest)) => (true, rest),
        _ => (false, text),
    };
    if digits.is_empty() || digits.len() > 19 || (digits[0] == b'0' && (digits.len() > 1 || negative)) {
        return Err(Decline);
    }
    let mut value: i128 = 0;
    if digits.len() < 19 {
        let mut short: i64 = 0;
        for &digit in digits {
            if !digit.is_ascii_digit() {
                return Err(Decline);
            }
            short = short * 10 + i64::from(digit - b'0');
        }
        return Ok(if negative { -short } else { short });
    }
    for &digit in digits {
        if !digit.is_ascii_digit() {
            return Err(Decline);
        }
        value = value * 10 + i128::from(digit - b'0');
    }
    i64::try_from(if negative { -value } else { value }).map_err(|_| Decline)
}

impl<'a> Text<'a> {
    /// Return the text's characters; `buffer` holds them where they were written with escapes.
    #[inline]
    pub fn plain<'b>(&self, buffer: &'b mut Vec<u8>) -> &'b [u8]
    where
        'a: 'b,
    {
        if !self.escaped {
            return self.raw;
        }
        buffer.clear();
        unescape(self.raw, buffer);
        buffer
    }
}

fn escaped(kind: u8) -> u8 {
    match kind {
        b'b' => 0x08,
        b'f' => 0x0c,
        b'n' => b'\n',
        b'r' => b'\r',
        b't' => b'\t',
        other => other,
    }
}

/// Write what a string's content stands for. `raw` was read by `Scan::string`, so that every escape in it is whole.
fn unescape(raw: &[u8], out: &mut Vec<u8>) {
    let mut scan = Scan::new(raw);
    while scan.at < raw.len() {
        let start = scan.at;
        scan.stretch();
        out.extend_from_slice(&raw[start..scan.at]);
        if scan.at < raw.len() {
            let start = scan.at;
            if scan.escape().is_err() {
                return;
            }
            match raw[start + 1] {
                b'u' => unescape_code(raw, start, out),
                kind => out.push(escaped(kind)),
            }
        }
    }
}

fn unescape_code(raw: &[u8], at: usize, out: &mut Vec<u8>) {
    let code = |from: usize| hex4(&raw[from..from + 4]).unwrap_or(0xfffd);
    let mut value = code(at + 2);
    if (0xd800..0xdc00).contains(&value) {
        value = 0x10000 + ((value - 0xd800) << 10) + (code(at + 8) - 0xdc00);
    }
    let mut bytes = [0; 4];
    let character = char::from_u32(value).unwrap_or('\u{fffd}');
    out.extend_from_slice(character.encode_utf8(&mut bytes).as_bytes());
}

/// Return the content of a text that is one JSON string.
pub fn string_of(raw: &[u8]) -> Option<Text<'_>> {
    let mut scan = Scan::new(raw);
    match (scan.string(), scan.at == raw.len()) {
        (Ok(text), true) => Some(text),
        _ => None,
    }
}
