//! How long ago, in few characters, as kubectl writes it: 7s, 2m5s, 3h, 5d.

use jiff::Timestamp;
use pb::objects::Time;

/// The time since `then`; `<unknown>` if there is none.
pub fn since(then: Option<&Time>, now: Timestamp) -> String {
    match then {
        Some(then) => short(now.as_second() - then.seconds),
        None => "<unknown>".to_owned(),
    }
}

/// A span of seconds.
pub fn short(seconds: i64) -> String {
    const MINUTE: i64 = 60;
    const HOUR: i64 = 60 * MINUTE;
    const DAY: i64 = 24 * HOUR;
    const YEAR: i64 = 365 * DAY;
    let two = |big: i64, unit: &str, small: i64, small_unit: &str| match small {
        0 => format!("{big}{unit}"),
        _ => format!("{big}{unit}{small}{small_unit}"),
    };
    match seconds.max(0) {
        s if s < 2 * MINUTE => format!("{s}s"),
        s if s < 10 * MINUTE => two(s / MINUTE, "m", s % MINUTE, "s"),
        s if s < 3 * HOUR => format!("{}m", s / MINUTE),
        s if s < 8 * HOUR => two(s / HOUR, "h", s % HOUR / MINUTE, "m"),
        s if s < 2 * DAY => format!("{}h", s / HOUR),
        s if s < 8 * DAY => two(s / DAY, "d", s % DAY / HOUR, "h"),
        s if s < 2 * YEAR => format!("{}d", s / DAY),
        s if s < 8 * YEAR => two(s / YEAR, "y", s % YEAR / DAY, "d"),
        s => format!("{}y", s / YEAR),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_kubectl_has_it() {
        let cases = [
            (-5, "0s"),
            (7, "7s"),
            (119, "119s"),
            (120, "2m"),
            (125, "2m5s"),
            (3600, "60m"),
            (3 * 3600 + 60, "3h1m"),
            (36 * 3600, "36h"),
            (3 * 86400, "3d"),
            (400 * 86400, "400d"),
            (800 * 86400, "2y70d"),
        ];
        for (seconds, text) in cases {
            assert_eq!(short(seconds), text);
        }
    }
}
