//! Volume ids: the only part of a request that becomes part of a path beneath the data directory.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// An id that is safe as the name of a directory: 1 to 128 of `a-z`, `0-9`, `-` and `.`, beginning and ending with a
/// letter or digit, without two dots in a row.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct VolumeId(String);

/// A text that is no volume id.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not a volume id: expected 1 to 128 of a-z, 0-9, - and ., beginning and ending with a letter or digit, \
     without \"..\""
)]
pub struct BadVolumeId(String);

impl VolumeId {
    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for VolumeId {
    type Error = BadVolumeId;

    fn try_from(text: String) -> Result<Self, BadVolumeId> {
        text.parse()
    }
}

impl From<VolumeId> for String {
    fn from(id: VolumeId) -> Self {
        id.0
    }
}

impl fmt::Display for VolumeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for VolumeId {
    type Err = BadVolumeId;

    fn from_str(text: &str) -> Result<Self, BadVolumeId> {
        let alphanumeric = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        let bytes = text.as_bytes();
        let good = (1..=128).contains(&bytes.len())
            && bytes.iter().all(|byte| alphanumeric(*byte) || matches!(byte, b'-' | b'.'))
            && bytes.first().is_some_and(|byte| alphanumeric(*byte))
            && bytes.last().is_some_and(|byte| alphanumeric(*byte))
            && !text.contains("..");
        if good { Ok(Self(text.to_owned())) } else { Err(BadVolumeId(text.chars().take(160).collect())) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_names_and_no_paths() {
        for good in ["pvc-0b6c2c2e-6a3c-4a57-9b8e-0f8f5f1d2c3b", "a", "data.v1"] {
            assert!(good.parse::<VolumeId>().is_ok(), "{good}");
        }
        let long = "a".repeat(129);
        for bad in ["", ".", "..", "a..b", "../a", "a/b", "/a", "a\0b", "A", "a b", "-a", "a-", ".a", "é", &long] {
            assert!(bad.parse::<VolumeId>().is_err(), "{bad}");
        }
    }
}
