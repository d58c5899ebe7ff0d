//! Container logs in CRI's format: `<time> <stdout|stderr> <F|P> <text>`, where P marks a part of a longer line.

use std::{
    io::{self, Read, Seek},
    path::{Path, PathBuf},
};

use jiff::Timestamp;

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
    /// Lines before it are left out; None once one was reached that is not.
    since: Option<Timestamp>,
    rest: Vec<u8>,
    /// Whether the last line, shown or not, goes on.
    within: bool,
}

impl Decoder {
    /// With each line's time before it, or without; only lines since a time, if there is one.
    pub fn new(timestamps: bool, since: Option<Timestamp>) -> Self {
        Self { timestamps, since, ..Self::default() }
    }

    /// Takes bytes of the file; appends what the container wrote to `out`.
    pub fn feed(&mut self, bytes: &[u8], out: &mut Vec<u8>) {
        self.rest.extend_from_slice(bytes);
        let rest = std::mem::take(&mut self.rest);
        let mut lines = rest.split(|byte| *byte == b'\n');
        let unfinished = lines.next_back().unwrap_or_default().to_vec();
        for line in lines {
            let Some(line) = parse(line) else { continue };
            let continues = std::mem::replace(&mut self.within, line.partial);
            if self.is_too_old(&line, continues) {
                continue;
            }
            if self.timestamps && !continues {
                out.extend_from_slice(line.time);
                out.push(b' ');
            }
            out.extend_from_slice(line.text);
            if !line.partial {
                out.push(b'\n');
            }
        }
        self.rest = unfinished;
    }

    /// The times in a log only grow, so one line that is new enough opens the way for all after it.
    fn is_too_old(&mut self, line: &Line<'_>, continues: bool) -> bool {
        let Some(since) = self.since else { return false };
        let time = std::str::from_utf8(line.time).ok().and_then(|text| text.parse::<Timestamp>().ok());
        let old = continues || time.is_some_and(|time| time < since);
        if !old {
            self.since = None;
        }
        old
    }
}

/// The most that is read to find the last lines.
const TAIL_MAX: u64 = 64 * 1024 * 1024;

/// Where the last `count` lines that the container wrote begin in its log file, and how many these are.
pub fn tail_start(file: &mut (impl Read + Seek), count: u64) -> io::Result<(u64, u64)> {
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
            Some(skip) => return Ok((starts.get(skip).map_or(end, |start| from + *start as u64), count)),
            None if from == 0 || window >= TAIL_MAX => {
                return Ok((starts.first().map_or(from, |start| from + *start as u64), starts.len() as u64));
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

/// All files of one run's log, oldest first: a file that became too large was set aside under its name and a time.
/// `current` is where the run writes now; it may be missing for a moment.
pub fn files(current: &Path) -> io::Result<Vec<PathBuf>> {
    let (Some(folder), Some(name)) = (current.parent(), current.file_name()) else { return Ok(Vec::new()) };
    let aside = format!("{}.", name.to_string_lossy());
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let other = entry.file_name().to_string_lossy().into_owned();
        if other.strip_prefix(&aside).is_some_and(|time| time.starts_with(|c: char| c.is_ascii_digit())) {
            files.push(entry.path());
        }
    }
    // Times sort as text does.
    files.sort();
    if current.exists() {
        files.push(current.to_owned());
    }
    Ok(files)
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
        let mut decoder = Decoder::new(timestamps, None);
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
            let (start, found) = tail_start(&mut Cursor::new(LOG), count).unwrap();
            assert_eq!(found, count.min(4));
            decode(&LOG[usize::try_from(start).unwrap()..], false, 9)
        };
        assert_eq!(tail(0), "");
        assert_eq!(tail(1), "four\n");
        assert_eq!(tail(2), "\nfour\n");
        assert_eq!(tail(3), "two, first half, second half\n\nfour\n");
        assert_eq!(tail(4), decode(LOG, false, 1));
        assert_eq!(tail(9), decode(LOG, false, 1));
    }

    #[test]
    fn what_was_written_before_a_time_is_left_out_as_whole_lines() {
        let since = |time: &str| {
            let mut decoder = Decoder::new(false, Some(time.parse().unwrap()));
            let mut out = Vec::new();
            decoder.feed(LOG, &mut out);
            String::from_utf8(out).unwrap()
        };
        assert_eq!(since("2025-12-31T00:00:00Z"), decode(LOG, false, 1));
        assert_eq!(since("2026-01-01T00:00:00.3Z"), "\nfour\n", "not the second half of a line");
        assert_eq!(since("2026-01-01T00:00:00.5Z"), "four\n");
        assert_eq!(since("2026-01-02T00:00:00Z"), "");
    }

    #[test]
    fn files_that_were_set_aside_come_first() {
        let dir = tempfile::tempdir().unwrap();
        let current = dir.path().join("0.log");
        for name in ["0.log", "0.log.20260102-000000", "0.log.20260101-000000", "10.log", "0.log.tmp"] {
            std::fs::write(dir.path().join(name), "").unwrap();
        }
        let names: Vec<_> = files(&current).unwrap().iter().map(|f| f.file_name().unwrap().to_owned()).collect();
        assert_eq!(names, ["0.log.20260101-000000", "0.log.20260102-000000", "0.log"]);
    }
}
