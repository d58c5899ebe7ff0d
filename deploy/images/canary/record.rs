//! What the canary writes: one line for each record, that shows by itself whether it is whole.
//!
//! A line is `EPOCH NUMBER WRITER PAYLOAD CRC`. Numbers go up by one through the whole file. An epoch is one life of the
//! program: it begins with a record whose payload is [`START`] and never comes back, so that two writers at once are seen
//! as two writers in one epoch, as a number that is there twice, or as an epoch that returns.
//!
//! Only the standard library: the image's program and the tests that read what it wrote both compile this file.

use std::fmt;

/// The payload of the first record of an epoch.
pub const START: &str = "-";

/// One record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Which life of the program.
    pub epoch: u64,
    /// Its place in the file, from 1.
    pub number: u64,
    /// Who wrote it: the pod's name, a slash, and what tells this life from all others.
    pub writer: String,
    /// What the client sent. Without spaces.
    pub payload: String,
}

impl Record {
    /// The record as a line, with its end.
    pub fn line(&self) -> String {
        let body = self.to_string();
        format!("{body} {:08x}\n", crc32(body.as_bytes()))
    }

    /// The record of a line without its end; None if it is damaged.
    pub fn parse(line: &[u8]) -> Option<Self> {
        let line = std::str::from_utf8(line).ok()?;
        let (body, crc) = line.rsplit_once(' ')?;
        if crc.len() != 8 || u32::from_str_radix(crc, 16).ok()? != crc32(body.as_bytes()) {
            return None;
        }
        let mut parts = body.split(' ');
        let mut part = || parts.next();
        let record = Self {
            epoch: part()?.parse().ok()?,
            number: part()?.parse().ok()?,
            writer: part()?.to_owned(),
            payload: part()?.to_owned(),
        };
        part().is_none().then_some(record)
    }
}

impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {} {}", self.epoch, self.number, self.writer, self.payload)
    }
}

/// CRC-32 as Ethernet and zip have it.
pub fn crc32(bytes: &[u8]) -> u32 {
    let step = |crc: u32, byte: &u8| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg()))
    };
    !bytes.iter().fold(!0, step)
}
