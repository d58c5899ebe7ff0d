//! Amounts of bytes for people.

/// `512`, `1.5Ki`, `20Gi`: three figures at most.
pub fn short(bytes: i64) -> String {
    const UNITS: [&str; 6] = ["", "Ki", "Mi", "Gi", "Ti", "Pi"];
    let (mut amount, mut unit) = (bytes.max(0) as f64, 0);
    // Rounding must not give 1024 of a unit.
    while amount >= 1023.5 && unit + 1 < UNITS.len() {
        amount /= 1024.0;
        unit += 1;
    }
    let suffix = UNITS.get(unit).copied().unwrap_or_default();
    let text = if unit == 0 || amount >= 9.95 { format!("{amount:.0}") } else { format!("{amount:.1}") };
    format!("{}{suffix}", text.strip_suffix(".0").unwrap_or(&text))
}

/// `412Mi (41%)`
pub fn share(part: i64, whole: i64) -> String {
    match percent(part, whole) {
        Some(percent) => format!("{} ({percent}%)", short(part)),
        None => short(part),
    }
}

/// How much of the whole, in percent; None if the whole is not known.
pub fn percent(part: i64, whole: i64) -> Option<i64> {
    (whole > 0).then(|| (i128::from(part.max(0)) * 100 / i128::from(whole)).try_into().unwrap_or(100))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_short() {
        let cases = [
            (0, "0"),
            (999, "999"),
            (1536, "1.5Ki"),
            (1 << 20, "1Mi"),
            (1_048_575, "1Mi"),
            (432 << 20, "432Mi"),
            ((1 << 30) + (1 << 29), "1.5Gi"),
            (20 << 30, "20Gi"),
        ];
        for (bytes, text) in cases {
            assert_eq!(short(bytes), text);
        }
        assert_eq!(share(512 << 20, 2 << 30), "512Mi (25%)");
        assert_eq!(share(5, 0), "5");
        assert_eq!(percent(i64::MAX, i64::MAX), Some(100));
    }
}
