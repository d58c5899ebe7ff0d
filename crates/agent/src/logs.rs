//! Container logs in CRI's format: `<time> <stdout|stderr> <F|P> <text>`, where P marks a part of a longer line.

use std::io::{self, Read, Seek};

/// One line of a log file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Line<'a> {
    /// When it was written, RFC 3339.
    pub time: &'a [u8],
    /// Whether the line goes on in the next one.
    pub partial: bool,
    /// What was written.
    pub text: &'a [u8],
}

/// Reads a line without its end; None if it is not of the format.
pub fn parse(line: &[u8]) -> Option<Line<'_>> {
    let mut parts = line.splitn(4, |byte| *byte == b' ');
    let (time, _stream, tag) = (parts.next()?, parts.next()?, parts.next()?);
    let text = parts.next().unwrap_or_default();
    let tag = tag.split(|byte| *byte == b':').next()?;
    matches!(tag, b"F" | b"P").then_some(Line { time, partial: tag == b"P", text })
}

/// Turns a log file's bytes, fed in any pieces, into what the container wrote.
#[derive(Debug, Default)]
pub struct Decoder {
    timestamps: bool,
    rest: Vec<u8>,
    /// Whether the last output ended within a line.
    within: bool,
}

impl Decoder {
    /// With each line's time before it, or without.
    pub fn new(timestamps: bool) -> Self {
        Self { timestamps, ..Self::default() }
    }

    /// Takes bytes of the file; appends what the container wrote to `out`.
    pub fn feed(&mut self, bytes: &[u8], out: &mut Vec<u8>) {
        self.rest.extend_from_slice(bytes);
        let rest = std::mem::take(&mut self.rest);
        let mut lines = rest.split(|byte| *byte == b'\n');
        let unfinished = lines.next_back().unwrap_or_default().to_vec();
        for line in lines {
            let Some(line) = parse(line) else { continue };
            if self.timestamps && !self.within {
                out.extend_from_slice(line.time);
                out.push(b' ');
            }
            out.extend_from_slice(line.text);
            self.within = line.partial;
            if !line.partial {
                out.push(b'\n');
            }
        }
        self.rest = unfinished;
    }
}

/// The most that is read to find the last lines.
const TAIL_MAX: u64 = 64 * 1024 * 1024;

/// Where the last `count` lines that the container wrote begin in its log file.
pub fn tail_start(file: &mut (impl Read + Seek), count: u64) -> io::Result<u64> {
    let end = file.seek(io::SeekFrom::End(0))?;
    let mut window = 64 * 1024;
    loop {
        let from = end.saturating_sub(window);
        file.seek(io::SeekFrom::Start(from))?;
        let mut bytes = Vec::new();
        file.by_ref().take(end - from).read_to_end(&mut bytes)?;
        let starts = line_starts(&bytes, from == 0);
        let enough = usize::try_from(count).ok().and_then(|count| starts.len().checked_sub(count));
        match enough {
            Some(skip) => return Ok(starts.get(skip).map_or(end, |start| from + *start as u64)),
            None if from == 0 || window >= TAIL_MAX => {
                return Ok(starts.first().map_or(from, |start| from + *start as u64));
            }
            None => window *= 2,
        }
    }
}

/// Offsets at which lines of the container begin. Unless `bytes` are the file from its beginning, what stands before the
/// first line's end is unknown.
fn line_starts(bytes: &[u8], from_beginning: bool) -> Vec<usize> {
    let (mut starts, mut at) = (Vec::new(), 0);
    let mut begins = from_beginning;
    for line in bytes.split_inclusive(|byte| *byte == b'\n') {
        if begins {
            starts.push(at);
        }
        let text = line.strip_suffix(b"\n").unwrap_or(line);
        begins = match parse(text) {
            Some(parsed) => !parsed.partial,
            // The rest of a line that was cut at the window's start: whether it was a part cannot be told.
            None => begins,
        };
        at += line.len();
    }
    starts
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;

    const LOG: &[u8] = b"2026-01-01T00:00:00.1Z stdout F one\n\
        2026-01-01T00:00:00.2Z stderr P two, first half,\n\
        2026-01-01T00:00:00.3Z stderr F  second half\n\
        2026-01-01T00:00:00.4Z stdout F \n\
        2026-01-01T00:00:00.5Z stdout F four\n";

    fn decode(log: &[u8], timestamps: bool, step: usize) -> String {
        let mut decoder = Decoder::new(timestamps);
        let mut out = Vec::new();
        log.chunks(step).for_each(|piece| decoder.feed(piece, &mut out));
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn gives_back_what_was_written_however_it_is_read() {
        for step in [1, 7, LOG.len()] {
            assert_eq!(decode(LOG, false, step), "one\ntwo, first half, second half\n\nfour\n");
        }
        let stamped = decode(LOG, true, 5);
        assert_eq!(stamped.lines().nth(1).unwrap(), "2026-01-01T00:00:00.2Z two, first half, second half");
    }

    #[test]
    fn the_tail_begins_at_a_line_of_the_container() {
        let tail = |count| {
            let start = tail_start(&mut Cursor::new(LOG), count).unwrap();
            decode(&LOG[usize::try_from(start).unwrap()..], false, 9)
        };
        assert_eq!(tail(0), "");
        assert_eq!(tail(1), "four\n");
        assert_eq!(tail(2), "\nfour\n");
        assert_eq!(tail(3), "two, first half, second half\n\nfour\n");
        assert_eq!(tail(4), decode(LOG, false, 1));
        assert_eq!(tail(9), decode(LOG, false, 1));
    }
}
