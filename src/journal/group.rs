//! Samples of one value without more, as nearly all are, in the form that a record has them in.
//!
//! ```text
//! group     tag u8 = 32 | form u8 | how many u8 | a number for each | a value for each
//! number    u16, or u32 (form 128)
//! value     a whole number of as many bytes as the lowest three bits of the form say, from 1 to 4:
//!           the value, or with form 64 a thousand times the value; or an f64 (these bits zero)
//! ```
//!
//! One form for all of them, so that an encoder takes several at once and asks nothing of any one. So
//! what is alike should be put together.

use super::format::Bytes;
use crate::compact::{THOUSAND, nearest, of_thousandths};

pub(super) const GROUP: u8 = 32;

const WIDE: u8 = 128;
const THOUSANDTHS: u8 = 64;
const BYTES: u8 = 7;

/// Samples of a group.
const MAX: usize = 64;

/// Samples that were not put into a record yet, in the order of their arrival.
#[derive(Debug)]
pub(super) struct Group {
    count: usize,
    numbers: [u32; MAX],
    values: [f64; MAX],
}

impl Default for Group {
    fn default() -> Self {
        Self { count: 0, numbers: [0; MAX], values: [0.0; MAX] }
    }
}

impl Group {
    pub(super) const fn is_empty(&self) -> bool {
        self.count == 0
    }

    pub(super) const fn is_full(&self) -> bool {
        self.count == MAX
    }

    pub(super) const fn clear(&mut self) {
        self.count = 0;
    }

    /// Adds a sample to one that is not full.
    #[inline(always)]
    pub(super) const fn add(&mut self, number: u32, value: f64) {
        self.numbers[self.count] = number;
        self.values[self.count] = value;
        self.count += 1;
    }

    /// Moves what it has behind what is there.
    pub(super) fn put(&mut self, out: &mut Vec<u8>) {
        let (numbers, values) = (&self.numbers[..self.count], &self.values[..self.count]);
        self.count = 0;
        let wide = numbers.iter().fold(0, |all, number| all | number) > u16::MAX.into();
        let mut short = [0; MAX];
        let short = &mut short[..values.len()];
        let form = form(values, short);
        out.extend([GROUP, form | if wide { WIDE } else { 0 }, values.len() as u8]);
        if wide {
            put_each(out, numbers, |number| number.to_le_bytes());
        } else {
            put_each(out, numbers, |number| (number as u16).to_le_bytes());
        }
        match form & BYTES {
            0 => put_each(out, values, f64::to_le_bytes),
            1 => put_each(out, short, |short| [short as u8]),
            2 => put_each(out, short, |short| (short as u16).to_le_bytes()),
            3 => put_each(out, short, |short| {
                let [a, b, c, _] = short.to_le_bytes();
                [a, b, c]
            }),
            _ => put_each(out, short, i32::to_le_bytes),
        }
    }
}

/// The form in which all of these values can be given back, to the bit; and what stands for them in it.
fn form(values: &[f64], short: &mut [i32]) -> u8 {
    let mut all_are = true;
    for (&value, short) in values.iter().zip(&mut *short) {
        *short = nearest(value);
        all_are &= f64::from(*short).to_bits() == value.to_bits();
    }
    if all_are {
        return bytes(short);
    }
    all_are = true;
    for (&value, short) in values.iter().zip(&mut *short) {
        *short = nearest(value * THOUSAND);
        all_are &= of_thousandths(*short).to_bits() == value.to_bits();
    }
    if all_are { THOUSANDTHS | bytes(short) } else { 0 }
}

/// How many bytes the longest of these numbers takes, with its sign.
fn bytes(numbers: &[i32]) -> u8 {
    let bits = numbers.iter().fold(0, |all, number| all | (number ^ number >> 31));
    (33 - bits.leading_zeros()).div_ceil(8) as u8
}

fn put_each<T: Copy, const N: usize>(out: &mut Vec<u8>, all: &[T], bytes: impl Fn(T) -> [u8; N]) {
    let begin = out.len();
    out.resize(begin + all.len() * N, 0);
    let (places, _) = out[begin..].as_chunks_mut();
    places.iter_mut().zip(all).for_each(|(place, one)| *place = bytes(*one));
}

/// Takes what stands behind the tag. `None` when that is no group.
pub(super) fn take(bytes: &mut Bytes<'_>, mut each: impl FnMut(u32, f64)) -> Option<()> {
    let (form, count) = (bytes.u8()?, usize::from(bytes.u8()?));
    let mut numbers = Bytes(bytes.take(count * if form & WIDE != 0 { 4 } else { 2 })?);
    for _ in 0..count {
        let number = if form & WIDE != 0 { numbers.u32()? } else { numbers.u16()?.into() };
        let value = match form & BYTES {
            0 => bytes.f64()?,
            length @ 1..=4 => {
                let length = usize::from(length);
                let mut number = [0; 4];
                number[4 - length..].copy_from_slice(bytes.take(length)?);
                // Its sign is in the highest byte.
                f64::from(i32::from_le_bytes(number) >> (8 * (4 - length)))
            }
            _ => return None,
        };
        each(number, if form & THOUSANDTHS != 0 { value / THOUSAND } else { value });
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn put(samples: &[(u32, f64)]) -> Vec<u8> {
        let (mut group, mut out) = (Group::default(), Vec::new());
        samples.iter().for_each(|(number, value)| group.add(*number, *value));
        group.put(&mut out);
        assert!(group.is_empty());
        out
    }

    /// As bits: a NaN equals nothing.
    fn bits(samples: &[(u32, f64)]) -> Vec<(u32, u64)> {
        samples.iter().map(|(number, value)| (*number, value.to_bits())).collect()
    }

    fn taken(file: &[u8]) -> Option<(Vec<(u32, f64)>, usize)> {
        let (mut bytes, mut found) = (Bytes(file.strip_prefix(&[GROUP])?), Vec::new());
        take(&mut bytes, |number, value| found.push((number, value)))?;
        Some((found, bytes.0.len()))
    }

    fn number() -> impl Strategy<Value = u32> {
        prop_oneof![any::<u32>(), 0..3_u32, 65_530..65_540_u32]
    }

    /// Of every form.
    fn value() -> impl Strategy<Value = f64> {
        let edges = prop::sample::select(vec![0.0, -0.0, 0.1, f64::NAN, f64::INFINITY, 1e300]);
        let whole = (any::<i32>(), 0..32).prop_map(|(n, shift)| f64::from(n >> shift));
        let decimal = (any::<i32>(), 0..32, prop::sample::select(vec![10.0, 100.0, 1e3, 1e4]))
            .prop_map(|(n, shift, parts)| f64::from(n >> shift) / parts);
        prop_oneof![1 => any::<f64>(), 1 => edges, 6 => whole, 6 => decimal]
    }

    proptest! {
        #[test]
        fn samples_come_back_to_the_bit(
            samples in prop_oneof![
                prop::collection::vec((number(), value()), 1..4),
                prop::collection::vec((number(), (any::<i32>(), 0..32).prop_map(|(n, shift)| f64::from(n >> shift))), 1..=MAX),
                prop::collection::vec((0..9_u32, (-99_999..99_999).prop_map(|n| f64::from(n) / 100.0)), 1..=MAX),
            ],
            more: Vec<u8>,
        ) {
            let file = [&put(&samples)[..], &more].concat();
            let (found, left) = taken(&file).expect("a group");
            prop_assert_eq!(bits(&found), bits(&samples));
            prop_assert_eq!(left, more.len());
        }

        #[test]
        fn nothing_but_a_group_is_taken(bytes: Vec<u8>) {
            let _ = taken(&[&[GROUP], &bytes[..]].concat());
        }
    }

    #[test]
    fn most_samples_take_few_bytes() {
        for (samples, bytes) in [
            (&[(7, 0.0)][..], 3 + 3),
            (&[(7, 1.0), (8, -128.0)], 3 + 2 * 3),
            (&[(7, 1.0), (8, 128.0)], 3 + 2 * 4),
            (&[(7, 1.0), (8, -40_000.0)], 3 + 2 * 5),
            (&[(7, 1.0), (8, -2_147_483_648.0)], 3 + 2 * 6),
            (&[(7, 0.1), (8, -0.128)], 3 + 2 * 3),
            (&[(7, 5.0), (8, 999.99)], 3 + 2 * 5),
            (&[(7, 0.25), (8, 2_147_483.647)], 3 + 2 * 6),
            (&[(7, 0.25), (65_536, 1.0)], 3 + 2 * 6),
            (&[(7, -0.0)], 3 + 10),
            (&[(7, 0.000_25), (8, 1.0)], 3 + 2 * 10),
            (&[(7, 4_294_967_296.0)], 3 + 10),
        ] {
            assert_eq!(put(samples).len(), bytes, "{samples:?}");
        }
    }

    #[test]
    fn what_is_cut_off_is_no_group() {
        let whole = put(&[(7, 1.5), (70_000, 2.25)]);
        for length in 1..whole.len() {
            assert!(taken(&whole[..length]).is_none(), "{length} bytes");
        }
        let mut other = whole;
        other[1] = 5;
        assert!(taken(&other).is_none(), "five bytes are none of its forms");
    }
}
