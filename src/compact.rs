//! Small binary forms: how the values of an open bucket are written down and read back.
//!
//! Integers are little-endian base 128 with a continuation bit, floats are their eight bytes. What
//! is read may be anything: every length is held against the bytes that are there.

/// The bytes are not what was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed or cut off")]
pub struct Malformed;

/// Appends an integer: one byte below 128, ten at most.
pub fn put_integer(out: &mut Vec<u8>, mut n: u64) {
    while n >= 0x80 {
        out.push(n as u8 | 0x80);
        n >>= 7;
    }
    out.push(n as u8);
}

/// Appends a float.
pub fn put_float(out: &mut Vec<u8>, x: f64) {
    out.extend_from_slice(&x.to_le_bytes());
}

/// Short decimals are whole numbers of thousandths.
pub const THOUSAND: f64 = 1000.0;

/// The whole number next to a value, or anything if there is none of 32 bits.
#[inline]
pub fn nearest(value: f64) -> i32 {
    // So large that the lowest bits of the sum are the whole number. Several at once can be made so.
    const LARGE: f64 = 6_755_399_441_055_744.0;
    (value + LARGE).to_bits() as i32
}

/// A value in thousandths, if it can be given back from them to the bit.
#[inline]
pub fn thousandths(value: f64) -> Option<i32> {
    let short = nearest(value * THOUSAND);
    (of_thousandths(short).to_bits() == value.to_bits()).then_some(short)
}

/// The value that is so many thousandths.
#[inline]
pub fn of_thousandths(short: i32) -> f64 {
    f64::from(short) / THOUSAND
}

/// What is still to be read.
#[derive(Clone, Copy, Debug)]
pub struct Input<'a>(pub &'a [u8]);

impl<'a> Input<'a> {
    /// # Errors
    /// When nothing is left, as in all that follows.
    pub fn byte(&mut self) -> Result<u8, Malformed> {
        let (&byte, rest) = self.0.split_first().ok_or(Malformed)?;
        self.0 = rest;
        Ok(byte)
    }

    /// # Errors
    /// When fewer are left.
    pub fn bytes(&mut self, n: usize) -> Result<&'a [u8], Malformed> {
        let (taken, rest) = self.0.split_at_checked(n).ok_or(Malformed)?;
        self.0 = rest;
        Ok(taken)
    }

    /// # Errors
    /// When it does not end, or does not fit 64 bits.
    pub fn integer(&mut self) -> Result<u64, Malformed> {
        let mut n = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            let bits = u64::from(byte & 0x7f);
            if bits << shift >> shift != bits {
                return Err(Malformed);
            }
            n |= bits << shift;
            if byte < 0x80 {
                return Ok(n);
            }
        }
        Err(Malformed)
    }

    /// The number of things that follow, each of `size` bytes at least.
    ///
    /// # Errors
    /// When there is no room for so many.
    pub fn length(&mut self, size: usize) -> Result<usize, Malformed> {
        let n = self.integer()?;
        if n > (self.0.len() / size) as u64 { Err(Malformed) } else { Ok(n as usize) }
    }

    /// A finite float.
    ///
    /// # Errors
    /// When it is not finite.
    pub fn float(&mut self) -> Result<f64, Malformed> {
        let (bytes, rest) = self.0.split_first_chunk().ok_or(Malformed)?;
        self.0 = rest;
        Some(f64::from_le_bytes(*bytes)).filter(|x| x.is_finite()).ok_or(Malformed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_come_back_in_as_few_bytes_as_they_need() {
        let integers = [(0, 1), (127, 1), (128, 2), (16_383, 2), (16_384, 3), (u64::MAX, 10)];
        for (n, length) in integers {
            let mut out = Vec::new();
            put_integer(&mut out, n);
            assert_eq!(out.len(), length);
            out.push(7);
            let mut input = Input(&out);
            assert_eq!((input.integer(), input.0), (Ok(n), &[7][..]));
            assert_eq!(Input(&out[..length - 1]).integer(), Err(Malformed));
        }
        assert_eq!(Input(&[0x80; 11]).integer(), Err(Malformed));
        // 2^70.
        assert_eq!(Input(&[&[0x80; 9][..], &[2]].concat()).integer(), Err(Malformed));
    }

    #[test]
    fn floats_and_bytes_come_back() {
        let mut out = Vec::new();
        put_float(&mut out, -0.5);
        let mut input = Input(&out);
        assert_eq!((input.float(), input.0), (Ok(-0.5), &[][..]));
        assert_eq!(Input(&out[1..]).float(), Err(Malformed));
        assert_eq!(Input(&f64::NAN.to_le_bytes()).float(), Err(Malformed));
        let mut input = Input(b"abc");
        assert_eq!((input.bytes(2), input.byte()), (Ok(&b"ab"[..]), Ok(b'c')));
        assert_eq!((input.bytes(1), input.byte()), (Err(Malformed), Err(Malformed)));
    }

    #[test]
    fn a_length_is_held_against_what_is_there() {
        assert_eq!(Input(&[2, 0, 0, 0]).length(1), Ok(2));
        assert_eq!(Input(&[2, 0, 0, 0]).length(2), Err(Malformed));
        assert_eq!(Input(&[0]).length(8), Ok(0));
    }
}
