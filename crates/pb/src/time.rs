//! Times: RFC 3339 in text, jiff's `Timestamp` for reckoning.

use std::{fmt, str::FromStr};

use jiff::Timestamp;

use crate::objects::Time;

impl From<Timestamp> for Time {
    fn from(at: Timestamp) -> Self {
        Self { seconds: at.as_second(), nanos: at.subsec_nanosecond() }
    }
}

impl From<&Time> for Timestamp {
    /// A time outside of what jiff can tell (years -9999 to 9999) becomes the nearest that it can.
    fn from(time: &Time) -> Self {
        let fallback = if time.seconds < 0 { Timestamp::MIN } else { Timestamp::MAX };
        Timestamp::new(time.seconds, time.nanos).unwrap_or(fallback)
    }
}

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Timestamp::from(self).fmt(f)
    }
}

impl FromStr for Time {
    type Err = jiff::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(text.parse::<Timestamp>()?.into())
    }
}

impl Time {
    /// The moment as jiff has it.
    pub fn timestamp(&self) -> Timestamp {
        self.into()
    }
}
