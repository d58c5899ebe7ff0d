//! Amounts: `500m`, `1Gi`, `2.5`, `1e3`.
//!
//! An amount is an exact number of billionths in 128 bits; nothing here ever passes through a float. Finer fractions
//! round up, as in Kubernetes. Amounts beyond 10^24 whole units are refused (Kubernetes cuts them to 2^63-1), which leaves
//! room to add a hundred thousand of them before the sum could overflow; a sum that still would stays at the bound.
//!
//! What a user wrote is kept as written in the objects. This type is for comparing, adding and printing anew.

use std::{
    cmp::Ordering,
    fmt,
    iter::Sum,
    ops::{Add, Sub},
    str::FromStr,
};

const NANOS: i128 = 1_000_000_000;
const LARGEST: i128 = 1_000_000_000_000_000_000_000_000 * NANOS;

/// How an amount is printed: in the family of suffixes in which it was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Family {
    /// n u m k M G T P E
    Decimal,
    /// Ki Mi Gi Ti Pi Ei
    Binary,
    /// e3, e6, ...
    Exponent,
}

/// An exact amount. Equal amounts are equal, however they were written.
#[derive(Clone, Copy, Debug)]
pub struct Quantity {
    nanos: i128,
    family: Family,
}

/// A text is not an amount.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadQuantity {
    /// Not of the form.
    #[error(
        "must be a number with an optional suffix (n u m k M G T P E, Ki Mi Gi Ti Pi Ei, or an exponent), such as 500m, 1Gi or 2.5"
    )]
    Form,
    /// Beyond 10^24.
    #[error("must not be beyond 1000000E (10^24)")]
    TooLarge,
}

impl Quantity {
    /// Nothing.
    pub const ZERO: Quantity = Quantity { nanos: 0, family: Family::Decimal };

    /// So many whole units, printed with decimal suffixes.
    pub const fn units(units: i64) -> Self {
        Self { nanos: units as i128 * NANOS, family: Family::Decimal }
    }

    /// So many bytes, printed with binary suffixes.
    pub const fn bytes(bytes: i64) -> Self {
        Self { nanos: bytes as i128 * NANOS, family: Family::Binary }
    }

    /// So many thousandths, printed with decimal suffixes.
    pub const fn millis(millis: i64) -> Self {
        Self { nanos: millis as i128 * (NANOS / 1000), family: Family::Decimal }
    }

    /// Billionths.
    pub const fn as_nanos(self) -> i128 {
        self.nanos
    }

    /// Whole units, rounded up: bytes of memory or storage. Bounded by what 64 bits hold.
    pub fn as_units(self) -> i64 {
        clamp(ceiling(self.nanos, NANOS))
    }

    /// Thousandths, rounded up: what CPU is counted in. Bounded by what 64 bits hold.
    pub fn as_millis(self) -> i64 {
        clamp(ceiling(self.nanos, NANOS / 1000))
    }

    /// Whether it is less than nothing.
    pub const fn is_negative(self) -> bool {
        self.nanos < 0
    }

    /// Whether it is nothing.
    pub const fn is_zero(self) -> bool {
        self.nanos == 0
    }
}

fn ceiling(nanos: i128, unit: i128) -> i128 {
    nanos.div_euclid(unit) + i128::from(nanos.rem_euclid(unit) != 0)
}

fn clamp(value: i128) -> i64 {
    i64::try_from(value).unwrap_or(if value < 0 { i64::MIN } else { i64::MAX })
}

impl FromStr for Quantity {
    type Err = BadQuantity;

    fn from_str(text: &str) -> Result<Self, BadQuantity> {
        let (negative, rest) = match text.as_bytes().first() {
            Some(b'-') => (true, &text[1..]),
            Some(b'+') => (false, &text[1..]),
            _ => (false, text),
        };
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let (number, suffix) = rest.split_at(end);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if fraction.contains('.') || (whole.is_empty() && fraction.is_empty()) {
            return Err(BadQuantity::Form);
        }
        let (family, scale) = Scale::parse(suffix).ok_or(BadQuantity::Form)?;
        let nanos = scale.nanos(whole, fraction).filter(|n| *n <= LARGEST).ok_or(BadQuantity::TooLarge)?;
        Ok(Self { nanos: if negative { -nanos } else { nanos }, family })
    }
}

/// What a suffix multiplies by.
enum Scale {
    Ten(i32),
    Two(u32),
}

impl Scale {
    fn parse(suffix: &str) -> Option<(Family, Scale)> {
        let decimal = |exponent| Some((Family::Decimal, Scale::Ten(exponent)));
        let binary = |exponent| Some((Family::Binary, Scale::Two(exponent)));
        match suffix {
            "n" => decimal(-9),
            "u" => decimal(-6),
            "m" => decimal(-3),
            "" => decimal(0),
            "k" => decimal(3),
            "M" => decimal(6),
            "G" => decimal(9),
            "T" => decimal(12),
            "P" => decimal(15),
            "E" => decimal(18),
            "Ki" => binary(10),
            "Mi" => binary(20),
            "Gi" => binary(30),
            "Ti" => binary(40),
            "Pi" => binary(50),
            "Ei" => binary(60),
            _ => {
                let exponent: i32 = suffix.strip_prefix(['e', 'E'])?.parse().ok()?;
                Some((Family::Exponent, Scale::Ten(exponent)))
            }
        }
    }

    /// Billionths of `whole.fraction` at this scale, rounded up; None beyond 128 bits.
    fn nanos(&self, whole: &str, fraction: &str) -> Option<i128> {
        let fraction = fraction.trim_end_matches('0');
        let digits = format!("{whole}{fraction}");
        let digits = digits.trim_start_matches('0');
        if digits.is_empty() {
            return Some(0);
        }
        let places = i32::try_from(fraction.len()).ok()?;
        let (factor, exponent) = match self {
            Scale::Ten(exponent) => (1, *exponent),
            Scale::Two(bits) => (1i128 << bits, 0),
        };
        let shift = exponent.checked_sub(places)?.checked_add(9)?;
        // An amount with more digits than 128 bits hold is too large, unless most of them are a fraction too fine to
        // count: those digits are cut, and what is cut rounds up.
        let fine = usize::try_from(-shift).unwrap_or(0);
        let cut = if matches!(self, Scale::Ten(_)) { fine.min(digits.len()) } else { 0 };
        let (kept, dropped) = digits.split_at(digits.len() - cut);
        let mantissa = if kept.is_empty() { 0 } else { kept.parse::<i128>().ok()? };
        let value = mantissa.checked_mul(factor)?;
        if cut > 0 {
            return value.checked_add(i128::from(dropped.bytes().any(|d| d != b'0')));
        }
        match u32::try_from(shift) {
            Ok(up) => value.checked_mul(10i128.checked_pow(up)?),
            Err(_) => Some(10i128.checked_pow(shift.unsigned_abs()).map_or(1, |down| ceiling(value, down))),
        }
    }
}

impl TryFrom<&pb::objects::Quantity> for Quantity {
    type Error = BadQuantity;

    fn try_from(quantity: &pb::objects::Quantity) -> Result<Self, BadQuantity> {
        quantity.value.parse()
    }
}

impl From<Quantity> for pb::objects::Quantity {
    fn from(quantity: Quantity) -> Self {
        Self { value: quantity.to_string() }
    }
}

impl fmt::Display for Quantity {
    /// The canonical form: a whole number with the largest suffix of its family that leaves no fraction.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let whole = self.nanos % NANOS == 0;
        let small = self.nanos.abs() < 1024 * NANOS;
        match self.family {
            Family::Binary if whole && !small => {
                let suffixes = ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
                let (number, steps) = reduced(self.nanos / NANOS, 1024, suffixes.len() - 1);
                f.pad(&format!("{number}{}", suffixes[steps]))
            }
            Family::Exponent => {
                let (number, steps) = reduced(self.nanos, 1000, 9);
                match 3 * i32::try_from(steps).unwrap_or(0) - 9 {
                    0 => f.pad(&number.to_string()),
                    exponent => f.pad(&format!("{number}e{exponent}")),
                }
            }
            Family::Decimal | Family::Binary => {
                let suffixes = ["n", "u", "m", "", "k", "M", "G", "T", "P", "E"];
                let (number, steps) = reduced(self.nanos, 1000, suffixes.len() - 1);
                f.pad(&format!("{number}{}", suffixes[steps]))
            }
        }
    }
}

/// Divides by `base` while nothing is lost; nothing itself is three steps up from billionths, at whole units.
fn reduced(mut number: i128, base: i128, most: usize) -> (i128, usize) {
    if number == 0 {
        return (0, if base == 1000 { 3 } else { 0 });
    }
    let mut steps = 0;
    while steps < most && number % base == 0 {
        number /= base;
        steps += 1;
    }
    (number, steps)
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Self) -> bool {
        self.nanos == other.nanos
    }
}

impl Eq for Quantity {}

impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Quantity {
    fn cmp(&self, other: &Self) -> Ordering {
        self.nanos.cmp(&other.nanos)
    }
}

impl Add for Quantity {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        let family = if self.is_zero() { other.family } else { self.family };
        Self { nanos: self.nanos.saturating_add(other.nanos), family }
    }
}

impl Sub for Quantity {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        Self { nanos: self.nanos.saturating_sub(other.nanos), family: self.family }
    }
}

impl Sum for Quantity {
    fn sum<I: Iterator<Item = Self>>(amounts: I) -> Self {
        amounts.fold(Self::ZERO, Add::add)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn q(text: &str) -> Quantity {
        text.parse().unwrap_or_else(|e| panic!("{text}: {e}"))
    }

    #[test]
    fn canonical_forms() {
        let cases = [
            ("0", "0"),
            ("0Gi", "0"),
            ("0.5", "500m"),
            ("1500m", "1500m"),
            ("1000m", "1"),
            ("1000", "1k"),
            ("1024", "1024"),
            ("1024Ki", "1Mi"),
            ("1Gi", "1Gi"),
            ("0.5Gi", "512Mi"),
            ("0.1Gi", "107374182400m"),
            ("512", "512"),
            ("1e3", "1e3"),
            ("1E3", "1e3"),
            ("12E", "12E"),
            ("100e-3", "100e-3"),
            ("-1", "-1"),
            ("+2k", "2k"),
            (".5", "500m"),
            ("5.", "5"),
            ("1.5Ki", "1536"),
            ("100Ki", "100Ki"),
            ("1n", "1n"),
            ("0.0000000001", "1n"),
            ("9223372036854775807", "9223372036854775807"),
            ("000001", "1"),
            ("1.10", "1100m"),
            ("0.000000000000000000000000000000000000000000000001", "1n"),
            ("1e-99", "1e-9"),
        ];
        for (text, canonical) in cases {
            assert_eq!(q(text).to_string(), canonical, "{text}");
        }
    }

    #[test]
    fn what_is_not_an_amount() {
        for text in [
            "",
            "-",
            ".",
            "1.2.3",
            "1 Gi",
            "Gi",
            "1KiB",
            "1ki",
            "1K",
            "0x10",
            "1e",
            "1e1.5",
            "--1",
            "1Gi ",
            "½",
            "1e99999999999",
        ] {
            assert_eq!(text.parse::<Quantity>(), Err(BadQuantity::Form), "{text:?}");
        }
        for text in [
            "1000000000000000000000001",
            "1000001E",
            "1e25",
            "1e999",
            "1e2147483647",
            "99999999999999999999999999999999999999999999",
        ] {
            assert_eq!(text.parse::<Quantity>(), Err(BadQuantity::TooLarge), "{text}");
        }
    }

    #[test]
    fn units_round_up() {
        assert_eq!(q("1500m").as_units(), 2);
        assert_eq!(q("-1500m").as_units(), -1);
        assert_eq!(q("1u").as_millis(), 1);
        assert_eq!(q("0.1Gi").as_units(), 107_374_183);
    }

    proptest! {
        #[test]
        fn printing_and_reading_is_identity(number in -4_000_000_000_000i64..4_000_000_000_000, suffix in "(n|u|m||k|M|Ki|Mi|e3|e-3)") {
            let first: Quantity = q(&format!("{number}{suffix}"));
            let printed = first.to_string();
            prop_assert_eq!(q(&printed), first);
            prop_assert_eq!(q(&printed).to_string(), printed);
        }

        #[test]
        fn order_and_sums_are_those_of_the_numbers(a in -1_000_000_000i64..1_000_000_000, b in -1_000_000_000i64..1_000_000_000) {
            let (qa, qb) = (Quantity::millis(a), q(&format!("{b}m")));
            prop_assert_eq!(qa.cmp(&qb), a.cmp(&b));
            prop_assert_eq!((qa + qb).as_millis(), a + b);
            prop_assert_eq!((qa - qb).as_millis(), a - b);
        }

        #[test]
        fn no_text_panics(text in "[-+]?[0-9.]{0,50}[a-zA-Z]{0,3}[-+]?[0-9]{0,12}") {
            if let Ok(quantity) = text.parse::<Quantity>() {
                prop_assert_eq!(q(&quantity.to_string()), quantity);
            }
        }
    }
}
