//! A number of pods, or a percentage of them: how `maxUnavailable` and `minAvailable` are written.
//!
//! Which way a percentage is rounded is the caller's to say: an update rounds down (MU-1), a disruption budget up (PDB).

use std::fmt;

use pb::objects::{IntOrString, int_or_string::Kind};

/// A number of pods, or a percentage of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bound {
    /// So many pods.
    Count(u32),
    /// So many percent.
    Percent(u32),
}

/// Why a value is no bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadBound {
    /// Neither a number nor a percentage.
    #[error("must be a number, or a percentage such as \"25%\"")]
    Form,
    /// A number below zero.
    #[error("must be greater than or equal to 0")]
    Negative,
    /// More than everything.
    #[error("must not be greater than 100%")]
    TooMuch,
}

impl Bound {
    /// Reads a bound.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn read(value: &IntOrString) -> Result<Self, BadBound> {
        match &value.kind {
            Some(Kind::IntValue(number)) => u32::try_from(*number).map(Self::Count).map_err(|_| BadBound::Negative),
            Some(Kind::StringValue(text)) => {
                let digits = text.strip_suffix('%').filter(|d| !d.is_empty() && d.bytes().all(|b| b.is_ascii_digit()));
                match digits.ok_or(BadBound::Form)?.parse() {
                    Ok(percent @ 0..=100) => Ok(Self::Percent(percent)),
                    Ok(_) | Err(_) => Err(BadBound::TooMuch),
                }
            }
            None => Err(BadBound::Form),
        }
    }

    /// How many of `all` pods it is, a part of a pod counted as a whole one.
    pub fn rounded_up(self, all: u32) -> u32 {
        self.of(all, 99)
    }

    /// How many of `all` pods it is, a part of a pod not counted.
    pub fn rounded_down(self, all: u32) -> u32 {
        self.of(all, 0)
    }

    fn of(self, all: u32, rounding: u64) -> u32 {
        match self {
            Self::Count(count) => count,
            Self::Percent(percent) => {
                let share = (u64::from(all) * u64::from(percent) + rounding) / 100;
                u32::try_from(share).unwrap_or(u32::MAX)
            }
        }
    }
}

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Count(count) => write!(f, "{count}"),
            Self::Percent(percent) => write!(f, "{percent}%"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_percentages_are_read() {
        assert_eq!(Bound::read(&IntOrString::int(3)), Ok(Bound::Count(3)));
        assert_eq!(Bound::read(&IntOrString::text("30%")), Ok(Bound::Percent(30)));
        for (bad, why) in
            [("3", BadBound::Form), ("%", BadBound::Form), ("-1%", BadBound::Form), ("x%", BadBound::Form)]
        {
            assert_eq!(Bound::read(&IntOrString::text(bad)), Err(why), "{bad}");
        }
        assert_eq!(Bound::read(&IntOrString::text("101%")), Err(BadBound::TooMuch));
        assert_eq!(Bound::read(&IntOrString::text("99999999999%")), Err(BadBound::TooMuch));
        assert_eq!(Bound::read(&IntOrString::int(-1)), Err(BadBound::Negative));
        assert_eq!(Bound::read(&IntOrString::default()), Err(BadBound::Form));
    }

    #[test]
    fn a_percentage_is_rounded_as_the_caller_says() {
        let table = [(0, 5, 0, 0), (1, 3, 1, 0), (34, 3, 2, 1), (50, 4, 2, 2), (50, 5, 3, 2), (100, 7, 7, 7)];
        for (percent, all, up, down) in table {
            let bound = Bound::Percent(percent);
            assert_eq!((bound.rounded_up(all), bound.rounded_down(all)), (up, down), "{percent}% of {all}");
        }
        assert_eq!(Bound::Percent(100).rounded_up(u32::MAX), u32::MAX);
        assert_eq!((Bound::Count(9).rounded_up(3), Bound::Count(9).rounded_down(3)), (9, 9));
    }
}
