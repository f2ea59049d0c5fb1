//! Objects whose members come in the order of the last one: what stands between the values is compared, not read again.

use crate::json::{Decline, Res, Scan};

/// The class of members that nobody asks for.
pub const SKIPPED: u8 = u8::MAX;
const MISSES_MAX: u32 = 8; // then members that nobody asks for are taken to change
const STEPS_MAX: usize = 256;

/// How the last object was written: before each value that may change, all the bytes since the one before.
#[derive(Default)]
pub struct Layout {
    steps: Vec<(Vec<u8>, u8)>,
    tail: Vec<u8>,
    misses: u32,
}

impl Layout {
    /// Read an object. `class` says by its name which member it is (up to 63 of them), and `each` takes its value.
    ///
    /// `each` may be told of a member twice, with the same value; a name that stands there twice is declined.
    #[inline]
    pub fn read<'a>(
        &mut self,
        scan: &mut Scan<'a>,
        class: impl Fn(&[u8]) -> u8,
        mut each: impl FnMut(&mut Scan<'a>, u8) -> Res<()>,
    ) -> Res<()> {
        let start = scan.at;
        if !self.steps.is_empty() && self.follow(scan, &mut each)? {
            return Ok(());
        }
        scan.at = start;
        self.learn(scan, class, each)
    }

    /// Read an object like the last one; false where it is not like it.
    #[inline]
    fn follow<'a>(&self, scan: &mut Scan<'a>, each: &mut impl FnMut(&mut Scan<'a>, u8) -> Res<()>) -> Res<bool> {
        for (between, class) in &self.steps {
            if !scan.data[scan.at..].starts_with(between) {
                return Ok(false);
            }
            scan.at += between.len();
            if *class == SKIPPED {
                scan.value()?;
            } else {
                each(scan, *class)?;
            }
        }
        if !scan.data[scan.at..].starts_with(&self.tail) {
            return Ok(false);
        }
        scan.at += self.tail.len();
        Ok(true)
    }

    fn learn<'a>(
        &mut self,
        scan: &mut Scan<'a>,
        class: impl Fn(&[u8]) -> u8,
        mut each: impl FnMut(&mut Scan<'a>, u8) -> Res<()>,
    ) -> Res<()> {
        self.misses += u32::from(!self.steps.is_empty());
        self.steps.clear();
        let constant = self.misses <= MISSES_MAX;
        let (mut from, mut seen) = (scan.at, 0u64);
        let steps = &mut self.steps;
        scan.object(|scan, name| {
            let (found, value) = (class(name), scan.at);
            if found == SKIPPED {
                scan.value()?;
                if constant && matches!(scan.data[value], b'"' | b'n' | b't' | b'f') {
                    return Ok(());
                }
            } else {
                if seen >> found & 1 == 1 {
                    return Err(Decline);
                }
                seen |= 1 << found;
                each(scan, found)?;
            }
            steps.push((scan.data[from..value].to_vec(), found));
            from = scan.at;
            Ok(())
        })
        .inspect_err(|_| self.steps.clear())?;
        if self.steps.len() > STEPS_MAX {
            self.steps.clear();
        }
        self.tail.clear();
        self.tail.extend_from_slice(&scan.data[from..scan.at]);
        Ok(())
    }
}
