//! Numbers as Go's `strconv.ParseFloat` reads them, since that is what the Agent calls.

/// Reads a number: decimal, or hexadecimal with an exponent, digits set apart by single
/// underscores, `inf`, `infinity` and unsigned `nan` in any case. What is too large is no number;
/// what is too small is 0. Always the nearest float.
pub fn number(text: &[u8]) -> Option<f64> {
    plain(text).or_else(|| any(text))
}

/// Powers of ten that a float holds exactly.
const POWERS: [f64; 20] = [
    1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12, 1e13, 1e14, 1e15, 1e16,
    1e17, 1e18, 1e19,
];

/// Short decimals without an exponent, as nearly all are. Both sides of the division are exact, so
/// its result is the nearest float.
pub(super) fn plain(text: &[u8]) -> Option<f64> {
    let (negative, digits) = match text {
        [b'-', rest @ ..] => (true, rest),
        [b'+', rest @ ..] => (false, rest),
        _ => (false, text),
    };
    if digits.len() >= POWERS.len() {
        return None;
    }
    let mut mantissa = 0_u64;
    let mut point = None;
    for (at, &byte) in digits.iter().enumerate() {
        match byte {
            b'0'..=b'9' => mantissa = mantissa * 10 + u64::from(byte - b'0'),
            b'.' if point.is_none() => point = Some(at),
            _ => return None,
        }
    }
    let any_digit = digits.len() > usize::from(point.is_some());
    if !any_digit || mantissa > 1 << 53 {
        return None;
    }
    let decimals = point.map_or(0, |at| digits.len() - at - 1);
    let value = mantissa as f64 / POWERS[decimals];
    Some(if negative { -value } else { value })
}

/// The number that the last `length` bytes of a text are: up to eight digits, or a point among up
/// to seven. `None` is no verdict: it may be a number of another form, or the text be shorter than
/// eight bytes. All are looked at at once, since a loop ends in a mispredicted branch.
#[inline]
pub(super) fn short(text: &[u8], length: usize) -> Option<f64> {
    const EACH: u64 = 0x0101_0101_0101_0101;
    const HIGH: u64 = 0x80 * EACH;
    const ZEROS: u64 = b'0' as u64 * EACH;
    let bytes = text.last_chunk::<8>().filter(|_| (1..=8).contains(&length))?;
    // The last byte of the number is the highest; zeros stand before the first.
    let others = 64 - 8 * length;
    let bytes = u64::from_le_bytes(*bytes) >> others << others;
    let other = bytes ^ (b'.' as u64 * EACH);
    let points = other.wrapping_sub(EACH) & !other & HIGH;
    // Without a question, since whether there is a point is chance: the first one's lowest bit, or 0.
    let point = (points & points.wrapping_neg()) >> 7;
    let pointed = u32::from(point != 0);
    // What stands before the point moves up by one.
    let before = bytes & point.wrapping_sub(1);
    let behind = bytes & !point.wrapping_mul(0xff) & !point.wrapping_sub(1);
    let digits = behind | before << (8 * pointed);
    let count = length - pointed as usize;
    // A number without a point is one with it behind the last digit.
    let decimals = 7 - (points | 1 << 63).trailing_zeros() as usize / 8;
    let padding = ZEROS.checked_shr(8 * count as u32).unwrap_or(0);
    let digits = (digits | padding) ^ ZEROS;
    let too_large = (digits.wrapping_add(0x76 * EACH) | digits) & HIGH;
    if too_large != 0 || count == 0 {
        return None;
    }
    // Neighbours are put together: to two digits in each second byte, to four, to eight.
    let pairs = digits.wrapping_mul(10).wrapping_add(digits >> 8);
    let even = (pairs & 0x0000_00ff_0000_00ff).wrapping_mul(100 + (1_000_000 << 32));
    let odd = (pairs >> 16 & 0x0000_00ff_0000_00ff).wrapping_mul(1 + (10_000 << 32));
    let mantissa = even.wrapping_add(odd) >> 32;
    Some(mantissa as f64 / POWERS[decimals])
}

fn any(text: &[u8]) -> Option<f64> {
    let text = std::str::from_utf8(text).ok()?;
    if !text.contains('_') {
        return without_underscores(text);
    }
    if !underscores_separate_digits(text) {
        return None;
    }
    without_underscores(&text.replace('_', ""))
}

fn without_underscores(text: &str) -> Option<f64> {
    let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
    if let Some(hex) = unsigned.strip_prefix("0x").or_else(|| unsigned.strip_prefix("0X")) {
        let value = hex_float(hex)?;
        return Some(if text.starts_with('-') { -value } else { value });
    }
    // The standard library differs from Go in two points: it takes signed NaN, and it gives
    // infinity for what is too large.
    let value: f64 = text.parse().ok()?;
    let signed = unsigned.len() < text.len();
    let word = !unsigned.bytes().any(|b| b.is_ascii_digit());
    let taken = if value.is_nan() { !signed } else { value.is_finite() || word };
    taken.then_some(value)
}

/// Whether each underscore has a digit on both sides; a prefix `0x` counts as a digit.
fn underscores_separate_digits(text: &str) -> bool {
    let text = text.strip_prefix(['+', '-']).unwrap_or(text);
    let hex = text.starts_with("0x") || text.starts_with("0X");
    let bytes = &text.as_bytes()[if hex { 2 } else { 0 }..];
    let digit = |b: Option<&u8>| {
        b.is_some_and(|b| if hex { b.is_ascii_hexdigit() } else { b.is_ascii_digit() })
    };
    (0..bytes.len()).filter(|&at| bytes[at] == b'_').all(|at| {
        let before = if at == 0 { hex } else { digit(bytes.get(at - 1)) };
        before && digit(bytes.get(at + 1))
    })
}

/// `1.8p3`: what follows `0x`.
fn hex_float(text: &str) -> Option<f64> {
    let (mantissa, exponent) = text.split_once(['p', 'P'])?;
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let mut binary = Binary::default();
    for c in whole.chars().chain(fraction.chars()) {
        binary.push(c.to_digit(16)?, 4);
    }
    if whole.len() + fraction.len() == 0 {
        return None;
    }
    let exponent = saturating_integer(exponent)?.saturating_sub(4 * fraction.len() as i64);
    Some(binary.scale(exponent)).filter(|value| value.is_finite())
}

/// A signed decimal, the largest or smallest integer for what is beyond them.
fn saturating_integer(text: &str) -> Option<i64> {
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let limit = if text.starts_with('-') { i64::MIN } else { i64::MAX };
    Some(text.parse().unwrap_or(limit))
}

/// A whole number put together from digits whose base is a power of two, with as many bits as a
/// float can tell apart.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Binary {
    mantissa: u64,
    /// Bits that had no room in the mantissa.
    exponent: i64,
    /// Whether one of these was set.
    sticky: bool,
}

impl Binary {
    /// Appends a digit of `bits` bits.
    pub(crate) fn push(&mut self, digit: u32, bits: u32) {
        if self.mantissa >> (64 - bits) == 0 {
            self.mantissa = self.mantissa << bits | u64::from(digit);
        } else {
            self.exponent += i64::from(bits);
            self.sticky |= digit != 0;
        }
    }

    /// The float nearest to the number times two to the power of `exponent`, the even one of two;
    /// infinity for what is too large.
    pub(crate) fn scale(self, exponent: i64) -> f64 {
        if self.mantissa == 0 {
            return 0.0;
        }
        // From here on the value is mantissa * 2^exponent with the highest bit set, so its binary
        // logarithm lies between exponent + 63 and exponent + 64.
        let zeros = self.mantissa.leading_zeros();
        let mantissa = u128::from(self.mantissa << zeros);
        let exponent = exponent.saturating_add(self.exponent).saturating_sub(i64::from(zeros));
        if exponent > 1023 - 63 {
            return f64::INFINITY;
        }
        // A normal float has 53 bits, a subnormal one as many as lie above 2^-1074.
        let dropped = exponent.saturating_neg().saturating_sub(1074).max(64 - 53);
        if dropped > 64 {
            return 0.0;
        }
        let kept = mantissa >> dropped;
        let rest = mantissa - (kept << dropped);
        let half = 1_u128 << (dropped - 1);
        let up = rest > half || (rest == half && (self.sticky || kept % 2 == 1));
        (kept + u128::from(up)) as f64 * power_of_two(exponent + dropped)
    }
}

/// Exact from 2^-1074, the smallest float, to 2^1023.
fn power_of_two(exponent: i64) -> f64 {
    if exponent < -1022 {
        f64::from_bits(1 << (exponent + 1074))
    } else {
        f64::from_bits(((exponent + 1023) as u64) << 52)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn numbers_of_every_form() {
        for (text, expected) in [
            ("1", 1.0),
            ("+3", 3.0),
            (".5", 0.5),
            ("5.", 5.0),
            ("-0", 0.0),
            ("00012", 12.0),
            ("1e3", 1000.0),
            ("1E-3", 0.001),
            ("1e+3", 1000.0),
            ("1_000", 1000.0),
            ("1_0.0_1e0_1", 100.1),
            ("inf", f64::INFINITY),
            ("-Infinity", f64::NEG_INFINITY),
            ("+INF", f64::INFINITY),
            ("1e-400", 0.0),
            ("5e-324", 5e-324),
            ("9007199254740993", 9007199254740992.0),
            ("123456789012345678", 123456789012345678.0),
            ("0x1p-2", 0.25),
            ("-0X1.8P1", -3.0),
            ("0x.8p0", 0.5),
            ("0x1.p+1", 2.0),
            ("0x_1_fp0_1", 62.0),
            ("0x1.fffffffffffffp1023", f64::MAX),
            ("0x1.fffffffffffff7ffffp1023", f64::MAX),
            ("0x1p-1074", 5e-324),
            ("0x1p-1075", 0.0),
            ("0x1.0000000000000000001p-1075", 5e-324),
            ("0x3p-1075", 1e-323),
            ("0x1p-1076", 0.0),
            ("0x1p-99999999999999999999", 0.0),
            ("0x0p99999999999999999999", 0.0),
            ("0x1.00000000000008p0", 1.0),
            ("0x1.000000000000080000000000001p0", 1.0 + f64::EPSILON),
            ("0x1.00000000000018p0", 1.0 + 2.0 * f64::EPSILON),
        ] {
            assert_eq!(number(text.as_bytes()), Some(expected), "{text}");
        }
        assert!(number(b"-0").is_some_and(f64::is_sign_negative));
        assert!(number(b"nAn").is_some_and(f64::is_nan));
    }

    #[test]
    fn what_is_no_number() {
        for text in [
            "",
            ".",
            "-",
            "+",
            "+-1",
            "--1",
            " 1",
            "1 ",
            "1.2.3",
            "abc",
            "1e",
            "1e+",
            "e1",
            "1e1.5",
            "+nan",
            "-NaN",
            "infi",
            "in",
            "inf1",
            "1e400",
            "-1e400",
            "_1",
            "1_",
            "1__0",
            "1_.0",
            "1._0",
            "1e_1",
            "1_e1",
            "in_f",
            "0x10",
            "0x",
            "0xp1",
            "0x.p1",
            "0x1p",
            "0x1p+",
            "0xgp1",
            "0x1_p1",
            "0x1p_1",
            "0x1p1024",
            "0x1.fffffffffffff8p1023",
            "0x1p1f",
            "0b1",
            "0o7",
            "0x1p99999999999999999999",
            "é",
            "-0x-1p1",
            "0x+1p1",
            "1,5",
        ] {
            assert_eq!(number(text.as_bytes()), None, "{text}");
        }
        assert_eq!(number(b"\xff"), None);
    }

    #[test]
    fn what_is_short_is_read_at_once_whatever_stands_before_it() {
        for (text, length, expected) in [
            ("1.234567:5", 1, Some(5.0)),
            ("9999999:12.5", 4, Some(12.5)),
            ("name.a:123.45", 6, Some(123.45)),
            ("12345678", 8, Some(12_345_678.0)),
            ("a:1234567.", 8, Some(1_234_567.0)),
            ("a:.1234567", 8, Some(0.123_456_7)),
            ("a:0.000001", 8, Some(0.000_001)),
            ("name:00.50", 5, Some(0.5)),
            ("name.a:.5", 2, Some(0.5)),
            ("name.abc:.", 1, None),
            ("name.abc:1.2.3", 5, None),
            ("name.abc:1:2", 3, None),
            ("name.abc:-1", 2, None),
            ("name.abc:1/", 2, None),
            ("name.abc:\u{b1}1", 3, None),
            ("a:123456789", 9, None),
            ("name.abc:", 0, None),
            ("a:12345", 5, None),
        ] {
            assert_eq!(short(text.as_bytes(), length), expected, "{text}");
        }
    }

    proptest! {
        #[test]
        fn the_short_way_is_the_long_one(before in "[|a-z0-9.:]{0,9}", text in "[0-9.:/+-]{1,9}") {
            let line = format!("{before}{text}");
            if let Some(value) = short(line.as_bytes(), text.len()) {
                prop_assert_eq!(Some(value.to_bits()), text.parse().ok().map(f64::to_bits));
            } else {
                let plain = text.bytes().all(|b| b.is_ascii_digit() || b == b'.');
                prop_assert!(!plain || line.len() < 8 || text.len() > 8 || text.parse::<f64>().is_err());
            }
        }

        #[test]
        fn short_decimals_are_exact(text in "[+-]?[0-9]{0,20}\\.?[0-9]{0,20}") {
            let judge = text.parse::<f64>().ok().map(f64::to_bits);
            prop_assert_eq!(number(text.as_bytes()).map(f64::to_bits), judge);
        }

        #[test]
        fn hexadecimals_round_to_nearest(mantissa: u64, exponent in -900_i32..900) {
            // The cast rounds, the product is exact.
            let judge = mantissa as f64 * 2_f64.powi(exponent);
            let text = format!("0x{mantissa:x}p{exponent}");
            prop_assert_eq!(number(text.as_bytes()), Some(judge));
        }

        #[test]
        fn every_float_survives_the_way_through_hexadecimals(bits: u64) {
            let value = f64::from_bits(bits);
            prop_assume!(value.is_finite());
            let fraction = bits & ((1 << 52) - 1);
            let exponent = (bits >> 52 & 0x7ff) as i64;
            let (lead, exponent) = if exponent == 0 { (0, -1022) } else { (1, exponent - 1023) };
            let sign = if value.is_sign_negative() { "-" } else { "" };
            let text = format!("{sign}0x{lead}.{fraction:013x}p{exponent}");
            prop_assert_eq!(number(text.as_bytes()).map(f64::to_bits), Some(bits));
        }
    }
}
