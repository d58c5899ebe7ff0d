//! Bytes as they come, made into whole lines, each with something before it.

/// What one container writes.
#[derive(Debug, Default)]
pub struct Lines {
    prefix: String,
    begun: Vec<u8>,
}

/// A line that is longer is shown in parts: nobody's line may fill the memory.
const LONGEST: usize = 1 << 20;

impl Lines {
    /// With this before each line.
    pub fn new(prefix: String) -> Self {
        Self { prefix, begun: Vec::new() }
    }

    /// The lines that are complete now.
    pub fn take(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut whole = Vec::new();
        for part in bytes.split_inclusive(|byte| *byte == b'\n') {
            self.begun.extend_from_slice(part);
            if part.ends_with(b"\n") {
                self.end(&mut whole);
            } else if self.begun.len() >= LONGEST {
                self.begun.push(b'\n');
                self.end(&mut whole);
            }
        }
        whole
    }

    /// The last line, if it has no end.
    pub fn rest(mut self) -> Vec<u8> {
        let mut last = Vec::new();
        if !self.begun.is_empty() {
            self.begun.push(b'\n');
            self.end(&mut last);
        }
        last
    }

    fn end(&mut self, whole: &mut Vec<u8>) {
        whole.extend_from_slice(self.prefix.as_bytes());
        whole.append(&mut self.begun);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_whole_however_they_arrive() {
        let mut lines = Lines::new("[web-0] ".to_owned());
        let mut shown = Vec::new();
        for piece in [&b"on"[..], b"e\ntwo", b"", b"\n\nlast"] {
            shown.extend(lines.take(piece));
        }
        shown.extend(lines.rest());
        assert_eq!(String::from_utf8(shown).unwrap(), "[web-0] one\n[web-0] two\n[web-0] \n[web-0] last\n");
    }
}
