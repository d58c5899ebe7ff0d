//! What must be on a volume: every acknowledged record, nothing that was never sent, and no trace of two writers at once.
//!
//! Pure. A ledger belongs to an ordinal, not to a volume object: whatever volume the ordinal's pod has must hold the
//! ordinal's records. A restore takes the ledger back to the [`Mark`] of the snapshot, see [`Ledger::restore`].

use std::collections::{BTreeMap, BTreeSet};

use super::record::{Record, START};

/// Where an acknowledged record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The epoch that it was acknowledged in.
    pub epoch: u64,
    /// The number that it was acknowledged with.
    pub number: u64,
}

/// What is known of the records of one ordinal.
#[derive(Clone, Debug)]
pub struct Ledger {
    pod: String,
    /// Payloads that are numbered from here on have not been sent yet.
    next: u64,
    /// Acknowledged payloads.
    acked: BTreeMap<u64, Place>,
    /// Payloads that a restore took back: they must not be there, although they were sent.
    undone: BTreeSet<u64>,
}

/// What a snapshot may hold.
#[derive(Clone, Debug)]
pub struct Mark {
    /// Acknowledged before the snapshot was asked for: must be in it.
    floor: BTreeMap<u64, Place>,
    /// Payloads from here on were sent after the snapshot was ready: must not be in it.
    ceiling: Option<u64>,
    /// What an earlier restore had taken back.
    undone: BTreeSet<u64>,
}

/// What was found on a volume on which nothing was wrong.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Records, the first ones of epochs left out.
    pub records: usize,
    /// How often a writer began.
    pub epochs: u64,
    /// Lines that a writer could not end.
    pub torn: usize,
    there: BTreeMap<u64, Place>,
}

impl Ledger {
    /// The ledger of a pod that has nothing yet.
    pub fn new(pod: &str) -> Self {
        Self { pod: pod.to_owned(), next: 0, acked: BTreeMap::new(), undone: BTreeSet::new() }
    }

    /// The pod.
    pub fn pod(&self) -> &str {
        &self.pod
    }

    /// A payload that was never sent before.
    pub fn issue(&mut self) -> (u64, String) {
        let token = self.next;
        self.next += 1;
        (token, format!("{}:{token}", self.pod))
    }

    /// Takes an acknowledgement in.
    pub fn acknowledge(&mut self, token: u64, place: Place) {
        self.acked.insert(token, place);
    }

    /// Records that must be there.
    pub fn acknowledged(&self) -> usize {
        self.acked.len()
    }

    /// The first payload that has not been sent yet.
    pub fn next(&self) -> u64 {
        self.next
    }

    /// Says that payloads below `next` may have been sent in the meantime.
    pub fn sent_until(&mut self, next: u64) {
        self.next = self.next.max(next);
    }

    /// The last payload that was acknowledged.
    pub fn last_acknowledged(&self) -> Option<u64> {
        self.acked.last_key_value().map(|(token, _)| *token)
    }

    /// What a snapshot that is asked for now must hold.
    pub fn mark(&self) -> Mark {
        Mark { floor: self.acked.clone(), ceiling: None, undone: self.undone.clone() }
    }

    /// Says that the snapshot is ready: what is sent from now on is not in it.
    pub fn seal(&self, mark: &mut Mark) {
        mark.ceiling = Some(self.next);
    }

    /// Checks what was read from the volume.
    pub fn check(&self, log: &[u8]) -> Result<Found, Vec<String>> {
        let mut wrong = Vec::new();
        let found = read(&self.pod, log, &mut wrong);
        for token in found.there.keys() {
            if *token >= self.next {
                wrong.push(format!("{}:{token} is there and was never sent", self.pod));
            } else if self.undone.contains(token) {
                wrong.push(format!("{}:{token} is there again after a restore took it back", self.pod));
            }
        }
        holds(&self.pod, &self.acked, &found, &mut wrong);
        if wrong.is_empty() { Ok(found) } else { Err(wrong) }
    }

    /// Checks the first look at a volume whose data was taken back to a snapshot, and goes on from what is there.
    pub fn restore(&mut self, mark: &Mark, log: &[u8]) -> Result<Found, Vec<String>> {
        let mut wrong = Vec::new();
        let found = read(&self.pod, log, &mut wrong);
        holds(&self.pod, &mark.floor, &found, &mut wrong);
        let ceiling = mark.ceiling.unwrap_or(self.next);
        for token in found.there.keys() {
            if *token >= ceiling || mark.undone.contains(token) {
                wrong.push(format!("{}:{token} is there, and the snapshot cannot have held it", self.pod));
            }
        }
        if !wrong.is_empty() {
            return Err(wrong);
        }
        self.undone = (0..self.next).filter(|token| !found.there.contains_key(token)).collect();
        self.acked = found.there.clone();
        Ok(found)
    }
}

/// Says what of the acknowledged is not there as it was acknowledged.
fn holds(pod: &str, acked: &BTreeMap<u64, Place>, found: &Found, wrong: &mut Vec<String>) {
    for (token, place) in acked {
        match found.there.get(token) {
            None => wrong.push(format!("{pod}:{token} was acknowledged at {place:?} and is not there")),
            Some(at) if at != place => {
                wrong.push(format!("{pod}:{token} was acknowledged at {place:?} and is at {at:?}"));
            }
            Some(_) => {}
        }
    }
}

/// Reads a log, and says what is wrong with it whatever it should hold.
fn read(pod: &str, log: &[u8], wrong: &mut Vec<String>) -> Found {
    let mut found = Found::default();
    let mut last: Option<Record> = None;
    // A line that its writer could not end is all right, when the next thing is another epoch.
    let mut torn: Option<String> = None;
    let whole = log.strip_suffix(b"\n").unwrap_or(log);
    let lines = (!whole.is_empty()).then(|| whole.split(|byte| *byte == b'\n')).into_iter().flatten();
    for (index, line) in lines.enumerate() {
        let at = format!("{pod}, line {}", index + 1);
        let Some(record) = Record::parse(line) else {
            if let Some(earlier) = torn.replace(format!("{at}: damaged: {:?}", String::from_utf8_lossy(line))) {
                wrong.push(earlier);
            }
            continue;
        };
        let starts = record.payload == START;
        match torn.take() {
            Some(damage) if !starts => wrong.push(damage),
            Some(_) => found.torn += 1,
            None => {}
        }
        if let Some(mistake) = order(&record, last.as_ref()) {
            wrong.push(format!(
                "{at}: {mistake}: {record} after {}",
                last.map_or("nothing".to_owned(), |r| r.to_string())
            ));
        }
        if record.writer.split_once('/').is_none_or(|(writer, _)| writer != pod) {
            wrong.push(format!("{at}: written by another: {record}"));
        }
        if starts {
            found.epochs += 1;
        } else {
            found.records += 1;
            match record.payload.split_once(':').map(|(owner, token)| (owner, token.parse())) {
                Some((owner, Ok(token))) if owner == pod => {
                    let place = Place { epoch: record.epoch, number: record.number };
                    if found.there.insert(token, place).is_some() {
                        wrong.push(format!("{at}: there twice: {record}"));
                    }
                }
                _ => wrong.push(format!("{at}: not this pod's: {record}")),
            }
        }
        last = Some(record);
    }
    match torn {
        // The very end may be on its way, unless the line feed after it says otherwise.
        Some(damage) if log.ends_with(b"\n") => wrong.push(damage),
        Some(_) => found.torn += 1,
        None => {}
    }
    found
}

/// What is wrong with a record after the one before it.
fn order(record: &Record, last: Option<&Record>) -> Option<&'static str> {
    let starts = record.payload == START;
    let (epoch, number) = last.map_or((0, 0), |last| (last.epoch, last.number));
    if record.number != number + 1 {
        return Some("the numbers have a gap or come twice");
    }
    if starts {
        return (record.epoch != epoch + 1).then_some("an epoch begins that is not the next one");
    }
    if record.epoch != epoch {
        return Some("a record of another epoch: two writers");
    }
    last.is_some_and(|last| last.writer != record.writer).then_some("two writers in one epoch")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A log as the canary writes it, and a ledger that knows it.
    struct World {
        ledger: Ledger,
        log: Vec<u8>,
        epoch: u64,
        number: u64,
        life: u32,
    }

    impl World {
        fn new() -> Self {
            let mut world = Self { ledger: Ledger::new("c-0"), log: Vec::new(), epoch: 0, number: 0, life: 0 };
            world.start();
            world
        }

        fn line(&mut self, payload: &str) -> Vec<u8> {
            self.number += 1;
            let writer = format!("c-0/{}", self.life);
            let record = Record { epoch: self.epoch, number: self.number, writer, payload: payload.to_owned() };
            record.line().into_bytes()
        }

        fn start(&mut self) {
            if !self.log.is_empty() && !self.log.ends_with(b"\n") {
                self.log.push(b'\n');
            }
            self.epoch += 1;
            self.life += 1;
            let line = self.line(START);
            self.log.extend(line);
        }

        fn write(&mut self, acknowledged: bool) {
            let (token, payload) = self.ledger.issue();
            let line = self.line(&payload);
            self.log.extend(line);
            if acknowledged {
                self.ledger.acknowledge(token, Place { epoch: self.epoch, number: self.number });
            }
        }

        fn wrong(&self) -> String {
            self.ledger.check(&self.log).map(|_| String::new()).unwrap_or_else(|wrong| wrong.join("; "))
        }
    }

    fn written() -> World {
        let mut world = World::new();
        for turn in 0..10 {
            world.write(turn % 3 != 0);
            if turn == 4 {
                world.start();
            }
        }
        world
    }

    #[test]
    fn what_was_written_is_in_order() {
        let world = written();
        let found = world.ledger.check(&world.log).unwrap();
        assert_eq!((found.records, found.epochs, found.torn), (10, 2, 0));
        assert_eq!(world.ledger.acknowledged(), 6);
    }

    #[test]
    fn any_changed_byte_of_an_acknowledged_record_is_found() {
        let mut world = World::new();
        world.write(true);
        world.write(true);
        for at in 0..world.log.len() {
            let mut log = world.log.clone();
            log[at] ^= 0x10;
            assert!(world.ledger.check(&log).is_err(), "byte {at}");
        }
    }

    #[test]
    fn a_lost_tail_is_found_and_so_is_an_empty_volume() {
        let mut world = World::new();
        world.write(true);
        let kept = world.log.len();
        world.write(true);
        assert!(world.ledger.check(&world.log[..kept]).unwrap_err()[0].contains("is not there"));
        assert!(world.ledger.check(&[]).is_err());
    }

    #[test]
    fn a_record_that_was_not_acknowledged_may_be_torn_by_the_end_of_its_writer() {
        let mut world = written();
        world.write(false);
        world.log.truncate(world.log.len() - 5);
        assert_eq!(world.ledger.check(&world.log).unwrap().torn, 1, "at the end");
        world.number -= 1;
        world.start();
        world.write(true);
        assert_eq!(world.ledger.check(&world.log).unwrap().torn, 1, "before the next life");
        // Within a life nothing tears.
        let mut world = World::new();
        world.log.extend(b"half a li\n");
        world.write(true);
        assert!(world.wrong().contains("damaged"));
    }

    #[test]
    fn two_writers_at_once_are_found() {
        // Both began after reading the same log.
        let mut one = written();
        let mut other =
            World { ledger: one.ledger.clone(), log: Vec::new(), epoch: one.epoch, number: one.number, life: 77 };
        one.start();
        other.start();
        one.log.extend(other.log);
        assert!(!one.wrong().is_empty());

        // The old one goes on after the new one has begun.
        let mut world = written();
        let (epoch, number, life) = (world.epoch, world.number, world.life);
        world.start();
        world.write(true);
        (world.epoch, world.number, world.life) = (epoch, number, life);
        world.write(true);
        assert!(!world.wrong().is_empty());

        // The same, when the numbers fit by chance.
        let mut world = written();
        world.start();
        world.epoch -= 1;
        world.life -= 1;
        world.write(true);
        assert!(world.wrong().contains("two writers"), "{}", world.wrong());
    }

    #[test]
    fn the_volume_of_another_ordinal_is_found() {
        let world = written();
        let mut other = Ledger::new("c-1");
        other.issue();
        assert!(other.check(&world.log).unwrap_err()[0].contains("another"));
    }

    #[test]
    fn what_was_never_sent_or_is_there_twice_is_found() {
        let mut world = World::new();
        let line = world.line("c-0:5");
        world.log.extend(line);
        assert!(world.wrong().contains("never sent"));
        let mut world = World::new();
        world.write(false);
        let line = world.line("c-0:0");
        world.log.extend(line);
        assert!(world.wrong().contains("there twice"));
    }

    #[test]
    fn a_restore_takes_back_to_the_snapshot_and_no_further() {
        let mut world = World::new();
        world.write(true);
        let mut mark = world.ledger.mark();
        // In flight while the snapshot is made: it may hold it or not.
        world.write(true);
        let with = world.log.clone();
        world.ledger.seal(&mut mark);
        world.write(true);
        assert!(world.ledger.clone().restore(&mark, &world.log).unwrap_err()[0].contains("cannot have held"));
        assert!(world.ledger.clone().restore(&mark, &[]).unwrap_err()[0].contains("is not there"));

        let after = world.log.clone();
        world.ledger.restore(&mark, &with).unwrap();
        assert_eq!(world.ledger.acknowledged(), 2);
        assert!(world.ledger.check(&with).is_ok());
        // The data from before the restore must not come back.
        assert!(world.ledger.check(&after).unwrap_err()[0].contains("took it back"));
    }
}
